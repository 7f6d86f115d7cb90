"""Recognises files written by this package among a user's images: predictions, figures, and copies by `select`.

An output folder may be inside the folder of images that a command reads. Its files are neither images nor masks.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ddep_hub.utils.files import format_list


logger = logging.getLogger(__name__)

# Distinguishes figures of this package from a user's own files with the same name.
SOFTWARE = "ddep_hub"
# The kinds of predicted masks, each a folder, and the legend beside them.
PREDICTION_KINDS, LEGEND_FILE = ("ids", "colors", "overlays", "cityscapes"), "legend.png"
# Written by `ddep-hub select` next to the folder `images`.
SELECTED_LIST, SELECTED_PICTURE = "selected.txt", "selected.png"
# Locations of a run's figures, and those of an evaluation.
_RUN_FOLDERS = ("pictures/", "final/", "best/", "checkpoints/", "pretraining/")
_EVALUATION_PICTURES = ("confusion.png", "predictions.png")


def is_prediction(path: Path) -> bool:
    """Whether a file is a mask, overlay or legend written by this package."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def exclude_generated(root: Path, names: Sequence[str]) -> list[str]:
    """The images below a folder except those written by a command of this package; a warning names skipped files.

    Only a few files are opened, so that this is fast for millions of images. If `root` is itself the output folder of
    `select`, the copies in it count as images. Raises a ValueError if no image is left.
    """
    outputs = _find_outputs(root, names)
    pictures = {name for name in outputs if not name.endswith("/")}
    folders = tuple(outputs - pictures)
    generated = {
        name
        for name in names
        if name in pictures or name.startswith(folders) or (_may_be_prediction(name) and is_prediction(root / name))
    }
    if not generated:
        return list(names)
    kept = [name for name in names if name not in generated]
    if not kept:
        raise ValueError(f"{root} holds only files written by ddep-hub; pass the folder of the images themselves")
    logger.warning(
        "%s: skipping %d files written by ddep-hub: %s", root, len(generated), format_list(sorted(generated))
    )
    return kept


def _find_outputs(root: Path, names: Sequence[str]) -> set[str]:
    """Outputs of selections, runs and evaluations: names of figures, and of folders with a trailing slash."""
    selections, runs, evaluations = set[str](), set[str](), set[str]()
    for name in names:
        folder, file = _split_path(name)
        if file == SELECTED_PICTURE:
            selections.add(folder)
        elif file == "confusion.png":
            evaluations.add(folder)
        if folder.endswith("/pictures/") or folder == "pictures/":
            runs.add(folder.removesuffix("pictures/"))

    def has_files(*files: str) -> Callable[[str], bool]:
        return lambda folder: all((root / folder / file).is_file() for file in files)

    outputs = set[str]()
    for folder in filter(has_files(SELECTED_LIST), selections):
        outputs |= {folder or SELECTED_PICTURE}
    for folder in filter(has_files("config.yaml", "metrics.jsonl"), runs):
        outputs |= {folder + name for name in _RUN_FOLDERS}
    for folder in filter(has_files("results.json", "confusion.csv"), evaluations):
        outputs |= {folder + name for name in _EVALUATION_PICTURES}
    return outputs


def _may_be_prediction(name: str) -> bool:
    folder, file = _split_path(name)
    return file == LEGEND_FILE or (
        file.endswith(".png") and any(part in PREDICTION_KINDS for part in folder.split("/"))
    )


def _split_path(name: str) -> tuple[str, str]:
    """Splits a path into its folder, with a trailing slash, and the file name."""
    start = name.rfind("/") + 1
    return name[:start], name[start:]
