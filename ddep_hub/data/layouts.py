"""Where the images and masks of a data set lie: in folders, or in the official layout of a known data set.

```
folder          classes.json, images/<split>/**/<sample_id>.jpg, annotations/<split>/**/<sample_id>.png; or what
                `folders.py` recognises, or pairs.csv
cityscapes      leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png
pascal_context  JPEGImages, SegmentationClassContext (masks of 60 values, which pascal_context.py writes),
                ImageSets/SegmentationContext/{train,val}.txt or else ImageSets/Main/{train,val}.txt
ade20k          images/{training,validation}/*.jpg, annotations/{training,validation}/*.png
pascal_voc      JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val,trainval}.txt; for the split
                train_aug SegmentationClassAug, ImageSets/Segmentation/train_aug.txt or trainaug.txt
camvid          {train,val,test}/*.png, {train,val,test}annot/*.png, as in the SegNet tutorial
```

The folders of ADE20K may lie in `ADEChallengeData2016`, those of VOC in `VOC2012`, of Pascal Context in `VOC2010`, and
these two in `VOCdevkit`. Cityscapes' test masks are there, but without any class.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .classes import ClassTable, read_class_table
from .dataset_registry import get_dataset_info, list_datasets
from .folders import (
    DETECTED,
    FolderOptions,
    SplitFolders,
    common_split,
    find_split_folders,
    matching_split,
    subfolders,
)
from .generated_files import without_generated
from .image_io import first_few, images_below
from .masks import classes_to_save
from .pairing import PAIRS, Pairs, pair_files, read_pairs, without_extension


logger = logging.getLogger(__name__)

LAYOUTS = ("folder", *list_datasets())
_OFFICIAL_NAMES = {"training": "train", "validation": "val"}
_VOC_LISTS = ("train", "val", "trainval")
# Required contents of each layout, for messages.
_NEEDED = {
    "folder": "images/<split>/ and annotations/<split>/, <split>/images/ and <split>/masks/, images/ and masks/, or "
    "pairs.csv",
    "cityscapes": "leftImg8bit/<split>/ and gtFine/<split>/",
    "pascal_context": "VOC2010/ with JPEGImages/ and ImageSets/SegmentationContext/<split>.txt or "
    "ImageSets/Main/<split>.txt",
    "ade20k": "images/training/ADE_*.jpg or images/validation/ADE_*.jpg",
    "pascal_voc": "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/<split>.txt, for train_aug "
    "SegmentationClassAug/ and trainaug.txt",
    "camvid": "<split>/ and <split>annot/ for train, val or test",
}


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Args:
        image_folder: Holds the images.
        mask_folder: Holds the masks.
        images: The image of every sample id, in the order of the official list, or sorted.
        masks: Where the mask of every sample id belongs; it need not be there.
        classes: The data set's classes.
        mapping: Class id of every value that the masks may hold; None where the values are the ids.
        groups: What each sample belongs to, such as a slide, where `pairs.csv` says so.
    """

    image_folder: Path
    mask_folder: Path
    images: dict[str, Path]
    masks: dict[str, Path]
    classes: ClassTable
    mapping: Mapping[int, int] | None
    groups: Mapping[str, str] = field(default_factory=dict)


def find_layout(root: str | Path, options: FolderOptions = DETECTED) -> str:
    """Detects a data set's layout from the contents of its folder.

    Args:
        root: The data set's folder.
        options: Where images and masks lie; with folders or a suffix there, or a `pairs.csv`, the layout is `folder`.

    Returns:
        One of `LAYOUTS`.

    Raises:
        FileNotFoundError: It has none of them; the message lists what was looked for, and what is there.
        ValueError: It has several, or there are several folders of images or masks.
    """
    root = Path(root)
    if options.has_folders or (root / PAIRS).is_file():
        return "folder"
    if (root / "images").is_dir() and (root / "classes.json").is_file():
        return "folder"
    is_ade20k = _is_ade20k(root)
    voc, context = _voc_home(root, "VOC2012"), _voc_home(root, "VOC2010")
    found = {
        "folder": (root / "images").is_dir() and not is_ade20k,
        "cityscapes": (root / "leftImg8bit").is_dir(),
        "pascal_context": _is_pascal_context(context),
        "ade20k": is_ade20k,
        # VOC2010 also has such masks, for another task.
        "pascal_voc": (voc / "SegmentationClass").is_dir() and not _is_pascal_context(voc),
        "camvid": bool(official_folders(root, "camvid")),
    }
    layouts = [layout for layout in LAYOUTS if found[layout]]
    if len(layouts) > 1:
        raise ValueError(f"{root} has the layouts of {' and '.join(layouts)}; choose one of them with layout=")
    if layouts:
        return layouts[0]
    if find_split_folders(root):
        return "folder"
    raise FileNotFoundError(_not_found_error(root))


def layout_splits(root: str | Path, layout: str, options: FolderOptions = DETECTED) -> list[str]:
    """The splits of a data set.

    Args:
        root: The data set's folder.
        layout: One of `LAYOUTS`.
        options: Where images and masks lie, for the layout `folder`.

    Returns:
        Their names, sorted. Official names such as `training` are given as `train` and `val`, those of the layout
        `folder` as they are.

    Raises:
        FileNotFoundError: There is no data set of this layout.
        ValueError: There is no such layout.
    """
    root = Path(root)
    if layout == "folder":
        if _is_listed(root, options):
            return sorted(read_pairs(root).pairs)
        folders = find_split_folders(root, options.image_dir, options.mask_dir)
        if not folders:
            raise FileNotFoundError(_not_found_error(root))
        return sorted(folders)
    folders = official_folders(root, layout)
    if not folders:
        raise FileNotFoundError(f"{root} has no split in the layout {layout!r}, which needs {_NEEDED[layout]}")
    return sorted(folders)


def split_files(root: str | Path, split: str, layout: str, options: FolderOptions = DETECTED) -> SplitFiles:
    """Finds the images and masks of a split.

    Args:
        root: The data set's folder.
        split: One of `layout_splits`, or another common name of it: `validation`, `valid` or `dev` for `val`,
            `training` for `train`, `testing` for `test`.
        layout: One of `LAYOUTS`.
        options: Where images and masks lie, for the layout `folder`; and the classes, for any.

    Returns:
        Their paths by sample id: the image's path in its folder without suffix, and without `_leftImg8bit` in
        Cityscapes, as `read_split_file` gives it for published lists.

    Raises:
        FileNotFoundError: There is no such split, a folder or `classes.json` is missing, or an image that the
            official list names is.
        ValueError: There is no such layout, the split is empty, or two images share a sample id.
    """
    root = Path(root)
    if layout == "folder":
        return _folder_files(root, split, options)
    splits, folders = layout_splits(root, layout), official_folders(root, layout)
    name = matching_split(folders, split)
    if name is None:
        raise FileNotFoundError(
            f"{root} has no split {split!r}; it has {splits}, and a split of {layout} needs {_NEEDED[layout]}"
            f"{_another_split(split)}"
        )
    own = folders[name]
    if layout == "pascal_context" and not own.masks.is_dir():
        raise FileNotFoundError(
            f"{own.masks} is missing; make the masks from the official annotations with "
            f"`python -m ddep_hub.data.pascal_context {own.masks.parent} path/to/trainval`"
        )
    image_ending, mask_ending = ("_leftImg8bit", "_gtFine_labelIds") if layout == "cityscapes" else ("", "")
    images = _listed_images(own.images, own.list_file) if own.list_file else _all_images(own.images, image_ending)
    masks = {sample_id: own.masks / f"{sample_id}{mask_ending}.png" for sample_id in images}
    info = get_dataset_info(layout)
    classes: ClassTable = info.classes
    mapping: Mapping[int, int] | None = info.mapping
    if options.classes:
        # The user's own data in a known layout, as exported by annotation tools.
        found = read_class_table(options.classes)
        if found.names != classes.names or found.mask_values:
            classes, mapping = found, None
    return SplitFiles(own.images, own.masks, images, masks, classes, mapping)


def _folder_files(root: Path, split: str, options: FolderOptions) -> SplitFiles:
    """A split of the layout `folder`; warns of masks without an image."""
    splits = layout_splits(root, "folder", options)
    groups: Mapping[str, str] = {}
    if _is_listed(root, options):
        listed = read_pairs(root)
        name = matching_split(listed.pairs, split)
        own = SplitFolders(root, root)
        pairs = listed.pairs.get(name or "", Pairs({}, {}, []))
        groups = listed.groups.get(name or "", {})
    else:
        folders = find_split_folders(root, options.image_dir, options.mask_dir)
        name = matching_split(folders, split)
        if name is not None:
            own = folders[name]
            pairs = pair_files(own.images, own.masks, options.mask_suffix)
    if name is None:
        where = root / "images" if (root / "images").is_dir() else root
        raise FileNotFoundError(f"{where} has no split {split!r}; it has {splits}{_another_split(split)}")
    if pairs.unmatched:
        logger.warning(
            "%s: skipping %d masks without an image: %s", own.masks, len(pairs.unmatched), first_few(pairs.unmatched)
        )
    table = Path(options.classes or root / "classes.json")
    if not table.exists() and not options.classes and pairs.masks:
        raise FileNotFoundError(f"{table} is missing. {classes_to_save(list(pairs.masks.values()))}")
    suffix = without_extension(options.mask_suffix or "")
    masks = {sample_id: own.masks / f"{sample_id}{suffix}.png" for sample_id in pairs.images}
    # What a missing mask is called in messages must not be the image itself.
    masks |= {name: own.masks / f"{name}_mask.png" for name, image in pairs.images.items() if masks[name] == image}
    masks |= pairs.masks
    return SplitFiles(own.images, own.masks, pairs.images, masks, read_class_table(table), None, groups)


def _another_split(missing: str) -> str:
    """What to do about a split that is not there; a message ends with it."""
    if common_split(missing) == "train":
        return "; choose one of these with --train_split or --eval_split"
    return (
        "; choose one of these with --eval_split, or let fine-tuning hold out a part of the training images with "
        "--val_fraction"
    )


def _is_listed(root: Path, options: FolderOptions) -> bool:
    return (root / PAIRS).is_file() and not options.has_folders


def _not_found_error(root: Path) -> str:
    if not root.is_dir():
        return f"{root} is not a folder; check the path"
    entries = sorted(path.name + "/" * path.is_dir() for path in root.glob("*") if not path.name.startswith("."))
    known = "; ".join(f"{layout}: {needed}" for layout, needed in _NEEDED.items())
    return (
        f"{root / 'images'} is not a folder, and no other layout is recognised in {root}, which holds "
        f"{first_few(entries) if entries else 'nothing'}; pass a folder with one of these layouts ({known}), set "
        f"image_dir and mask_dir, or list the files in {PAIRS}"
    )


def official_folders(root: Path, layout: str) -> dict[str, SplitFolders]:
    """The splits that are there, by the name that users give."""
    if layout == "cityscapes":
        names = subfolders(root / "leftImg8bit")
        return {name: SplitFolders(root / "leftImg8bit" / name, root / "gtFine" / name) for name in names}
    if layout == "ade20k":
        home = _ade20k_home(root)
        folders = {
            name: SplitFolders(home / "images" / official, home / "annotations" / official)
            for official, name in _OFFICIAL_NAMES.items()
        }
        return {name: own for name, own in folders.items() if own.images.is_dir()}
    if layout == "camvid":
        folders = {name: SplitFolders(root / name, root / f"{name}annot") for name in ("train", "val", "test")}
        return {name: own for name, own in folders.items() if own.images.is_dir() and own.masks.is_dir()}
    if layout == "pascal_voc":
        home = _voc_home(root, "VOC2012")
        lists = home / "ImageSets" / "Segmentation"
        masks = home / "SegmentationClass"
        folders = {name: SplitFolders(home / "JPEGImages", masks, lists / f"{name}.txt") for name in _VOC_LISTS}
        augmented = [lists / name for name in ("train_aug.txt", "trainaug.txt") if (lists / name).is_file()]
        if augmented and (home / "SegmentationClassAug").is_dir():
            folders["train_aug"] = SplitFolders(home / "JPEGImages", home / "SegmentationClassAug", augmented[0])
        return {name: own for name, own in folders.items() if own.list_file and own.list_file.is_file()}
    if layout == "pascal_context":
        home = _voc_home(root, "VOC2010")
        folders = {}
        for name in ("train", "val"):
            own, main = (home / "ImageSets" / folder / f"{name}.txt" for folder in ("SegmentationContext", "Main"))
            if own.is_file() or main.is_file():
                path = own if own.is_file() else main
                folders[name] = SplitFolders(home / "JPEGImages", home / "SegmentationClassContext", path)
        return folders
    raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")


def _ade20k_home(root: Path) -> Path:
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root


def _is_ade20k(root: Path) -> bool:
    home = _ade20k_home(root)
    # Its file names distinguish it from a plain data set with a forgotten classes.json.
    return any(next((home / "images" / official).glob("ADE_*.jpg"), None) for official in _OFFICIAL_NAMES)


def _voc_home(root: Path, name: str) -> Path:
    homes = (root / "VOCdevkit" / name, root / name)
    return next((home for home in homes if home.is_dir()), root)


def _is_pascal_context(home: Path) -> bool:
    # Also by its name, so that VOC2010 without converted masks is not mistaken for VOC with its 21 classes.
    named = home.absolute().name == "VOC2010" and (home / "JPEGImages").is_dir()
    return named or (home / "SegmentationClassContext").is_dir()


def _all_images(folder: Path, ending: str) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name in without_generated(folder, images_below(folder)):
        sample_id = Path(name).with_suffix("").as_posix()
        if not sample_id.endswith(ending):
            continue
        sample_id = sample_id.removesuffix(ending)
        if sample_id in images:
            raise ValueError(f"{folder} holds both {images[sample_id].name} and {name}; keep one image per sample id")
        images[sample_id] = folder / name
    if not images:
        raise ValueError(f"{folder} holds no image whose name ends with {ending}.png; check the path")
    return images


def _listed_images(folder: Path, list_file: Path) -> dict[str, Path]:
    # A line is a sample id, or in lists of the augmented masks the paths of image and mask.
    lines = list_file.read_text(encoding="utf-8").splitlines()
    sample_ids = [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]
    if not sample_ids:
        raise ValueError(f"{list_file} lists no image; extract it from the official archive again")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [f"{sample_id}.jpg" for sample_id in sample_ids if f"{sample_id}.jpg" not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(sample_ids)} images of {list_file} are not in {folder}: {first_few(missing)}; "
            "add the images, or take them out of the list"
        )
    return {sample_id: folder / f"{sample_id}.jpg" for sample_id in sample_ids}
