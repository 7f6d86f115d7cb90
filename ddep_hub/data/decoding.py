"""Image and mask files to arrays, whole or not at all."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError


class BadFileError(ValueError):
    """A file that cannot be used; the message names it and says how to mend it.

    Args:
        message: What is wrong, where, and what to do. The only required argument, as a data loader rebuilds an
            error of its worker from the message alone (`path` is then empty).
        path: The file.
    """

    def __init__(self, message: str, path: str | Path = "") -> None:
        super().__init__(message)
        self.path = str(path)


def decode_image(path: str | Path) -> Image.Image:
    """Reads an image of any common kind as RGB.

    The EXIF orientation is applied. Transparent pixels are laid over white. 16-bit images are scaled to 8 bits.
    32-bit integers are taken as 8 bits where none is above 255 and as 16 bits where none is above 65535; floats as
    0..1 where none is above 1 and as 0..255 otherwise.

    Args:
        path: The file.

    Returns:
        A PIL image of mode RGB.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is empty, cut off, damaged, no image, or its values fit none of the ranges above.
    """
    path = Path(path)
    image, _, _ = _load(path, "image")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_eight_bits(image, path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def decode_mask(path: str | Path, *, num_classes: int, ignore_index: int) -> np.ndarray:
    """Reads a mask whose pixel values are class ids: greyscale of any depth, bilevel, or the indices of a palette.

    Args:
        path: The file.
        num_classes: Class ids are 0..num_classes-1.
        ignore_index: The one other value allowed.

    Returns:
        Array (H, W): uint8, or int32 where the class ids or `ignore_index` do not fit 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is damaged, holds colours instead of ids, is a lossy JPEG, or holds another id.
    """
    path = Path(path)
    image, file_format, packing = _load(path, "mask")
    if file_format == "JPEG":
        raise BadFileError(f"{path} is a JPEG, whose compression changes class ids; save the mask as PNG", path)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadFileError(
            f"{path} has colour mode {image.mode}, but masks hold class ids in a single channel; "
            "convert the colours to the ids of classes.json and save them as 8-bit greyscale or palette PNG",
            path,
        )
    values = np.array(image)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    # Pillow stretches 2- and 4-bit greyscale to 0..255, which turns id 1 into 85 or 17.
    values = values // {"L;2": 85, "L;4": 17}.get(packing or "", 1)
    present = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    unknown = [int(value) for value in present if not 0 <= value < num_classes and value != ignore_index]
    if unknown:
        listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise BadFileError(
            f"{path} holds the ids {listed}, but classes.json has the ids 0..{num_classes - 1} and ignore_index "
            f"{ignore_index}; add the classes to classes.json or change these pixels to ids it has",
            path,
        )
    fits = num_classes <= 256 and 0 <= ignore_index <= 255
    return values.astype(np.uint8 if fits else np.int32)


def _load(path: Path, what: str) -> tuple[Image.Image, str | None, str | None]:
    """The fully decoded and upright image, its file format, and how its pixels were packed in the file."""
    mend = f"replace the file or remove this {what} from the data set"
    with path.open("rb") as file:
        if not file.read(1):
            raise BadFileError(f"{path} is empty (0 bytes); {mend}", path)
        file.seek(0)
        try:
            with _no_truncated_images(), Image.open(file) as image:
                packing = image.tile[0].args if image.tile else None
                if isinstance(packing, tuple):
                    packing = packing[0]
                image.load()
                return ImageOps.exif_transpose(image), image.format, packing
        except UnidentifiedImageError as error:
            raise BadFileError(f"{path} is not an image that Pillow can read; {mend}", path) from error
        except Image.DecompressionBombError as error:
            raise BadFileError(f"{path} is too large ({error}); scale it down", path) from error
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
            raise BadFileError(f"{path} is damaged or cut off ({error}); {mend}", path) from error


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    # Other libraries switch this on for the whole process; the missing part would come back as grey pixels.
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_eight_bits(image: Image.Image, path: Path) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        limit = 1.0 if high <= 1.0 else 255.0
    elif image.mode == "I":
        limit = 255.0 if high <= 255.0 else 65535.0
    else:
        limit = 65535.0
    if not (low >= 0.0 and high <= limit):
        raise BadFileError(
            f"{path} holds values from {low:g} to {high:g}, outside 0..{limit:g}; convert it to an 8-bit image", path
        )
    return np.asarray(np.rint(values * (255.0 / limit)), dtype=np.uint8)
