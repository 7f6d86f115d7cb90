"""One small member of each of timm's families: builds, takes an odd size, trains every weight."""

import sys
from pathlib import Path

import pytest
import timm
import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import encoders


ROWS = encoders.table(encoders.SHAPES)
# Of each family's kinds of features: which size images are resampled to is a number, and takes the same code.
SMALLEST = sorted(encoders.smallest([{**row, "sizes": str(row["sizes"] == "any")} for row in ROWS]))
# Attention within neighbourhoods, of whole images: on the meta device it takes a half or less of the time.
ON_META = {"bat_resnext26ts", "halonet_h1"}
ANY_SIZE = {row["architecture"] for row in ROWS if row["sizes"] == "any"}


def test_the_table_covers_timm():
    assert len({row["family"] for row in ROWS}) > 80 and len(SMALLEST) > 80
    assert sum(not row["error"] for row in ROWS) > 0.95 * len(ROWS)


@pytest.fixture
def weights_of_zero(monkeypatch):
    """No random numbers are drawn for the weights: that takes half of the time, and shapes do not depend on them."""
    for name in ("normal_", "uniform_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args, **options: self.zero_())


@pytest.mark.parametrize("architecture", SMALLEST)
def test_a_family_works(architecture, weights_of_zero):
    """It computes, where that is faster: on the meta device, norms are many calls in Python."""
    if not timm.is_model(architecture):
        pytest.skip(f"timm {timm.__version__} does not have it")
    device = "meta" if architecture in ON_META else "cpu"
    size = (101, 67) if architecture in ANY_SIZE else (197, 131)
    assert encoders.shapes(architecture, device, sizes=[size])["levels"]
