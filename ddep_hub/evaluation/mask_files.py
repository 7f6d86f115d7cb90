"""Predicted masks as files."""

import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddep_hub.data.classes import ClassTable, colorize
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.written import KINDS, LEGEND, WRITTEN_BY, is_prediction
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.utils.files import naming_output

from .visualization import legend, overlay, rgb_of


class MaskWriter:
    """Writes predicted masks to `folder/<kind>/<name>.png`.

    The kinds are `ids`, class ids in 8 bits (16 for more than 256 classes); `colors`, the classes' colours;
    `overlays`, the colours over the image; and `cityscapes`, the 8-bit label ids that the server of Cityscapes takes
    (road is 7), for its 19 training classes. The writer replaces and removes only files that one has written.

    Args:
        folder: The folder.
        classes: Classes of the masks.
        kinds: What to write, of `KINDS`.
        channel_order: That of the image processor, for overlays.

    Raises:
        ValueError: A kind is unknown, or `cityscapes` is asked for other classes.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: ClassTable,
        kinds: Collection[str],
        channel_order: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.classes, self.kinds, self.channel_order = Path(folder), classes, kinds, channel_order
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"predictions: {unknown[0]!r} is unknown; choose from {', '.join(KINDS)}.")
        if "cityscapes" in kinds:
            names = get_dataset_info("cityscapes").classes.names
            if classes.names != names:
                raise ValueError(
                    f"predictions: label ids of Cityscapes need its {len(names)} training classes in order, starting "
                    f"with {', '.join(names[:3])}; the model has {', '.join(classes.names[:3])}, ... Leave "
                    "`cityscapes` out."
                )
        same = _of_one_color(classes)
        if same and {"colors", "overlays"} & set(kinds):
            warnings.warn(
                f"The classes {' and '.join(same)} have the same colour, so pictures cannot tell them apart. Give "
                "each its own `color` in classes.json before fine-tuning.",
                stacklevel=3,
            )

    def check(self, names: Collection[str], *, legend: bool = False) -> None:
        """Checks that no file of somebody else has the name of a mask to be written, or of the legend.

        Raises:
            FileExistsError: One has.
        """
        for path in (*self._paths(names), *((self.folder / LEGEND,) if legend else ())):
            _check(path)

    def write(self, name: str, mask: np.ndarray, image: Image.Image | ChannelImage | None = None) -> None:
        """Writes one mask.

        Args:
            name: Path below the kind's folder, without suffix.
            mask: Integer class ids (H, W).
            image: Image of the same size; only needed for overlays.
        """
        for kind in self.kinds:
            path = self.folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Overlays on photographs compress badly: zlib's default level takes four times as long for files a sixth
            # smaller.
            _save(self._picture(kind, mask, image), path, compress_level=1 if kind == "overlays" else 6)

    def write_legend(self) -> None:
        """Writes the colours of the classes to `legend.png`."""
        path = self.folder / LEGEND
        _check(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        _save(legend(self.classes), path)

    def remove_others(self, names: Collection[str]) -> None:
        """Removes earlier predictions but those of `names`, so that a folder that is handed in holds no others."""
        kept = self._paths(names)
        for path in [path for kind in KINDS for path in (self.folder / kind).rglob("*.png")]:
            if path not in kept and is_prediction(path):
                path.unlink()

    def _paths(self, names: Collection[str]) -> set[Path]:
        return {self.folder / kind / f"{name}.png" for kind in self.kinds for name in names}

    def _picture(self, kind: str, mask: np.ndarray, image: Image.Image | ChannelImage | None) -> Image.Image:
        if kind == "ids":
            return Image.fromarray(mask.astype(np.uint8 if self.classes.num_classes <= 256 else np.uint16))
        if kind == "cityscapes":
            return Image.fromarray(cityscapes_label_ids()[mask])
        if kind == "colors":
            return Image.fromarray(colorize(mask, self.classes))
        assert image is not None, "an overlay needs an image"
        return overlay(rgb_of(image, self.channel_order), mask, self.classes)


def _of_one_color(classes: ClassTable) -> list[str]:
    """Names of the first classes that share a colour; none if each has its own."""
    by_color = defaultdict(list)
    for name, color in zip(classes.names, classes.colors, strict=True):
        by_color[color].append(name)
    return next((names for names in by_color.values() if len(names) > 1), [])


def cityscapes_label_ids() -> np.ndarray:
    """The label id of each training id of Cityscapes, uint8 (19,)."""
    known = get_dataset_info("cityscapes")
    ids = {train: label for label, train in known.mapping.items() if train != known.classes.ignore_index}
    return np.array([ids[train] for train in range(known.classes.num_classes)], dtype=np.uint8)


def _check(path: Path) -> None:
    if path.exists() and not is_prediction(path):
        raise FileExistsError(
            f"output_dir: {path} already exists and was not written by ddep-hub. Choose another folder."
        )


def _save(picture: Image.Image, path: Path, compress_level: int = 6) -> None:
    info = PngInfo()
    info.add_text("Software", WRITTEN_BY)
    partial = path.with_name(f".{path.name}.partial")  # a killed command leaves no half of a mask
    try:
        with naming_output(path):
            picture.save(partial, "PNG", pnginfo=info, compress_level=compress_level)
            partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
