"""The site's page of commands, which docs/hooks.py makes from the parsers."""

import importlib.util
import re
from pathlib import Path

import pytest

from ddep_hub.cli import COMMANDS


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    """The part of the page on each command."""
    pytest.importorskip("mkdocs", reason="extra `docs` is not installed")
    path = Path(__file__).parent.parent / "docs" / "hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", path)
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return dict(
        re.findall(r"^## ddep-hub (\w+)$(.*?)(?=^## |\Z)", hooks.command_reference(), re.MULTILINE | re.DOTALL)
    )


def test_it_has_every_command_with_the_defaults_of_its_arguments(commands):
    assert commands.keys() == COMMANDS.keys() and "SUPPRESS" not in "".join(commands.values())
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", commands["finetune"], re.MULTILINE))
    assert rows["max_steps"] == "`300`" and rows["scale"] == "`0.5 2.0`" and rows["data"] == "" == rows["preset"]
    assert rows["save_total_limit"] == "`2`" and rows["overwrite"] == "`false`"


def test_what_most_people_need_comes_first_and_is_short(commands):
    for command in ("pretrain", "finetune", "compare", "evaluate", "predict"):
        most_used = commands[command].split("\n### Most used")[1].split("\n### ")[0]
        assert 8 <= most_used.count("\n| `") <= 12
    assert re.search(r"Most used.*\n\n\|.*\n\|.*\n\| `data`", commands["finetune"])
