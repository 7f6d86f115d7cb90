"""What the tests of training share: runs whose loss curves are not drawn."""

import importlib.util

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def blank_plots(monkeypatch):
    """Loss curves are made, but not drawn: matplotlib would take a fifth of the time of a run of a few steps.

    Fixtures of a wider scope draw, as test_runs.py's, and so does test_logging.py.
    """
    if importlib.util.find_spec("matplotlib") is not None:
        blank = Image.new("RGB", (8, 8))
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: blank.save(file, "PNG"))
