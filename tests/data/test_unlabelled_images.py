"""Folders given as unlabelled images: nothing is learned from masks, or from pictures that the package drew."""

import json
import logging

import pytest
from PIL import Image

from ddep_hub.data.image_datasets import open_images
from ddep_hub.data.statistics import folder_statistics
from ddep_hub.data.unlabelled import unlabelled_images


def put(root, names):
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".csv", ".json"):
            path.touch()
        else:
            Image.linear_gradient("L").resize((8, 6)).save(path)


def found(root, caplog):
    """The images, and the one line that was said about others."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        names = unlabelled_images(root)
    messages = [
        record.getMessage() for record in caplog.records if "files that are not images" not in record.getMessage()
    ]
    assert all("\n" not in message for message in messages) and len(messages) < 2
    return " ".join(names), "".join(messages)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/train/a.png images/val/b.png", "annotations/train/a.png annotations/val/b.png preview.png"),
        ("images/a.png unlabelled/b.png", "masks/a_mask.png color/a.png"),
        ("img_dir/train/a.png", "ann_dir/train/a.png"),
        ("train/images/a.png val/images/b.png", "train/masks/a.png val/masks/b.png"),
        ("train/a.png", "train_masks/a.png"),
        ("train/a.png", "trainannot/a.png"),
        ("leftImg8bit/train/x/a_leftImg8bit.png", "gtFine/train/x/a_gtFine_labelIds.png gtFine/train/x/a_color.png"),
        (
            "VOCdevkit/VOC2012/JPEGImages/a.jpg VOCdevkit/VOC2012/JPEGImages/b.jpg",
            "VOCdevkit/VOC2012/SegmentationClass/a.png VOCdevkit/VOC2012/SegmentationObject/a.png "
            "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
        ),
        ("inner/images/a.png", "inner/masks/a.png"),
    ],
)
def test_of_labelled_data_only_the_images_are_used(tmp_path, caplog, images, masks):
    put(tmp_path, f"{images} {masks}")
    count = len(images.split())
    message = f"{tmp_path} is labelled data: using its {count} images, but not its masks or other files"
    assert found(tmp_path, caplog) == (images, message)
    (source,) = open_images([str(tmp_path)])
    assert len(source) == count and folder_statistics([tmp_path])[1] == count


def test_listed_pairs(tmp_path, caplog):
    put(tmp_path, "photos/a.png photos/b.png truth/x.png truth/y.png mixed/c.png mixed/d.png")
    (tmp_path / "pairs.csv").write_text("image,mask\nphotos/a.png,truth/x.png\nmixed/c.png,mixed/d.png\n")
    assert found(tmp_path, caplog)[0] == "mixed/c.png photos/a.png photos/b.png"


@pytest.mark.parametrize("names", ["site-1/a.png site-2/a.png", "images/a.png others/b.png", "a.png a-2.png b/c.png"])
def test_folders_without_masks_are_used_whole_and_in_silence(tmp_path, caplog, names):
    put(tmp_path, names)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text(json.dumps({}))
    assert sorted(found(tmp_path, caplog)[0].split()) == sorted(names.split()) and found(tmp_path, caplog)[1] == ""


def test_elsewhere_folders_named_like_masks_are_left_out(tmp_path, caplog):
    put(tmp_path, "one/photos/a.png one/masks/a.png two/photos/b.png two/labels/deep/b.png three/c.png")
    names, message = found(tmp_path, caplog)
    assert names == "one/photos/a.png three/c.png two/photos/b.png"
    assert "skipping 2 files that are in folders named like masks" in message and "one/masks/a.png" in message
    assert found(tmp_path / "one" / "masks", caplog) == ("a.png", "")  # what is asked for itself


def test_a_folder_of_masks_alone_is_refused(tmp_path):
    put(tmp_path, "masks/a.png labels/a.png")
    with pytest.raises(ValueError, match="holds only masks, judging by the names of its folders"):
        unlabelled_images(tmp_path)


@pytest.mark.parametrize("folder", ["", "photos/deep/"])
def test_masks_beside_their_images_are_left_out(tmp_path, caplog, folder):
    put(tmp_path, f"{folder}a.png {folder}a_mask.png {folder}b.png {folder}b_mask.png {folder}unmask.png other/c.jpg")
    names, message = found(tmp_path, caplog)
    assert set(names.split()) == {f"{folder}a.png", f"{folder}b.png", f"{folder}unmask.png", "other/c.jpg"}
    assert "skipping 2 files that are named like masks of the images beside them" in message


def test_photos_beside_masks_of_their_names_stay(tmp_path):
    for name in ("a", "img", "img_1", "img_2"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.jpg")
        Image.new("L", (8, 6)).save(tmp_path / f"{name}.png")
    Image.new("L", (8, 6)).save(tmp_path / "a_1.png")  # a second mask of `a`
    assert unlabelled_images(tmp_path) == ["a.jpg", "img.jpg", "img_1.jpg", "img_2.jpg"]


def test_what_select_wrote_is_left_out(tmp_path, caplog):
    put(tmp_path, "a.png b.png chosen/images/a.png chosen/selected.png chosen/selected.txt mine/selected.png")
    names, message = found(tmp_path, caplog)
    assert names == "a.png b.png mine/selected.png"
    assert "skipping 2 files written by ddep-hub: chosen/images/a.png" in message
    assert found(tmp_path / "chosen", caplog)[0] == "images/a.png"
