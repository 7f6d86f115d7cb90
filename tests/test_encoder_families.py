"""One small member of each of timm's families, on the meta device: builds, takes an odd size, trains every weight."""

import sys
from pathlib import Path

import pytest
import timm


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import encoders


SMALLEST = sorted(encoders.smallest(encoders.table(encoders.SHAPES)))


def test_the_table_covers_timm():
    rows = encoders.table(encoders.SHAPES)
    assert len({row["family"] for row in rows}) > 80 and len(SMALLEST) > 80
    assert sum(not row["error"] for row in rows) > 0.95 * len(rows)


@pytest.mark.parametrize("architecture", SMALLEST)
def test_a_family_works(architecture):
    if not timm.is_model(architecture):
        pytest.skip(f"timm {timm.__version__} does not have it")
    assert encoders.shapes(architecture, sizes=[(197, 131)])["levels"]
