"""Inspects the contents of mask files: values or colours, in the pixels or in the alpha channel."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import BadFileError, open_image
from ddep_hub.data.mask_files import DecodedMask, check_lossless, load_mask, mask_colors
from ddep_hub.data.mask_inspection import IGNORED, MaskSurvey, palettes_differ
from ddep_hub.data.masks import are_grey_ids, count_values, read_pixels, replace_values
from ddep_hub.tiff import read_nodata_tag

from .image_files import RawImage, read_image_file


_BLACK_VALUES: set[Any] = {0, (0, 0, 0)}
# Stands for the index of a palette that is ignored, where palettes are read as colours.
IGNORED_COLOR = (256, 0, 0)
# Of masks of 0 and 255; with it, white is 255 in bilevel masks too.
_BLACK_AND_WHITE = ClassTable(("background", "object"), ((0, 0, 0), (255, 255, 255)), -1, ((0,), (IGNORED,)))


def known_ids(table: ClassTable) -> Mapping[int, int]:
    """Class id, or `ignore_index`, of every value of the masks."""
    ids = [*range(table.num_classes), table.ignore_index]
    return table.mask_mapping or {index: index for index in ids}


@dataclass
class MaskReader:
    """Reads the masks of a source in one way, which all of them together decide.

    Args:
        table: The classes, if they are known, which say what white is, and which colours a palette means, see
            [`decode_mask`]. If they have colours, `as_colors` is set.
        as_colors: Read colours that are all grey as colours.
        palettes_as_colors: Read a palette as colours.
        in_alpha: Read the alpha channel, as 0 and 255; 0 where there is none.
        nodata: Values of pixels without data, as TIFFs state them, that are not 0.
    """

    table: ClassTable | None = None
    as_colors: bool = False
    palettes_as_colors: bool = False
    in_alpha: bool = False
    nodata: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.as_colors = self.as_colors or (self.table is not None and self.table.mask_colors is not None)

    def survey(self, masks: Sequence[tuple[Path, int | None]]) -> MaskSurvey:
        """The values or colours of all `masks`, each a file and its page (`None` for a file that is one mask).

        Decides how they are read. Raises a ValueError if some masks are in colour and others are not.
        """
        nodata = {read_nodata_tag(path) for path in {path for path, _ in masks}}
        self.nodata = frozenset(int(value) for value in nodata if value and value.is_integer())  # not infinity or NaN
        self.palettes_as_colors = palettes_differ([path for path, page in masks if page is None])
        self.as_colors = self.as_colors or self.palettes_as_colors
        survey = self._survey(masks)
        if self.table is not None and self.table.mask_colors is not None and self.table.other_id is None:
            colors = [value for value in survey.counts if isinstance(value, tuple)]
            if are_grey_ids(colors, self.table.mask_colors, known_ids(self.table), self.table.ignore_index):
                self.as_colors = False
                survey = self._survey(masks)
        if set(survey.counts) == {0, 1, IGNORED} and self.table is None:  # the 1 may come from bilevel masks alone
            reader = dataclasses.replace(self, table=_BLACK_AND_WHITE)
            white_survey = reader._survey(masks)
            if set(white_survey.counts) == {0, IGNORED}:
                self.table, survey = _BLACK_AND_WHITE, white_survey
        if set(survey.counts) <= _BLACK_VALUES:
            # Nothing is drawn, unless in the alpha channel.
            self.in_alpha = True
            alpha_survey = self._survey(masks)
            self.in_alpha = set(alpha_survey.counts) == {0, IGNORED}
            survey = alpha_survey if self.in_alpha else survey
        if len({isinstance(value, tuple) for value in survey.counts}) > 1:
            self.as_colors = self.palettes_as_colors = True  # some are black, or grey, as far as they show
            survey = self._survey(masks)
        if len({isinstance(value, tuple) for value in survey.counts}) > 1:
            raise ValueError("Some masks are in colour, others are not. Convert them to one kind.")
        return survey

    def _survey(self, masks: Sequence[tuple[Path, int | None]]) -> MaskSurvey:
        survey = MaskSurvey()
        for path, page in masks:
            pixels = self.read(path, page)
            is_ignored = (pixels == IGNORED_COLOR).all(axis=-1) if pixels.ndim == 3 else None
            survey.add(pixels, nodata=self.nodata, is_ignored=is_ignored)
        return survey

    def read_ids(self, path: Path, page: int | None, mapping: Mapping[Any, int]) -> np.ndarray:
        """Class ids (H, W) of a mask, from its values or colours."""
        values = self.read(path, page)
        ids = replace_values(values, {value: mapping[value] for value in count_values(values)})
        return ids.astype(np.uint8) if 0 <= ids.min(initial=0) and ids.max(initial=0) < 256 else ids

    def read(self, path: Path, page: int | None) -> np.ndarray:
        """The values (H, W) or colours (H, W, 3) of a mask; raises a BadFileError if they cannot be determined."""
        if page is None:
            mask = load_mask(path)
            if mask.format == "JPEG":
                values = _binarize_jpeg(mask.image, path)
                return np.zeros_like(values) if self.in_alpha else values
            check_lossless(mask, path)
            picture: RawImage = mask.image
        else:
            picture = read_image_file(path, page, are_labels=True)
            if isinstance(picture, Image.Image):
                mask = DecodedMask(picture, "TIFF")
        mode = picture.mode if isinstance(picture, Image.Image) else None
        if mode in ("LA", "PA", "RGBA"):
            alpha = np.asarray(mask.image.getchannel("A")).astype(np.int64)
            if self.in_alpha:
                return np.where(2 * alpha > alpha.max(), IGNORED, 0)
            pixels = mask_colors(mask.image.convert("RGBA"), path)
            pixels = pixels[..., 0] if mode == "LA" else pixels
        elif page is None or mode in ("1", "P", "RGB"):
            # As everywhere: bilevel, 2 and 4 bits, palettes.
            table = self.table
            known = () if table is None else (table.mask_mapping, table.mask_colors, table.ignore_index)
            color_modes = ("RGB", "P") if self.palettes_as_colors else ("RGB",)
            pixels = read_pixels(mask, path, *known, color_modes=color_modes)
            if mode == "P" and pixels.ndim == 3 and mask.format != "GIF":  # whose order means nothing
                ignored = IGNORED if table is None else table.ignore_index
                pixels = np.where(np.asarray(mask.image)[..., None] == ignored, IGNORED_COLOR, pixels)
        else:
            pixels = np.asarray(picture)
            if pixels.ndim != 2 or (pixels.dtype.kind == "f" and (pixels != np.rint(pixels)).any()):
                raise BadFileError(f"{path}, page {page}, is not a mask: save one whole number per pixel", path)
        if self.in_alpha:
            return np.zeros(pixels.shape[:2], np.int64)
        if pixels.ndim == 3:
            equal = (pixels == pixels[..., :1]).all()
            return pixels[..., 0] if equal and not self.as_colors else pixels
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.int64)


def _binarize_jpeg(image: Image.Image, path: Path) -> np.ndarray:
    """A mask of black and white that was saved as JPEG, without what the compression added."""
    values = np.asarray(image.convert("L"))
    # A black area may come back as another value near it, by the step of the compression.
    with open_image(path, "mask") as opened:  # an image that was turned upright does not say the step
        step = getattr(opened, "quantization", {}).get(0, [1])[0]
    black = max(0.0, np.ceil(128 - round(1024 / step) * step / 8))
    rows, columns = (length // 8 for length in values.shape)
    blocks = values[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8)
    low, high = blocks.min(axis=(1, 3)), blocks.max(axis=(1, 3))
    # Edges have values in between, but areas do not; four equal blocks count as an area. Values near white are white,
    # as in masks saved twice or painted with 254. Without any white, values above black may be class ids.
    areas = np.where((low == high) & (low > black) & (low < 207), low, 0)
    corner = areas[1:, 1:]
    equal = (corner == areas[:-1, 1:]) & (corner == areas[1:, :-1]) & (corner == areas[:-1, :-1])
    has_areas = (equal & (corner > 0)).any() or np.count_nonzero(areas) > 0.02 * areas.size
    mid_tones = (values > 48) & (values < 207)
    has_ids = values.max() <= 127 and values.max() > black
    if has_ids or has_areas or mid_tones.mean() > 0.02:
        raise BadFileError(
            f"{path} is a JPEG that is not just black and white, and compression changes its values; save the mask "
            "as PNG",
            str(path),
        )
    return np.where(values > 127, 255, 0)
