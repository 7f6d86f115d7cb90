"""Input and output of prediction: images from paths, folders, patterns or URLs, and mask files."""

import http.client
import logging
import os
import string
import urllib.parse
import urllib.request
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from glob import escape, glob
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddep_hub.data.classes import ClassTable, colorize
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.generated_files import LEGEND_FILE, PREDICTION_KINDS, SOFTWARE, exclude_generated, is_prediction
from ddep_hub.data.image_io import decode_image
from ddep_hub.data.preprocessing import AnyImage
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.utils.files import explain_write_errors, output_dir_error, partial_file, path_below

from .georeferencing import Georeference, is_auxiliary_file, to_auxiliary_file
from .visualization import draw_legend, overlay, to_rgb_image


logger = logging.getLogger(__name__)

TIMEOUT = 60  # seconds
MAX_NAME_LENGTH = 255  # bytes of a file name on most file systems


def find_images(names: Sequence[str]) -> dict[str, str]:
    """Finds the images to predict: their paths or URLs, keyed by the names of their results.

    `names` are image files, folders (searched recursively; masks in them are left out, see [`unlabelled_images`]),
    patterns such as `photos/*.jpg` (`**` for any depth; an existing folder is never read as a pattern), and http(s)
    URLs of images. A result is named after the image, without suffix: by its file name, its path relative to the
    folder, or its path relative to the common folder of a pattern's matches; `a.jpg` and `a.tif` in one folder keep
    the suffix. Raises a FileNotFoundError if a name matches no file, and a ValueError if one is empty, or if two
    results would have the same name.
    """
    images: dict[str, str] = {}
    for name in names:
        for key, source in _expand_name(name):
            if os.path.realpath(images.setdefault(key, source)) != os.path.realpath(source):
                raise ValueError(
                    f"{images[key]} and {source} would both be written as {key}.png. Predict them in separate calls."
                )
    return images


def read_image(source: str, channels: int = 3) -> AnyImage:
    """Reads an image from a path or http(s) URL, see [`decode_image`]; raises an OSError if the download fails."""
    if not is_http(source):
        return decode_image(source, channels)
    try:
        # URLs copied from a browser may contain spaces and non-ASCII letters.
        address = urllib.parse.quote(source, safe=string.punctuation)
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # the second: cut short, or no address
        raise OSError(f"{source} could not be downloaded ({error}). Check the address.") from error
    return decode_image({"path": source, "bytes": content}, channels)


def _expand_name(name: str) -> list[tuple[str, str]]:
    if not name:  # would be the working directory
        raise ValueError("images: empty name. Pass a file, folder, pattern or URL.")
    path = Path(name)
    if is_http(name):
        file = PurePosixPath(urllib.parse.unquote(urllib.parse.urlparse(name).path)).name
        return [(PurePosixPath(file).stem or "image", name)]
    if path.is_dir():
        images = unlabelled_images(path)
        return [(key, str(path / image)) for key, image in zip(_result_names(images), images, strict=True)]
    if path.is_file():
        return [(path.stem, name)]
    matches = sorted(match for match in glob(_escape_existing_folders(path), recursive=True) if os.path.isfile(match))
    if not matches:
        raise FileNotFoundError(f"{name} is not a file, folder or URL, and matches none. Check the path.")
    common_folder = Path(os.path.commonpath([os.path.dirname(match) for match in matches]))
    images = [Path(os.path.relpath(match, common_folder)).as_posix() for match in matches]
    if "**" in name:
        images = exclude_generated(common_folder, images)
    return [(key, str(common_folder / image)) for key, image in zip(_result_names(images), images, strict=True)]


def _result_names(images: Sequence[str]) -> list[str]:
    """Names of results: paths without suffix, or with it if they would otherwise be equal."""
    counts = Counter(map(_strip_suffix, images))
    return [stem if counts[stem := _strip_suffix(image)] == 1 else image for image in images]


def _escape_existing_folders(path: Path) -> str:
    """Escapes existing folders in a pattern, such as `photos [1]`."""
    existing = next((parent for parent in path.parents if parent.is_dir()), Path())
    return os.path.join("" if existing == Path() else escape(str(existing)), path.relative_to(existing))


def _strip_suffix(path: str) -> str:
    return str(PurePosixPath(Path(path).as_posix()).with_suffix(""))


def is_http(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class MaskWriter:
    """Writes predicted masks to `folder/<kind>/<name>.png`.

    The kinds are `ids`, class ids in 8 bits (16 for more than 256 classes); `colors`, the classes' colours;
    `overlays`, the colours over the image, whose channels are shown in `channel_order`; and `cityscapes`, the 8-bit
    label ids that the Cityscapes server expects (road is 7), for its 19 training classes. Only files written by a
    `MaskWriter` are replaced or removed. Raises a ValueError for an unknown kind, and for `cityscapes` with other
    classes.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: ClassTable,
        kinds: Collection[str],
        channel_order: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.classes, self.kinds, self.channel_order = Path(folder), classes, kinds, channel_order
        unknown = [kind for kind in kinds if kind not in PREDICTION_KINDS]
        if unknown:
            raise ValueError(f"predictions: {unknown[0]!r} is unknown; choose from {', '.join(PREDICTION_KINDS)}.")
        if "cityscapes" in kinds:
            names = get_dataset_info("cityscapes").classes.names
            if classes.names != names:
                raise ValueError(
                    f"predictions: label ids of Cityscapes need its {len(names)} training classes in order, starting "
                    f"with {', '.join(names[:3])}; the model has {', '.join(classes.names[:3])}, ... Leave "
                    "`cityscapes` out."
                )
        same_color = _find_duplicate_colors(classes)
        if same_color and {"colors", "overlays"} & set(kinds):
            warnings.warn(
                f"The classes {' and '.join(same_color)} have the same colour, so overlays do not distinguish them. "
                "Give each its own `color` in classes.json before fine-tuning.",
                stacklevel=3,
            )

    def check(self, names: Collection[str], *, legend: bool = False) -> None:
        """Raises a FileExistsError if a mask or the legend would replace another program's file.

        Raises a ValueError if two masks would have the same name.
        """
        by_path: dict[str, str] = {}
        for name in names:
            if (other := by_path.setdefault(path_below(name), name)) != name:
                raise ValueError(f"{other} and {name} would both be written as {path_below(name)}.png. Rename one.")
        for path in (*self._paths(names), *((self.folder / LEGEND_FILE,) if legend else ())):
            _check_overwrite(path)

    def write(
        self,
        name: str,
        mask: np.ndarray,
        image: Image.Image | ChannelImage | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        """Writes a mask, integer class ids (H, W), in each kind; overlays need the `image`, of the same size.

        `name` is a path below the kind's folder, without suffix; see [`path_below`] for absolute ones. A
        `georeference` is written to `<name>.png.aux.xml`.
        """
        for kind in self.kinds:
            path = self._path(kind, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Overlays on photographs compress badly: zlib's default level takes four times as long for files that are
            # a sixth smaller.
            _save(self._render(kind, mask, image), path, compress_level=1 if kind == "overlays" else 6)
            _save_georeference(georeference, path)

    def write_legend(self) -> None:
        """Writes the colours of the classes to `legend.png`."""
        path = self.folder / LEGEND_FILE
        _check_overwrite(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        _save(draw_legend(self.classes), path)

    def remove_others(self, names: Collection[str]) -> None:
        """Removes earlier predictions except those of `names`, so that a folder to submit has no others.

        Those beside a legend are kept, because `predict` wrote them.
        """
        if (self.folder / LEGEND_FILE).exists():
            return
        current_paths = self._paths(names)
        for path in [path for kind in PREDICTION_KINDS for path in (self.folder / kind).rglob("*.png")]:
            if path not in current_paths and is_prediction(path):
                path.unlink()
                _save_georeference(None, path)

    def _paths(self, names: Collection[str]) -> set[Path]:
        return {self._path(kind, name) for kind in self.kinds for name in names}

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{path_below(name)}.png"

    def _render(self, kind: str, mask: np.ndarray, image: Image.Image | ChannelImage | None) -> Image.Image:
        if kind == "ids":
            return Image.fromarray(mask.astype(np.uint8 if self.classes.num_classes <= 256 else np.uint16))
        if kind == "cityscapes":
            return Image.fromarray(cityscapes_label_ids()[mask])
        if kind == "colors":
            return Image.fromarray(colorize(mask, self.classes))
        assert image is not None, "an overlay needs an image"
        return overlay(to_rgb_image(image, self.channel_order), mask, self.classes)


def _find_duplicate_colors(classes: ClassTable) -> list[str]:
    """Names of the first classes that share a colour; none if each has its own."""
    by_color = defaultdict(list)
    for name, color in zip(classes.names, classes.colors, strict=True):
        by_color[color].append(name)
    return next((names for names in by_color.values() if len(names) > 1), [])


def cityscapes_label_ids() -> np.ndarray:
    """The label id of each training id of Cityscapes, uint8 (19,)."""
    info = get_dataset_info("cityscapes")
    ids = {train: label for label, train in info.mapping.items() if train != info.classes.ignore_index}
    return np.array([ids[train] for train in range(info.classes.num_classes)], dtype=np.uint8)


def _check_overwrite(path: Path) -> None:
    if path.exists() and not is_prediction(path):
        raise output_dir_error(path, "already exists and was not written by ddep-hub")


def _save(picture: Image.Image, path: Path, compress_level: int = 6) -> None:
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    with explain_write_errors(path), partial_file(path) as partial:
        picture.save(partial, "PNG", pnginfo=info, compress_level=compress_level)


def _save_georeference(georeference: Georeference | None, mask: Path) -> None:
    """Writes a mask's georeference or, without one, removes the file of an earlier mask of this name."""
    path = mask.with_name(f"{mask.name}.aux.xml")
    if len(os.fsencode(path.name)) > MAX_NAME_LENGTH:
        return
    if path.exists() and not is_auxiliary_file(path):  # for example GDAL's statistics
        if georeference is not None:
            logger.warning("%s: another program wrote it, so the mask has no georeference. Remove it first.", path)
        return
    if georeference is None:
        path.unlink(missing_ok=True)
        return
    with explain_write_errors(path), partial_file(path) as partial:
        partial.write_text(to_auxiliary_file(georeference), encoding="utf-8")
