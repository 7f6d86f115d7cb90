# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The models that ship with the package: a list of them, and how other modules find one by its name.

Imports neither torch nor transformers, so that `ddep-hub list` answers at once.
"""

import contextlib
import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard


def model_card_folders() -> Path:
    """Folder of the shipped models: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "model_cards"
    return packaged if packaged.is_dir() or package.name != "ddep_hub" else package.parent / "model_cards"


@dataclass(frozen=True)
class PretrainedInfo:
    """A model that ships with the package.

    Attributes:
        name: What `from_pretrained` takes.
        encoder_name: timm name of its encoder.
        size: Size of its weights file in MB.
        license: SPDX identifier of its license, in lower case.
        measured: One sentence on its measured gain over a random decoder, the first line of its card.
        microscopy: Whether it was trained on microscope images, from the tags of its card.
    """

    name: str
    encoder_name: str
    size: float
    license: str
    measured: str
    microscopy: bool


def list_pretrained() -> list[PretrainedInfo]:
    """Lists the models that ship with the package, by name; needs no network."""
    models = []
    for weights in sorted(model_card_folders().glob("*/model.safetensors")):
        folder = weights.parent
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        card = ModelCard.load(folder / "README.md").data
        megabytes = round(weights.stat().st_size / 1e6, 1)
        microscopy = "microscopy" in card.tags
        models.append(
            PretrainedInfo(folder.name, config["encoder_name"], megabytes, card.license, card["summary"], microscopy)
        )
    return models


def resolve_name(name: str | os.PathLike[str]) -> str:
    """Finds a model by name.

    Returns the folder of a shipped model for its name, such as `"ddep-efficientnet-lite0"`, unless a folder of that
    name exists; other folders and Hub ids unchanged.
    """
    name = str(name)
    shipped = model_card_folders() / name
    if not Path(name).exists() and Path(name).name == name and (shipped / "model.safetensors").is_file():
        return str(shipped)
    return name


def check_config_file(folder: Path) -> None:
    """Raises a FileNotFoundError if a folder has no `config.json`; for that of a run, it names the one in `final/`."""
    if not (folder / "config.json").is_file():
        final_folder = folder / "final"
        is_run = (final_folder / "config.json").is_file()
        hint = f"Did you mean {final_folder}?" if is_run else "Pass a folder that contains a model."
        raise FileNotFoundError(f"{folder} has no config.json. {hint}")


def check_local_folder(name: str | os.PathLike[str]) -> None:
    """Raises a FileNotFoundError if a model's name can only be a path, but is not a folder with a `config.json`."""
    folder, text = Path(resolve_name(name)), str(name)
    if folder.is_dir():
        check_config_file(folder)
    is_local = folder.is_absolute() or len(folder.parts) > 2 or text.startswith((".", "~")) or text.endswith("/")
    if is_local and not folder.exists():
        raise FileNotFoundError(f"{name} does not exist. Pass a folder, a shipped model or a Hub id (org/name).")


@contextlib.contextmanager
def suggest_shipped_models(name: str | os.PathLike[str]) -> Iterator[None]:
    """Suggests the closest shipped model if loading from the Hub fails because `name` may be misspelt."""
    try:
        yield
    except OSError as error:
        shipped = [weights.parent.name for weights in model_card_folders().glob("*/model.safetensors")]
        matches = [] if Path(name).exists() else difflib.get_close_matches(str(name), shipped, n=1, cutoff=0.8)
        if not matches:
            raise
        raise OSError(f"There is no model {name}. Did you mean `{matches[0]}`?") from error
