"""The picture of a run's loss."""

import errno
import json
from unittest import mock

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from ddep_hub.training import logging as loss_curve
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.logging import MetricsLogger, plot_loss


@pytest.fixture(autouse=True)
def blank_plots():
    """These are drawn."""


def object_pixels(folder, losses):
    """The picture of these losses, as an array; `None` where there is none."""
    rows = [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = folder / "loss.png"
    picture.unlink(missing_ok=True)
    assert plot_loss(folder / "metrics.jsonl", picture) == picture.exists()
    return np.asarray(Image.open(picture).convert("L")) if picture.exists() else None


def test_a_falling_loss_falls(tmp_path):
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    inside = object_pixels(tmp_path, [1.0, 0.1, 0.01])[20:-70, 120:-30]
    rows = [np.flatnonzero(column < 130).mean() for column in (inside[:, 20], inside[:, -21])]
    assert rows[0] + 100 < rows[1]  # row 0 is the top


def test_a_full_disk_does_not_end_a_run_over_its_list_of_bad_files(tmp_path, monkeypatch):
    args = PretrainArguments(output_dir=str(tmp_path), skip_bad_files=True)
    logger = MetricsLogger(Accelerator(), args, 0, ["a.jpg"])
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr("ddep_hub.training.logging.atomic_write", mock.Mock(side_effect=full))
        with pytest.warns(UserWarning, match=r"bad_files\.txt"):
            assert logger.bad_file_count() == {"bad_files": 1}
    assert logger.bad_file_count() == {"bad_files": 1} and (tmp_path / "bad_files.txt").read_text() == "a.jpg\n"


def test_no_picture_where_there_is_nothing_to_draw_or_to_draw_it_with(tmp_path, monkeypatch):
    assert object_pixels(tmp_path, []) is None and object_pixels(tmp_path, [1.0]) is None
    monkeypatch.setattr(loss_curve, "find_spec", lambda name: None)
    assert object_pixels(tmp_path, [1.0, 0.5]) is None
