"""One small member of each of timm's families: builds, takes an odd size, trains every weight."""

import sys
from pathlib import Path

import pytest
import timm


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import encoders


ROWS = encoders.table(encoders.SHAPES)
# Of each family's kinds of features: which size images are resampled to is a number, and takes the same code.
SMALLEST = sorted(encoders.smallest([{**row, "sizes": str(row["sizes"] == "any")} for row in ROWS]))
# They compute in an instant on small images. On the meta device a batch norm takes longer than one that computes.
ANY_SIZE = {row["architecture"] for row in ROWS if row["sizes"] == "any"}


def test_the_table_covers_timm():
    assert len({row["family"] for row in ROWS}) > 80 and len(SMALLEST) > 80
    assert sum(not row["error"] for row in ROWS) > 0.95 * len(ROWS)


@pytest.mark.parametrize("architecture", SMALLEST)
def test_a_family_works(architecture):
    if not timm.is_model(architecture):
        pytest.skip(f"timm {timm.__version__} does not have it")
    device, size = ("cpu", (101, 67)) if architecture in ANY_SIZE else ("meta", (197, 131))
    assert encoders.shapes(architecture, device, sizes=[size])["levels"]
