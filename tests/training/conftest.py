"""What the tests of training share: tiny runs, whose loss curves are not drawn."""

import importlib.util

import pytest
from PIL import Image

from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.pretraining import pretrain


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


@pytest.fixture
def pretraining(scenes, tiny, tmp_path):
    """Runs a pretraining in a folder of `tmp_path`, and gives its output folder."""

    def start(name="run", **fields):
        fields = {"images": [str(scenes / "unlabelled")], "num_val_images": 2, "max_steps": 3, **fields}
        pretrain(PretrainArguments(output_dir=str(tmp_path / name), **{**tiny, **fields}))
        return tmp_path / name

    return start


@pytest.fixture
def finetuning(scenes, tiny, tmp_path):
    """The same for a fine-tuning."""

    def start(name="run", **fields):
        fields = {"data": str(scenes), "max_steps": 3, "per_device_eval_batch_size": 1, **fields}
        finetune(FinetuneArguments(output_dir=str(tmp_path / name), **{**tiny, **fields}))
        return tmp_path / name

    return start
