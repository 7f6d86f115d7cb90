"""Sources that have a mask for each image, or one for each object: folders, stacks, exports of masks."""

import csv
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.data.classes import ClassTable, Color, class_colors, read_class_table
from ddep_hub.data.folders import find_places, subfolders
from ddep_hub.data.image_io import BadFileError, images_below, load_upright
from ddep_hub.data.layouts import find_layout
from ddep_hub.data.masks import decode_mask
from ddep_hub.data.pairing import IMAGE_WORDS, MASK_WORDS, PAIRS, Pairs, pair_files, read_pairs
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits

from .source import Example, Source, name_of, object_classes


IGNORED = 255


# --- One mask for each image


def read_folder(root: Path, table: ClassTable | None) -> Source:
    """A folder that `--data` reads, with its `classes.json`, or with the values or colours found in its masks."""
    layout = "folder" if find_places(root) else find_layout(root)
    known = root / "classes.json"
    if table is None and (layout != "folder" or known.is_file()):
        if known.is_file():
            table = read_class_table(known)
        return _read_known(root, table)
    listed = (root / PAIRS).is_file()
    pairs: Mapping[str, Pairs] = (
        read_pairs(root).pairs
        if listed
        else {split: pair_files(place.images, place.masks) for split, place in find_places(root).items()}
    )
    files = [
        (split if len(pairs) > 1 else None, sample_id, image, found.masks[sample_id])
        for split, found in pairs.items()
        for sample_id, image in found.images.items()
        if sample_id in found.masks
    ]
    if not files:
        raise ValueError(f"{root}: no image has a mask of its name. List them in {PAIRS}.")
    without = sum(len(found.images) for found in pairs.values()) - len(files)
    notes = [f"{without} images have no mask: left out"] if without else []
    return _with_values("masks", files, table or _listed_classes(root), notes)


def _read_known(root: Path, table: ClassTable | None) -> Source:
    examples: list[Example] = []
    splits = available_splits(root)
    datasets = {split: SegmentationFolder(root, split) for split in splits}
    for split, dataset in datasets.items():
        examples += [
            Example(name, dataset.images[index], partial(dataset.mask, index), split if len(splits) > 1 else None)
            for index, name in enumerate(dataset.sample_ids)
        ]
    first = next(iter(datasets.values()))
    found = table or first.classes
    classes = ClassTable(found.names, found.colors, found.ignore_index, single=found.single)
    return Source(f"layout {first.layout}", classes, examples)


def _with_values(
    kind: str,
    files: Sequence[tuple[str | None, str, Path, Path]],
    table: ClassTable | None,
    notes: list[str],
) -> Source:
    """Masks whose values or colours become class ids; stacks are taken apart into their pages."""
    colors = table is not None and len(set(table.colors)) == table.num_classes
    found: set[Any] = set()
    pages: list[tuple[str | None, str, Path, Path, int | None]] = []
    for split, name, image, mask in files:
        count = _num_pages(mask)
        if count != _num_pages(image):
            raise ValueError(f"{image} has {_num_pages(image)} pages, but its mask {mask} has {count}.")
        numbers: list[int | None] = [None] if count == 1 else list(range(count))
        pages += [(split, name if n is None else f"{name}-{n:04d}", image, mask, n) for n in numbers]
        for n in numbers:
            found |= _values(mask, n, as_colors=colors)
    in_colors = any(isinstance(value, tuple) for value in found)
    if in_colors and not all(isinstance(value, tuple) for value in found):
        raise ValueError(f"{kind}: some masks are in colour, others are not. Make them of one kind.")
    mapping, classes = _classes_of(found, table, in_colors)
    if any(page is not None for *_, page in pages):
        kind = f"TIFF stacks of {kind}"
    described = "colours" if in_colors else "values"
    examples = [
        Example(
            name,
            image if page is None else partial(_page, image, page),
            partial(_ids, mask, page, mapping, in_colors),
            split,
            None if page is None else str(image),
        )
        for split, name, image, mask, page in pages
    ]
    return Source(f"{kind} with the {described} {_first(sorted(found))}", classes, examples, notes)


def _classes_of(found: set[Any], table: ClassTable | None, in_colors: bool) -> tuple[dict[Any, int], ClassTable]:
    if table is not None:
        if in_colors:
            known: dict[Any, int] = {color: index for index, color in enumerate(table.colors)}
        else:
            known = dict(table.mask_mapping or {index: index for index in range(table.num_classes)})
            known.setdefault(table.ignore_index, table.ignore_index)
        unknown = sorted(found - known.keys())
        if unknown and in_colors:
            known |= dict.fromkeys(unknown, IGNORED) if table.ignore_other_values else {}
            unknown = [] if table.ignore_other_values else unknown
        if unknown:
            raise ValueError(f"The masks hold {_first(unknown)}, which no class has. Add it to the classes.")
        return known, ClassTable(table.names, table.colors, table.ignore_index, single=table.single)
    values = sorted(found)
    if not in_colors and IGNORED in values and values != [0, IGNORED]:
        values.remove(IGNORED)  # as everywhere, unless it is the object of a binary mask
    if len(values) > 256:
        raise ValueError(
            f"The masks hold {len(values)} different {'colours' if in_colors else 'values'}: smoothed, or no masks. "
            "Name the right ones with --classes."
        )
    names = ["_".join(map(str, ("color", *v))) if in_colors else f"value_{v}" for v in values]
    mapping = {} if in_colors else {IGNORED: IGNORED}
    mapping |= {value: index for index, value in enumerate(values)}
    if values == [0, IGNORED]:
        return mapping, object_classes(["object"])
    return mapping, ClassTable(tuple(names), tuple(values) if in_colors else class_colors(len(values)))


def _values(path: Path, page: int | None, *, as_colors: bool) -> set[Any]:
    values = _raw(path, page, as_colors)
    if values.ndim == 3:
        packed = values.astype(np.int64) @ np.array([65536, 256, 1])
        return {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in np.unique(packed)}
    return {int(value) for value in np.unique(values)}


def _ids(path: Path, page: int | None, mapping: Mapping[Any, int], in_colors: bool) -> np.ndarray:
    values = _raw(path, page, in_colors)
    if values.ndim == 3:
        values = values.astype(np.int64) @ np.array([65536, 256, 1])
        mapping = {(r << 16) + (g << 8) + b: index for (r, g, b), index in mapping.items()}
    present, inverse = np.unique(values, return_inverse=True)
    table = np.array([mapping[int(value)] for value in present], np.int32)
    ids = table[inverse.reshape(values.shape)]
    return ids.astype(np.uint8) if ids.max(initial=0) < 256 else ids


def _raw(path: Path, page: int | None, as_colors: bool) -> np.ndarray:
    """The values (H, W) or colours (H, W, 3) of a mask; a palette is read as colours if colours are known."""
    if page is not None:
        image: Image.Image = _page(path, page)
    else:
        image, file_format, _ = load_upright(path, "mask")
        if file_format == "JPEG":
            return _binary(np.asarray(image.convert("L")), path)
    if image.mode in ("RGB", "RGBA") or (image.mode == "P" and as_colors):
        pixels = np.asarray(image.convert("RGB"))
        equal = (pixels == pixels[..., :1]).all()
        return pixels[..., 0] if equal and not as_colors else pixels
    if page is not None or image.mode == "LA":
        return np.asarray(image.getchannel(0) if image.mode == "LA" else image).astype(np.int64)
    # As everywhere: bilevel, 2 and 4 bits, palettes.
    return decode_mask(path, num_classes=2**31 - 1, ignore_index=-1).astype(np.int64)


def _binary(values: np.ndarray, path: Path) -> np.ndarray:
    """A mask of black and white that was saved as JPEG, without what the compression added."""
    if ((values > 48) & (values < 207)).mean() > 0.02:
        raise BadFileError(f"{path} is a JPEG, whose compression changes values; save the mask as PNG", str(path))
    return np.where(values > 127, 255, 0)


def _num_pages(path: Path) -> int:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with Image.open(path) as image:
        return int(getattr(image, "n_frames", 1))


def _page(path: Path, number: int) -> Image.Image:
    with Image.open(path) as image:
        image.seek(number)
        return image.copy()


def _first(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def _listed_classes(root: Path) -> ClassTable | None:
    """Names and colours from `labelmap.txt` (CVAT), `label_colors.txt` (CamVid) or `class_dict.csv` in the folder."""
    for name in ("labelmap.txt", "label_colors.txt", "class_dict.csv"):
        path = root / name
        if not path.is_file():
            continue
        found: dict[str, Color] = {}
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            numbers = re.findall(r"\d+", line)
            label = line.split(":")[0] if ":" in line else re.sub(r"[\d\s,]+", " ", line).strip()
            if label and len(numbers) >= 3 and not line.startswith("#"):
                r, g, b = map(int, numbers[:3] if ":" not in line else re.findall(r"\d+", line.split(":")[1])[:3])
                found[label] = (r, g, b)
        if found:
            return ClassTable(tuple(found), tuple(found.values()))
    return None


# --- Stacks with any names


def read_stacks(root: Path, table: ClassTable | None) -> Source | None:
    """TIFFs that lie side by side, such as `train-volume.tif` and `train-labels.tif`; `None` if there are no pairs."""
    stacks = sorted(path for path in root.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for path in stacks:
        words = re.findall("[a-z]+|[0-9]+", path.stem.lower())
        core = tuple(word for word in words if word not in MASK_WORDS | IMAGE_WORDS | {"volume", "stack"})
        (masks if set(words) & MASK_WORDS else images)[core] = path
    pairs = {core: path for core, path in images.items() if core in masks}
    if not pairs or not any(_num_pages(path) > 1 for path in pairs.values()):
        return None
    return _with_values("masks", [(None, path.stem, path, masks[core]) for core, path in pairs.items()], table, [])


# --- One mask for each object


def object_folders(root: Path) -> list[Path]:
    """Folders of one image with the masks of its objects: `<id>/images/*`, `<id>/masks/*`, at most two levels down."""
    found = []
    for parent in (root, *(root / name for name in subfolders(root))):
        for name in subfolders(parent):
            folder = parent / name
            if {"images", "masks"} <= set(subfolders(folder)) and len(list((folder / "images").iterdir())) == 1:
                found.append(folder)
    return found


def read_object_folders(root: Path, table: ClassTable | None) -> Source:
    """One mask file for each object, as in the Data Science Bowl 2018: their union is the class."""
    folders = object_folders(root)
    parents = {folder.parent for folder in folders}
    examples, notes, empty = [], list[str](), 0
    for folder in folders:
        image = folder / "images" / images_below(folder / "images")[0]
        masks = sorted(path for path in (folder / "masks").iterdir() if path.suffix.lower() == ".png")
        empty += not masks
        split = folder.parent.name if len(parents) > 1 else None
        examples.append(Example(folder.name, image, partial(_union, image, masks), split))
    if empty:
        notes.append(f"{empty} images have no object")
    classes = table or object_classes(["object"])
    if classes.num_classes != 2:
        raise ValueError(f"Masks of objects have two classes, background and object, not {classes.num_classes}.")
    return Source("one mask for each object", classes, examples, notes)


def _union(image: Path, masks: Sequence[Path]) -> np.ndarray:
    size = load_upright(image, "image")[0].size
    union = np.zeros(size[::-1], np.uint8)
    for path in masks:
        pixels = np.asarray(load_upright(path, "mask")[0].convert("L")) > 0
        if pixels.shape != union.shape:
            raise BadFileError(f"{path} has another size than its image {image}", str(path))
        union[pixels] = 1
    return union


# --- Roboflow's masks


def read_roboflow_masks(root: Path, tables: Sequence[Path]) -> Source:
    """Roboflow's "semantic segmentation masks": `a.jpg`, `a_mask.png`, and `_classes.csv` in each split's folder."""
    names: dict[int, str] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2 and row[0].strip().isdigit()]
        names |= {int(row[0]): row[1].strip() for row in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{tables[0]}: pixel values {sorted(names)} are not 0, 1, 2, ... Export the data set again.")
    table = ClassTable(tuple(names[i] for i in range(len(names))), class_colors(len(names)))
    files = [
        (path.parent.name if len(tables) > 1 else None, name_of(image, path.parent), image, found.masks[sample_id])
        for path in tables
        for found in [pair_files(path.parent, path.parent)]
        for sample_id, image in found.images.items()
        if sample_id in found.masks
    ]
    return _with_values("Roboflow's masks", files, table, [])
