"""Layouts of users' own folders: which folders hold images and masks, and which mask belongs to which image."""

import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data import folders
from ddep_hub.data.class_files import read_class_table
from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.folders import FolderOptions
from ddep_hub.data.name_matching import match_names
from ddep_hub.data.pairing import pair_files
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.evaluation.prediction_files import MaskWriter


CLASSES = [f"class {index}" for index in range(8)]
CLASS_TABLE = ClassTable(names=tuple(CLASSES), colors=class_colors(8))


def put(root, images, masks, classes=CLASSES):
    """Writes images, and masks of one value: the number of the mask in the list, 1 for the first."""
    for path in images:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (0, 90, 200)).save(root / path)
    for value, path in enumerate(masks, 1):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), value).save(root / path)
    if classes:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def values(dataset):
    """The value of each sample's mask."""
    return {name: int(dataset.mask(index)[0, 0]) for index, name in enumerate(dataset.sample_ids)}


# Images, masks in the order of the images, and the splits that are found.
LAYOUTS = {
    "mmsegmentation": ("img_dir/{}/a.jpg", "ann_dir/{}/a.png"),
    "lightly-train masks": ("{}/images/a.jpg", "{}/masks/a.png"),
    "lightly-train labels": ("{}/images/a.jpg", "{}/labels/a.png"),
    "annotations": ("{}/images/a.jpg", "{}/annotations/a.png"),
    "images and labels": ("images/{}/a.jpg", "labels/{}/a.png"),
    "capitals": ("Images/{}/A B.v1.JPG", "Masks/{}/A B.v1.PNG"),
    "nested": ("images/{}/x/y/ä.jpg", "masks/{}/x/y/ä.png"),
    "not mirrored": ("images/{}/x/a.jpg", "masks/{}/a.png"),
    "suffix": ("images/{}/a.jpg", "masks/{}/a_mask.png"),
    "prefix": ("{}/img/im_7.png", "{}/gt/gt_7.png"),
    "labelIds": ("images/{}/a_leftImg8bit.png", "masks/{}/a_gtFine_labelIds.png"),
    "one word": ("{}_images/a.jpg", "{}_masks/a.png"),
    "Carvana": ("{}/a.jpg", "{}_masks/a_mask.png"),
    "side by side": ("{}/a.jpg", "{}/a_mask.png"),
    "JPEG and PNG": ("{}/a.jpg", "{}/a.png"),
    "other capitals": ("images/{}/IMG_1.JPG", "masks/{}/img_1.png"),
    "capitals of an affix": ("images/{}/A.JPG", "masks/{}/A_Mask.png"),
    "nnU-Net": ("imagesTr/a_0000.png", "labelsTr/a.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    image, mask = LAYOUTS[name]
    splits = ["train", "valid"] if "{}" in image else ["train"]
    root = put(tmp_path, [image.format(s) for s in splits], [mask.format(s) for s in splits])
    for junk in (".DS_Store", "Thumbs.db", "._a.png", "notes.txt"):
        (root / image.format("train")).with_name(junk).write_bytes(b"?")
    assert {split: list(values(SegmentationFolder(root, split)).values()) for split in splits} == {
        split: [number] for number, split in enumerate(splits, 1)
    }
    if len(splits) > 1:
        for other in ("val", "validation", "dev"):
            assert list(values(SegmentationFolder(root, other)).values()) == [2]
        assert re.search("splits: train, val(id)?$", SegmentationFolder(root, "training").summary)
    with pytest.raises(FileNotFoundError, match="no split 'test'; it has"):
        SegmentationFolder(root, "test")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["images/a.jpg", "images/b.JPG"], ["masks/a.png", "masks/b.png"]),
        (["images/p1/a.jpg", "images/p2/a.jpg"], ["labels/p1/a.png", "labels/p2/a.png"]),
        (["a.jpg", "b.jpeg"], ["a_seg.png", "b_seg.png"]),
        (["raw/1.tif", "raw/11.tif"], ["labels/1.tif", "labels/11.tif"]),
        (["data/images/a.jpg", "data/images/b.jpg"], ["data/masks/a.png", "data/masks/b.png"]),
        (["PNGImages/a.jpg", "PNGImages/b.jpg"], ["PedMasks/a_mask.png", "PedMasks/b_mask.png"]),
        (["my photos/a.jpg", "my photos/b.jpg"], ["my truth masks/a.png", "my truth masks/b.png"]),
        (["photos/a.jpg", "photos/b.jpg"], ["PedMasks/a_mask.png", "PedMasks/b_mask.png"]),
        (["images/1.png", "images/12.png"], ["masks/001.png", "masks/012.png"]),
        (["t_1.bmp", "t_2.bmp"], ["t_1_anno.bmp", "t_2_anno.bmp"]),
        (["img/img1.png", "img/img2.png"], ["mask/mask1.png", "mask/mask2.png"]),
        (["image_0.png", "image_1.png"], ["mask_0.png", "mask_1.png"]),
        (["0.png", "1.png"], ["label0.png", "label1.png"]),
        (["images/s0.ome.tif", "images/s1.ome.tif"], ["masks/s0.tif", "masks/s1.tif"]),
        (["images/s0.ome.tif", "images/s1.ome.tif"], ["masks/s0_mask.tif", "masks/s1_mask.tif"]),
        (["s0.ome.tif", "s1.ome.tif"], ["s0_mask.tif", "s1_mask.tif"]),
        (["s0.png", "s1.png"], ["s0_mask.ome.tif", "s1_mask.ome.tif"]),
    ],
)
def test_one_split_is_called_train(tmp_path, images, masks):
    root = put(tmp_path, images, masks)
    assert available_splits(root)[-1] == "train" or (root / "images" / "p1").is_dir()
    assert list(values(SegmentationFolder(root, "train")).values()) == [1, 2]


def test_images_in_no_split_are_named(tmp_path):
    root = put(tmp_path, ["images/train/a.jpg", "images/b.jpg"], ["annotations/train/a.png", "annotations/b.png"])
    with pytest.warns(UserWarning, match="holds images next to the folders train"):
        assert values(SegmentationFolder(root, "train")) == {"a": 1}


def test_links_to_folders(tmp_path):
    root = put(tmp_path / "real", ["images/a.jpg"], ["masks/a.png"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "images").symlink_to(root / "images")
    (tmp_path / "linked" / "masks").symlink_to(root / "masks")
    (tmp_path / "linked" / "classes.json").write_text(json.dumps(CLASSES))
    assert values(SegmentationFolder(tmp_path / "linked", "train")) == {"a": 1}


def test_masks_of_one_name_in_two_folders_are_no_match(tmp_path):
    root = put(tmp_path, ["images/a.jpg", "images/b.jpg"], ["masks/1/a.png", "masks/2/a.png", "masks/1/b.png"])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* have no mask .*: a\.png"):
        SegmentationFolder(root, "train")


def test_numbers_are_no_affix(tmp_path):
    assert match_names(["1", "2"], ["11", "12"]) == {}
    assert match_names(["scan1", "scan12"], ["scan1_gt", "scan12_gt"]) == {"scan1": "scan1_gt", "scan12": "scan12_gt"}
    root = put(tmp_path, ["images/1.png"], ["masks/11.png"])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of .* have no mask .*mask_suffix or pairs\.csv"):
        SegmentationFolder(root, "train")


@pytest.mark.parametrize("mask", ["café", "café_mask"])
def test_composed_and_decomposed_letters_are_the_same(mask):
    image, mask = unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", mask)
    assert match_names([image, "b"], [mask, mask.replace("café", "b")]) == {
        image: mask,
        "b": mask.replace("café", "b"),
    }


def test_what_may_be_meant_twice_is_an_error(tmp_path):
    two = put(tmp_path / "1", ["images/a.jpg"], ["masks/a_labelIds.png", "masks/a_labelTrainIds.png"])
    with pytest.raises(ValueError, match="masks named both <image>_labelIds and <image>_labelTrainIds"):
        SegmentationFolder(two, "train")
    assert values(SegmentationFolder(two, "train", options=FolderOptions(mask_suffix="_labelTrainIds.png"))) == {
        "a": 2
    }
    beside = put(tmp_path / "2", ["images/a.jpg"], ["masks/a_color.png", "masks/a_mask.png", "masks/a_x.png"])
    assert values(SegmentationFolder(beside, "train")) == {"a": 2}
    both = put(tmp_path / "3", ["images/a.jpg"], ["masks/a.png", "labels/a.png"])
    with pytest.raises(ValueError, match="both labels and masks hold masks"):
        SegmentationFolder(both, "train")
    assert values(SegmentationFolder(both, "train", options=FolderOptions(mask_dir="labels"))) == {"a": 2}
    yolo = put(tmp_path / "4", ["images/a.jpg"], ["masks/a.png"])
    (yolo / "labels").mkdir()
    (yolo / "labels" / "a.txt").write_text("0 0.5 0.5")
    assert values(SegmentationFolder(yolo, "train")) == {"a": 1}


def test_flags_beat_what_is_recognised(tmp_path):
    images = ["images/train/a.jpg", "photos/train/raw/b.jpg", "photos/val/raw/c.jpg"]
    root = put(tmp_path, images, ["annotations/train/a.png", "truth-train/b.png", "truth-val/c.png"])
    options = FolderOptions(image_dir="photos/{split}/raw", mask_dir="truth-{split}")
    assert available_splits(root, options=options) == ["train", "val"]
    assert values(SegmentationFolder(root, "train", options=options)) == {"b": 2}
    assert values(SegmentationFolder(root, "validation", options=options)) == {"c": 3}
    absolute = FolderOptions(image_dir=str(root / "photos" / "val" / "raw"), mask_dir=str(root / "truth-val"))
    assert values(SegmentationFolder(root, "train", options=absolute)) == {"c": 3}
    assert values(SegmentationFolder(root, "train")) == {"a": 1}
    other = put(tmp_path / "other", ["photos/a.jpg"], ["masks/a.png"])
    (tmp_path / "empty").mkdir()
    beside = FolderOptions(image_dir=str(other / "photos"), classes=other / "classes.json")
    assert values(SegmentationFolder(tmp_path / "empty", "train", options=beside)) == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"image_dir: .*pictures is not a folder"):
        SegmentationFolder(root, "train", options=FolderOptions(image_dir="pictures"))


def test_pairs(tmp_path):
    root = put(tmp_path, ["stack/00.tif", "stack/01.tif"], ["truth/labels00000000.png", "truth/labels00000001.png"])
    lines = ["Image,mask,split,group", "stack/00.tif,truth/labels00000001.png,train,x"]
    (root / "pairs.csv").write_text("\n".join([*lines, "stack\\01.tif,truth/labels00000000.png,valid,y"]) + "\n")
    train = SegmentationFolder(root, "train")
    assert values(train) == {"stack/00": 2} and train.groups == {"stack/00": "x"}
    assert values(SegmentationFolder(root, "val")) == {"stack/01": 1}
    assert available_splits(root) == ["train", "valid"]
    for mark in ";\t":
        (root / "pairs.csv").write_text(f"image{mark}mask\nstack/00.tif{mark}truth/labels00000000.png\n")
        assert values(SegmentationFolder(root, "train")) == {"stack/00": 1}


def test_folders_of_many_patients_are_looked_at_once(tmp_path, monkeypatch):
    names = [f"{patient}/{kind}" for patient in range(30) for kind in ("a", "b")]
    root = put(tmp_path, [f"images/{name}.png" for name in names], [f"masks/{name}.png" for name in names])
    calls, original = [], folders._find_mask_folder
    monkeypatch.setattr(folders, "_find_mask_folder", lambda *args: calls.append(1) or original(*args))
    assert len(folders.find_split_folders(root)["train"].images.parts) and len(calls) == 1


# Images and masks of a patient's folder.
PATIENTS = [("{}/t{}.png", "{}/t{}_mask.png"), ("{}/images/t{}.png", "{}/masks/t{}.png"), ("{}/t{}.jpg", "{}/t{}.png")]
PATIENTS += [("{}/img/t{}.png", "{}/labels/t{}_seg.png")]


def put_patients(root, pattern, patients, numbers=(1, 2)):
    names = [[text.format(patient, number) for patient in patients for number in numbers] for text in pattern]
    return put(root, *names)


@pytest.mark.parametrize("pattern", PATIENTS)
def test_a_folder_for_each_patient(tmp_path, pattern):
    patients = [f"TCGA_{number}" for number in range(3)]
    root = put_patients(tmp_path / "data", pattern, patients)
    dataset = SegmentationFolder(root, "train")
    assert available_splits(root) == ["train"] and list(values(dataset).values()) == [*range(1, 7)]
    assert dataset.groups == {name: name.split("/")[0] for name in dataset.sample_ids}
    assert len({*dataset.groups.values()}) == 3 and len(unlabelled_images(root)) == 6
    # As an archive in a folder of its own, and in splits.
    (tmp_path / "unpacked").mkdir()
    root.rename(tmp_path / "unpacked" / "data")
    assert len(values(SegmentationFolder(tmp_path / "unpacked", "train"))) == 6
    split = put_patients(tmp_path / "splits", [f"train/{text}" for text in pattern], patients)
    put_patients(split, [f"val/{text}" for text in pattern], ["TCGA_9", "TCGA_10"])
    assert available_splits(split) == ["train", "val"]
    assert list(values(SegmentationFolder(split, "train")).values()) == [*range(1, 7)]


def test_kinds_of_images_are_not_kept_apart(tmp_path):
    """As in BUSI."""
    root = put_patients(tmp_path, PATIENTS[0], ["benign", "malignant", "normal"])
    dataset = SegmentationFolder(root, "train")
    assert len(dataset) == 6 and not dataset.groups


def test_patients_without_masks_are_named(tmp_path):
    root = put_patients(tmp_path, PATIENTS[1], ["p1", "p2", "p3"])
    put(root, ["p4/images/t1.png"], [])
    with pytest.raises(FileNotFoundError, match=r"1 of 7 images of .* have no mask in .*: p4/images/t1_mask\.png"):
        SegmentationFolder(root, "train")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["cat/a.jpg", "dog/b.jpg"], []),
        (["cat/a.jpg", "cat/b.jpg", "dog/b.jpg", "cow/a.png"], ["cat/b_mask.png"]),
        # The objects of an image, as in the Data Science Bowl 2018.
        (["id1/images/id1.png", "id2/images/id2.png"], [f"id{n}/masks/{m}.png" for n in (1, 2) for m in ("f0", "e9")]),
        (["id1/images/1.png", "id2/images/1.png"], [f"id{n}/masks/{m}.png" for n in (1, 2) for m in (1, 2)]),
        (["p1/a.png", "p2/a.png", "a.png"], ["p1/a_mask.png", "p2/a_mask.png"]),
    ],
)
def test_other_folders_are_no_patients(tmp_path, images, masks):
    with pytest.raises(FileNotFoundError, match="no other layout is recognised"):
        available_splits(put(tmp_path, images, masks, None))


@pytest.mark.parametrize("folder", ["", "train/", "p1/"])
def test_a_suffix_alone_tells_masks_from_images(tmp_path, folder):
    """As ilastik names them."""
    suffix = "_Simple Segmentation"
    names = [f"{folder}{name}" for name in "ab"] + [f"p2/{name}" for name in "ab" if folder == "p1/"]
    root = put(tmp_path, [f"{name}.tif" for name in names], [f"{name}{suffix}.tif" for name in names])
    dataset = SegmentationFolder(root, "train", options=FolderOptions(mask_suffix=suffix))
    assert list(values(dataset).values()) == [*range(1, len(names) + 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,truth\n", r"pairs\.csv has no column mask"),
        ("image,mask\n", r"pairs\.csv lists no image"),
        ("image,mask\na.jpg,\n", r"pairs\.csv, line 2: `mask` is empty"),
        ("image,mask\na.jpg,b.png\n", r"pairs\.csv, line 2: .*b\.png does not exist"),
        ("image,mask\na.jpg,a.png\na.jpg,a.png\n", r"pairs\.csv, line 3: a\.jpg is listed twice"),
        ("image,mask,split\na.jpg,a.png,x\na.jpg,a.png,y\n", r"pairs\.csv, line 3: a\.jpg is listed twice"),
        ("image,mask\na.jpg,a.png\na.png,a.png\n", r"line 3: a\.png and a\.jpg have the same name without suffix"),
    ],
)
def test_damaged_pairs_are_named(tmp_path, text, message):
    root = put(tmp_path, ["a.jpg"], ["a.png"])
    (root / "pairs.csv").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        SegmentationFolder(root, "train")


def test_what_is_looked_for_and_what_is_there(tmp_path):
    put(tmp_path, ["stuff/a.jpg"], [], None)
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"readme\.txt, stuff/; .*<split>/images/ .*pairs\.csv"):
        SegmentationFolder(tmp_path, "train")


def test_masks_without_an_image_are_counted(tmp_path, caplog):
    root = put(tmp_path, ["images/a.jpg"], ["masks/a_mask.png", "masks/b_mask.png"])
    with caplog.at_level(logging.WARNING):
        assert values(SegmentationFolder(root, "train")) == {"a": 1}
    assert "skipping 1 masks without an image: b_mask" in caplog.text


@pytest.mark.parametrize(
    "pixels",
    [[0, 255], [0, 1, 2, 255], [0, 32, 64], [(0, 0, 0), (128, 64, 0)], [0, 1]],
    ids=["binary", "ids", "sparse", "colours", "two"],
)
def test_without_classes_the_file_to_save_is_given(tmp_path, pixels):
    root = put(tmp_path, ["images/a.png"], [], None)
    mask = np.array([pixels, pixels[::-1]], dtype=np.uint8)
    Image.new("RGB", (len(pixels), 2)).save(root / "images" / "a.png")
    (root / "masks").mkdir()
    Image.fromarray(mask).save(root / "masks" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing\. Save this there") as caught:
        SegmentationFolder(root, "train")
    text = str(caught.value)
    shares = [f"{value}: {1 / len(pixels):.1%}" for value in pixels]
    assert all(share in text for share in shares)
    (root / "classes.json").write_text(text[text.index("{") : text.rindex("}") + 1])
    kept = [value for value in pixels if value != 255 or len(pixels) == 2]
    expected = [kept.index(value) if value in kept else 255 for value in pixels]
    assert SegmentationFolder(root, "train").mask(0)[0].tolist() == expected
    assert read_class_table(root / "classes.json").num_classes == len(kept)


def test_classes_of_another_file(tmp_path):
    root = put(tmp_path / "data", ["images/a.jpg"], ["masks/a.png"], None)
    (tmp_path / "other.json").write_text(json.dumps(CLASSES))
    dataset = SegmentationFolder(root, "train", options=FolderOptions(classes=tmp_path / "other.json"))
    assert list(dataset.classes.names) == CLASSES


def test_annotation_tools_write_the_layout_of_voc(tmp_path):
    """JPEGImages and SegmentationClass with classes of one's own, which are not those of VOC."""
    root = put(tmp_path, ["JPEGImages/a.jpg"], ["SegmentationClass/a.png"])
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    assert list(SegmentationFolder(root, "train").classes.names) == CLASSES


def put_outputs(folder):
    """What `predict`, `select`, `evaluate` and a run write into a folder."""
    MaskWriter(folder, CLASS_TABLE, ["ids", "overlays"]).write("a", np.zeros((2, 3), int), Image.new("RGB", (3, 2)))
    MaskWriter(folder, CLASS_TABLE, []).write_legend()
    written = "sel/selected.png sel/images/a.jpg ev/confusion.png ev/predictions.png run/pictures/step-1.png"
    put(folder, f"{written} run/final/loss.png".split(), [], classes=None)
    for name in "sel/selected.txt ev/results.json ev/confusion.csv run/config.yaml run/metrics.jsonl".split():
        (folder / name).touch()


@pytest.mark.parametrize("layout", ["folder", "camvid"])
def test_what_commands_wrote_among_the_images_has_no_mask(tmp_path, caplog, layout):
    """An output folder may lie in the folder of the images, or be it."""
    folder = "val" if layout == "camvid" else "images/val"
    masks = "valannot" if layout == "camvid" else "annotations/val"
    root = put(
        tmp_path, [f"{folder}/a.png", f"{folder}/pictures/b.png"], [f"{masks}/a.png", f"{masks}/pictures/b.png"]
    )
    put_outputs(root / folder)
    assert SegmentationFolder(root, "val", layout=layout).sample_ids == ["a", "pictures/b"]
    assert "skipping 9 files written by ddep-hub" in caplog.text
    assert unlabelled_images(root / folder) == ["a.png", "pictures/b.png"]
    put(root / folder, ["ids/b.png"], [], classes=None)  # one of the user's own
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .* have no mask in .*: ids/b\.png"):
        SegmentationFolder(root, "val", layout=layout)
    with pytest.raises(ValueError, match="run holds only files written by ddep-hub"):
        pair_files(root / folder / "run", root / masks)


def test_affixes_are_found_where_few_images_have_a_mask():
    images = [f"{number:04d}" for number in range(1000)]
    masks = [f"{number:04d}_mask" for number in (5, 77, 301, 412, 555, 613)]
    assert match_names(images, masks) == {mask.removesuffix("_mask"): mask for mask in masks}
