"""Pictures: predictions, overlays, confusion matrices and masks as files."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ddep_hub.data.classes import ClassTable, colorize
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.segmentation_datasets import SegmentationDataset
from ddep_hub.data.transforms import EvalTransform

from .denoising import restore, validation_noise
from .inference import InferenceOptions, predict


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
    noise = validation_noise(clean, seed)
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
    rows: SegmentationDataset,
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


CELL = 22


def confusion_picture(counts: torch.Tensor, names: Sequence[str]) -> Image.Image:
    """Draws where the pixels of each true class (row) went: the darker, the more; per cent where they are 1 or more.

    Args:
        counts: integer tensor `(classes, classes)`, of [`ConfusionMatrix`].
        names: names of the classes.

    Returns:
        RGB picture; the rows of classes without a pixel are empty.
    """
    values = counts.double().cpu().numpy()
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=10)
    margin = 10 + round(max(font.getlength(name) for name in names))
    side = CELL * len(names)
    sheet = Image.new("RGB", (margin + side + 8, margin + side + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = margin + CELL * row
        draw.text((margin - 4, top + CELL // 2), name, fill="black", font=font, anchor="rm")
        for column, share in enumerate(shares[row]):
            left = margin + CELL * column
            # Square roots, so that rare confusions can be seen.
            shade = round(255 * (1 - share**0.5))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=(shade, shade, 255))
            if share >= 0.01:
                color = "white" if shade < 128 else "black"
                place = (left + CELL // 2 - 1, top + CELL // 2 - 1)
                draw.text(place, f"{100 * share:.0f}", fill=color, font=small, anchor="mm")
    # The names of the columns stand upright, as the rows' names turned.
    turned = Image.new("RGB", (margin, side), "white")
    pen = ImageDraw.Draw(turned)
    for column, name in enumerate(names):
        pen.text((margin - 4, side - CELL * column - CELL // 2), name, fill="black", font=font, anchor="rm")
    sheet.paste(turned.transpose(Image.Transpose.ROTATE_270), (margin, 0))
    return sheet


KINDS = ("ids", "colors", "overlays", "cityscapes")


class MaskWriter:
    """Writes predicted masks below a folder: `<kind>/<name>.png` for each kind.

    The kinds are `ids`, class ids in 8 bits (16 where there are more than 256 classes); `colors`, in the classes'
    colours; `overlays`, the colours laid over the image; and `cityscapes`, 8-bit label ids as the server of Cityscapes
    takes them (road is 7) where the model knows the 19 training classes.

    Args:
        folder: the folder.
        classes: the classes of the masks.
        kinds: what to write, of `KINDS`.

    Raises:
        ValueError: a kind is not known, or `cityscapes` for other classes.
    """

    def __init__(self, folder: str | Path, classes: ClassTable, kinds: Collection[str]) -> None:
        self.folder, self.classes, self.kinds = Path(folder), classes, kinds
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"predictions: {unknown[0]!r} is not known; choose of {', '.join(KINDS)}.")
        if "cityscapes" in kinds:
            names = get_dataset_info("cityscapes").classes.names
            if classes.names != names:
                raise ValueError(
                    f"predictions: label ids of Cityscapes need its {len(names)} training classes in their order, "
                    f"starting with {', '.join(names[:3])}; these are {', '.join(classes.names[:3])}, ... "
                    "Leave `cityscapes` out."
                )

    def write(self, name: str, mask: np.ndarray, image: Image.Image | None = None) -> None:
        """Writes one mask.

        Args:
            name: path below the kinds' folders, without suffix.
            mask: integer class ids `(H, W)`.
            image: the RGB image of the same size; needed for overlays alone.
        """
        for kind in self.kinds:
            path = self.folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._picture(kind, mask, image).save(path)

    def remove_others(self, names: Collection[str]) -> None:
        """Removes masks of earlier images and kinds, so that a folder which is handed in holds these alone.

        Args:
            names: those that have been written.
        """
        kept = {self.folder / kind / f"{name}.png" for kind in self.kinds for name in names}
        for path in [path for kind in KINDS for path in (self.folder / kind).rglob("*.png")]:
            if path not in kept:
                path.unlink()

    def _picture(self, kind: str, mask: np.ndarray, image: Image.Image | None) -> Image.Image:
        if kind == "ids":
            return Image.fromarray(mask.astype(np.uint8 if self.classes.num_classes <= 256 else np.uint16))
        if kind == "cityscapes":
            return Image.fromarray(cityscapes_label_ids()[mask])
        if kind == "colors":
            return Image.fromarray(colorize(mask, self.classes))
        assert image is not None, "an overlay lies over an image"
        return overlay(image, mask, self.classes)


def overlay(image: Image.Image, mask: np.ndarray, classes: ClassTable) -> Image.Image:
    """The colours of the classes, half of each laid over an RGB image.

    Args:
        image: the image.
        mask: integer class ids `(H, W)`, of the image's size.
        classes: the classes.
    """
    return Image.blend(image, Image.fromarray(colorize(mask, classes)), 0.5)


def cityscapes_label_ids() -> np.ndarray:
    """The label id of each training id of Cityscapes, uint8 `(19,)`."""
    known = get_dataset_info("cityscapes")
    ids = {train: label for label, train in known.mapping.items() if train != known.classes.ignore_index}
    return np.array([ids[train] for train in range(known.classes.num_classes)], dtype=np.uint8)


def legend(classes: ClassTable) -> Image.Image:
    """The colours of the classes with their names, one a line."""
    font, line = ImageFont.load_default(size=14), 22
    width = 44 + round(max(font.getlength(name) for name in classes.names))
    sheet = Image.new("RGB", (width, line * classes.num_classes + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(classes.names, classes.colors, strict=True)):
        top = 4 + line * index
        draw.rectangle((6, top + 2, 28, top + line - 4), fill=color)
        draw.text((36, top + line // 2), name, fill="black", font=font, anchor="lm")
    return sheet
