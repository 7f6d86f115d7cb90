"""Converts the annotations of Pascal Context to masks: `python -m ddep_hub.data.pascal_context VOC2010 trainval`.

`VOC2010` is the folder of the PASCAL VOC 2010 images, `trainval` the unpacked annotations, one `.mat` file per image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ddep_hub.utils.files import partial_file

from .dataset_registry import get_dataset_info
from .image_io import BadFileError


# The annotations have 459 categories; 0 is unlabelled.
_MAX_ID = 459


def convert_label_map(label_map: np.ndarray) -> np.ndarray:
    """Converts official ids 0..459 (H, W) to uint8 (H, W): class id + 1 for the 59 classes used here, 0 for others."""
    if label_map.ndim != 2 or not label_map.size or not np.issubdtype(label_map.dtype, np.integer):
        raise ValueError(f"label map must be integers of shape (H, W), not {label_map.dtype} of {label_map.shape}")
    if label_map.min() < 0 or label_map.max() > _MAX_ID:
        raise ValueError(f"label map holds {label_map.min()}..{label_map.max()}; the official ids are 0..{_MAX_ID}")
    table = np.zeros(_MAX_ID + 1, dtype=np.uint8)
    ids = get_dataset_info("pascal_context").id459
    table[list(ids)] = np.arange(1, len(ids) + 1)
    return table[label_map]


def convert_annotations(voc: str | Path, annotations: str | Path) -> int:
    """Writes `SegmentationClassContext/<sample_id>.png` for every `.mat` file that has none yet; returns how many.

    `voc` is the folder `VOC2010`, `annotations` that of the `.mat` files. Masks are written completely or not at all,
    so an interrupted conversion can be repeated.
    """
    voc, annotations = Path(voc), Path(annotations)
    if not (voc / "JPEGImages").is_dir():
        raise FileNotFoundError(f"{voc / 'JPEGImages'} is not a folder; pass the folder VOC2010 of PASCAL VOC 2010")
    sources = sorted(path for path in annotations.glob("*.mat") if not path.name.startswith("."))
    if not sources:
        raise FileNotFoundError(f"{annotations} holds no .mat file; pass the folder of the unpacked annotations")
    masks = voc / "SegmentationClassContext"
    masks.mkdir(exist_ok=True)
    pending = [path for path in sources if not (masks / f"{path.stem}.png").is_file()]
    for path in tqdm(pending, desc="masks", disable=None):
        try:
            mask = convert_label_map(_read_label_map(path))
        except ValueError as error:
            raise BadFileError(f"{path} cannot be used: {error}; unpack it again", path) from error
        with partial_file(masks / f"{path.stem}.png") as partial:
            Image.fromarray(mask).save(partial, format="PNG")
    return len(pending)


def _read_label_map(path: Path) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            '.mat files are read with SciPy; install it with `pip install "ddep-hub[pascal-context]"`'
        ) from error
    try:
        content = loadmat(path, variable_names=["LabelMap"])
    # SciPy raises many unrelated exceptions for damaged files.
    except Exception as error:
        raise ValueError(f"it is not a MATLAB file that SciPy can read ({error})") from error
    if "LabelMap" not in content:
        raise ValueError("it has no variable LabelMap")
    return np.asarray(content["LabelMap"])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command, see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m ddep_hub.data.pascal_context", description=__doc__)
    parser.add_argument("voc", help="the folder VOC2010, which holds JPEGImages")
    parser.add_argument("annotations", help="the folder of the official .mat files")
    options = parser.parse_args(argv)
    number = convert_annotations(options.voc, options.annotations)
    print(f"{number} masks written to {Path(options.voc) / 'SegmentationClassContext'}")


if __name__ == "__main__":
    main()
