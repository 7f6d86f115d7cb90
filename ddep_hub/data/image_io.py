"""Finds, opens and decodes image and mask files."""

import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ddep_hub.image_conversion import (
    ChannelImage,
    read_channels,
    to_rgb,
    warn_about_dark_colors,
    warn_once,
)
from ddep_hub.orientation import apply_orientation, read_orientation
from ddep_hub.tiff import has_tifffile, is_misread_by_pillow, is_reduced_by_pillow, looks_like_tiff, num_pages
from ddep_hub.utils.files import format_list
from ddep_hub.utils.threads import shared_attribute


logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = tuple(
    ".jpg .jpeg .jfif .jpe .mpo .png .webp .bmp .dib .gif .tif .tiff .jp2 .ppm .pgm .pnm .avif .npy".split()
)
_SYSTEM_FOLDERS = {"@eaDir", "__MACOSX"}  # thumbnails of Synology, what macOS adds to archives


def iter_files(root: Path, extensions: tuple[str, ...] = ("",), *, recursive: bool = True) -> Iterator[str]:
    """Paths of files relative to `root`, with forward slashes; none if there is no such folder.

    Hidden files and folders and the system's own folders are skipped, as are, with a warning, folders that cannot be
    read. Links to folders are followed, each folder once. `extensions` are in lower case and match any case.
    """

    def warn(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            logger.warning("%s: skipping this folder, which cannot be read: %s", error.filename, error.strerror)

    seen = set()
    for folder, subfolders, files in os.walk(root, onerror=warn, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in seen:
            subfolders.clear()
            continue
        seen.add(real_path)
        subfolders[:] = sorted(
            name for name in subfolders if recursive and not name.startswith(".") and name not in _SYSTEM_FOLDERS
        )
        parent = Path(folder).relative_to(root).as_posix()
        prefix = "" if parent == "." else f"{parent}/"  # pathlib for each file would take most of the time
        for name in files:
            if name.lower().endswith(extensions) and not name.startswith("."):
                yield prefix + name


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones; none if it is not there."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # only checks the kind of links: folders may hold many images
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def list_images(root: Path) -> list[str]:
    """The images below `root`, as paths relative to it, sorted; at least one.

    A warning counts the files that are skipped because they have none of `IMAGE_EXTENSIONS`. Arrays (.npy) count as
    images only where there are no others: beside pictures they are features or masks. Raises a FileNotFoundError if
    there is no such folder, and a ValueError if it holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; pass the folder that holds the images")
    images: list[str] = []
    skipped: list[str] = []
    for name in iter_files(root):
        (images if name.lower().endswith(IMAGE_EXTENSIONS) else skipped).append(name)
    non_arrays = [name for name in images if not is_array(name)]
    if non_arrays:
        skipped += [name for name in images if is_array(name)]
        images = non_arrays
    if not images:
        raise ValueError(f"{root} holds no image ({', '.join(IMAGE_EXTENSIONS)}); check the path")
    if skipped:
        logger.warning(
            "%s: skipping %d files that are not images: %s", root, len(skipped), format_list(sorted(skipped))
        )
    return sorted(images)


class PackedNames(Sequence[str]):
    """A sequence of file names in one block of memory, so that 14 million stay small, in forked processes too."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return os.fsdecode(self._bytes[self._ends[index - 1] if index else 0 : self._ends[index]])


# A file that is not read yet: `{"path": str, "bytes": bytes or None}`, as `datasets.Image(decode=False)` gives it.
# With bytes the path is just a name, and may be None.
Undecoded = Mapping[str, Any]
File = str | Path | Undecoded


# Raised by Pillow's plugins for damaged files.
DECODING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


_TOO_LARGE = (
    "scale it down, cut it into tiles with `ddep-hub prepare --tile`, or predict it in windows with `ddep-hub predict "
    "--window`"
)


@contextmanager
def lift_size_limit(in_windows: bool = True) -> Iterator[None]:
    """Lifts Pillow's size limit, a guard against untrusted images, for large rasters that are predicted in windows."""
    with shared_attribute(Image, "MAX_IMAGE_PIXELS", None) if in_windows else nullcontext():
        yield


class BadFileError(ValueError):
    """A file that cannot be used; the message names it and what to do.

    Only `message` is required: a DataLoader rebuilds the error of a worker from the message alone, with an empty
    `path`.
    """

    def __init__(self, message: str, path: str | Path = "") -> None:
        super().__init__(message)
        self.path = str(path)


def damaged_error(path: str | Path, error: Exception, kind: str = "image") -> BadFileError:
    """The error of a file that cannot be read as an image, or another `kind`; a text that names the file stays."""
    text = str(error)
    if not text.startswith(str(path)):
        text = f"{path} is damaged or not an {kind} ({text}); replace or remove it"
    return BadFileError(text, path)


def decode_image(file: File, channels: int = 3) -> Image.Image | ChannelImage:
    """Reads an image: as RGB, or unchanged with another number of channels.

    The EXIF orientation is applied. For RGB, transparent pixels are laid over white, and 16 bits become 8.
    32-bit integers are taken as 8 bits where none is above 255 and as 16 bits where none is above 65535; floats as
    0..1 where none is above 1 and as 0..255 otherwise. Other values, and a TIFF of other channels, are errors.

    .npy files and TIFF files that Pillow cannot read (colour in floats, planes of 16 bits, several pages) keep the
    depth of their values, and so do images of other channels, whose floats keep their units: see [`channels_first`].
    These become a [`ChannelImage`], all others a PIL image of mode RGB.

    Raises a `BadFileError` for a file that is empty, cut off, damaged or no image, has not exactly these `channels`
    if they are not 3, or whose values are out of range; a missing file is still a FileNotFoundError.
    """
    if channels != 3 or is_array(file):
        return decode_channels(file, channels)
    image = None
    try:
        with open_image(file) as opened:
            # Pages may be the channels; the first alone is not the image.
            if not (is_tiff(file) and (num_pages(opened) > 1 or is_misread_by_pillow(opened))):
                with suppress(*DECODING_ERRORS):  # of a file that is cut after its first frame
                    if (frames := num_pages(opened)) > 1 and opened.format != "MPO":  # whose second is a preview
                        name = file_name(file)
                        warn_once("frames", name, f"{name} has {frames} frames, of which only the first is read")
                is_reduced, image = is_reduced_by_pillow(opened), apply_orientation(opened)
    except BadFileError as error:
        if not is_tiff(file):
            raise
        if not has_tifffile():
            text = f'{error}, or pip install "ddep-hub[tiff]" to read more kinds of TIFF'
            raise BadFileError(text, error.path) from error
    if image is None:
        return decode_channels(file, channels)
    if is_reduced:
        warn_about_dark_colors(image, file_name(file))
    try:
        return to_rgb(image, file_name(file))
    except ValueError as error:
        raise BadFileError(str(error), file_name(file)) from error


def decode_channels(file: File, channels: int) -> ChannelImage:
    """Reads an image with exactly this number of channels, see [`read_channels`]."""
    name = file_name(file)
    with _open_stream(file) as stream:
        try:
            with disallow_truncated_images():
                return ChannelImage(read_channels(stream, channels, name))
        except (Image.DecompressionBombError, MemoryError) as error:
            reason = str(error) or "it does not fit into memory"
            raise BadFileError(f"{name} is too large ({reason}); {_TOO_LARGE}", name) from error
        except DECODING_ERRORS as error:
            if not isinstance(error, UnidentifiedImageError):
                raise damaged_error(name, error) from error
            text = f"{name} is not an image that Pillow can read; replace or remove it"
            if is_tiff(file) and not has_tifffile():
                text += ', or pip install "ddep-hub[tiff]" to read more kinds of TIFF'
            raise BadFileError(text, name) from error


def is_array(file: File) -> bool:
    """Whether a file holds an array of NumPy."""
    return file_name(file).lower().endswith(".npy")


def is_tiff(file: File) -> bool:
    """Whether a file is a TIFF by its name, or else by the first of its bytes, if these are read."""
    return looks_like_tiff(file_name(file), b"" if isinstance(file, str | Path) else file["bytes"] or b"")


def file_name(file: File) -> str:
    """What messages call a file."""
    if isinstance(file, str | Path):
        return str(file)
    return str(file["path"] or f"an image of {len(file['bytes'] or b'')} bytes without a name")


def _open_stream(file: File) -> BinaryIO:
    content = None if isinstance(file, str | Path) else file["bytes"]
    return Path(file_name(file)).open("rb") if content is None else io.BytesIO(content)


@contextmanager
def open_image(file: File, kind: str = "image") -> Iterator[ImageFile.ImageFile]:
    """Opens an image, reading only its header; errors inside the block become a `BadFileError`.

    A missing file is still a FileNotFoundError. `kind`, `image` or `mask`, is what messages call the file.
    """
    name = file_name(file)
    hint = f"replace the file or remove this {kind} from the data set"
    hint += ", or save the mask with 8 or 16 bits" * (kind == "mask" and is_tiff(file))
    with _open_stream(file) as stream:
        if not stream.read(1):
            raise BadFileError(f"{name} is empty (0 bytes); {hint}", name)
        stream.seek(0)
        try:
            # Pillow logs an error for each TIFF of many bands; those are read by `tifffile`.
            is_silent = shared_attribute(logging.getLogger("PIL.TiffImagePlugin"), "disabled", True)
            with disallow_truncated_images(), is_silent, Image.open(stream) as image:
                yield image
        except UnidentifiedImageError as error:
            raise BadFileError(f"{name} is not an image that Pillow can read; {hint}", name) from error
        except Image.DecompressionBombError as error:
            raise BadFileError(f"{name} is too large ({error}); {_TOO_LARGE}", name) from error
        except BadFileError:
            raise
        except DECODING_ERRORS as error:
            raise BadFileError(f"{name} is damaged or cut off ({error}); {hint}", name) from error


def read_header(file: File) -> tuple[tuple[int, int], int] | None:
    """Size (width, height) and EXIF orientation from the header; `None` for arrays and what Pillow cannot open."""
    if is_array(file):
        return None
    try:
        with open_image(file) as image:
            return image.size, read_orientation(image)
    except BadFileError:  # as reading it will say
        return None


@contextmanager
def disallow_truncated_images() -> Iterator[None]:
    """Makes a file that is cut off an error: other libraries may have set Pillow to read the missing part as grey."""
    with shared_attribute(ImageFile, "LOAD_TRUNCATED_IMAGES", False):
        yield


def load_bytes(file: File) -> Undecoded:
    """The file with its bytes, so that it is read only once."""
    if not isinstance(file, str | Path) and file["bytes"] is not None:
        return file
    name = file_name(file)
    return {"path": name, "bytes": Path(name).read_bytes()}
