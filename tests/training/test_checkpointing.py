"""Checkpoints as files: whole or not there, checked, rotated, and told from those of other runs."""

import contextlib
import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ddep_hub import DDePConfig, DDePImageProcessor
from ddep_hub.training.checkpointing import (
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    find_checkpoint,
    read_checkpoint,
    rename_later_checkpoints,
    write_checkpoint,
)


FINGERPRINT = {"script": "PretrainArguments", "learning_rate": 1e-3, "data": "abc"}


def write(output, step, limit=5, size=4):
    checkpoint = Checkpoint(
        step=step,
        fingerprint=FINGERPRINT,
        environment={"processes": 1},
        progress={"step": step},
        model={"weight": torch.full((size, 2), float(step))},
        average={"weight": torch.full((size, 2), -float(step))},
        optimizer={"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    )
    config, processor = DDePConfig(encoder_name="tf_efficientnet_lite0"), DDePImageProcessor()
    return write_checkpoint(output, checkpoint, config, processor, limit=limit, how_to_resume="Go on.")


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path, 7)
    assert path == tmp_path / "checkpoints" / "step-7"
    found = read_checkpoint(path, FINGERPRINT)
    assert (found.step, found.progress, found.environment) == (7, {"step": 7}, {"processes": 1})
    assert found.model["weight"].eq(7).all() and found.average["weight"].eq(-7).all()
    assert found.optimizer["state"][0]["exp_avg"].eq(1).all()


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        write(tmp_path, step, limit=2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-15", "step-100"]
    assert find_checkpoint(tmp_path, "latest").name == "step-100"


def test_the_one_just_written_is_kept_whatever_its_step(tmp_path):
    for step in (20, 60, 80):
        write(tmp_path, step)
    write(tmp_path, 40, limit=1)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-40", "step-80"]


def test_later_ones_are_set_aside_when_an_older_one_is_gone_on_from(tmp_path):
    for step in (20, 60, 80):
        write(tmp_path, step)
    for _ in range(2):
        rename_later_checkpoints(tmp_path / "checkpoints" / "step-20")
        assert find_checkpoint(tmp_path, "latest").name == "step-20"
        write(tmp_path, 60)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "step-20",
        "step-60",
        "set-aside-step-60",
        "set-aside-step-80",
    }


def test_latest_of_none_is_none(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write(tmp_path / "run", 5)
    with pytest.raises(CheckpointError, match=r"step-6 does not exist.*has: step-5"):
        find_checkpoint(tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "step-6"))
    write(tmp_path / "other", 6)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of the run in .*output_dir"):
        find_checkpoint(tmp_path / "run", str(tmp_path / "other" / "checkpoints" / "step-6"))


def test_a_link_or_a_relative_path_is_the_runs_own_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 5)
    write(tmp_path, 10)
    (tmp_path / "last").symlink_to(tmp_path / "checkpoints" / "step-5")
    assert find_checkpoint(tmp_path, str(tmp_path / "last")) == tmp_path / "checkpoints" / "step-5"
    monkeypatch.chdir(tmp_path / "checkpoints")
    (renamed,) = rename_later_checkpoints(find_checkpoint(Path(".."), "step-5"))
    assert renamed.name == "set-aside-step-10"


@pytest.mark.parametrize("name", ["model.safetensors", "unaveraged.safetensors", "optimizer.pt", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_file_is_named_with_the_checkpoint_that_is_left(tmp_path, name, damage):
    write(tmp_path, 5)
    path = write(tmp_path, 10)
    content = bytearray((path / name).read_bytes())
    if damage == "cut":
        (path / name).write_bytes(content[:-5])
    elif damage == "flip":
        content[-1] ^= 1
        (path / name).write_bytes(content)
    else:
        (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"step-10 is damaged: .*{name}.*step-5 still exists"):
        read_checkpoint(path, FINGERPRINT)
    assert read_checkpoint(find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step-5")), FINGERPRINT).step == 5


def test_a_damaged_record_is_named(tmp_path):
    path = write(tmp_path, 10)
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-10 is damaged"):
        read_checkpoint(path, FINGERPRINT)


def test_a_newer_format_is_named(tmp_path):
    path = write(tmp_path, 10)
    record = json.loads((path / "checkpoint.json").read_text()) | {"format": 99}
    (path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="newer ddep_hub"):
        read_checkpoint(path, FINGERPRINT)


def test_another_run_is_told_by_what_differs(tmp_path):
    path = write(tmp_path, 10)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.001 and is 0\.01; data was 'abc' and is 'd'"):
        read_checkpoint(path, {**FINGERPRINT, "learning_rate": 1e-2, "data": "d"})


@contextlib.contextmanager
def small_files_alone():
    """The system refuses to write more than 64 KiB into a file, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path):
    write(tmp_path, 5)
    said = r"step-10 could not be written: .*it needs about 2 MB, \d+ MB are free.*step-5 still exists.*Go on\."
    with pytest.raises(CheckpointError, match=said), small_files_alone():
        write(tmp_path, 10, size=100_000)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert read_checkpoint(tmp_path / "checkpoints" / "step-5", FINGERPRINT).step == 5


def test_a_folder_that_moved_is_the_same_run(tmp_path):
    write(tmp_path / "old", 5)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert read_checkpoint(find_checkpoint(tmp_path / "new", "latest"), FINGERPRINT).step == 5
