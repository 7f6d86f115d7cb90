"""A small data set of rendered outdoor scenes: nothing to download, any number of images, exact masks.

The scenes show a road, water, buildings, trees, persons and vehicles in perspective, occluding each other, under
varying light. The colours of all classes vary and overlap, so that shape, texture and position determine the class of
a pixel.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.samplers import example_seed
from ddep_hub.utils.files import atomic_dir, check_output_dir, output_dir_error, write_json

from .layout import draw_scene


SCENE_CLASSES = ClassTable(
    names=("sky", "ground", "road", "water", "building", "tree", "person", "vehicle"),
    colors=(
        (120, 180, 230),
        (170, 150, 90),
        (110, 100, 120),
        (40, 90, 170),
        (190, 100, 80),
        (60, 140, 60),
        (230, 60, 110),
        (245, 190, 40),
    ),
)
_RECORD = "scenes.json"
_FORMAT = 1


def render_scene(seed: int, index: int, size: tuple[int, int] = (160, 160)) -> tuple[np.ndarray, np.ndarray]:
    """Renders scene `index` of the data set with this `seed`; the same arguments give the same arrays.

    Returns the image, uint8 (h, w, 3) in 0..255, and the mask, uint8 (h, w) of the ids of `SCENE_CLASSES`. `size` is
    (height, width) in pixels; raises a ValueError if one is below 16.
    """
    height, width = size
    if min(height, width) < 16:
        raise ValueError(f"size is {height}x{width}; scenes need at least 16 pixels per side")
    return draw_scene(np.random.Generator(np.random.PCG64(example_seed(seed, index))), size)


def write_scenes(
    root: str | Path,
    *,
    splits: Mapping[str, int],
    unlabelled: int = 0,
    size: tuple[int, int] = (160, 160),
    seed: int = 0,
) -> Path:
    """Writes scenes in the layout of `SegmentationFolder`, completely or not at all.

    Images are JPEG of quality 95 and masks PNG, in `images/<split>` and `annotations/<split>`; images without masks
    go to `unlabelled`. No scene is in two splits, and a larger split starts with the same scenes. A folder written by
    an earlier call with the same arguments is reused.

    `splits` has the number of scenes of each split, such as `{"train": 200, "val": 50}`, `unlabelled` that of images
    in `unlabelled`; `size` is (height, width) in pixels. Returns `root`. Raises a ValueError if a number is negative
    or a split has no usable name, and a FileExistsError if `root` holds something else, or scenes of other arguments.
    """
    root = Path(root)
    for name, num_scenes in [*splits.items(), ("unlabelled", unlabelled)]:
        if num_scenes < 0:
            raise ValueError(f"number of scenes of {name!r} is {num_scenes}; it must not be negative")
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"{name!r} is not a valid name for a split; use a plain folder name")
    record = {"format": _FORMAT, "splits": dict(splits), "unlabelled": unlabelled, "size": list(size), "seed": seed}
    if _is_up_to_date(root, record):
        return root
    try:
        with atomic_dir(root) as folder:
            for name, num_scenes in splits.items():
                _write_split(folder / "images" / name, folder / "annotations" / name, name, num_scenes, size, seed)
            if unlabelled:
                _write_split(folder / "unlabelled", None, "unlabelled", unlabelled, size, seed)
            write_class_table(SCENE_CLASSES, folder / "classes.json")
            write_json(folder / _RECORD, record)
    except FileExistsError:
        if not _is_up_to_date(root, record):  # another process may have written the same scenes meanwhile
            raise
    return root


def _write_split(
    images: Path, masks: Path | None, split: str, num_scenes: int, size: tuple[int, int], seed: int
) -> None:
    images.mkdir(parents=True)
    if masks is not None:
        masks.mkdir(parents=True)
    split_seed = example_seed(seed, zlib.crc32(split.encode()))
    for index in range(num_scenes):
        image, mask = render_scene(split_seed, index, size)
        Image.fromarray(image).save(images / f"{index:05d}.jpg", quality=95)
        if masks is not None:
            Image.fromarray(mask).save(masks / f"{index:05d}.png")


def _is_up_to_date(root: Path, record: dict[str, Any]) -> bool:
    """Whether `root` holds exactly these scenes; raises an error if it holds anything else."""
    file = root / _RECORD
    if not file.is_file():
        check_output_dir(root, _RECORD)
        return False
    try:
        existing = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise output_dir_error(file, f"is damaged ({error})", f"Remove {root} to write the scenes again.") from error
    if existing == record:
        return True
    differences = [key for key in record if not isinstance(existing, dict) or existing.get(key) != record[key]]
    reason = f"holds scenes with a different {', '.join(differences)}"
    raise output_dir_error(root, reason, "Remove it, or choose another folder.")


def rendered_scenes() -> Path:
    """Writes the data set of rendered scenes to the cache, once, in half a minute; returns its folder."""
    from ddep_hub.encoder_weights import cache_dir  # loads timm

    return write_scenes(cache_dir() / "scenes", splits={"train": 200, "val": 40, "test": 60}, unlabelled=800)
