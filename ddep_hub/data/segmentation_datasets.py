"""Labelled images: folders in known layouts, and data sets on the Hub."""

import copy
import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from torch.utils.data import Dataset

from ddep_hub.image_conversion import warn_once
from ddep_hub.orientation import ORIENTATIONS
from ddep_hub.utils.files import format_list

from .classes import ClassTable, class_colors
from .folders import DEFAULT_OPTIONS, FolderOptions, is_mask_folder, unpacked_root
from .hf_datasets import load_split, local_fingerprint, make_undecoded_sample, select_undecoded
from .image_io import BadFileError, decode_image, read_header
from .layouts import find_layout, find_splits, split_files
from .masks import Palettes, decode_mask
from .splits import read_split_file


Sample = dict[str, Any]
# Mask formats whose file size does not depend on the content.
UNCOMPRESSED = {".bmp", ".dib", ".npy", ".tif", ".tiff", ".pgm", ".ppm", ".pnm"}


def _size_error(size: tuple[int, ...], mask: np.ndarray, path: str, mask_path: str) -> BadFileError:
    height, width = mask.shape
    return BadFileError(
        f"{mask_path} is {width}x{height} pixels, but its image {path} is {size[0]}x{size[1]} (EXIF orientation "
        "applied); make the mask from that image, or resize the mask with nearest neighbour",
        mask_path,
    )


def _check_header(mask: np.ndarray, image: Any, path: str, mask_path: str, channels: int) -> np.ndarray:
    """Checks that a mask has the size in its image's header; if only the swapped sides match, decodes the image."""
    header = read_header(image)
    if header is None:
        return mask
    size, orientation = header
    is_transposed, *is_flipped = ORIENTATIONS[orientation]
    upright = size[::-1] if is_transposed else size
    if upright != mask.shape[::-1]:  # the header need not have the orientation
        if sorted(size) == sorted(mask.shape):
            upright = decode_image(image, channels).size
        if upright != mask.shape[::-1]:
            raise _size_error(upright, mask, path, mask_path)
    if (is_transposed and size[0] == size[1]) or (not is_transposed and any(is_flipped)):
        warn_once(
            "turned",
            path,
            f"{path} is rotated by its EXIF orientation, and its mask would fit either way. Check in the pictures of "
            "the run, or the preview of `ddep-hub prepare`, that its mask was drawn on the upright image.",
        )
    return mask


class SizedDataset(Protocol):
    """A map-style data set: one of this package, or any with a length and integer indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class SegmentationDataset(SizedDataset, Protocol):
    """Samples with `image`, a PIL RGB image, and `annotation`, an array (H, W) of class ids.

    Attributes:
        classes: The classes.
        sample_ids: Names of the samples, in order.
    """

    classes: ClassTable
    sample_ids: list[str]

    @property
    def fingerprint(self) -> list[str]:
        """Identifies this data regardless of its location."""
        ...

    def select(self, sample_ids: Iterable[str]) -> "SegmentationDataset":
        """The same data with these samples only, in this order."""
        ...

    def mask(self, index: int, /) -> np.ndarray:
        """Only the `annotation` of a sample."""
        ...


def _find_indices(sample_ids: Sequence[str], all_ids: Iterable[str], source_name: str) -> list[int]:
    """Positions of the sample ids among the known ones; raises a ValueError for an unknown one."""
    indices = {sample_id: index for index, sample_id in enumerate(all_ids)}
    unknown = [sample_id for sample_id in sample_ids if sample_id not in indices]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(sample_ids)} sample ids are not in {source_name}: {format_list(unknown)}; sample "
            f"ids there look like {next(iter(indices), '')!r}"
        )
    return [indices[sample_id] for sample_id in sample_ids]


def _hint_of_archives(root: Path) -> str:
    """A hint for masks that are NumPy archives."""
    archives = (path for path in root.rglob("*.npz") if is_mask_folder(path.parent.name))
    found = next(archives, None)
    return "" if found is None else f". Archives are not read: save the mask in {found} and others as PNG or .npy"


class _SegmentationFiles(Dataset[dict[str, Any]]):
    """Images and masks in files: the common part of folders and data sets on the Hub.

    Subclasses set these attributes and find the files; see also [`SegmentationDataset`].
    """

    _per_sample: tuple[str, ...]  # the lists that have an entry for each sample
    _mapping: Mapping[int, int] | None  # class id of every value of the masks, where they do not hold ids
    _palettes: Palettes  # of the masks read so far
    name: str  # what errors call the data
    classes: ClassTable
    sample_ids: list[str]
    num_channels: int

    def _find_files(self, index: int) -> tuple[Any, str, Any, str]:
        """The image of a sample and its name, its mask and its name."""
        raise NotImplementedError

    def _decode_mask(self, file: Any) -> np.ndarray:
        return decode_mask(
            file,
            num_classes=self.classes.num_classes,
            ignore_index=self.classes.ignore_index,
            mapping=self._mapping,
            other_id=self.classes.other_id,
            colors=self.classes.mask_colors,
            palettes=self._palettes,
        )

    def select(self, sample_ids: Iterable[str]) -> Self:
        """The same data with these samples only, in this order."""
        subset = copy.copy(self)
        subset.sample_ids = list(sample_ids)
        indices = _find_indices(subset.sample_ids, self.sample_ids, self.name)
        for name in self._per_sample:
            setattr(subset, name, [getattr(self, name)[index] for index in indices])
        return subset

    def __len__(self) -> int:
        return len(self.sample_ids)

    def mask(self, index: int) -> np.ndarray:
        """Only the `annotation` of a sample; of its image, only the size is read."""
        image, path, mask, mask_path = self._find_files(index)
        return _check_header(self._decode_mask(mask), image, path, mask_path, self.num_channels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, path, mask_file, mask_path = self._find_files(index)
        image, mask = decode_image(file, self.num_channels), self._decode_mask(mask_file)
        if image.size != mask.shape[::-1]:
            raise _size_error(image.size, mask, path, mask_path)
        return {"image": image, "annotation": mask, "path": path, "annotation_path": mask_path}


class SegmentationFolder(_SegmentationFiles):
    """Images with masks of class ids, in one of the layouts of `layouts.py`, or as `pairs.csv` lists them.

    The masks of a known data set are read as they were published; their values become class ids.

    A sample is `{"image": PIL RGB or ChannelImage, "annotation": array (H, W) of uint8 ids, "path": str,
    "annotation_path": str}`; the ids are int32 where they do not fit. Reading a sample raises `BadFileError` for a
    file that cannot be used.

    Args:
        root: The data set's folder.
        split: One of [`available_splits`], or another common name of it.
        layout: One of `layouts.LAYOUTS`; detected from the folder's contents by default.
        options: Locations of images and masks; detected by default.
        split_file: List of the samples to use, see `read_split_file`; by default all of the split, sorted or in the
            order of the official list. Others need no mask.
        num_channels: Channels of the images, see [`decode_image`].

    Attributes:
        layout: The layout in use.
        images: The paths of the images.
        splits: The splits that the data set has.
        groups: Group of each sample, such as a slide, if known from `pairs.csv` or folders.
        summary: A one-line description of what was found.

    Raises:
        FileNotFoundError: A folder, an official list or `classes.json` is missing, or an image has no mask.
        ValueError: The layout is unknown or ambiguous, the split is empty, two images share a sample id, or
            `split_file` names a sample that does not exist.
    """

    _per_sample = ("images", "_masks")

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        layout: str | None = None,
        options: FolderOptions = DEFAULT_OPTIONS,
        split_file: str | Path | None = None,
        num_channels: int = 3,
    ) -> None:
        self.root, self.num_channels = unpacked_root(root, options), num_channels
        self.layout = find_layout(self.root, options) if layout is None else layout
        classes_path = self.root / "classes.json"
        if layout is None and options.classes is None and classes_path.is_file():
            options = dataclasses.replace(options, classes=classes_path)
        files = split_files(self.root, split, self.layout, options)
        images = files.images
        self.classes, self.name = files.classes, str(files.image_folder)
        self._mapping, self._palettes = files.mapping or files.classes.mask_mapping, {}
        self.sample_ids = list(images) if split_file is None else read_split_file(split_file, images, split)
        _find_indices(self.sample_ids, images, self.name)
        self.images = [images[sample_id] for sample_id in self.sample_ids]
        self._masks = [files.masks[sample_id] for sample_id in self.sample_ids]
        absent = {mask for mask in files.masks.values() if not mask.is_file()}
        missing = [mask.relative_to(files.mask_folder).as_posix() for mask in self._masks if mask in absent]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.sample_ids)} images of {files.image_folder} have no mask in "
                f"{files.mask_folder}{'' if files.mask_folder.is_dir() else ', which is not there'}: "
                f"{format_list(missing)}; add the masks, remove these images, or describe the masks with mask_dir, "
                "mask_suffix or pairs.csv" + _hint_of_archives(self.root)
            )
        self.groups = files.groups
        self.splits = files.splits
        folders = [  # relative ones, if they are inside
            folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder
            for folder in (files.image_folder, files.mask_folder)
        ]
        self.summary = (
            f"{self.root}: {len(images):,} images in {folders[0]}, {len(files.masks) - len(absent):,} masks in "
            f"{folders[1]}; splits: {', '.join(self.splits)}"
        )

    @property
    def fingerprint(self) -> list[str]:
        """Identifies this data regardless of its location, by names and sizes of the files.

        For uncompressed formats, the content of the masks counts too, because a corrected mask has the same size.
        """
        files = zip(self.sample_ids, self.images, self._masks, strict=True)
        return [f"{sample_id} {image.stat().st_size} {_describe_mask(mask)}" for sample_id, image, mask in files]

    def _find_files(self, index: int) -> tuple[Any, str, Any, str]:
        image, mask = self.images[index], self._masks[index]
        return image, str(image), mask, str(mask)


def _describe_mask(path: Path) -> str:
    """The size of a mask file, with a checksum if its format may be uncompressed."""
    size = path.stat().st_size
    return f"{size} {zlib.crc32(path.read_bytes())}" if path.suffix.lower() in UNCOMPRESSED else str(size)


def available_splits(
    root: str | Path, layout: str | None = None, *, options: FolderOptions = DEFAULT_OPTIONS
) -> list[str]:
    """The splits of a data set in one of `SegmentationFolder`'s layouts, sorted.

    `layout` and `options` are as there. Raises a FileNotFoundError if no layout is recognised, and a ValueError if
    several are, or there is none of this name.
    """
    root = unpacked_root(root, options)
    return sorted(find_splits(root, find_layout(root, options) if layout is None else layout, options)[0])


class HubSegmentation(_SegmentationFiles):
    """Images with masks of class ids, from a data set that is downloaded and kept in the cache.

    Samples are like those of `SegmentationFolder`; their ids are row numbers of eight digits. Reading a sample raises
    `BadFileError` for a file that cannot be used.

    Args:
        name: A data set on the Hub, such as `org/name`, or a local folder or file that `datasets` reads.
        classes: The classes, for example from `read_class_table`. By default the names of the data set's only list of
            `ClassLabel`s; a single `ClassLabel` labels the whole image, not its pixels.
        mask_column: Column of the masks: single-channel images whose pixel value is the class id.
        split_file: List of the examples to use, see `read_split_file`; all by default.
        num_channels: Channels of the images, see [`decode_image`].
    """

    _per_sample = ("_indices",)

    def __init__(
        self,
        name: str,
        split: str,
        classes: ClassTable | None = None,
        *,
        image_column: str = "image",
        mask_column: str = "annotation",
        revision: str | None = None,
        split_file: str | Path | None = None,
        num_channels: int = 3,
    ) -> None:
        self.num_channels = num_channels
        self.name = f"{name}/{split}"
        self.image_column, self.mask_column = image_column, mask_column
        data = load_split(name, split, revision=revision)
        self.classes = classes or _read_classes(data.features, self.name)
        self._mapping, self._palettes = self.classes.mask_mapping, {}
        self.data = select_undecoded(data, [image_column, mask_column], self.name)
        all_ids = dict.fromkeys(f"{index:08d}" for index in range(len(self.data)))
        self.sample_ids = list(all_ids) if split_file is None else read_split_file(split_file, all_ids)
        self._indices = _find_indices(self.sample_ids, all_ids, self.name)
        self._source_fingerprint = local_fingerprint(name) or [data._fingerprint]

    @property
    def fingerprint(self) -> list[str]:
        """Identifies this data regardless of its location."""
        return [*self._source_fingerprint, *self.sample_ids]

    def _find_files(self, index: int) -> tuple[Any, str, Any, str]:
        number = self._indices[index]
        sample = self.data[number]  # once: it fetches all columns
        image, mask = (
            make_undecoded_sample(sample[column], f"{self.name}, sample {number}, {column}")
            for column in (self.image_column, self.mask_column)
        )
        return image["image"], image["path"], mask["image"], mask["path"]


def _read_classes(features: Any, name: str) -> ClassTable:
    """The names of the only list of `ClassLabel`s among the columns."""
    import datasets

    item_features = [feature.feature for feature in features.values() if isinstance(feature, datasets.List)]
    labels = [feature for feature in item_features if isinstance(feature, datasets.ClassLabel)]
    if len(labels) != 1:
        raise ValueError(
            f"classes: {name} does not name the classes of its masks. Write them to a file and pass it, such as "
            'classes="classes.json".'
        )
    names = tuple(labels[0].names)
    return ClassTable(names=names, colors=class_colors(len(names)))
