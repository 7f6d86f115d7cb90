"""Small annotated sources for tests of `ddep-hub prepare`, whose true masks are known."""

from pathlib import Path

import numpy as np
from PIL import Image

import ddep_hub
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits


WIDTH, HEIGHT = 40, 30
# Two objects that overlap: a large one, and a small one over it. Polygons with whole corners cover whole pixels.
LARGE, SMALL = (4, 5, 30, 25), (20, 15, 36, 22)
TRUTH = np.zeros((HEIGHT, WIDTH), np.uint8)
TRUTH[5:25, 4:30] = 1
TRUTH[15:22, 20:36] = 2
NUMBER = 5
# Blocks of 16 pixels of three values.
BLOCKS = np.kron(np.tile([[0, 1], [1, 2]], (2, 2)), np.ones((16, 16), int)).astype(np.uint8)
NAMES = [f"{number} ä.b" for number in range(NUMBER)]


def corners(box):
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def put_images(folder, names=NAMES, suffix=".png", size=(WIDTH, HEIGHT), **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 100, 200)).save(folder / f"{name}{suffix}", **options)


def put_masks(root, drawn, size=(WIDTH, HEIGHT), suffix=".png", **options):
    put_images(root / "images", drawn, size=size)
    (root / "masks").mkdir(exist_ok=True)
    for name, mask in drawn.items():
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(root / "masks" / f"{name}{suffix}", **options)
    return root


def masks_of(output):
    return {
        name: dataset.mask(index)
        for split in available_splits(output)
        for dataset in [SegmentationFolder(output, split)]
        for index, name in enumerate(dataset.sample_ids)
    }


def check(source, tmp_path, truth=TRUTH, names=NAMES, labels=("background", "large", "small"), **options):
    """Prepares a source and compares all masks with the truth."""
    output = tmp_path / "output"
    text = ddep_hub.prepare(source, output, **options)
    found = masks_of(output)
    assert sorted(Path(name).name for name in found) == sorted(names), text
    assert all(np.array_equal(mask, truth) for mask in found.values())
    assert list(SegmentationFolder(output, "train").classes.names) == list(labels)
    assert available_splits(output) == ["train", "val"]
    assert Image.open(output / "preview.png").width > 100
    return text


def coco(names=NAMES, suffix=".png"):
    from pycocotools import mask as coco_masks

    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 9, "name": "large"}, {"id": 12, "name": "small"}],
    }
    for number, name in enumerate(names):
        content["images"].append({"id": number, "file_name": f"{name}{suffix}", "width": WIDTH, "height": HEIGHT})
        small = np.zeros((HEIGHT, WIDTH), np.uint8)
        small[15:22, 20:36] = 1
        packed = coco_masks.encode(np.asfortranarray(small))
        runs = [0, *np.flatnonzero(np.diff(small.T.ravel(), prepend=0)).tolist(), small.size]
        for category, drawn in (
            (12, {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}),
            (9, [[value for corner in corners(LARGE) for value in corner], [1, 1, 2, 2]]),
            (12, {"size": [HEIGHT, WIDTH], "counts": np.diff(runs).tolist()}),
            (12, []),
        ):
            content["annotations"].append({"image_id": number, "category_id": category, "segmentation": drawn})
    return content
