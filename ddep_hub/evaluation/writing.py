"""Predicted masks as files: class ids, colours, overlays, and the label ids that Cityscapes' server takes."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddep_hub.data.catalog import known_dataset
from ddep_hub.data.classes import ClassTable, colorize


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
            names = known_dataset("cityscapes").classes.names
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
    known = known_dataset("cityscapes")
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
