"""Set-up of the common tests: no network, their own helper modules importable, their markers known."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest


# So that the helpers of this folder can be imported in every import mode of pytest.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers that the common tests set, by themselves or by transformers' test utilities."""
    from fetch import destination

    utilities = Path(importlib.util.find_spec("transformers").origin).with_name("testing_utils.py")
    for file in [utilities, *destination().glob("tests/*.py")]:
        for marker in sorted(set(re.findall(r"\bmark\.(\w+)", file.read_text()))):
            config.addinivalue_line("markers", f"{marker}: set by transformers' common tests")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps these tests, and no others of the run, off the network.

    The variable alone would come too late here: huggingface_hub reads it when it is imported.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
