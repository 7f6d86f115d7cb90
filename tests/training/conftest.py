"""A tiny data set of rendered scenes, and arguments for runs of seconds."""

import pytest

from ddep_hub.data.synthetic import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Rendered scenes of 64x64 pixels: splits `train` (6) and `val` (3), and 12 unlabelled images."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, splits={"train": 6, "val": 3}, unlabelled=12, size=(64, 64))


@pytest.fixture(scope="session")
def tiny():
    """Arguments that make both trainings small, without weights from elsewhere but the quickstart's."""
    return {
        "decoder_hidden_sizes": [16, 8, 8, 8, 8],
        "decoder_bottleneck_size": 16,
        "batch_size": 4,
        "crop_size": 32,
        "warmup_steps": 1,
        "log_every": 1,
    }
