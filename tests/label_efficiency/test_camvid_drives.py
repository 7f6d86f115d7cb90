"""The split that settings are tuned on."""

import os
import sys
from pathlib import Path

import pytest

from ddep_hub.data.segmentation_datasets import SegmentationFolder


sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
from camvid_drives import write_tuning_folder


CAMVID = Path(os.environ.get("DDEP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "camvid"


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid in DDEP_DATA")
def test_the_held_out_drive_is_scored_on_and_not_trained_on(tmp_path):
    numbers = write_tuning_folder(CAMVID, tmp_path / "tuning")
    train, held_out = (SegmentationFolder(tmp_path / "tuning", split) for split in ("train", "val"))
    assert numbers == {"train": len(train), "val": len(held_out)} == {"train": 266, "val": 101}
    assert {stem.split("_")[0] for stem in held_out.sample_ids} == {"0006R0"}
    assert {stem.split("_")[0] for stem in train.sample_ids} == {"0001TP", "0016E5"}
    test = SegmentationFolder(CAMVID, "test")
    assert not set(test.sample_ids) & {*train.sample_ids, *held_out.sample_ids}
    assert held_out[0]["image"] is not None and held_out.classes.num_classes == 11
    with pytest.raises(FileExistsError):
        write_tuning_folder(CAMVID, tmp_path / "tuning")


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(SystemExit, match="0006R0"):
        write_tuning_folder(tmp_path, tmp_path / "tuning")
    assert not (tmp_path / "tuning").exists()
