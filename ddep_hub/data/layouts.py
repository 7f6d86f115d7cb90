"""Where the images and masks of a data set lie: in the plain layout, or in the official one of a known data set.

```
folder          classes.json, images/<split>/**/<sample_id>.jpg, annotations/<split>/**/<sample_id>.png
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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .classes import ClassTable, read_class_table
from .dataset_registry import get_dataset_info, list_datasets
from .image_io import first_few, images_below


logger = logging.getLogger(__name__)

# A PNG comes first where there are several.
MASK_EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".jpg", ".jpeg")
LAYOUTS = ("folder", *list_datasets())
_OFFICIAL_NAMES = {"training": "train", "validation": "val"}
_VOC_LISTS = ("train", "val", "trainval")
# What a data set of each layout must have, for messages.
_NEEDED = {
    "folder": "images/<split>/, annotations/<split>/ and classes.json",
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
    """

    image_folder: Path
    mask_folder: Path
    images: dict[str, Path]
    masks: dict[str, Path]
    classes: ClassTable
    mapping: Mapping[int, int] | None


@dataclass(frozen=True)
class _Place:
    """Where a split lies; without a list, all images of the folder are in it."""

    images: Path
    masks: Path
    list_file: Path | None = None


def find_layout(root: str | Path) -> str:
    """Tells a data set's layout from what lies in its folder. One with `images` and `classes.json` is a plain one.

    Args:
        root: The data set's folder.

    Returns:
        One of `LAYOUTS`.

    Raises:
        FileNotFoundError: It has none of them; the message lists what was looked for.
        ValueError: It has several.
    """
    root = Path(root)
    if (root / "images").is_dir() and (root / "classes.json").is_file():
        return "folder"
    is_ade20k = _is_ade20k(root)
    voc, context = _voc_home(root, "VOC2012"), _voc_home(root, "VOC2010")
    found = {
        "folder": (root / "images").is_dir() and not is_ade20k,
        "cityscapes": (root / "leftImg8bit").is_dir(),
        "pascal_context": _is_pascal_context(context),
        "ade20k": is_ade20k,
        # VOC2010 has such masks as well, of another task.
        "pascal_voc": (voc / "SegmentationClass").is_dir() and not _is_pascal_context(voc),
        "camvid": bool(_places(root, "camvid")),
    }
    layouts = [layout for layout in LAYOUTS if found[layout]]
    if len(layouts) > 1:
        raise ValueError(f"{root} has the layouts of {' and '.join(layouts)}; choose one of them with layout=")
    if not layouts:
        known = "; ".join(f"{layout}: {needed}" for layout, needed in _NEEDED.items())
        raise FileNotFoundError(
            f"{root / 'images'} is not a folder, and {root} has the official layout of no known data set; give a "
            f"folder that holds one of these ({known})"
        )
    return layouts[0]


def layout_splits(root: str | Path, layout: str) -> list[str]:
    """The splits of a data set.

    Args:
        root: The data set's folder.
        layout: One of `LAYOUTS`.

    Returns:
        Their names, sorted. Official names such as `training` are given as `train` and `val`, those of the plain
        layout as they are.

    Raises:
        FileNotFoundError: There is no data set of this layout.
        ValueError: There is no such layout.
    """
    root = Path(root)
    places = _places(root, layout)
    if layout == "folder" and not (root / "images").is_dir():
        folder = root / "images"
        raise FileNotFoundError(f"{folder} is not a folder; a data set has images/<split>/ and annotations/<split>/")
    if layout != "folder" and not places:
        raise FileNotFoundError(f"{root} has no split in the layout {layout!r}, which needs {_NEEDED[layout]}")
    return sorted(places)


def split_files(root: str | Path, split: str, layout: str) -> SplitFiles:
    """Finds the images and masks of a split.

    Args:
        root: The data set's folder.
        split: One of `layout_splits`; `training` and `validation` stand for `train` and `val` in all layouts but the
            plain one.
        layout: One of `LAYOUTS`.

    Returns:
        Their paths by sample id: the image's path in its folder without suffix, and without `_leftImg8bit` in
        Cityscapes, as `read_split_file` gives it for published lists.

    Raises:
        FileNotFoundError: There is no such split, a folder or `classes.json` is missing, or an image that the
            official list names is.
        ValueError: There is no such layout, the split is empty, or two images share a sample id.
    """
    root = Path(root)
    splits = layout_splits(root, layout)
    name = split if layout == "folder" else _OFFICIAL_NAMES.get(split, split)
    if name not in splits:
        if layout == "folder":
            raise FileNotFoundError(f"{root / 'images'} has no split {split!r}; it has {splits}")
        raise FileNotFoundError(
            f"{root} has no split {split!r}; it has {splits}, and a split of {layout} needs {_NEEDED[layout]}"
        )
    place = _places(root, layout)[name]
    if layout == "pascal_context" and not place.masks.is_dir():
        raise FileNotFoundError(
            f"{place.masks} is missing; make the masks from the official annotations with "
            f"`python -m ddep_hub.data.pascal_context {place.masks.parent} path/to/trainval`"
        )
    if layout == "folder":
        classes, mapping = read_class_table(root / "classes.json"), None
    else:
        classes, mapping = get_dataset_info(layout).classes, get_dataset_info(layout).mapping
    image_ending, mask_ending = ("_leftImg8bit", "_gtFine_labelIds") if layout == "cityscapes" else ("", "")
    images = (
        _listed_images(place.images, place.list_file) if place.list_file else _all_images(place.images, image_ending)
    )
    masks = {sample_id: place.masks / f"{sample_id}{mask_ending}.png" for sample_id in images}
    if layout == "folder" and place.masks.is_dir():
        masks |= _masks_of_folder(place, images)
    return SplitFiles(place.images, place.masks, images, masks, classes, mapping)


def _places(root: Path, layout: str) -> dict[str, _Place]:
    """The splits that are there, by the name that users give."""
    if layout == "folder":
        names = _subfolders(root / "images")
        return {name: _Place(root / "images" / name, root / "annotations" / name) for name in names}
    if layout == "cityscapes":
        names = _subfolders(root / "leftImg8bit")
        return {name: _Place(root / "leftImg8bit" / name, root / "gtFine" / name) for name in names}
    if layout == "ade20k":
        home = _ade20k_home(root)
        places = {
            name: _Place(home / "images" / official, home / "annotations" / official)
            for official, name in _OFFICIAL_NAMES.items()
        }
        return {name: place for name, place in places.items() if place.images.is_dir()}
    if layout == "camvid":
        places = {name: _Place(root / name, root / f"{name}annot") for name in ("train", "val", "test")}
        return {name: place for name, place in places.items() if place.images.is_dir() and place.masks.is_dir()}
    if layout == "pascal_voc":
        home = _voc_home(root, "VOC2012")
        lists = home / "ImageSets" / "Segmentation"
        masks = home / "SegmentationClass"
        places = {name: _Place(home / "JPEGImages", masks, lists / f"{name}.txt") for name in _VOC_LISTS}
        augmented = [lists / name for name in ("train_aug.txt", "trainaug.txt") if (lists / name).is_file()]
        if augmented and (home / "SegmentationClassAug").is_dir():
            places["train_aug"] = _Place(home / "JPEGImages", home / "SegmentationClassAug", augmented[0])
        return {name: place for name, place in places.items() if place.list_file and place.list_file.is_file()}
    if layout == "pascal_context":
        home = _voc_home(root, "VOC2010")
        places = {}
        for name in ("train", "val"):
            own, main = (home / "ImageSets" / folder / f"{name}.txt" for folder in ("SegmentationContext", "Main"))
            if own.is_file() or main.is_file():
                path = own if own.is_file() else main
                places[name] = _Place(home / "JPEGImages", home / "SegmentationClassContext", path)
        return places
    raise ValueError(f"layout {layout!r} is not known; choose one of {', '.join(LAYOUTS)}")


def _subfolders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _ade20k_home(root: Path) -> Path:
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root


def _is_ade20k(root: Path) -> bool:
    home = _ade20k_home(root)
    # The names of its files tell it from a plain data set whose classes.json was forgotten.
    return any(next((home / "images" / official).glob("ADE_*.jpg"), None) for official in _OFFICIAL_NAMES)


def _voc_home(root: Path, name: str) -> Path:
    homes = (root / "VOCdevkit" / name, root / name)
    return next((home for home in homes if home.is_dir()), root)


def _is_pascal_context(home: Path) -> bool:
    # By its name too, so that VOC2010 without converted masks is not taken for VOC's 21 classes.
    named = home.absolute().name == "VOC2010" and (home / "JPEGImages").is_dir()
    return named or (home / "SegmentationClassContext").is_dir()


def _all_images(folder: Path, ending: str) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name in images_below(folder):
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


def _masks_of_folder(place: _Place, images: Mapping[str, Path]) -> dict[str, Path]:
    """The masks of a plain data set, which may be of any lossless kind; warns of masks without an image."""
    found: dict[str, Path] = {}
    for path in sorted(place.masks.rglob("*")):
        if path.suffix.lower() in MASK_EXTENSIONS and not path.name.startswith("."):
            name = path.relative_to(place.masks).with_suffix("").as_posix()
            if name not in found or path.suffix.lower() == ".png":
                found[name] = path
    alone = [name for name in found if name not in images]
    if alone:
        logger.warning("%s: %d masks without an image are left out: %s", place.masks, len(alone), first_few(alone))
    return {name: path for name, path in found.items() if name in images}


def _listed_images(folder: Path, list_file: Path) -> dict[str, Path]:
    # A line is a sample id, or in lists of the augmented masks the paths of image and mask.
    lines = list_file.read_text(encoding="utf-8").splitlines()
    sample_ids = [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]
    if not sample_ids:
        raise ValueError(f"{list_file} lists no image; take it from the official archive again")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [f"{sample_id}.jpg" for sample_id in sample_ids if f"{sample_id}.jpg" not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(sample_ids)} images of {list_file} are not in {folder}: {first_few(missing)}; "
            "add the images, or take them out of the list"
        )
    return {sample_id: folder / f"{sample_id}.jpg" for sample_id in sample_ids}
