"""Labelled images of many formats as a folder that fine-tuning reads: `ddep-hub prepare`."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddep_hub.data.class_statistics import ClassStatistics
from ddep_hub.data.classes import ClassTable, write_class_table
from ddep_hub.data.folders import common_split
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.pairing import IMAGE_WORDS
from ddep_hub.data.preprocessing import AnyImage
from ddep_hub.data.splits import choose_validation, groups_of
from ddep_hub.evaluation.inference import window_places
from ddep_hub.evaluation.visualization import contact_sheet, legend, overlay, rgb_of
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.utils.files import atomic_dir

from .recognise import FORMATS, INCOMPLETE, incomplete, read_source
from .source import Example, Source


# What tells a folder of ours, which may be replaced, from those of others.
RECORD = "prepared.json"
NUM_PREVIEWS = 16


def prepare(
    source: str | Path,
    output_dir: str | Path,
    *,
    format: str | None = None,
    classes: str | Path | None = None,
    val_fraction: str | float = 0.2,
    group_pattern: str | None = None,
    tile: int | None = None,
    overlap: int = 0,
    overwrite: bool = False,
) -> str:
    """Writes labelled images of many formats as `images/<split>`, `annotations/<split>` and `classes.json`.

    `preview.png` shows some images under their masks.

    Args:
        source: A folder, or a file of annotations.
        output_dir: Folder to write.
        format: One of `FORMATS`; recognised by default.
        classes: A `classes.json` with the names of the masks' values or colours.
        val_fraction: Share of the images for the split `val`, where the source has no splits of its own.
        group_pattern: Regular expression that says which images stay in one split, see [`groups_of`].
        tile: Side of the tiles that images are cut into, in pixels; whole images by default.
        overlap: Pixels that neighbouring tiles share at least.
        overwrite: Replace a folder that this function wrote.

    Returns:
        What was found and written, in some lines.

    Raises:
        FileExistsError: The folder holds something already.
        FileNotFoundError: The source does not exist, or nothing in it is recognised.
        ValueError: The source is damaged, or an argument does not fit; names it.
    """
    source, output = Path(source), Path(output_dir)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r} is not known. Choose one of {', '.join(FORMATS)}.")
    if tile is not None and not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}, which must be 0 to {tile - 1}, less than the tile.")
    _check_output(source, output, overwrite=overwrite)
    found = read_source(source, format, Path(classes) if classes else None)
    splits = _with_splits(found.examples, val_fraction, group_pattern)
    statistics = {split: ClassStatistics(found.classes.names, found.classes.ignore_index) for split in splits}
    with atomic_dir(output) as folder:
        shown = []
        for split, examples in splits.items():
            for name, image, mask in _pictures(examples, tile, overlap):
                _write(folder, split, name, image, mask)
                statistics[split].update(mask)
                shown.append((split, name))
        write_class_table(found.classes, folder / "classes.json")
        chosen = np.linspace(0, len(shown) - 1, min(NUM_PREVIEWS, len(shown))).round().astype(int)
        _preview(folder, [shown[index] for index in chosen], found.classes).save(folder / "preview.png")
        record = {"source": source.name, "found": found.kind, "notes": found.notes, "tile": tile, "overlap": overlap}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    counts = Counter(split for split, _ in shown)
    lines = [
        f"{source}: {found.kind}; {len(found.examples):,} images, {found.classes.num_classes} classes",
        *found.notes,
        f"{output}: " + ", ".join(f"{count:,} {'tiles' if tile else 'images'} in {s}" for s, count in counts.items()),
    ]
    for split, counted in statistics.items():
        lines.append(f"Classes in `{split}`:\n{counted.table()}")
    lines.append(f"Look at {output / 'preview.png'} before training: ddep-hub finetune --data {output}")
    return "\n".join(lines)


def _check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise FileExistsError(f"output_dir: {output} is a link or a file. Choose another folder.")
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"output_dir: {output} lies in the source. Choose another folder.")
    if output.exists() and any(output.iterdir()):
        ours = (output / RECORD).is_file()
        if not (ours and overwrite):
            hint = "Replace it with --overwrite." if ours else "This command did not write it: choose another folder."
            raise FileExistsError(f"output_dir: {output} is not empty. {hint}")


def _with_splits(
    examples: list[Example], val_fraction: str | float, group_pattern: str | None
) -> dict[str, list[Example]]:
    """The examples by split, under names that no two have; divided if the source has one split, or none."""
    names = Counter[tuple[str | None, str]]()
    unique: list[Example] = []
    for example in examples:
        split = None if example.split is None else common_split(example.split) or example.split
        name = _short(example.name, split)
        names[split, name] += 1
        if names[split, name] > 1:
            name = f"{name}_{names[split, name]}"
        unique.append(dataclasses.replace(example, name=name, split=split))
    splits: dict[str, list[Example]] = {}
    if len({example.split for example in unique}) > 1:
        for example in unique:
            splits.setdefault(example.split or "train", []).append(example)
        return splits
    by_name = {example.name: example for example in unique}
    groups = {name: example.group or name for name, example in by_name.items()}
    if len(set(groups.values())) < 2:
        groups = {name: name for name in by_name}  # one stack: its pages are divided
    if group_pattern is not None:
        groups = groups_of(by_name, group_pattern)
    chosen = set(choose_validation(by_name, val_fraction, groups))
    for name, example in by_name.items():
        splits.setdefault("val" if name in chosen else "train", []).append(example)
    return dict(sorted(splits.items()))


def _short(name: str, split: str | None) -> str:
    """A name without the folders that say what the layout says: the split's, and `images`."""
    parts = name.split("/")
    while len(parts) > 1 and (parts[0].lower() in IMAGE_WORDS or (split and common_split(parts[0]) == split)):
        parts = parts[1:]
    return "/".join(parts)


def _pictures(
    examples: list[Example], tile: int | None, overlap: int
) -> Iterator[tuple[str, Path | AnyImage, np.ndarray]]:
    """Name, image and mask of each example, or of each of its tiles."""
    for example in examples:
        try:
            mask = example.mask()
        except INCOMPLETE as error:
            raise ValueError(incomplete(example.name, error)) from error
        image = example.image if isinstance(example.image, Path) else example.image()
        decoded = decode_image(image) if isinstance(image, Path) else image
        if decoded.size != mask.shape[::-1]:
            raise BadFileError(
                f"{example.name}: the mask has {mask.shape[1]}x{mask.shape[0]} pixels, the image {decoded.width}x"
                f"{decoded.height}. Use the image that was annotated.",
                example.name,
            )
        if tile is None:
            yield example.name, image, mask
            continue
        height, width = min(tile, mask.shape[0]), min(tile, mask.shape[1])
        steps = max(1, height - overlap), max(1, width - overlap)
        for top, left in window_places(mask.shape, (height, width), steps):
            part = decoded.crop((left, top, left + width, top + height))
            yield f"{example.name}_{top}_{left}", part, mask[top : top + height, left : left + width]


def _write(folder: Path, split: str, name: str, image: Path | AnyImage, mask: np.ndarray) -> None:
    target = folder / "images" / split / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        shutil.copyfile(image, target.with_name(target.name + image.suffix))
    elif isinstance(image, ChannelImage):
        values = image.pixels if image.pixels.dtype == np.uint8 else image.pixels / np.float32(255)  # as it is read
        np.save(target.with_name(f"{target.name}.npy"), values)
    else:
        image.save(target.with_name(f"{target.name}.png"))
    path = folder / "annotations" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask if mask.dtype == np.uint8 else mask.astype(np.uint16)).save(path)


def _preview(folder: Path, shown: list[tuple[str, str]], classes: ClassTable) -> Image.Image:
    """A grid of images under their masks, with the colours of the classes."""
    pictures = []
    for split, name in shown:
        (file,) = (folder / "images" / split / name).parent.glob(f"{_escaped(Path(name).name)}.*")
        mask = np.asarray(Image.open(folder / "annotations" / split / f"{name}.png")).astype(np.int64)
        pictures.append(overlay(rgb_of(decode_image(file)), mask, classes))
    grid = contact_sheet(pictures, [f"{split}/{name}" for split, name in shown])
    names = legend(classes)
    sheet = Image.new("RGB", (grid.width + names.width, max(grid.height, names.height)), "white")
    sheet.paste(grid, (0, 0))
    sheet.paste(names, (grid.width, 0))
    return sheet


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


__all__ = ["FORMATS", "Source", "prepare"]
