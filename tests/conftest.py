"""What all tests share: no network, no traces in the user's home, tiny models."""

import atexit
import os
import shutil
import tempfile


# Read when the libraries are imported, so they are set before anything else is.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ddep-tests-")
os.environ["DDEP_CACHE"] = os.path.join(os.environ["HF_HOME"], "ddep_hub")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402

from ddep_hub import DDePConfig  # noqa: E402


# The smallest ResNet-ViT hybrid: features at strides 2 and 4 from its CNN part, tokens at stride 32.
HYBRID = {
    "encoder_name": "vit_tiny_r_s16_p8_224",
    "encoder_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
}
# One small encoder with BatchNorm.
CONV = {"encoder_name": "tf_efficientnet_lite0"}
SMALL_DECODER = {"decoder_hidden_sizes": [32, 16, 16, 16, 16], "decoder_bottleneck_size": 32}


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in each test."""
    torch.manual_seed(0)


@pytest.fixture
def hybrid_config():
    """Makes configurations of the tiny hybrid; keyword arguments replace fields."""

    def make(**fields) -> DDePConfig:
        return DDePConfig(**{**HYBRID, **SMALL_DECODER, **fields})

    return make


@pytest.fixture
def conv_config():
    """Makes configurations of a small encoder with BatchNorm; keyword arguments replace fields."""

    def make(**fields) -> DDePConfig:
        return DDePConfig(**{**CONV, **SMALL_DECODER, **fields})

    return make
