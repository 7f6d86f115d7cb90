"""`ddep-hub prepare`, YOLO segmentation as Ultralytics, Roboflow, CVAT and Label Studio write it."""

import numpy as np
import pytest
from annotated_sources import (
    HEIGHT,
    LARGE,
    NAMES,
    SMALL,
    TRUTH,
    WIDTH,
    check,
    corners,
    masks_of,
    put_images,
    put_masks,
)
from PIL import Image

import ddep_hub


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


def line(number, box):
    return f"{number} " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners(box))


OBJECTS = f"{line(1, SMALL)}\n{line(0, LARGE)}\n"


def put_labels(folder, names=NAMES, text=OBJECTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(text)


@pytest.mark.parametrize("config", ["names: [large, small]\nnc: 2\n", "names:\n  0: large\n  1: small\n"])
@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_splits_are_folders(layout, config, tmp_path):
    for split, names in (("train", NAMES[:3]), ("valid", NAMES[3:])):
        put_images(tmp_path / "source" / layout.format(split=split, kind="images"), names)
        put_labels(tmp_path / "source" / layout.format(split=split, kind="labels"), names)
    (tmp_path / "source" / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\n{config}")
    text = check(tmp_path / "source", tmp_path)
    assert "YOLO segmentation; 5 images, 3 classes" in text and "3 images in train, 2 images in val" in text


def test_splits_are_lists(tmp_path):
    """CVAT's export; the paths of its lists are those of another machine."""
    put_images(tmp_path / "source" / "images", [*NAMES, "unlisted"])
    put_labels(tmp_path / "source" / "labels")
    for split, names in (("train", NAMES[:4]), ("val", NAMES[4:])):
        (tmp_path / "source" / f"{split}.txt").write_text("\n".join(f"data/images/{name}.png" for name in names))
    config = tmp_path / "source" / "data.yaml"
    config.write_text("names: {0: large, 1: small}\npath: .\ntrain: train.txt\nval: [val.txt]\n")
    text = check(tmp_path / "source", tmp_path)
    assert "4 images in train, 1 image in val" in text and "1 image that no list of" in text
    (tmp_path / "source" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"data.yaml: val names val.txt, which is not in"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_names_of_label_studio_and_none(tmp_path):
    put_images(tmp_path / "source" / "images")
    put_labels(tmp_path / "source" / "labels")
    swapped = np.choose(TRUTH, [0, 2, 1]).astype(np.uint8)  # the small one is drawn first
    check(tmp_path / "source", tmp_path / "unnamed", labels=("background", "class_1", "class_0"), truth=swapped)
    (tmp_path / "source" / "classes.txt").write_text("large\nsmall\n")
    check(tmp_path / "source", tmp_path)
    (tmp_path / "source" / "classes.txt").write_text("large\n")
    with pytest.raises(ValueError, match=r"line 1: the class 1 has no name"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_what_has_no_polygon(tmp_path):
    """Boxes are skipped and counted, images without a file are background, files without an image are told."""
    put_images(tmp_path / "source" / "images", "abc")
    put_labels(tmp_path / "source" / "labels", "ad", OBJECTS + "0 0.5 0.5 0.2 0.2\n\n")
    put_labels(tmp_path / "source" / "labels", "b", "")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "1 object without a readable area or label (1 box): skipped" in text
    assert "1 image without an object: all background" in text
    assert "1 image without a label file: all background. Take out those not annotated yet: images/c.png" in text
    assert "1 label file without an image, such as labels/d.txt: skipped" in text
    assert sorted(name for name, mask in masks_of(tmp_path / "output").items() if mask.any()) == ["a"]
    put_labels(tmp_path / "source" / "labels", "a", "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"the labels are 1 box, no polygon. Export them as YOLO segmentation"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_names_and_labels_as_editors_save_them(tmp_path):
    put_images(tmp_path / "source" / "images")
    put_labels(tmp_path / "source" / "labels", text="\ufeff" + OBJECTS)
    (tmp_path / "source" / "data.yml").write_text("names: [yes, 2]")
    check(tmp_path / "source", tmp_path, labels=("background", "yes", "2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.1 0.1 0.5 0.1 0.5", "line 1: not a class and the corners"),
        ("\n0 0.1 0.1 0.5 0.1 0.5 nan", "line 2: not a class and the corners"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", "line 1: not a class and the corners"),
        ("0 10 10 500 10 500 500", "line 1: corners must be fractions"),
    ],
)
def test_malformed_lines(text, message, tmp_path):
    put_images(tmp_path / "source" / "images", "ab")
    put_labels(tmp_path / "source" / "labels", "ab", text)
    with pytest.raises(ValueError, match=message):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output", format="yolo")


def test_upright_images(tmp_path):
    """Corners are those of the image as it is shown, as Ultralytics reads it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    put_images(tmp_path / "source" / "images", suffix=".jpg", size=(HEIGHT, WIDTH), exif=exif)
    put_labels(tmp_path / "source" / "labels")
    (tmp_path / "source" / "classes.txt").write_text("large\nsmall\n")
    check(tmp_path / "source", tmp_path)


def test_masks_come_first(tmp_path):
    """Text files beside masks may be anything; the format can be named."""
    masks = {name: np.kron([[0, 1], [1, 0]], np.ones((15, 20), int)).astype(np.uint8) for name in "ab"}
    root = put_masks(tmp_path / "source", masks, size=(WIDTH, HEIGHT))
    put_labels(root / "labels", "ab")
    ddep_hub.prepare(root, tmp_path / "masks")
    assert all(np.array_equal(mask, masks[name]) for name, mask in masks_of(tmp_path / "masks").items())
    assert "YOLO segmentation" in ddep_hub.prepare(root, tmp_path / "named", format="yolo")
    with pytest.raises(ValueError, match="is not in the format yolo: it holds"):
        ddep_hub.prepare(root / "images", tmp_path / "other", format="yolo")


@pytest.mark.parametrize("entry", ["images/{}2017", "../images/{}2017", "/home/me/data/images/{}2017"])
def test_folders_that_the_yaml_file_names(entry, tmp_path):
    """As in COCO; the split would be none of the folder's name."""
    for split, names in (("train", NAMES[:3]), ("val", NAMES[3:])):
        put_images(tmp_path / "source" / "images" / f"{split}2017", names)
        put_labels(tmp_path / "source" / "labels" / f"{split}2017", names)
    lines = [f"{split}: {entry.format(split)}" for split in ("train", "val")]
    (tmp_path / "source" / "data.yaml").write_text("\n".join([*lines, "names: [large, small]"]))
    assert "3 images in train, 2 images in val" in check(tmp_path / "source", tmp_path)


def test_lists_tell_images_of_one_name_apart(tmp_path):
    source = tmp_path / "source"
    for folder in "abc":
        put_images(source / "images" / folder, ["0"])
        put_labels(source / "labels" / folder, ["0"])
    (source / "lists").mkdir()
    (source / "lists" / "train.txt").write_text("./images/a/0.png\n")
    (source / "lists" / "val.txt").write_text("/elsewhere/images/b/0.png\n")
    (source / "data.yaml").write_text("train: lists/train.txt\nval: lists/val.txt\nnames: [large, small]")
    text = ddep_hub.prepare(source, tmp_path / "output")
    assert "1 image that no list of" in text
    written = (tmp_path / "output" / "images").rglob("*.png")
    assert sorted(path.relative_to(tmp_path / "output" / "images").as_posix() for path in written) == [
        "train/a/0.png",
        "val/b/0.png",
    ]


def test_what_lies_around_the_images(tmp_path, caplog):
    """An archive in a folder of its own, other YAML files, and what Ultralytics draws while it trains."""
    inner = tmp_path / "source" / "export"
    put_images(inner / "images")
    put_labels(inner / "labels")
    put_images(inner / "runs" / "segment" / "train", ["val_batch0_pred"])
    (inner / "another.yaml").write_text("key: [unclosed")
    (inner / "data.yaml").write_text("names: {0: large, 1: small}")
    assert "5 images, 3 classes" in check(tmp_path / "source", tmp_path)
    assert "not images" not in caplog.text  # the labels are no other files
    (inner / "data.yaml").write_text("names: {large: 0}")
    with pytest.raises(ValueError, match=r"data.yaml: names must be a list, or lines such as `0: cell`"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_masks_beside_the_images_come_first(tmp_path):
    put_images(tmp_path / "source" / "images", "ab")
    put_labels(tmp_path / "source" / "labels", "ab")
    for name in "ab":
        Image.fromarray(TRUTH).save(tmp_path / "source" / "images" / f"{name}_mask.png")
    assert "masks with the values 0, 1, 2" in ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
