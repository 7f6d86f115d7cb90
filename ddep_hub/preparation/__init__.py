"""Converts labelled images in many formats to a folder that fine-tuning reads: `ddep-hub prepare`."""

import dataclasses
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.folders import FolderOptions, canonical_split
from ddep_hub.data.image_io import BadFileError, is_array, lift_size_limit
from ddep_hub.data.splits import choose_validation, evenly_spaced, extract_groups, parse_fraction
from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.evaluation.visualization import contact_sheet, draw_legend, overlay
from ddep_hub.tiff import read_nodata_tag
from ddep_hub.utils.files import atomic_dir, format_list

from .formats import LABELLED_FORMATS, MALFORMED_ERRORS, incomplete_message, read_source
from .image_files import (
    RawImage,
    close_stacks,
    crop,
    image_size,
    iter_tiles,
    load_preview,
    read_image_file,
    write_image_file,
)
from .record import check_output, write_record
from .source import Example, Source, pluralize, shorten_name
from .unlabelled import prepare_unlabelled


NUM_PREVIEWS = 16
UNLABELLED = "unlabelled"
FORMATS = (*LABELLED_FORMATS, UNLABELLED)


@lift_size_limit()
@close_stacks()
def prepare(
    source: str | Path,
    output_dir: str | Path,
    *,
    format: str | None = None,
    classes: str | Path | None = None,
    image_dir: str | None = None,
    mask_dir: str | None = None,
    mask_suffix: str | None = None,
    val_fraction: str | float = 0.2,
    group_pattern: str | None = None,
    tile: int | None = None,
    overlap: int = 0,
    overwrite: bool = False,
) -> str:
    """Converts labelled images in many formats to `images/<split>`, `annotations/<split>` and `classes.json`.

    `preview.png` shows some images with their masks. With the format `unlabelled`, only `images/` is written: the
    pages of TIFF stacks, each an image of its own, or tiles.

    Args:
        source: A folder or an annotation file; with the format `unlabelled`, also an image file.
        output_dir: Folder to write.
        format: One of `FORMATS`; detected by default, except for `unlabelled`.
        classes: A `classes.json` with the names of the masks' values or colours.
        image_dir: Folder of the images inside `source`, with `{split}` for the split; detected by default.
        mask_dir: The same for the masks.
        mask_suffix: Suffix of mask names after the image's name, such as `_mask`; detected by default.
        val_fraction: Fraction of the images for the split `val`, if the source has no splits of its own; of a single
            image that is cut into tiles, the fraction of its rows, from the bottom.
        group_pattern: Regular expression that identifies images that stay in one split, see [`extract_groups`].
        tile: Cut images into square tiles with this side, in pixels; whole images by default.
        overlap: Minimum overlap of neighbouring tiles in pixels.
        overwrite: Replace a folder that this function wrote.

    Returns:
        A summary of what was found and written, in a few lines.

    Raises:
        FileExistsError: The folder is not empty.
        FileNotFoundError: The source does not exist, or nothing in it is recognised.
        ValueError: The source is damaged, or an argument is wrong; names it.
    """
    source, output = Path(os.path.expanduser(source)), Path(os.path.expanduser(output_dir))
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown. Choose one of {', '.join(FORMATS)}.")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be positive, got {tile}.")
    if tile is not None and not 0 <= overlap < tile:
        raise ValueError(f"overlap must be 0 to {tile - 1}, less than the tile, got {overlap}.")
    if tile is None and overlap:
        raise ValueError("overlap has no effect without tile. Set tile, or leave it out.")
    check_output(source, output, overwrite=overwrite)
    if format == UNLABELLED:
        labelled_only = {
            "classes": classes,
            "image_dir": image_dir,
            "mask_dir": mask_dir,
            "mask_suffix": mask_suffix,
            "group_pattern": group_pattern,
        }
        if without_effect := [name for name, value in labelled_only.items() if value is not None]:
            raise ValueError(f"{without_effect[0]} has no effect on unlabelled images. Leave it out.")
        return prepare_unlabelled(source, output, tile, overlap)
    options = FolderOptions(image_dir, mask_dir, mask_suffix, os.path.expanduser(classes) if classes else None)
    dataset = read_source(source, format, options)
    ignored = dataset.classes.ignore_index
    if not 0 <= ignored <= 65535:  # which no PNG can hold
        ignore_index = 255 if dataset.classes.num_classes <= 255 else 65535
        dataset.classes = dataclasses.replace(dataset.classes, ignore_index=ignore_index)
    parts: dict[str, tuple[float, float]] = {}
    if tile is not None and len(dataset.examples) == 1:  # one large raster: its lower end is for validation
        (example,) = dataset.examples
        example = dataclasses.replace(example, name=shorten_name(example.name))
        splits = {"train": [example], "val": [example]}
        share = float(parse_fraction(val_fraction, "val_fraction"))
        parts = {"train": (0.0, 1 - share), "val": (1 - share, 1.0)}
    else:
        try:
            splits = _assign_splits(dataset.examples, val_fraction, group_pattern)
        except ValueError as error:
            if not dataset.notes:
                raise
            raise ValueError(f"{error}. Notes on the source: {'; '.join(dataset.notes)}") from error
    statistics = {split: ClassStatistics(dataset.classes.names, dataset.classes.ignore_index) for split in splits}
    # Arrays only count as images if there are no others, so tiles must be arrays too.
    as_arrays = any(isinstance(example.image, Path) and is_array(example.image) for example in dataset.examples)
    with atomic_dir(output) as folder:
        written_files, sides = [], set[int]()
        for split, examples in splits.items():
            for name, image, mask, nodata in _iter_images(examples, tile, overlap, parts.get(split, (0.0, 1.0))):
                if ignored != dataset.classes.ignore_index:
                    mask = np.where(mask == ignored, dataset.classes.ignore_index, mask)
                file = _write_example(folder, split, name, image, mask, as_arrays, nodata)
                statistics[split].update(mask)
                sides.add(min(mask.shape))
                written_files.append((split, name, file))
        write_class_table(dataset.classes, folder / "classes.json")
        shown = [written_files[index] for index in evenly_spaced(len(written_files), NUM_PREVIEWS)]
        _draw_preview(folder, shown, dataset.classes, output).save(folder / "preview.png")
        written_classes = (folder / "classes.json").read_text(encoding="utf-8")
        details = {"notes": dataset.notes, "classes": written_classes}
        write_record(folder, source=source.name, found=dataset.kind, tile=tile, overlap=overlap, **details)
    counts = Counter(split for split, *_ in written_files)
    size = tile if tile is not None and sides == {tile} else None
    return _summarize(source, output, dataset, statistics, counts, "tile" if tile else "image", size)


def _summarize(
    source: Path,
    output: Path,
    dataset: Source,
    statistics: Mapping[str, ClassStatistics],
    counts: Mapping[str, int],
    noun: str,
    size: int | None,
) -> str:
    """What was found and written, and the command to go on with.

    `counts` are the images of each split, which are called by `noun`; `size` is the side of all, if they are tiles.
    """
    lines = [
        f"{source}: {dataset.kind}; {pluralize(len(dataset.examples), 'image')}, {dataset.classes.num_classes} "
        "classes",
        *dataset.notes,
        f"{output}: " + ", ".join(f"{pluralize(count, noun)} in {split}" for split, count in counts.items()),
    ]
    for split, split_statistics in statistics.items():
        lines.append(f"Classes in `{split}`:\n{split_statistics.table()}")
    absent = [set(split_statistics.absent_classes) for split_statistics in statistics.values()]
    if empty := [name for name in dataset.classes.names if all(name in names for names in absent)]:
        hint = ". If the masks have another value for it, such as 255, give it as mask_values in --classes"
        lines.append(f"No pixel shows {format_list(empty)}{hint if dataset.has_values else ''}")
    # Splits of the user's own need their names.
    names = ""
    if len(statistics) > 1 and not {"train", "val"} <= statistics.keys():
        train = "train" if "train" in statistics else next(iter(statistics))
        other = next(split for split in statistics if split != train)
        names = f" --train_split {shlex.quote(train)} --eval_split {shlex.quote(other)}"
    # Or a preset would scale the tiles, but not the scene.
    image_size = "" if size is None else f" --image_size {size}"
    command = f"ddep-hub finetune --data {shlex.quote(str(output))}{names}{image_size}"
    lines.append(f"Look at {output / 'preview.png'} before training: {command}")
    return "\n".join(lines)


def _assign_splits(
    examples: list[Example], val_fraction: str | float, group_pattern: str | None
) -> dict[str, list[Example]]:
    """The examples by split, under unique names; split up if the source has only one split, or none."""
    names = Counter[tuple[str | None, str]]()
    unique: list[Example] = []
    has_splits = len({example.split for example in examples}) > 1
    for example in examples:
        split = None if example.split is None else canonical_split(example.split) or example.split
        split = split or ("train" if has_splits else None)
        short_name = name = shorten_name(example.name, split)
        while (split, name) in names:
            names[split, short_name] += 1
            name = f"{short_name}_{names[split, short_name]}"
        names[split, name] += 1
        unique.append(dataclasses.replace(example, name=name, split=split))
    splits: dict[str, list[Example]] = {}
    if len({example.split for example in unique}) > 1:
        if group_pattern is not None:
            raise ValueError("group_pattern has no effect, because the source has splits of its own. Leave it out.")
        for example in unique:
            splits.setdefault(str(example.split), []).append(example)
        return splits
    by_name = {example.name: example for example in unique}
    groups = {name: example.group or name for name, example in by_name.items()}
    if group_pattern is not None:
        groups = extract_groups(by_name, group_pattern)
    has_one_group = group_pattern is None and len(set(groups.values())) == 1 < len(by_name)
    if has_one_group and not any(isinstance(example.image, Path) for example in unique):
        # One stack: neighbouring pages look alike, so its last ones are for validation.
        count = round(parse_fraction(val_fraction, "val_fraction") * len(by_name))
        validation_names = set(list(by_name)[-min(max(1, count), len(by_name) - 1) :])
    else:
        validation_names = set(choose_validation(by_name, val_fraction, None if has_one_group else groups))
    for name, example in by_name.items():
        splits.setdefault("val" if name in validation_names else "train", []).append(example)
    return dict(sorted(splits.items()))


def _iter_images(
    examples: list[Example], tile: int | None, overlap: int, part: tuple[float, float]
) -> Iterator[tuple[str, Path | RawImage, np.ndarray, float | None]]:
    """Name, image, mask and value of pixels without data of each example, or of each of its tiles.

    Tiles are those of a part of the rows, from 0.0 to 1.0.
    """
    for example in examples:
        try:
            mask = example.mask()
        except MALFORMED_ERRORS as error:
            raise ValueError(incomplete_message(example.name, error)) from error
        image = example.image if isinstance(example.image, Path) else example.image()
        nodata = read_nodata_tag(image) if isinstance(image, Path) else None
        picture = read_image_file(image) if isinstance(image, Path) else image
        rows, columns = image_size(picture, mask.shape)
        if (rows, columns) != mask.shape:
            raise BadFileError(
                f"{example.name}: the mask has {mask.shape[1]}x{mask.shape[0]} pixels, the image {columns}x{rows}. "
                "Use the image that was annotated.",
                example.name,
            )
        if tile is None:
            yield example.name, image, mask, nodata
            continue
        for top, left, height, width in iter_tiles((rows, columns), tile, overlap, part):
            tile_image = crop(picture, mask.shape, top, left, height, width)
            tile_mask = mask[top : top + height, left : left + width]
            yield f"{example.name}_{top}_{left}", tile_image, tile_mask, nodata


def _write_example(
    folder: Path, split: str, name: str, image: Path | RawImage, mask: np.ndarray, as_array: bool, nodata: float | None
) -> Path:
    """Writes an image and its mask; returns the image's file."""
    target = folder / "images" / split / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        file = target.with_name(target.name + image.suffix)
        shutil.copyfile(image, file)
    else:
        file = write_image_file(target, image, mask.shape, as_array=as_array, nodata=nodata)
    path = folder / "annotations" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask if mask.dtype == np.uint8 else mask.astype(np.uint16)).save(path)
    return file


def _draw_preview(
    folder: Path, samples: list[tuple[str, str, Path]], classes: ClassTable, output: Path
) -> Image.Image:
    """A grid of images overlaid with their masks, and a legend of the class colours.

    Warnings call an image what it will be called in `output`.
    """
    pictures = []
    for split, name, file in samples:
        mask = np.asarray(Image.open(folder / "annotations" / split / f"{name}.png")).astype(np.int64)
        picture = load_preview(file, mask.shape, str(output / file.relative_to(folder)))
        pictures.append(overlay(picture, mask, classes))
    grid = contact_sheet(pictures, [f"{split}/{name}" for split, name, _ in samples])
    names = draw_legend(classes)
    sheet = Image.new("RGB", (grid.width + names.width, max(grid.height, names.height)), "white")
    sheet.paste(grid, (0, 0))
    sheet.paste(names, (grid.width, 0))
    return sheet
