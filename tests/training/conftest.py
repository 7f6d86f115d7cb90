"""What the tests of training share: tiny runs, whose loss curves are not drawn."""

import importlib.util

import pytest
from PIL import Image

from ddep_hub.training.arguments import PretrainArguments


@pytest.fixture(autouse=True)
def blank_plots(monkeypatch):
    """Loss curves are made, but not drawn: matplotlib would take a fifth of the time of a run of a few steps.

    Fixtures of a wider scope draw, as test_runs.py's, and so does test_logging.py.
    """
    if importlib.util.find_spec("matplotlib") is not None:
        blank = Image.new("RGB", (8, 8))
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: blank.save(file, "PNG"))


@pytest.fixture(scope="session")
def finetune_fields(tiny):
    """`tiny` without what belongs to the model to start from."""
    return {name: value for name, value in tiny.items() if not name.startswith(("decoder_", "encoder_"))}


@pytest.fixture(scope="session")
def pretrain_arguments(scenes, tiny, finetune_fields):
    """Makes the arguments of a pretraining of three steps on rendered scenes."""

    def build(output, **fields):
        settings = finetune_fields if "pretrained" in fields else tiny
        images = {"images": [str(scenes / "unlabelled")], "num_val_images": 2, "max_steps": 3}
        return PretrainArguments(output_dir=str(output), **{**settings, **images, **fields})

    return build
