"""What a label is: values and colours of masks, and classes that never occur."""

import json
import logging
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from ddep_hub import image_conversion
from ddep_hub.data.class_files import read_class_table, write_class_table
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.masks import decode_mask
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.statistics import ClassStatistics, check_classes, warn_about_mixed_values


def folder(root, masks, classes, suffix=".png", **options):
    """A data set of these masks, arrays or PIL images, with images of their size."""
    for name in ("images", "annotations"):
        (root / name / "train").mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(root / "annotations" / "train" / f"{number}{suffix}", **options)
        Image.new("RGB", image.size).save(root / "images" / "train" / f"{number}.JPG")
    (root / "classes.json").write_text(json.dumps(classes))
    return SegmentationFolder(root, "train")


def class_statistics(data):
    found = ClassStatistics(data.classes.names, data.classes.ignore_index)
    for index in range(len(data)):
        found.update(data.mask(index))
    return found


TWO = {"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "cell"}]}
BINARY = np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8)


def test_palettes_that_differ_are_warned_of(tmp_path, monkeypatch):
    """Some programs number the colours of each file anew, so that an index is another class in each."""
    monkeypatch.setattr(image_conversion, "_warned", set())
    black, red, white = (0, 0, 0), (128, 0, 0), (224, 224, 192)

    def mask(*colors):
        image = Image.fromarray(np.array([[0, 1, 255]], np.uint8), mode="P")
        image.putpalette([*sum(colors, ()), *[0] * (3 * 253), *white])
        return image

    same = folder(tmp_path / "same", [mask(black, red), mask(black, red)], TWO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [same.mask(index).tolist() for index in range(2)] == [[[0, 1, 255]]] * 2
    other = folder(tmp_path / "other", [mask(black, red), mask(red, black)], TWO)
    with pytest.warns(
        UserWarning, match=r"0\.png and .*1\.png differ: index 0 is \(0, 0, 0\) in one, \(128, 0, 0\) in"
    ):
        class_statistics(other)
    # With colours in classes.json, they tell the class.
    colors = {
        "classes": [{**entry, "color": color} for entry, color in zip(TWO["classes"], (black, red), strict=True)]
    }
    told = folder(tmp_path / "told", [mask(black, red), mask(red, black)], colors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [told.mask(index)[0, :2].tolist() for index in range(2)] == [[0, 1], [1, 0]]


def test_masks_of_1_beside_masks_of_255_are_warned_of(tmp_path, caplog):
    ones = np.array([[0, 1], [0, 0]], np.uint8)
    border = np.array([[0, 1], [255, 0]], np.uint8)  # 255 is ignored there
    settled = {**TWO, "other_values": "ignore"}
    for name, masks, classes in (
        ("same", [ones, ones, 0 * ones], TWO),
        ("border", [border, BINARY], TWO),
        ("settled", [ones, 77 * (1 - ones)], settled),
        ("mixed", [ones, BINARY, BINARY], TWO),
    ):
        assert not caplog.text
        data = folder(tmp_path / name, masks, classes)
        warn_about_mixed_values(class_statistics(data), data.classes)
    assert (
        "with 'cell' have no 255 (1 of them), and those with 255, which is ignored, have no 'cell' (2)" in caplog.text
    )


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_a_corrected_mask_changes_the_fingerprint(suffix, tmp_path):
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
    before = folder(tmp_path / "before", [ids], TWO, suffix).fingerprint
    assert folder(tmp_path / "same", [ids], TWO, suffix).fingerprint == before
    ids[2:5] = 1 - ids[2:5]
    assert folder(tmp_path / "after", [ids], TWO, suffix).fingerprint != before


def test_a_mask_with_exchanged_sides_is_found_without_its_image(tmp_path):
    data = folder(tmp_path, [np.zeros((4, 6), np.uint8)], TWO)
    Image.new("RGB", (4, 6)).save(tmp_path / "images" / "train" / "0.JPG")
    with pytest.raises(BadFileError, match=r"0\.png is 6x4 pixels, but its image .*0\.JPG is 4x6"):
        data.mask(0)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (4, 6)).save(tmp_path / "images" / "train" / "0.JPG", exif=exif)
    assert data.mask(0).shape == (4, 6)


def test_statistics_count_pixels_and_images(tmp_path):
    masks = np.random.default_rng(0).choice([0, 1, 2, 255], size=(5, 7, 9), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
    masks[:3][masks[:3] == 2] = 0
    data = folder(tmp_path, masks, {"classes": [{"id": i, "name": f"class {i}"} for i in range(4)]})
    found = class_statistics(data)
    assert found.pixels.tolist() == [int((masks == index).sum()) for index in range(4)]
    assert found.images.tolist() == [sum(bool((mask == index).any()) for mask in masks) for index in range(4)]
    around = [sum(int((mask != 255).sum()) for mask in masks if (mask == index).any()) for index in range(4)]
    assert found.pixels_around.tolist() == around
    assert found.num_ignored == int((masks == 255).sum())
    assert found.ignored_share == pytest.approx((masks == 255).mean())
    assert len(found.table().splitlines()) == 5
    with pytest.raises(ValueError, match=r"belongs to 'class 3'.*--allow_empty_classes"):
        check_classes(found)


def test_binary_masks_are_not_ignored_in_silence(tmp_path):
    data = folder(tmp_path, [BINARY], TWO)
    with pytest.raises(ValueError, match=r"'cell'; 50\.0% .*255, the ignore index.*mask_values"):
        check_classes(class_statistics(data))


def test_mask_values_give_the_classes(tmp_path):
    classes = {"classes": [{**TWO["classes"][0], "mask_values": 0}, {**TWO["classes"][1], "mask_values": 255}]}
    data = folder(tmp_path, [BINARY], classes)
    assert data[0]["annotation"].tolist() == (BINARY // 255).tolist()
    check_classes(class_statistics(data))
    write_class_table(data.classes, tmp_path / "again.json")
    assert read_class_table(tmp_path / "again.json") == data.classes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_sparse_mask_values(tmp_path, dtype):
    groups = {"a": [7, 64], "b": 32}
    classes = {"classes": [{"id": i, "name": n, "mask_values": v} for i, (n, v) in enumerate(groups.items())]}
    mask = np.array([[7, 64, 32, 255]], dtype=dtype)
    assert folder(tmp_path / "1", [mask], classes)[0]["annotation"].tolist() == [[0, 0, 1, 255]]
    other = np.array([[7, 9]], dtype=dtype)
    with pytest.raises(BadFileError, match=r"0\.png holds the values 9,"):
        folder(tmp_path / "2", [other], classes)[0]
    data = folder(tmp_path / "3", [other], {**classes, "other_values": "ignore"})
    assert pickle.loads(pickle.dumps(data))[0]["annotation"].tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([{"mask_values": 0}, {"mask_values": [3, 0]}], r"mask_values \[0\] belong to more than one class"),
        ([{"mask_values": 0}, {}], "mask_values is given for some classes only"),
        ([{"mask_values": "x"}, {"mask_values": 1}], "mask_values must be a whole number"),
    ],
)
def test_bad_mask_values_are_named(tmp_path, change, message):
    entries = [{**entry, **extra} for entry, extra in zip(TWO["classes"], change, strict=True)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    with pytest.raises(ValueError, match=message):
        read_class_table(tmp_path / "classes.json")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".gif", {}),
        (".tif", {}),
        (".tif", {"tiffinfo": {262: 0}}),
        (".tiff", {"tiffinfo": {262: 0}, "compression": "group4"}),
        (".PNG", {}),
        (".bmp", {}),
    ],
)
def test_bilevel_masks_give_0_and_1(tmp_path, suffix, options):
    data = folder(tmp_path, [Image.fromarray(BINARY).convert("1")], TWO, suffix, **options)
    assert data[0]["annotation"].tolist() == (BINARY // 255).tolist()


@pytest.mark.parametrize("options", [{}, {"imagej": True, "photometric": "miniswhite"}])
def test_masks_of_tifffile_and_imagej_mean_the_values_they_store(tmp_path, options):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    data = folder(
        tmp_path,
        [BINARY],
        {"classes": [{**TWO["classes"][0], "mask_values": 0}, TWO["classes"][1] | {"mask_values": [1, 255]}]},
        ".tif",
    )
    values = BINARY if options else BINARY > 0  # a bool array, which tifffile writes as one whose 0 is white
    tifffile.imwrite(tmp_path / "annotations" / "train" / "0.tif", values, **options)
    assert data[0]["annotation"].tolist() == (BINARY // 255).tolist()


COLORS = {
    "classes": [{"id": 0, "name": "sky", "color": [70, 130, 180]}, {"id": 1, "name": "road", "color": [9, 9, 9]}]
}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_give_the_classes(tmp_path, mode):
    ids = np.random.default_rng(0).integers(0, 2, (6, 5))
    pixels = np.array([entry["color"] for entry in COLORS["classes"]], dtype=np.uint8)[ids]
    data = folder(tmp_path, [Image.fromarray(pixels).convert(mode)], COLORS)
    assert data[0]["annotation"].dtype == np.uint8
    assert np.array_equal(data[0]["annotation"], ids)


def test_unknown_colours_are_named(tmp_path):
    pixels = np.full((10, 10, 3), 9, dtype=np.uint8)
    pixels[:2, 0] = (71, 131, 179)
    data = folder(tmp_path, [pixels], COLORS)
    with pytest.raises(BadFileError, match=r"\(71, 131, 179\) in 2% .* nearest is \(70, 130, 180\) of class 0"):
        data[0]


def test_other_colours_are_ignored_if_told(tmp_path):
    pixels = np.array([[(9, 9, 9), (0, 0, 0), (70, 130, 180)]], dtype=np.uint8)
    data = folder(tmp_path, [pixels], {**COLORS, "other_values": "ignore"})
    assert pickle.loads(pickle.dumps(data))[0]["annotation"].tolist() == [[1, 255, 0]]


@pytest.mark.parametrize("other", ["ignore", "b"])
def test_other_values_leave_palettes_and_ignored_pixels_alone(tmp_path, other):
    """A palette whose colours are those of other classes is read by them, and 255 stays what is ignored."""
    entries = [{"id": 0, "name": "a", "color": [255, 0, 0]}, {"id": 1, "name": "b", "color": [0, 255, 0]}]
    picture = Image.fromarray(np.array([[1, 0, 0], [0, 1, 1]], np.uint8), mode="P")
    picture.putpalette([0, 255, 0, 255, 0, 0])
    values = np.array([[0, 1, 255], [7, 99, 255]], np.uint8)
    data = folder(tmp_path, [picture, values], {"classes": entries, "other_values": other})
    assert data.mask(0).tolist() == [[0, 1, 1], [1, 0, 0]]
    id_of_other = 255 if other == "ignore" else 1
    assert data.mask(1).tolist() == [[0, 1, 255], [id_of_other, id_of_other, 255]]
    below = {"classes": entries, "other_values": other, "ignore_index": -1}
    id_of_other = -1 if other == "ignore" else 1
    assert folder(tmp_path / "below", [values], below).mask(0).tolist()[1] == [id_of_other] * 3


def test_masks_without_a_readable_image_are_counted(tmp_path, caplog):
    folder(tmp_path, [BINARY // 255] * 2, TWO)
    (tmp_path / "images" / "train" / "1.JPG").rename(tmp_path / "images" / "train" / "1.heic")
    with caplog.at_level(logging.WARNING):
        assert len(SegmentationFolder(tmp_path, "train")) == 1
    assert "skipping 1 masks without an image: 1" in caplog.text
    assert "skipping 1 files that are not images: 1.heic" in caplog.text


def test_tens_of_thousands_of_mask_values():
    """Such as ids of objects."""
    values = tuple(range(1, 60_000))
    table = ClassTable(("background", "cell"), ((0, 0, 0), (1, 1, 1)), mask_values=((0,), values))
    assert len(table.mask_mapping) == 60_000


@pytest.mark.parametrize("has_colors", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_masks_that_were_saved_in_colour_hold_ids(tmp_path, mode, has_colors):
    entries = COLORS["classes"] if has_colors else [{"id": 0, "name": "sky"}, {"id": 1, "name": "road"}]
    masks = [np.array(rows, np.uint8) for rows in ([[0, 1, 255]], [[0, 0, 0]], [[1, 1, 9]])]
    data = folder(tmp_path, [Image.fromarray(mask).convert(mode) for mask in masks], {"classes": entries})
    assert [data.mask(index).tolist() for index in range(2)] == [mask.tolist() for mask in masks[:2]]
    with pytest.raises(BadFileError, match="colour" if has_colors else "colour mode"):
        data.mask(2)  # 9 is no class
    if has_colors:  # which say what black is
        ignoring = {"classes": entries, "other_values": "ignore"}
        black = folder(tmp_path / "ignoring", [Image.fromarray(masks[1]).convert(mode)], ignoring)
        assert black.mask(0).tolist() == [[255] * 3]


def test_a_grey_that_is_the_colour_of_another_class_is_read_by_colour(tmp_path):
    colors = {(128, 0, 0): 0, (0, 128, 0): 1, (0, 0, 0): 2}
    values = np.zeros((8, 8), np.uint8)
    values[0] = 255
    Image.fromarray(values).convert("RGB").save(tmp_path / "mask.png")
    with pytest.raises(BadFileError, match="255, 255, 255"):
        decode_mask(tmp_path / "mask.png", num_classes=3, ignore_index=255, colors=colors)
    Image.fromarray(values * 0).convert("RGB").save(tmp_path / "mask.png")
    assert (decode_mask(tmp_path / "mask.png", num_classes=3, ignore_index=255, colors=colors) == 2).all()
