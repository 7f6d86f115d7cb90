"""What all tests share: no network, no traces in the user's home, tiny models."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import WRITER, FakeHub, HubServer


# Read when the libraries are imported, so they are set before anything else is.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ddep-tests-")
os.environ["DDEP_CACHE"] = os.path.join(os.environ["HF_HOME"], "ddep_hub")
os.environ["HF_HUB_OFFLINE"] = "1"
# Float32 on every machine, see `RunArguments.mixed_precision`.
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Where the tests' own Hub listens, see the fixture `hub`. The real one cannot be reached by mistake.
SERVER = HubServer()
os.environ["HF_ENDPOINT"] = SERVER.address
os.environ["HF_XET_XORB_COMPRESSION_POLICY"] = "none"
os.environ["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "20ms"
# No test needs its files after a power cut, and waiting for the disk takes minutes.
os.fsync = lambda descriptor: None
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from huggingface_hub.file_download import repo_folder_name  # noqa: E402


# torch and what imports it are imported in the fixtures: the workers of pytest-xdist start when the process that hands
# out the tests has loaded this file, and it needs none of them.

# The smallest ResNet-ViT hybrid: features at strides 2 and 4 from its CNN part, tokens at stride 32.
HYBRID = {
    "encoder_name": "vit_tiny_r_s16_p8_224",
    "encoder_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
}
# One small encoder with BatchNorm: as EfficientNet-Lite0, with a tenth of its layers.
CONV = {"encoder_name": "test_efficientnet"}
SMALL_DECODER = {"decoder_hidden_sizes": [32, 16, 16, 16, 16], "decoder_bottleneck_size": 32}


# Files with tests of a minute or more. They start first, or the last of them would be waited for.
LONG = (
    "test_examples.py",
    "test_running.py",
    "test_processes.py",
    "test_your_own_data.py",
    "test_unlabelled.py",
    "test_package.py",
    "test_auto_classes.py",
    "test_training.py",
    "test_interruption.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Keeps the garbage collector from all that is imported here: it takes a second each time and finds nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first; the rest keeps its order."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in each test."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hybrid_config():
    """Makes configurations of the tiny hybrid; keyword arguments replace fields."""
    from ddep_hub import DDePConfig

    def make(**fields) -> DDePConfig:
        return DDePConfig(**{**HYBRID, **SMALL_DECODER, **fields})

    return make


@pytest.fixture
def conv_config():
    """Makes configurations of a small encoder with BatchNorm; keyword arguments replace fields."""
    from ddep_hub import DDePConfig

    def make(**fields) -> DDePConfig:
        return DDePConfig(**{**CONV, **SMALL_DECODER, **fields})

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of the test's own, empty, which the client of this process talks to: online, with a token, without xet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.delenv("HF_HUB_OFFLINE")  # for processes that the test starts
    SERVER.hub = FakeHub(SERVER.address)
    return SERVER.hub


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Rendered scenes of 64x64 pixels: splits `train` (6) and `val` (3), and 12 unlabelled images."""
    from ddep_hub.data.synthetic import write_scenes

    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, splits={"train": 6, "val": 3}, unlabelled=12, size=(64, 64))


@pytest.fixture(scope="session")
def small_encoder():
    """Name of an encoder whose weights, random ones, are in the Hub's cache, where a run finds them by default.

    A run on the default encoder takes three times as long: it is for what is EfficientNet-Lite0's own.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from ddep_hub.encoder_weights import encoder_repository

    name, revision = CONV["encoder_name"], "0" * 40
    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=encoder_repository(name), repo_type="model"))
    for folder in (cached / "refs", cached / "snapshots" / revision):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), cached / "snapshots" / revision / "model.safetensors")
    return name


@pytest.fixture(scope="session")
def tiny(small_encoder):
    """Arguments that make both trainings small."""
    return {
        "encoder_name": small_encoder,
        "decoder_hidden_sizes": [16, 8, 8, 8, 8],
        "decoder_bottleneck_size": 16,
        "batch_size": 4,
        "crop_size": 32,
        "warmup_steps": 1,
        "logging_steps": 1,
    }
