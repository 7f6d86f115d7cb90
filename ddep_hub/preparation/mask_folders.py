"""Folders with a mask for each image, as `--data` reads them, or with any values or colours."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ddep_hub.data.classes import ClassTable, Color
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.folders import (
    DEFAULT_OPTIONS,
    FolderOptions,
    SplitFolders,
    canonical_split,
    find_split_folders,
    is_mask_folder,
    subfolders,
    unpacked_root,
)
from ddep_hub.data.image_io import iter_files
from ddep_hub.data.layouts import find_layout, find_splits
from ddep_hub.data.name_matching import MASK_EXTENSIONS
from ddep_hub.data.pairing import PAIRS, pair_files
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.splits import read_split_file
from ddep_hub.utils.files import format_list

from .masks import make_source
from .source import Example, Source, folder_split, pluralize


def read_folder(root: Path, table: ClassTable | None, options: FolderOptions = DEFAULT_OPTIONS) -> Source:
    """A folder that `--data` reads, with its `classes.json`, or with the values or colours found in its masks."""
    root = unpacked_root(root, options)
    if options.classes is None and (root / "classes.json").is_file():
        options = dataclasses.replace(options, classes=root / "classes.json")
    layout = _detect_layout(root, options)
    if layout != "folder" or (table is None and options.classes):
        return _read_known_layout(root, layout, options)
    folders, listed = find_splits(root, layout, options)
    pairs = listed
    if not listed and layout == "folder":
        pairs = {split: pair_files(part.images, part.masks, options.mask_suffix) for split, part in folders.items()}
    groups = {name: group for part in pairs.values() for name, group in part.groups.items()}
    splits = _listed_splits(folders.values())
    files = [
        (
            split if listed or len(pairs) > 1 else splits.get(sample_id) or folder_split(image, root),
            sample_id,
            image,
            split_pairs.masks[sample_id],
        )
        for split, split_pairs in pairs.items()
        for sample_id, image in split_pairs.images.items()
        if sample_id in split_pairs.masks
    ]
    if not files:
        raise ValueError(_no_pairs_message(root, folders))
    num_unpaired = sum(len(split_pairs.images) for split_pairs in pairs.values()) - len(files)
    notes = []
    if num_unpaired:
        what_to_do = "If they show no object, as good parts do, give them masks of zeros"
        notes.append(f"{pluralize(num_unpaired, 'image')} without a mask: skipped. {what_to_do}")
    used = {mask.with_suffix("") for *_, mask in files}  # splits may share a folder of masks
    unread = [
        name
        for split, split_pairs in pairs.items()
        for name in split_pairs.unmatched
        if folders[split].masks / name not in used
    ]
    if unread:
        notes.append(f"{pluralize(len(unread), 'file')} among the masks that belong to no image, such as {unread[0]}")
    return make_source("masks", files, table or _read_label_file(root), notes, groups)


def _detect_layout(root: Path, options: FolderOptions) -> str:
    """The layout of a folder; that of a known data set only if its own images and masks are there."""
    if options.has_folders or (root / PAIRS).is_file():
        return "folder"
    has_folders = bool(find_split_folders(root))
    if has_folders and _read_label_file(root) is not None:
        return "folder"
    try:
        layout = find_layout(root)
        if layout == "folder" or not has_folders:
            return layout
        split = next(iter(find_splits(root, layout)[0]))
        dataset = SegmentationFolder(root, split, layout=layout, options=options)
        if dataset.classes is not get_dataset_info(layout).classes:  # the values of its masks are the user's, too
            return "folder"
        if not re.fullmatch(get_dataset_info(layout).image_names, dataset.images[0].stem):
            return "folder"
        dataset.mask(0)  # raises an error where the values are those of other classes
    except (FileNotFoundError, ValueError):
        if has_folders:
            return "folder"
        raise
    return layout


def _listed_splits(folders: Iterable[SplitFolders]) -> dict[str, str]:
    """The split of each sample that lists beside the images name, as in Pascal VOC and exports of CVAT."""
    lists = {path for part in folders for path in (part.images.parent / "ImageSets/Segmentation").glob("*.txt")}
    splits = {path: canonical_split(path.stem) for path in sorted(lists) if path.stat().st_size}
    return {sample: split for path, split in splits.items() if split for sample in read_split_file(path)}


def _no_pairs_message(root: Path, folders: Mapping[str, SplitFolders]) -> str:
    named = [root / name for name in subfolders(root) if is_mask_folder(name)]
    endings = {Path(name).suffix.lower() for folder in named for name in iter_files(folder)} - {""}
    if endings and not endings & {*MASK_EXTENSIONS}:
        return (
            f"{root}: {format_list([folder.name for folder in named])} holds {format_list(sorted(endings))} files, "
            "but no masks. Export masks, or annotations in one of the formats in docs/data.md."
        )
    places = "; ".join(f"{part.images} and {part.masks}" for part in folders.values())
    return f"{root}: no image has a mask with a matching name in {places}. List them in {PAIRS}."


def _read_known_layout(root: Path, layout: str, options: FolderOptions) -> Source:
    examples: list[Example] = []
    folders, listed = find_splits(root, layout, options)
    # A split for which nobody has drawn masks.
    unlabelled = [split for split, folder in folders.items() if layout == "folder" and not folder.masks.is_dir()]
    left_out = set() if layout == "folder" else {*get_dataset_info(layout).layout.redundant}
    splits = sorted(folders.keys() - {*unlabelled} - left_out) or sorted(folders)
    datasets = {split: SegmentationFolder(root, split, layout=layout, options=options) for split in splits}
    inner_splits = _listed_splits(folders.values()) if layout == "folder" and not listed else {}
    for split, dataset in datasets.items():
        for index, name in enumerate(dataset.sample_ids):
            image = dataset.images[index]
            inner = None if listed else inner_splits.get(name) or folder_split(image, root)
            mask = partial(dataset.mask, index)
            examples.append(Example(name, image, mask, split if len(splits) > 1 else inner, dataset.groups.get(name)))
    first = next(iter(datasets.values()))
    classes = first.classes.without_mask_values()
    notes = [f"split {split} has no masks: skipped" for split in unlabelled if split not in splits]
    notes += [f"split {split}: skipped" for split in sorted(left_out & folders.keys()) if split not in splits]
    return Source(f"layout {first.layout}", classes, examples, notes, has_values=True)


# Lines of files of class names and colours; a name may hold digits.
_LABEL_LINES = {
    "labelmap.txt": r"(?P<name>[^#:][^:]*):(?P<red>\d+),(?P<green>\d+),(?P<blue>\d+)(:.*)?",
    "label_colors.txt": r"(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)[\s,]+(?P<name>.+)",
    "class_dict.csv": r"(?P<name>.+?)\s*,\s*(?P<red>\d+)\s*,\s*(?P<green>\d+)\s*,\s*(?P<blue>\d+)",
}


def _read_label_file(root: Path) -> ClassTable | None:
    """Names and colours from `labelmap.txt` (CVAT), `label_colors.txt` (CamVid) or `class_dict.csv` in the folder."""
    for name in _LABEL_LINES:
        path = root / name
        if not path.is_file():
            continue
        colors: dict[str, Color] = {}
        pattern = re.compile(_LABEL_LINES[name])
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if match := pattern.fullmatch(line.strip()):
                colors[match["name"].strip('" ')] = (int(match["red"]), int(match["green"]), int(match["blue"]))
        if colors:
            return ClassTable(tuple(colors), tuple(colors.values()), read_colors=True)
    return None
