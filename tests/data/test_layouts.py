"""Official folder layouts, as miniature copies with the official masks' own values."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.folders import FolderOptions
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.layouts import LAYOUTS, find_layout
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits
from ddep_hub.data.splits import read_split_file


DATA = Path(os.environ.get("DDEP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def put_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (9, 90, 200)).save(path)


def put_mask(path, values, palette=False):
    """Eight raw values, in two rows of four."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (2, 4)))
    if palette:
        mask = Image.frombytes("P", mask.size, mask.tobytes())
        mask.putpalette([(7 * value) % 256 for value in range(768)])
    mask.save(path)


def put_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def ids(row):
    return row["annotation"].ravel()[:4].tolist()


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    for split, city, frames in [
        ("train", "ulm", 2),
        ("train", "aachen", 1),
        ("val", "lindau", 1),
        ("test", "bonn", 1),
    ]:
        for frame in range(frames):
            stem = f"{city}/{city}_00000{frame}_000019"
            put_image(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png")
            values = [0, 3, 1, 2] if split == "test" else [7, 33, 0, 24]
            put_mask(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", values)
            put_mask(root / "gtFine" / split / f"{stem}_gtFine_instanceIds.png", [99])
    return root


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for folder, stem in [
        ("training", "ADE_train_00000002"),
        ("training", "ADE_train_00000001"),
        ("validation", "ADE_val_00000001"),
    ]:
        put_image(root / "images" / folder / f"{stem}.jpg")
        put_mask(root / "annotations" / folder / f"{stem}.png", [0, 1, 150, 13])
    return root


@pytest.fixture
def pascal_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in ("2007_000032", "2007_000033", "2008_000001", "2009_000009"):
        put_image(root / "JPEGImages" / f"{stem}.jpg")
    for stem in ("2007_000032", "2007_000033"):
        put_mask(root / "SegmentationClass" / f"{stem}.png", [0, 255, 20, 15], palette=True)
    lists = root / "ImageSets" / "Segmentation"
    put_list(lists / "train.txt", ["2007_000032"])
    put_list(lists / "val.txt", ["2007_000033"])
    put_list(lists / "trainval.txt", ["2007_000033", "2007_000032"])
    put_list(lists / "test.txt", ["2009_000009"])
    return root


@pytest.fixture
def pascal_context(tmp_path):
    root = tmp_path / "devkit" / "VOCdevkit" / "VOC2010"
    for stem in ("2008_000002", "2008_000003"):
        put_image(root / "JPEGImages" / f"{stem}.jpg")
        put_mask(root / "SegmentationClassContext" / f"{stem}.png", [0, 1, 59, 37])
        # VOC2010's own masks lie beside them.
        put_mask(root / "SegmentationClass" / f"{stem}.png", [0, 255, 20, 15], palette=True)
    put_list(root / "ImageSets" / "Segmentation" / "train.txt", ["2008_000002"])
    put_list(root / "ImageSets" / "Main" / "train.txt", ["2008_000002"])
    put_list(root / "ImageSets" / "Main" / "val.txt", ["2008_000003"])
    return root


@pytest.fixture
def camvid(tmp_path):
    root = tmp_path / "CamVid"
    for split in ("train", "val", "test"):
        put_image(root / split / f"{split}_006690.png")
        put_mask(root / f"{split}annot" / f"{split}_006690.png", [0, 10, 11, 3])
    return root


def test_cityscapes(cityscapes):
    assert available_splits(cityscapes) == ["test", "train", "val"]
    rows = SegmentationFolder(cityscapes, "train")
    assert rows.layout == "cityscapes"
    assert rows.classes.num_classes == 19
    assert rows.sample_ids == ["aachen/aachen_000000_000019", "ulm/ulm_000000_000019", "ulm/ulm_000001_000019"]
    row = rows[1]
    assert ids(row) == [0, 18, 255, 11]
    assert row["annotation"].dtype == np.uint8
    assert row["path"].endswith("leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png")
    assert row["annotation_path"].endswith("gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png")
    assert ids(SegmentationFolder(cityscapes, "test")[0]) == [255] * 4
    assert rows.select(["ulm/ulm_000001_000019"]).sample_ids == ["ulm/ulm_000001_000019"]


def test_ade20k(ade20k):
    for root in (ade20k, ade20k.parent):
        assert available_splits(root) == ["train", "val"]
        rows = SegmentationFolder(root, "train")
        assert rows.layout == "ade20k"
        assert rows.sample_ids == ["ADE_train_00000001", "ADE_train_00000002"]
        assert ids(rows[0]) == [255, 0, 149, 12]
    assert SegmentationFolder(ade20k, "training").sample_ids == SegmentationFolder(ade20k, "train").sample_ids
    assert SegmentationFolder(ade20k, "validation").sample_ids == ["ADE_val_00000001"]


def test_own_data_in_folders_of_pascal_voc(tmp_path):
    for index in range(2):
        put_mask(tmp_path / "SegmentationClass" / f"{index}.png", [0, 1, 1, 0])
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", Image.open(tmp_path / "SegmentationClass" / f"{index}.png").size).save(
            tmp_path / "JPEGImages" / f"{index}.jpg"
        )
    assert find_layout(tmp_path) == "pascal_voc"  # whose lists are missing
    (tmp_path / "classes.json").write_text('["background", "leaf"]')
    assert find_layout(tmp_path) == "folder"
    dataset = SegmentationFolder(tmp_path, "train")
    assert dataset.sample_ids == ["0", "1"] and dataset.mask(0).max() == 1


def test_pascal_voc(pascal_voc):
    for root in (pascal_voc, pascal_voc.parent, pascal_voc.parent.parent):
        assert find_layout(root) == "pascal_voc"
        assert available_splits(root) == ["train", "trainval", "val"]
    rows = SegmentationFolder(pascal_voc, "trainval")
    assert rows.sample_ids == ["2007_000033", "2007_000032"]
    assert ids(rows[0]) == [0, 255, 20, 15]
    assert SegmentationFolder(pascal_voc, "validation").sample_ids == ["2007_000033"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train_aug.txt", "{0}"),
        ("trainaug.txt", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"),
    ],
)
def test_pascal_voc_with_augmented_masks(pascal_voc, name, line):
    lines = [line.format(stem) for stem in ("2007_000032", "2008_000001")]
    put_list(pascal_voc / "ImageSets" / "Segmentation" / name, lines)
    assert "train_aug" not in available_splits(pascal_voc)
    for stem in ("2007_000032", "2008_000001"):
        put_mask(pascal_voc / "SegmentationClassAug" / f"{stem}.png", [0, 255, 1, 2])
    assert "train_aug" in available_splits(pascal_voc)
    rows = SegmentationFolder(pascal_voc, "train_aug")
    assert rows.sample_ids == ["2007_000032", "2008_000001"]
    assert ids(rows[0]) == [0, 255, 1, 2]
    assert ids(SegmentationFolder(pascal_voc, "train")[0]) == [0, 255, 20, 15]


def test_pascal_context(pascal_context):
    for root in (pascal_context, pascal_context.parent, pascal_context.parent.parent):
        rows = SegmentationFolder(root, "train")
        assert rows.layout == "pascal_context"
        assert available_splits(root) == ["train", "val"]
    assert rows.sample_ids == ["2008_000002"]
    assert ids(rows[0]) == [255, 0, 58, 36]
    assert rows.classes.names[36] == "person"
    put_list(pascal_context / "ImageSets" / "SegmentationContext" / "train.txt", ["2008_000003"])
    assert SegmentationFolder(pascal_context, "train").sample_ids == ["2008_000003"]


def test_pascal_context_without_masks_names_the_conversion(pascal_context):
    for path in (pascal_context / "SegmentationClassContext").iterdir():
        path.unlink()
    (pascal_context / "SegmentationClassContext").rmdir()
    # Not taken for PASCAL VOC by the masks of its 21 classes.
    assert find_layout(pascal_context) == "pascal_context"
    message = r"SegmentationClassContext is missing; .*python -m ddep_hub\.data\.pascal_context .*VOC2010 "
    with pytest.raises(FileNotFoundError, match=message):
        SegmentationFolder(pascal_context, "val")


def test_camvid(camvid):
    assert available_splits(camvid) == ["test", "train", "val"]
    rows = SegmentationFolder(camvid, "val")
    assert rows.layout == "camvid"
    assert rows.sample_ids == ["val_006690"]
    assert ids(rows[0]) == [0, 10, 255, 3]


def test_values_that_the_official_masks_do_not_have(camvid):
    put_mask(camvid / "trainannot" / "train_006690.png", [0, 10, 12, 255])
    with pytest.raises(BadFileError, match=r"train_006690\.png holds the values 12, 255, .* mapping"):
        SegmentationFolder(camvid, "train")[0]


def test_the_ignored_value_of_ones_own_classes_in_a_known_layout(camvid):
    classes = get_dataset_info("camvid").classes
    put_mask(camvid / "trainannot" / "train_006690.png", [0, 10, 11, 255])
    write_class_table(classes, camvid / "mine.json")
    options = FolderOptions(classes=camvid / "mine.json")
    assert ids(SegmentationFolder(camvid, "train", options=options)[0]) == [0, 10, 255, 255]


def test_a_class_table_makes_a_plain_data_set(ade20k):
    put_image(ade20k / "train" / "a.png")
    put_image(ade20k / "trainannot" / "a.png")
    (ade20k / "classes.json").write_text(json.dumps([str(number) for number in range(151)]))
    rows = SegmentationFolder(ade20k, "training")
    assert rows.layout == "folder"
    assert ids(rows[0]) == [0, 1, 150, 13]
    assert SegmentationFolder(ade20k, "train", layout="ade20k").classes.num_classes == 150


def test_a_plain_data_set_without_class_table_is_not_taken_for_ade20k(tmp_path):
    put_image(tmp_path / "images" / "training" / "a.jpg")
    assert find_layout(tmp_path) == "folder"
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        SegmentationFolder(tmp_path, "training")


def test_several_layouts_are_named(pascal_voc):
    put_image(pascal_voc.parent / "VOC2010" / "JPEGImages" / "2008_000002.jpg")
    with pytest.raises(
        ValueError, match=r"VOCdevkit has the layouts of pascal_context and pascal_voc; pass the folder"
    ):
        find_layout(pascal_voc.parent)
    assert SegmentationFolder(pascal_voc.parent, "train", layout="pascal_voc").sample_ids == ["2007_000032"]


def test_no_layout_lists_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="images is not a folder") as caught:
        find_layout(tmp_path)
    assert all(layout in str(caught.value) for layout in LAYOUTS)
    with pytest.raises(ValueError, match=r"layout 'voc' is unknown; choose one of folder, cityscapes"):
        SegmentationFolder(tmp_path, "train", layout="voc")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_is_not_there(tmp_path, layout):
    message = "images is not a folder" if layout == "folder" else f"no split in the layout '{layout}', which needs "
    with pytest.raises(FileNotFoundError, match=message):
        available_splits(tmp_path, layout)


def test_missing_masks_are_named(cityscapes, camvid):
    (cityscapes / "gtFine" / "train" / "ulm" / "ulm_000001_000019_gtFine_labelIds.png").unlink()
    message = (
        r"1 of 3 images of .*leftImg8bit/train have no mask in .*gtFine/train: ulm/ulm_000001_000019_gtFine_labelI"
    )
    with pytest.raises(FileNotFoundError, match=message):
        SegmentationFolder(cityscapes, "train")
    (camvid / "valannot" / "val_006690.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"have no mask in .*valannot: val_006690\.png"):
        SegmentationFolder(camvid, "val")


def test_missing_splits_and_lists_are_named(pascal_voc, cityscapes):
    (pascal_voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    message = r"no split 'val'; it has \['train', 'trainval'\], .*ImageSets/Segmentation/<split>\.txt.*--val_fraction"
    with pytest.raises(FileNotFoundError, match=message):
        SegmentationFolder(pascal_voc, "val")
    with pytest.raises(
        FileNotFoundError, match=r"no split 'extra'; it has \['test', 'train', 'val'\], .*leftImg8bit/"
    ):
        SegmentationFolder(cityscapes, "extra")


def test_lists_that_cannot_be_used_are_named(pascal_voc):
    path = pascal_voc / "ImageSets" / "Segmentation" / "train.txt"
    put_list(path, ["2007_000032", "2099_000001"])
    message = r"1 of 2 images of .*Segmentation/train\.txt are not in .*JPEGImages: 2099_000001\.jpg; "
    with pytest.raises(FileNotFoundError, match=message):
        SegmentationFolder(pascal_voc, "train")
    put_list(path, ["", ""])
    with pytest.raises(ValueError, match=r"train\.txt lists no image"):
        SegmentationFolder(pascal_voc, "train")


def test_cityscapes_without_its_images(tmp_path):
    put_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_000000_000019_rightImg8bit.png")
    with pytest.raises(ValueError, match=r"train holds no image whose name ends with _leftImg8bit\.png"):
        SegmentationFolder(tmp_path, "train")


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_published_lists_resolve(tmp_path, name):
    lists = sorted((DATA / "splits_published" / name).glob("**/*.txt"))
    if not lists:
        pytest.skip(f"no published lists at {DATA / 'splits_published'}; set DDEP_DATA")
    # Their own paths, but for the masks of train ids, which are made from the official ones.
    paths = {part for path in lists for line in path.read_text().splitlines() for part in line.split()}
    for folder in {os.path.dirname(path) for path in paths}:
        (tmp_path / folder).mkdir(parents=True)
    for path in paths:  # tens of thousands
        open(f"{tmp_path}/{path.replace('labelTrainIds', 'labelIds')}", "x").close()
    sample_ids = {path: read_split_file(path) for path in lists}
    longest = max(lists, key=lambda path: len(sample_ids[path]))
    for path in (longest, lists[-1]):
        split = "val" if path.stem == "val" else "train"
        assert SegmentationFolder(tmp_path, split).select(sample_ids[path]).sample_ids == sample_ids[path]
    known = {split: set(SegmentationFolder(tmp_path, split).sample_ids) for split in ("train", "val")}
    assert all(known["val" if path.stem == "val" else "train"].issuperset(sample_ids[path]) for path in lists)
    assert known["val"] == set(sample_ids[lists[-1]])


def test_lists_of_other_names_and_formats(pascal_voc):
    names = ["my b", "c.v1", "2007_000032"]
    for name in names[:2]:
        put_image(pascal_voc / "JPEGImages" / f"{name}.png")
        put_mask(pascal_voc / "SegmentationClass" / f"{name}.png", [0, 255, 20, 15], palette=True)
    # Lists of a class say in a second column whether an image shows it.
    put_list(pascal_voc / "ImageSets" / "Segmentation" / "train.txt", [*names[:2], f"{names[2]}  1"])
    rows = SegmentationFolder(pascal_voc, "train")
    assert rows.sample_ids == names and [path.suffix for path in rows.images] == [".png", ".png", ".jpg"]
