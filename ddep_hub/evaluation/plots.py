"""Pictures of what a model does: rows of panels with their names above."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ddep_hub.data.classes import colorize
from ddep_hub.data.rows import LabelledRows
from ddep_hub.data.transforms import EvalTransform

from .denoising_error import held_out_noise, restore
from .inference import predict
from .windows import InferenceOptions


PANEL = 192
LONGEST = 4 * PANEL  # of images that are much narrower than high, which are drawn squeezed
GAP = 6
TITLE = 22


def panels(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Draws a table of pictures.

    Args:
        rows: uint8 arrays `(H, W, 3)`, one list a row.
        titles: name of each column.

    Returns:
        RGB picture; each panel is `PANEL` pixels wide, and at most `LONGEST` high.
    """
    heights = [min(max(1, round(PANEL * row[0].shape[0] / row[0].shape[1])), LONGEST) for row in rows]
    width = len(titles) * (PANEL + GAP) + GAP
    sheet = Image.new("RGB", (width, TITLE + sum(heights) + GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (PANEL + GAP), 4), title, fill="black", font=font)
    top = TITLE
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            panel = Image.fromarray(picture).resize((PANEL, height), Image.Resampling.NEAREST)
            sheet.paste(panel, (GAP + column * (PANEL + GAP), top))
        top += height + GAP
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures under each other, left-aligned, on white."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def to_uint8(images: torch.Tensor) -> list[np.ndarray]:
    """Images `(n, C, H, W)`, each stretched to 0..255 by the range of the first, as arrays `(H, W, 3)`."""
    images = images.float().cpu()
    low, high = images[0].min(), images[0].max()
    scaled = ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * 255
    return [image.permute(1, 2, 0).byte().numpy() for image in scaled]


@torch.no_grad()
def denoising_picture(model: nn.Module, clean: torch.Tensor, *, seed: int = 0) -> Image.Image:
    """Image, noisy image, found noise and denoised image, one row an image.

    Args:
        model: a [`DDePForPreTraining`]; it is put into eval mode.
        clean: normalised images `(n, C, H, W)`.
        seed: seed of the noise.
    """
    model.eval()
    sigma = sum(model.config.sigma_range) / 2
    clean = clean.to(next(model.parameters()).device)
    noise = held_out_noise(clean, seed)
    denoised = restore(model, clean, noise, sigma)
    noisy = clean + sigma * noise
    rows = []
    for image, corrupted, restored in zip(clean, noisy, denoised, strict=True):
        shown = to_uint8(torch.stack([image, corrupted, restored]))
        found = to_uint8(torch.stack([(corrupted - restored) / sigma]).clamp(-3, 3))
        rows.append([shown[0], shown[1], found[0], shown[2]])
    return panels(rows, ["image", "noisy image", "found noise", "denoised image"])


def segmentation_picture(
    models: Mapping[str, nn.Module],
    rows: LabelledRows,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    number: int = 4,
    options: InferenceOptions | None = None,
) -> Image.Image:
    """Image, truth, and the prediction of each model, one row an image.

    Args:
        models: models by the title of their column; they are put into eval mode.
        rows: labelled images, of which `number` are taken at even distances.
        transform: prepares a row.
        normalize: makes `pixel_values` of uint8 images.
        number: images to show.
        options: how to predict; whole images in one pass by default.
    """
    table = []
    for index in np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int):
        row = rows[int(index)]
        example = transform(row)
        size = tuple(example["labels"].shape)
        shown = [np.asarray(row["image"]), colorize(row["annotation"], rows.classes)]
        for model in models.values():
            device = next(model.parameters()).device
            pixels = normalize(example["pixel_values"][None].to(device))
            shown.append(colorize(predict(model.eval(), pixels, size, options)[0].cpu().numpy(), rows.classes))
        table.append(shown)
    return panels(table, ["image", "truth", *models])
