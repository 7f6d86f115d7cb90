"""The common representation of labelled images from any source."""

import functools
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from ddep_hub.data.classes import BACKGROUND, BACKGROUND_COLOR, ClassTable, class_colors
from ddep_hub.data.folders import canonical_split, is_in_mask_folder
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, iter_files, list_images
from ddep_hub.data.name_matching import IMAGE_WORDS
from ddep_hub.utils.files import path_below, read_json

from .image_files import RawImage
from .shapes import Shape, import_pycocotools, shapes_mask


# Class id of objects that are to be ignored, until the number of classes is known.
IGNORED_OBJECT = -1


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
        has_values: Whether classes are told by the values of masks, which `mask_values` of the classes can name.
    """

    kind: str
    classes: ClassTable
    examples: list[Example]
    notes: list[str] = field(default_factory=list)
    has_values: bool = False


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
        self.by_name, self.by_stem, self.by_upload = (defaultdict[str, list[Path]](list) for _ in range(3))
        try:
            names = list_images(root)
        except ValueError:
            if not may_be_empty:
                raise
            names = []
        for path in names:
            self.by_name[Path(path).name.lower()].append(root / path)
            self.by_stem[Path(path).stem.lower()].append(root / path)
            self.by_upload[_upload_name(Path(path).name)].append(root / path)
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


def empty_images_note(number: int) -> str:
    """The message about images without an object: exports also list those that nobody has annotated yet."""
    return f"{pluralize(number, 'image')} without an object: all background. Take out those not annotated yet"


class ObjectAnnotations:
    """Collects the examples and classes that readers of annotation tools find, and counts what they skip.

    The arguments are those of [`ImageFinder`]. Raises an ImportError without pycocotools.
    """

    def __init__(self, root: Path, *, may_be_empty: bool = False) -> None:
        import_pycocotools()
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


def read_json_files(root: Path, format_tests: Sequence[Callable[[Any], bool]]) -> tuple[dict[Path, Any], list[str]]:
    """The json files below a folder that pass one of the tests, by path, and what is wrong with the unreadable ones.

    They are searched as images are: at any depth, without hidden files and folders. Others are not kept, as data sets
    like Cityscapes have gigabytes of them.
    """
    contents, problems = {}, []
    for path in sorted(root / name for name in iter_files(root, (".json",))):
        if path.name == "classes.json":
            continue
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        if any(test(content) for test in format_tests):
            if isinstance(content, dict) and content.get("imageData"):
                content["imageData"] = True  # LabelMe's copy of the image: all of them would fill memory
            contents[path] = content
    return contents, problems
