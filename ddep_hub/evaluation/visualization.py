"""Figures of predictions, denoising and confusion matrices."""

import functools
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional as F

from ddep_hub.data.classes import BACKGROUND, ClassTable, colorize
from ddep_hub.data.preprocessing import EvalTransform
from ddep_hub.data.segmentation_datasets import SegmentationDataset
from ddep_hub.data.splits import evenly_spaced
from ddep_hub.image_conversion import ChannelImage, to_rgb

from .inference import InferenceOptions, predict_ids


PANEL_SIZE = 192
MAX_PANEL_HEIGHT = 4 * PANEL_SIZE  # height of a panel; very narrow images are squeezed
MAX_SHRUNK_SIDE = 2048
WIDE = 3  # from this aspect ratio on, an image takes a whole row
GAP, MAX_COLUMNS = 6, 4
TITLE_HEIGHT, TITLE_LENGTH = 22, 30  # height in pixels, characters
CELL_SIZE = 22
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_UNASSIGNED = "\uffff"  # no font has it, so its glyph is the box of a missing letter


def load_font(names: Sequence[str], size: int, fallbacks: Sequence[str] = ()) -> tuple[Font, list[str]]:
    """A font, and the names in a form that it can draw: letters that no font has are replaced, not drawn as boxes.

    Pillow's own font covers little more than ASCII. DejaVu Sans, which comes with matplotlib (extra `plots`), covers
    Latin, Greek, Cyrillic and more, but no Chinese, Japanese or Korean. A name that cannot be drawn without accents is
    replaced by its entry in `fallbacks`, by default the name with code points for the missing letters. `size` is the
    height in pixels.
    """
    font: Font = ImageFont.load_default(size=size)
    if not _has_glyphs(font, "".join(names)):
        font = _load_dejavu(size) or font
    drawable = []
    for index, name in enumerate(names):
        if not _has_glyphs(font, name):
            without_accents = "".join(
                letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)
            )
            escaped = "".join(
                letter if _has_glyphs(font, letter) else letter.encode("ascii", "backslashreplace").decode()
                for letter in without_accents
            )
            name = (
                without_accents if _has_glyphs(font, without_accents) else fallbacks[index] if fallbacks else escaped
            )
        drawable.append(name)
    return font, drawable


def load_class_font(names: Sequence[str], size: int) -> tuple[Font, list[str]]:
    """Like [`load_font`], for the names of all classes by id; `class 3` replaces a name whose letters are missing."""
    return load_font(names, size, [f"class {index}" for index in range(len(names))])


def _has_glyphs(font: Font, text: str) -> bool:
    """Whether a font has all letters of a text."""
    missing_glyph = bytes(font.getmask(_UNASSIGNED))
    return all(letter.isascii() or bytes(font.getmask(letter)) != missing_glyph for letter in set(text))


@functools.cache
def _load_dejavu(size: int) -> Font | None:
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return None


def to_png(picture: Image.Image) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def draw_panels(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Draws a grid of images, uint8 arrays (H, W, 3) in one list per row, under the titles of its columns.

    Each panel is `PANEL_SIZE` pixels wide, and at most `MAX_PANEL_HEIGHT` high. If an image is wide, and wider than a
    panel, each image takes a row.
    """
    sizes = [row[0].shape[:2] for row in rows]
    if any(width > PANEL_SIZE and width >= WIDE * height for height, width in sizes):
        return contact_sheet([Image.fromarray(picture) for row in rows for picture in row], [*titles] * len(rows))
    heights = [min(max(1, round(PANEL_SIZE * height / width)), MAX_PANEL_HEIGHT) for height, width in sizes]
    width = len(titles) * (PANEL_SIZE + GAP) + GAP
    font, drawable = load_font(titles, 13)
    lines = [_wrap(title, font) for title in drawable]
    top = TITLE_HEIGHT * max(map(len, lines))
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(lines):
        draw.text((GAP + column * (PANEL_SIZE + GAP), 4), "\n".join(title), fill="black", font=font)
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            panel = Image.fromarray(picture).resize((PANEL_SIZE, height), Image.Resampling.NEAREST)
            sheet.paste(panel, (GAP + column * (PANEL_SIZE + GAP), top))
        top += height + GAP
    return sheet


def _wrap(title: str, font: Font) -> list[str]:
    """Breaks a title into lines as wide as a panel."""
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > PANEL_SIZE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def contact_sheet(pictures: Iterable[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Draws images row by row, each in a square of `PANEL_SIZE` pixels under its title; wide ones below each other.

    `pictures` are RGB; they are scaled in place.
    """
    thumbnails, row_width = [], MAX_COLUMNS * (PANEL_SIZE + GAP) - GAP
    for picture in pictures:
        is_wide = picture.width >= WIDE * picture.height
        picture.thumbnail((row_width if is_wide else PANEL_SIZE, PANEL_SIZE))
        thumbnails.append(picture)
    columns = 1 if any(picture.width > PANEL_SIZE for picture in thumbnails) else min(MAX_COLUMNS, len(titles))
    groups = [thumbnails[start : start + columns] for start in range(0, len(thumbnails), columns)]
    cell_width = max(PANEL_SIZE, *(picture.width for picture in thumbnails)) + GAP
    heights = [TITLE_HEIGHT + max(picture.height for picture in group) for group in groups]
    sheet = Image.new("RGB", (columns * cell_width + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, drawable = load_font(titles, 11)
    for index, (picture, title) in enumerate(zip(thumbnails, drawable, strict=True)):
        left, top = GAP + index % columns * cell_width, sum(heights[: index // columns])
        short_title = title if len(title) <= TITLE_LENGTH else f"...{title[3 - TITLE_LENGTH :]}"
        draw.text((left, top + 6), short_title, fill="black", font=font)
        sheet.paste(picture, (left, top + TITLE_HEIGHT))
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stacks images vertically, left-aligned, on white."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def to_uint8(images: torch.Tensor) -> list[np.ndarray]:
    """Images (n, C, H, W) as uint8 arrays (H, W, 3), each stretched to 0..255 by the range of the first."""
    images = images.float().cpu()
    low, high = images[0].min(), images[0].max()
    scaled = ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * 255
    return [to_three_channels(image).permute(1, 2, 0).byte().numpy() for image in scaled]


def to_three_channels(values: torch.Tensor) -> torch.Tensor:
    """Channels of (C, H, W) to show as RGB: one channel in grey, two as red and green, otherwise the first three."""
    if len(values) == 1:
        return values.expand(3, -1, -1)
    return F.pad(values, (0, 0, 0, 0, 0, 1))[:3] if len(values) == 2 else values[:3]


def to_rgb_image(image: Image.Image | ChannelImage, channel_order: Sequence[int] | None = None) -> Image.Image:
    """An image to show: the first three channels, in the order in which the model sees them."""
    order = list(channel_order or ())
    if isinstance(image, ChannelImage):
        return ChannelImage(image.pixels[order]).to_rgb() if order else image.to_rgb()
    image = image if image.mode == "RGB" else to_rgb(image)  # those of a user's own dataset
    return Image.fromarray(np.asarray(image)[..., order]) if order else image


def segmentation_picture(
    models: Mapping[str, nn.Module],
    dataset: SegmentationDataset,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    number: int = 4,
    options: InferenceOptions | None = None,
) -> Image.Image:
    """Draws image, labels and the prediction of each model, one row for each of `number` images at even distances.

    `models` are keyed by the title of their column and are put into eval mode; for the others see [`count_pixels`].
    """
    rows = []
    for index in evenly_spaced(len(dataset), number):
        sample = dataset[index]
        inputs = transform(sample)
        size = tuple(inputs["labels"].shape)
        order = getattr(transform.processor, "channel_order", None)
        row = [np.asarray(to_rgb_image(sample["image"], order)), colorize(sample["annotation"], dataset.classes)]
        for model in models.values():
            device = next(model.parameters()).device
            pixels = normalize(inputs["pixel_values"][None].to(device))
            row.append(colorize(predict_ids(model.eval(), pixels, size, options)[0].cpu().numpy(), dataset.classes))
        rows.append([_shrink(picture) for picture in row])
    return draw_panels(rows, ["image", "labels", *models])


def _shrink(picture: np.ndarray) -> np.ndarray:
    """An image reduced by a whole factor to a few panels' size, because large rasters would fill the memory."""
    step = max(1, max(picture.shape[:2]) // MAX_SHRUNK_SIDE)
    return picture[::step, ::step].copy()


def confusion_picture(counts: torch.Tensor, names: Sequence[str]) -> Image.Image:
    """Draws a confusion matrix: the shares of each true class (row) by predicted class, in percent from 1% up.

    `counts` are those of a [`ConfusionMatrix`]. Rows of classes without a pixel are empty.
    """
    values = counts.cpu().double().numpy()
    fractions = values / np.maximum(values.sum(1, keepdims=True), 1)
    font, names = load_class_font(names, 12)
    small_font, _ = load_font([], 10)
    margin = 10 + round(max(font.getlength(name) for name in names))
    side = CELL_SIZE * len(names)
    sheet = Image.new("RGB", (margin + side + 8, margin + side + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = margin + CELL_SIZE * row
        draw.text((margin - 4, top + CELL_SIZE // 2), name, fill="black", font=font, anchor="rm")
        for column, fraction in enumerate(fractions[row]):
            left = margin + CELL_SIZE * column
            # Square roots, so that rare confusions can be seen.
            shade = round(255 * (1 - fraction**0.5))
            draw.rectangle((left, top, left + CELL_SIZE - 2, top + CELL_SIZE - 2), fill=(shade, shade, 255))
            if fraction >= 0.01:
                color = "white" if shade < 128 else "black"
                center = (left + CELL_SIZE // 2 - 1, top + CELL_SIZE // 2 - 1)
                draw.text(center, f"{100 * fraction:.0f}", fill=color, font=small_font, anchor="mm")
    # Column names are the row names, rotated.
    rotated = Image.new("RGB", (margin, side), "white")
    pen = ImageDraw.Draw(rotated)
    for column, name in enumerate(names):
        pen.text((margin - 4, side - CELL_SIZE * column - CELL_SIZE // 2), name, fill="black", font=font, anchor="rm")
    sheet.paste(rotated.transpose(Image.Transpose.ROTATE_270), (margin, 0))
    return sheet


def overlay(image: Image.Image, mask: np.ndarray, classes: ClassTable) -> Image.Image:
    """Blends an RGB image and the colours of a mask of its size, integer class ids (H, W), in equal parts.

    Background pixels, of a class called background or around a single class, show the image unchanged.
    """
    blended = Image.blend(image, Image.fromarray(colorize(mask, classes)), 0.5)
    background = [index for index, name in enumerate(classes.names) if name.lower() == BACKGROUND]
    return Image.composite(blended, image, Image.fromarray(~np.isin(mask, background))) if background else blended


def draw_legend(classes: ClassTable) -> Image.Image:
    """Draws the colours of the classes with their names, one per line."""
    (font, names), line = load_class_font(classes.names, 14), 22
    width = 44 + round(max(font.getlength(name) for name in names))
    sheet = Image.new("RGB", (width, line * classes.num_classes + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(names, classes.colors, strict=True)):
        top = 4 + line * index
        draw.rectangle((6, top + 2, 28, top + line - 4), fill=color)
        draw.text((36, top + line // 2), name, fill="black", font=font, anchor="lm")
    return sheet
