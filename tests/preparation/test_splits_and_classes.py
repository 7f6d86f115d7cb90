"""`ddep-hub prepare`: splits and classes that a source or the user gives are kept, or it is said that they are not."""

import json

import numpy as np
import pytest
from annotated_sources import BLOCKS, HEIGHT, LARGE, WIDTH, corners, masks_of, put_images, put_masks
from PIL import Image

import ddep_hub
from ddep_hub.data.folders import FolderOptions
from ddep_hub.data.pairing import pair_files
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.unlabelled import unlabelled_images


def names_of(output, split):
    return {path.stem for path in (output / "images" / split).rglob("*.png")}


def labelme(path, label="large"):
    shapes = [{"label": label, "shape_type": "polygon", "points": corners(LARGE)}]
    content = {"shapes": shapes, "imagePath": f"{path.stem}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    path.write_text(json.dumps(content))


def label_studio(name):
    value = {"x": 10, "y": 10, "width": 40, "height": 40, "rectanglelabels": ["large"]}
    region = {"type": "rectanglelabels", "value": value, "original_width": WIDTH, "original_height": HEIGHT}
    return {"data": {"image": f"{name}.png"}, "annotations": [{"result": [region]}]}


# --- Splits


@pytest.mark.parametrize("tool", ["LabelMe", "Label Studio"])
def test_folders_and_exports_of_splits(tmp_path, tool):
    pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")
    source = tmp_path / "source"
    for split, names in (("train", "abcdef"), ("val", "ghij")):
        put_images(source / split, names)
        if tool == "LabelMe":
            for name in names:
                labelme(source / split / f"{name}.json")
        else:
            (source / f"{split}.json").write_text(json.dumps([label_studio(name) for name in names]))
    ddep_hub.prepare(source, tmp_path / "output")
    assert names_of(tmp_path / "output", "train") == set("abcdef")
    assert names_of(tmp_path / "output", "val") == set("ghij")


@pytest.mark.parametrize("names", [("train", "test"), ("one", "two")])
def test_the_split_of_stacks_is_that_of_their_names_and_the_same_anywhere(tmp_path, names):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    found = []
    for folder in ("here", "there", "elsewhere", "anywhere"):
        source = tmp_path / folder
        source.mkdir()
        for name in names:
            tifffile.imwrite(source / f"{name}ing.tif", np.full((6, 8, 9), 7, np.uint8), photometric="minisblack")
            masks = np.tile(np.array([0, 1], np.uint8).repeat([4, 5]), (6, 8, 1))
            tifffile.imwrite(source / f"{name}ing_groundtruth.tif", masks, photometric="minisblack")
        ddep_hub.prepare(source, tmp_path / f"{folder} prepared")
        splits = sorted(path.name for path in (tmp_path / f"{folder} prepared" / "images").iterdir())
        found.append({split: names_of(tmp_path / f"{folder} prepared", split) for split in splits})
    assert all(each == found[0] for each in found)
    if "train" in names:
        assert {split: {name[:5] for name in stems} for split, stems in found[0].items()} == {
            "train": {"train"},
            "test": {"testi"},
        }


def test_images_without_a_subset_are_not_replaced_by_those_of_train(tmp_path):
    pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")
    source = tmp_path / "source"
    put_images(source, "a")
    put_images(source / "train", "ab")
    points = ";".join(f"{x},{y}" for x, y in corners(LARGE))
    entries = "".join(
        f'<image name="{name}" {subset} width="{WIDTH}" height="{HEIGHT}">'
        f'<polygon label="large" points="{points}"/></image>'
        for name, subset in (("a.png", ""), ("train/a.png", 'subset="Train"'), ("train/b.png", 'subset="Train"'))
    )
    (source / "annotations.xml").write_text(f"<annotations>{entries}</annotations>")
    ddep_hub.prepare(source, tmp_path / "output")
    assert len(list((tmp_path / "output" / "images").rglob("*.png"))) == 3


def test_groups_of_splits_that_are_there_cannot_be_kept(tmp_path, scenes):
    with pytest.raises(ValueError, match=r"group_pattern has no effect, because the source has splits"):
        ddep_hub.prepare(scenes, tmp_path / "output", group_pattern="(.)")


# --- Classes


def classes_file(tmp_path, **content):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(content))
    return path


def test_classes_that_a_format_names_itself_are_refused(tmp_path):
    pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")
    put_images(tmp_path / "source", "ab")
    for name in "ab":
        labelme(tmp_path / "source" / f"{name}.json")
    (tmp_path / "classes.json").write_text('["background", "large"]')
    with pytest.raises(ValueError, match="classes has no effect on the format labelme"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output", classes=tmp_path / "classes.json")


@pytest.mark.parametrize("other_values", ["error", "ignore"])
@pytest.mark.parametrize("kind", ["bilevel", "gif", "palette"])
def test_given_classes_mean_what_they_mean_in_training(tmp_path, kind, other_values):
    shape = BLOCKS > 0
    if kind == "palette":  # of colours that are of no class
        picture = Image.fromarray(BLOCKS, "P")
        picture.putpalette([9, 0, 0, 0, 9, 0, 0, 0, 9])
        entries = [{"id": i, "name": name, "color": [0, i, 0]} for i, name in enumerate("abc")]
    else:
        picture = Image.fromarray(shape) if kind == "bilevel" else Image.fromarray(shape.astype(np.uint8) * 255)
        entries = [{"id": i, "name": name, "mask_values": 255 * i} for i, name in enumerate("ab")]
    source = put_masks(
        tmp_path / "source", dict.fromkeys("abc", picture), (64, 64), ".gif" if kind == "gif" else ".png"
    )
    classes = classes_file(tmp_path, classes=entries, other_values=other_values)
    ddep_hub.prepare(source, tmp_path / "output", classes=classes)
    expected = SegmentationFolder(source, "train", options=FolderOptions(classes=classes)).mask(0)
    assert len(np.unique(expected)) == len(entries)
    assert all(np.array_equal(mask, expected) for mask in masks_of(tmp_path / "output").values())


def test_values_of_objects_are_not_those_of_what_is_written(tmp_path):
    source = tmp_path / "source"
    for name in "abc":
        put_images(source / name / "images", [name])
        (source / name / "masks").mkdir()
        Image.fromarray(np.tile(np.uint8([[0, 255]]), (HEIGHT, WIDTH // 2))).save(source / name / "masks" / "1.png")
    classes = classes_file(tmp_path, classes=[{"id": 0, "name": "nucleus", "mask_values": 255}])
    ddep_hub.prepare(source, tmp_path / "output", classes=classes)
    assert all(set(np.unique(mask)) == {0, 1} for mask in masks_of(tmp_path / "output").values())


@pytest.mark.parametrize("number", [2, 200, 300])
@pytest.mark.parametrize("in_folder", [False, True])
def test_negative_values_to_ignore_become_one_that_a_png_holds(tmp_path, number, in_folder):
    source, ids = tmp_path / "source", np.zeros((8, 8), np.int64)
    ids[:2], ids[2:4] = -100, number - 1
    put_images(source / "images", "abc", size=(8, 8))
    (source / "masks").mkdir()
    for name in "abc":
        np.save(source / "masks" / f"{name}.npy", ids)
    content = {"ignore_index": -100, "classes": [{"id": i, "name": f"class {i}"} for i in range(number)]}
    classes = classes_file(source if in_folder else tmp_path, **content)
    ddep_hub.prepare(source, tmp_path / "output", **({} if in_folder else {"classes": classes}))
    data = SegmentationFolder(tmp_path / "output", "train")
    ignored = data.classes.ignore_index
    assert ignored == (255 if number < 256 else 65535)
    assert np.array_equal(data.mask(0), np.where(ids == -100, ignored, ids))


def test_a_category_that_is_its_own_supercategory_is_a_class(tmp_path):
    pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")
    put_images(tmp_path / "source", "ab")
    names = ("person", "car", "bus")
    box = [value for corner in corners(LARGE) for value in corner]
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in enumerate("ab")
        ],
        "categories": [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": 1, "segmentation": [box]} for i in range(2)],
    }
    (tmp_path / "source" / "coco.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert SegmentationFolder(tmp_path / "output", "train").classes.names == ("background", *names)


# --- Pairs


@pytest.mark.parametrize("with_classes", [False, True])
def test_listed_pairs_decide_between_two_folders_of_masks(tmp_path, with_classes):
    source = put_masks(tmp_path / "source", dict.fromkeys("abc", BLOCKS), (64, 64))
    (source / "labels").mkdir()
    for name in "abc":
        Image.fromarray(0 * BLOCKS).save(source / "labels" / f"{name}.png")
    lines = [f"images/{name}.png,masks/{name}.png" for name in "abc"]
    (source / "pairs.csv").write_text("\n".join(["image,mask", *lines]))
    if with_classes:
        classes_file(source, classes=[{"id": i, "name": name} for i, name in enumerate("xyz")])
    ddep_hub.prepare(source, tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert len(found) == 3 and all(np.array_equal(mask, BLOCKS) for mask in found.values())


def test_a_quick_look_beside_a_mask_is_no_mask(tmp_path):
    source = put_masks(tmp_path / "source", {"a": BLOCKS}, (64, 64), ".tif")
    Image.fromarray(BLOCKS).save(source / "masks" / "a.jpg")
    assert pair_files(source / "images", source / "masks").masks["a"].suffix == ".tif"


def test_numbered_masks_beside_their_images_are_left_out(tmp_path):
    put_images(tmp_path, ["benign (1)", "benign (1)_mask", "benign (1)_mask_1", "benign (2)", "benign (2)_mask"])
    assert unlabelled_images(tmp_path) == ["benign (1).png", "benign (2).png"]


@pytest.mark.parametrize("kind", ["palette", "bilevel"])
def test_pages_with_given_classes_are_read_as_files_are(tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    if kind == "palette":  # whose order is not that of the classes
        page = Image.fromarray(BLOCKS, "P")
        page.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
        colors = {"background": [0, 0, 0], "car": [128, 0, 0], "road": [0, 128, 0]}
        entries = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(colors.items())]
        expected = np.array([0, 2, 1])[BLOCKS]
    else:
        page, expected = Image.fromarray(BLOCKS > 0), BLOCKS > 0
        entries = [{"id": i, "name": name, "mask_values": 255 * i} for i, name in enumerate("ab")]
    for name, pages in (("volume", [Image.new("L", (64, 64), 7)] * 4), ("volume-labels", [page] * 4)):
        pages[0].save(source / f"{name}.tif", save_all=True, append_images=pages[1:])
    ddep_hub.prepare(source, tmp_path / "output", classes=classes_file(tmp_path, classes=entries))
    found = masks_of(tmp_path / "output")
    assert len(found) == 4 and all(np.array_equal(mask, expected) for mask in found.values())


def test_groups_are_kept_where_the_folders_name_one_split(tmp_path):
    pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")
    source = tmp_path / "source"
    put_images(source, ["a1", "a2", "b1"])
    put_images(source / "train", ["b2", "c1", "c2"])
    for name in ("a1", "a2", "b1", "train/b2", "train/c1", "train/c2"):
        labelme(source / f"{name}.json")
    ddep_hub.prepare(source, tmp_path / "output", group_pattern="([a-c])[12]", val_fraction="1/3")
    groups = [{name[0] for name in names_of(tmp_path / "output", split)} for split in ("train", "val")]
    assert not groups[0] & groups[1] and groups[1]


def test_the_command_to_go_on_with_names_the_splits(tmp_path):
    for split in ("train", "test"):
        put_masks(tmp_path / "source" / split, dict.fromkeys("abc", BLOCKS), (64, 64))
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert text.endswith(f"--data {tmp_path / 'output'} --train_split train --eval_split test")
