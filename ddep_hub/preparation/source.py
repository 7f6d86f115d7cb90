"""What every source of labelled images is read into."""

import functools
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from ddep_hub.data.classes import BACKGROUND, BACKGROUND_COLOR, ClassTable, class_colors
from ddep_hub.data.folders import canonical_split, is_in_mask_folder
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, is_tiff, list_images, open_image
from ddep_hub.data.pairing import IMAGE_WORDS
from ddep_hub.image_conversion import read_orientation
from ddep_hub.tiff import make_upright
from ddep_hub.utils.files import path_below

from .image_files import RawImage, image_size, read_image_file


# Class id of objects that are to be ignored, until the number of classes is known.
IGNORED_OBJECT = -1
MAX_COORDINATE = 1e7  # far outside of any image; pycocotools crashes on some larger ones


@dataclass(frozen=True)
class Example:
    """A labelled image.

    Args:
        name: Its path in the source, without suffix.
        mask: Gives the class ids (H, W) at the size of the upright image.
        split: The split that the source has it in, if any.
        group: What must not be divided between splits, such as the stack that it is a page of.
    """

    name: str
    image: Path | Callable[[], RawImage]
    mask: Callable[[], np.ndarray]
    split: str | None = None
    group: str | None = None


@dataclass
class Source:
    """What was found.

    Args:
        kind: The format, in words.
        classes: The classes.
        examples: The labelled images.
        notes: What else is worth a line, such as images that are missing.
    """

    kind: str
    classes: ClassTable
    examples: list[Example]
    notes: list[str] = field(default_factory=list)


def object_classes(names: Iterable[str]) -> ClassTable:
    """The classes of drawn objects: background, in grey, and these."""
    names = tuple(names)
    ignore_index = 255 if len(names) < 255 else 65535  # no id of a class
    return ClassTable((BACKGROUND, *names), (BACKGROUND_COLOR, *class_colors(len(names))), ignore_index)


def pluralize(number: int, noun: str) -> str:
    """A number and what it counts, such as "1 image" or "2,000 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


class ImageFinder:
    """Finds the images that annotations name, which have rarely stayed where they were annotated.

    `root` is the folder to look in; it may be without images if `may_be_empty`, as annotations may contain them.
    """

    def __init__(self, root: Path, *, may_be_empty: bool = False) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        self.by_upload: dict[str, list[Path]] = {}
        try:
            names = list_images(root)
        except ValueError:
            if not may_be_empty:
                raise
            names = []
        for path in names:
            self.by_name.setdefault(Path(path).name.lower(), []).append(root / path)
            self.by_stem.setdefault(Path(path).stem.lower(), []).append(root / path)
            self.by_upload.setdefault(_upload_name(Path(path).name), []).append(root / path)
        self.missing: list[str] = []

    def find(self, name: str, annotation_dir: Path, split: str | None = None) -> Path | None:
        """The file of a name, path or address: as a path, or the only one of this name; `None`, and noted, if none is.

        If several files have the name, the one in a folder of the annotation's `split` is meant; raises a ValueError
        if that does not decide it.
        """
        url, text = urlsplit(name), name
        if url.netloc or url.query:
            # An address may hold the path as its query: `/data/local-files/?d=photos/a.jpg`.
            text = unquote(url.query.removeprefix("d=") if url.query.startswith("d=") else url.path)
        path = text.replace("\\", "/")
        for base in (annotation_dir, annotation_dir / "images", self.root, self.root / "images"):
            if path and (base / path).is_file() and path.lower().endswith(IMAGE_EXTENSIONS):
                return Path(os.path.normpath(base / path))  # `../images/a.jpg` is an image of that name
        file_name = path.rsplit("/", 1)[-1].lower()
        uploaded = re.sub("^[0-9a-f]{8}-", "", file_name)
        matches = self.by_name.get(file_name, [])
        if uploaded != file_name:
            matches = matches or self.by_name.get(uploaded) or self.by_upload.get(uploaded, [])
        matches = [match for match in matches if self._may_be_image(match, annotation_dir)]
        if len(matches) > 1:
            # The longest common end of the paths decides.
            common_ends = [
                count_common_parts(path.lower().split("/"), [part.lower() for part in match.parts])
                for match in matches
            ]
            best_matches = [match for match, end in zip(matches, common_ends, strict=True) if end == max(common_ends)]
            if split is not None:
                meant = canonical_split(split)
                in_split = [match for match in best_matches if folder_split(match, self.root) == meant]
                best_matches = in_split if len(in_split) == 1 else best_matches
            if len(best_matches) > 1:
                names = " and ".join(match.relative_to(self.root).as_posix() for match in best_matches[:2])
                raise ValueError(f"{name!r} may be {names} of {self.root}. Give the images different names.")
            matches = best_matches
        if not matches:
            self.missing.append(name)
            return None
        return matches[0]

    def _may_be_image(self, path: Path, annotation_dir: Path) -> bool:
        """Whether a file lies in no folder of masks, whose names are those of images, but that of the annotation."""
        base = annotation_dir if path.is_relative_to(annotation_dir) else self.root
        return not is_in_mask_folder(path.relative_to(base).as_posix())

    def find_namesake(self, annotation: Path, image: Path | None) -> Path | None:
        """The image with the name of an annotation's file, beside it or beside the image that it names.

        `None` if there is no such image, or several.
        """
        folders = {path.parent for path in (annotation, image) if path is not None}
        matches = [path for path in self.by_stem.get(annotation.stem.lower(), []) if path.parent in folders]
        return matches[0] if len(matches) == 1 else None

    def notes(self) -> list[str]:
        """A line on missing images, if there are any."""
        if not self.missing:
            return []
        return [f"{pluralize(len(self.missing), 'annotated image')} not found, such as {self.missing[0]}: skipped"]


def _upload_name(name: str) -> str:
    """A file's name as Label Studio stores what is uploaded, before it puts eight digits in front."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_")).lower()


def count_common_parts(first: Sequence[str], second: Sequence[str]) -> int:
    """How many parts two paths have in common at their ends."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def example_name(path: Path, root: Path) -> str:
    """The name of an example: its path below the source, without suffix."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return relative.with_suffix("").as_posix()


def shorten_name(name: str, split: str | None = None) -> str:
    """A name below the output, without the folders that say what the layout says: the split's, and `images`."""
    parts = path_below(name).split("/")
    while len(parts) > 1 and (parts[0].lower() in IMAGE_WORDS or (split and canonical_split(parts[0]) == split)):
        parts = parts[1:]
    return "/".join(parts)


def file_splits(files: Iterable[Path], root: Path) -> dict[Path, str | None]:
    """The split of each annotation file, from its folder or its name; `None` for all if these name no split.

    Such names are `train/_annotations.coco.json` or `instances_val2017.json`.
    """
    splits: dict[Path, str | None] = {}
    for path in files:
        words = [path.parent.name] if path.parent != root else []
        words += re.findall("[a-z]+", path.stem.lower())
        splits[path] = next((split for word in words if (split := canonical_split(word))), path.stem)
    names_split = any(split and canonical_split(split) for split in splits.values())
    return splits if len(splits) > 1 and names_split else dict.fromkeys(splits)  # batch1.json and batch2.json are none


def folder_split(path: Path, root: Path) -> str | None:
    """The split that a folder between `root` and a file names, as in `train/a.json`."""
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return next((split for name in folders if (split := canonical_split(name))), None)


@dataclass(frozen=True)
class Shape:
    """A drawn object.

    Args:
        class_id: Its class.
        polygons: Corners x0, y0, x1, y1, ... in pixels, three or more, one list per part.
        rle: Run-length code of pycocotools, in place of polygons; a bitmap of each of many objects would fill memory.
        patch: Left, top and pixels of a part of the image, bool (h, w), in place of polygons.
    """

    class_id: int
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: Mapping[str, Any] | None = None
    patch: tuple[int, int, np.ndarray] | None = None


def rectangle(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    """The corners of a rectangle, as those of a [`Shape`]'s polygon."""
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def ellipse(x: float, y: float, rx: float, ry: float) -> tuple[float, ...]:
    """72 points of an ellipse."""
    angles = [2 * math.pi * step / 72 for step in range(72)]
    return tuple(value for angle in angles for value in (x + rx * math.cos(angle), y + ry * math.sin(angle)))


def rotate_polygon(polygon: Sequence[float], degrees: float, x: float, y: float) -> tuple[float, ...]:
    """A polygon rotated about a point, clockwise as seen in the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = (np.reshape(polygon, (-1, 2)) - (x, y)) @ [[cos, sin], [-sin, cos]] + (x, y)
    return tuple(corners.ravel().tolist())


def shapes_mask(image: Path | Image.Image, shapes: Sequence[Shape], size: tuple[int, int] | None) -> np.ndarray:
    """Class ids of drawn objects over background, 0; smaller objects lie over larger ones.

    `image` is a file or an upright image. `size` is the (width, height) that the annotation gives, `None` if it does
    not; `shapes` are drawn on the upright image, or on the stored one if `size` fits that alone. Returns uint8 or
    int32 (H, W) of the upright image. Raises a ValueError if `size` fits neither.
    """
    orientation = 1
    picture = read_image_file(image) if isinstance(image, Path) else image
    rows, columns = image_size(picture, None if size is None else size[::-1])
    upright_size = stored_size = (columns, rows)
    if isinstance(image, Path) and isinstance(picture, Image.Image) and not is_tiff(image):  # none of these is turned
        with open_image(image) as stored_image:
            orientation, stored_size = read_orientation(stored_image), stored_image.size
    if size is not None and size not in (upright_size, stored_size):
        raise ValueError(
            f"{image} has {upright_size[0]}x{upright_size[1]} pixels, but its annotation is for {size[0]}x{size[1]}. "
            "Use the image that was annotated."
        )
    width, height = size or upright_size
    mask_utils = import_pycocotools()
    try:
        objects = [(_encode(shape, width, height), shape.class_id) for shape in shapes]
    except ValueError as error:
        raise ValueError(f"{image if isinstance(image, Path) else 'an embedded image'}: {error}") from error
    mask = np.zeros((height, width), np.int32)
    objects.sort(key=lambda item: -int(mask_utils.area(item[0])))
    # One bitmap for all of a class that follow each other: of thousands of objects, each would take its time.
    for class_id, group in itertools.groupby(objects, key=lambda item: item[1]):
        mask[mask_utils.decode(mask_utils.merge([code for code, _ in group])).astype(bool)] = class_id
    if size is not None and size != upright_size:
        mask = make_upright(mask, "YX", orientation)
    return mask.astype(np.uint8) if mask.min(initial=0) >= 0 and mask.max(initial=0) < 256 else mask


def encode_bitmap(pixels: np.ndarray) -> dict[str, Any]:
    """The run-length code of a bool (H, W)."""
    code: dict[str, Any] = import_pycocotools().encode(np.asfortranarray(pixels, dtype=np.uint8))
    return code


def _encode(shape: Shape, width: int, height: int) -> Mapping[str, Any]:
    if shape.rle is not None:
        if tuple(shape.rle["size"]) != (height, width):
            rows, columns = shape.rle["size"]
            raise ValueError(f"an object's mask has size {columns}x{rows}, the image {width}x{height}.")
        return shape.rle
    if shape.patch is not None:
        left, top, part = shape.patch
        mask = np.zeros((height, width), bool)
        visible = part[max(0, -top) : height - top, max(0, -left) : width - left]
        mask[max(0, top) : max(0, top) + visible.shape[0], max(0, left) : max(0, left) + visible.shape[1]] = visible
        return encode_bitmap(mask)
    polygons = [list(part) for part in shape.polygons]
    if any(not abs(value) < MAX_COORDINATE for part in polygons for value in part):  # or NaN
        raise ValueError("an object has a coordinate that is not a number, or far outside the image. Correct it.")
    mask_utils = import_pycocotools()
    code: dict[str, Any] = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    if mask_utils.area(code) == 0:  # smaller than a pixel, but an object
        mask = np.zeros((height, width), bool)
        corners = polygons[0][: len(polygons[0]) // 2 * 2]
        column, row = np.floor(np.reshape(corners, (-1, 2)).mean(0)).astype(int)
        if 0 <= row < height and 0 <= column < width:
            mask[row, column] = True
        return encode_bitmap(mask)
    return code


def import_pycocotools() -> Any:
    """The module `pycocotools.mask`, which draws polygons and reads run-length codes."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('Drawn objects need pycocotools: pip install "ddep-hub[prepare]".') from error
    return mask


def empty_images_note(number: int) -> str:
    """What to say of images without an object: exports also list those that nobody has annotated yet."""
    return f"{pluralize(number, 'image')} without an object: all background. Take out those not annotated yet"


class ObjectAnnotations:
    """Collects the examples and classes that readers of annotation tools find, and counts what they skip.

    The arguments are those of [`ImageFinder`].
    """

    def __init__(self, root: Path, *, may_be_empty: bool = False) -> None:
        self.root, self._may_be_empty = root, may_be_empty
        self.names: dict[str, int] = {}
        self.examples: list[Example] = []
        self.dropped = Counter[str]()
        self.notes: list[str] = []
        self.num_shapes = self.num_empty = 0
        self._sources: dict[Path, str] = {}

    @functools.cached_property
    def finder(self) -> ImageFinder:
        """Finds the images; made where it is needed, as it lists all files."""
        return ImageFinder(self.root, may_be_empty=self._may_be_empty)

    def class_id(self, name: str) -> int:
        """The class of a name, from 1 on, in the order of appearance; LabelMe's names for background and no class."""
        name = " ".join(name.split())
        if name not in self.names:
            num_classes = sum(value > 0 for value in self.names.values())
            special_ids = {BACKGROUND: 0, f"_{BACKGROUND}_": 0, "__ignore__": IGNORED_OBJECT}
            self.names[name] = special_ids.get(name.lower(), 1 + num_classes)
        return self.names[name]

    def add(
        self,
        image: Path,
        shapes: Sequence[Shape],
        size: tuple[int, int] | None,
        description: str,
        split: str | None = None,
    ) -> None:
        """Adds an image with its objects; `description` says what annotates it.

        Raises a ValueError if the image was added before: one of its masks would be wrong.
        """
        if existing := self._sources.get(image.resolve()):
            raise ValueError(
                f"{image} is annotated by both {existing} and {description}. Keep one, or correct its image's name."
            )
        self._sources[image.resolve()] = description
        self.count(shapes)
        mask = partial(shapes_mask, image, shapes, size)
        self.examples.append(Example(example_name(image, self.root), image, mask, split))

    def count(self, shapes: Sequence[Shape]) -> None:
        """Counts the objects of an image."""
        self.num_shapes += len(shapes)
        self.num_empty += not shapes

    def build_source(self, kind: str) -> Source:
        """The [`Source`] of all that was added; raises a ValueError if that is nothing."""
        notes = (self.finder.notes() if "finder" in vars(self) else []) + self.notes
        if not self.examples:
            raise ValueError(f"{self.root}: no annotated image is left to use. {'; '.join(notes)}")
        if self.dropped:
            kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.dropped.items()))
            objects = pluralize(self.dropped.total(), "object")
            notes.append(f"{objects} without a readable area or label ({kinds}): skipped")
        if not self.num_shapes:
            raise ValueError(f"{self.root}: no object with an area and a label is drawn. {'; '.join(notes)}".strip())
        if self.num_empty:
            notes.append(empty_images_note(self.num_empty))
        names = [name for name, value in self.names.items() if value > 0]
        folded = Counter(name.casefold() for name in names)
        if variants := [name for name in names if folded[name.casefold()] > 1]:
            notes.append(f"the classes {' and '.join(map(repr, variants))} differ in capitals alone")
        classes = object_classes(names)
        examples = self.examples
        if IGNORED_OBJECT in self.names.values():
            examples = [
                replace(example, mask=partial(_ignore_objects, example.mask, classes.ignore_index))
                for example in examples
            ]
        return Source(kind, classes, examples, notes)


def _ignore_objects(mask: Callable[[], np.ndarray], ignore_index: int) -> np.ndarray:
    ids = mask()
    return np.where(ids == IGNORED_OBJECT, ignore_index, ids)
