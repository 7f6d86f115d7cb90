import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddep_hub import image_conversion
from ddep_hub.data import layouts
from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.data.folders import FolderOptions
from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.labelled_data import open_split
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits


DATA = Path(os.environ.get("DDEP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def put_image(path, size=(8, 6), value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def put_mask(path, size=(8, 6), value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


@pytest.fixture
def root(tmp_path):
    for stem in ("b", "a", "sub/c"):
        put_image(tmp_path / "images" / "train" / f"{stem}.jpg")
        put_mask(tmp_path / "annotations" / "train" / f"{stem}.png")
    put_image(tmp_path / "images" / "val" / "v.png")
    put_mask(tmp_path / "annotations" / "val" / "v.png")
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road"]))
    return tmp_path


def test_image_folder_is_recursive_sorted_and_skips_hidden(tmp_path):
    for name in ("b.JPG", "a/z.png", "a/k.jpeg", ".hidden.png", ".cache/x.png", "._b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "notes.txt").write_text("x")
    rows = ImageFolder(tmp_path)
    assert [Path(row["path"]).relative_to(tmp_path).as_posix() for row in rows] == ["a/k.jpeg", "a/z.png", "b.JPG"]
    assert len(rows) == 3
    assert decode_image(rows[0]["image"]).mode == "RGB"


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    put_image(root / "a" / "x.png")
    put_image(tmp_path / "elsewhere" / "y.png")
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [Path(row["path"]).relative_to(root).as_posix() for row in ImageFolder(root)] == ["a/x.png", "linked/y.png"]


def test_empty_and_missing_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere")


def test_segmentation_rows(root):
    rows = SegmentationFolder(root, "train")
    assert rows.sample_ids == ["a", "b", "sub/c"]
    assert rows.classes.names == ("sky", "road")
    row = rows[2]
    assert set(row) == {"image", "annotation", "path", "annotation_path"}
    assert row["image"].size == (8, 6)
    assert row["annotation"].shape == (6, 8)
    assert row["annotation"].dtype == np.uint8
    assert row["path"].endswith("images/train/sub/c.jpg")
    assert row["annotation_path"].endswith("annotations/train/sub/c.png")


def test_stems_choose_a_subset_in_their_order(root):
    (root / "annotations" / "train" / "a.png").unlink()  # not asked for, so not needed
    (root / "list.txt").write_text("sub/c\nb\n")
    assert SegmentationFolder(root, "train", split_file=root / "list.txt").sample_ids == ["sub/c", "b"]
    (root / "list.txt").write_text("b\nx\ny.jpg\n")
    with pytest.raises(ValueError, match=r"2 of 3 sample ids are not in .*train: x, y; .*'a'"):
        SegmentationFolder(root, "train", split_file=root / "list.txt")


def test_images_without_masks_are_counted_and_listed(root):
    for number in range(7):
        put_image(root / "images" / "train" / f"n{number}.png")
    message = r"7 of 10 images of .*images/train have no mask in .*annotations/train: n0\.png, .*n4\.png, \.\.\."
    with pytest.raises(FileNotFoundError, match=message):
        SegmentationFolder(root, "train")


def test_mask_of_another_size(root):
    put_mask(root / "annotations" / "train" / "a.png", size=(4, 3))
    with pytest.raises(BadFileError, match=r"a\.png is 4x3 pixels, but its image .*a\.jpg is 8x6") as caught:
        SegmentationFolder(root, "train")[0]
    assert caught.value.path.endswith("a.png")


def test_masks_alone_are_held_against_the_sizes_of_their_images(root):
    """So that training names such a mask before its first step."""
    data = SegmentationFolder(root, "train")
    for width, height in ((9, 6), (6, 8)):
        put_mask(root / "annotations" / "train" / "a.png", size=(width, height))
        with pytest.raises(BadFileError, match=rf"a\.png is {width}x{height} pixels, but its image .* is 8x6"):
            data.mask(data.sample_ids.index("a"))


def test_masks_in_archives_are_named(root):
    shutil.rmtree(root / "annotations")
    (root / "masks").mkdir()
    np.savez(root / "masks" / "a.npz", np.zeros((6, 8), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"Archives are not read: save the mask in .*a\.npz and others as PNG"):
        SegmentationFolder(root, "train")


def test_ids_beyond_the_classes(root):
    put_mask(root / "annotations" / "train" / "a.png", value=2)
    with pytest.raises(BadFileError, match=r"a\.png holds the ids 2, .*classes\.json"):
        SegmentationFolder(root, "train")[0]


def test_missing_split_lists_those_there(root):
    assert available_splits(root) == ["train", "val"]
    with pytest.raises(
        FileNotFoundError, match=r"no split 'test'; it has \['train', 'val'\]; .*--eval_split, .*--val_fraction"
    ):
        SegmentationFolder(root, "test")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; check the path"):
        available_splits(root / "nowhere")


def test_missing_class_table_and_shared_stems(root):
    put_image(root / "images" / "train" / "a.png")
    with pytest.raises(ValueError, match=r"both a\.jpg and a\.png"):
        SegmentationFolder(root, "train")
    (root / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        SegmentationFolder(root, "val")


def test_camvid():
    root = DATA / "camvid"
    if not root.is_dir():
        pytest.skip(f"no CamVid at {root}; set DDEP_DATA")
    assert {split: len(SegmentationFolder(root, split)) for split in available_splits(root)} == {
        "train": 367,
        "val": 101,
        "test": 62,
    }
    rows = SegmentationFolder(root, "val")
    assert rows.classes.num_classes == 11
    assert rows[0]["image"].size == (480, 360)
    assert set(np.unique(rows[0]["annotation"])) <= {*range(11), 255}


def test_only_listed_images_need_masks(root, tmp_path):
    for number in range(40):
        put_image(root / "images" / "train" / f"n{number}.png")
    (tmp_path / "list.txt").write_text("a.jpg\nimages/train/sub/c.jpg\n")
    args = LabelledDataArguments(data=str(root))
    data = open_split(args, "train", str(tmp_path / "list.txt"))
    assert data.sample_ids == ["a", "sub/c"] and "43 images in images/train, 3 masks in" in data.summary
    (tmp_path / "list.txt").write_text("a.jpg\nn1.png\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of .* have no mask in .*: n1\.png"):
        open_split(args, "train", str(tmp_path / "list.txt"))


def test_images_and_masks_elsewhere_are_named_by_their_whole_path(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(root / "annotations" / "train", elsewhere / "masks")
    data = SegmentationFolder(
        root, "train", options=FolderOptions(image_dir="images/train", mask_dir=str(elsewhere / "masks"))
    )
    assert f"3 images in images/train, 3 masks in {elsewhere / 'masks'}; " in data.summary


def test_the_list_of_pairs_is_read_once(tmp_path, monkeypatch):
    put_image(tmp_path / "a.jpg")
    put_mask(tmp_path / "m" / "b.png")
    (tmp_path / "pairs.csv").write_text("image,mask\na.jpg,m/b.png\n")
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    read, calls = layouts.read_pairs, []
    monkeypatch.setattr(layouts, "read_pairs", lambda root: calls.append(root) or read(root))
    assert SegmentationFolder(tmp_path, "train").splits == ["train"] and len(calls) == 1


@pytest.mark.parametrize(
    ("size", "orientation", "is_told"), [((8, 6), 3, True), ((8, 8), 6, True), ((8, 6), 6, False), ((8, 8), 1, False)]
)
def test_a_turned_image_whose_mask_fits_either_way_is_told(root, size, orientation, is_told, monkeypatch, recwarn):
    monkeypatch.setattr(image_conversion, "_warned", set())
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(root / "images" / "val" / "v.png", exif=exif)
    upright = size[::-1] if orientation == 6 else size
    put_mask(root / "annotations" / "val" / "v.png", upright)
    assert SegmentationFolder(root, "val").mask(0).shape == upright[::-1]
    assert any("v.png is rotated by its EXIF orientation" in str(item.message) for item in recwarn) is is_told


def test_a_name_of_the_hub_does_not_choose_the_split():
    with pytest.raises(ValueError, match=r"names a split; leave /validation out, .*--train_split or --eval_split"):
        open_split(LabelledDataArguments(data="hf://datasets/org/name/validation"), "train")
