"""`ddep-hub prepare` and masks whose TIFFs state a value for pixels without data, in the tag GDAL_NODATA."""

import json

import numpy as np
import pytest
from annotated_sources import BLOCKS, masks_of, put_masks
from PIL import Image, TiffImagePlugin

import ddep_hub
from ddep_hub.data.segmentation_datasets import SegmentationFolder


def put_rasters(root, values, nodata, dtype):
    """Masks of three areas with these values, which state `nodata`; without it if that is `None`."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if nodata is not None:
        tags[42113] = nodata
    mask = Image.fromarray(np.array(values, dtype)[BLOCKS])
    return put_masks(root, dict.fromkeys("ab", mask), BLOCKS.shape[::-1], ".tif", tiffinfo=tags)


@pytest.mark.parametrize(
    ("value", "text", "dtype"),
    [
        (-9999, "-9999", np.float32),
        (-9999, "-9999.0 ", np.float32),
        (-9999, "-9999", np.int16),
        (65535, "65535", np.uint16),
        (7, "7", np.uint8),
    ],
)
def test_pixels_without_data_are_ignored(tmp_path, value, text, dtype):
    source = put_rasters(tmp_path / "source", [value, 0, 1], text, dtype)
    summary = ddep_hub.prepare(source, tmp_path / "output")
    assert f"{value} is read as pixels to ignore: the tag GDAL_NODATA" in summary and "values 0, 1;" in summary
    assert SegmentationFolder(tmp_path / "output", "train").classes.num_classes == 2
    expected = np.array([255, 0, 1])[BLOCKS]
    assert all(np.array_equal(mask, expected) for mask in masks_of(tmp_path / "output").values())


def test_pixels_without_data_beside_given_classes(tmp_path):
    source = put_rasters(tmp_path / "source", [-9999, 3, 4], "-9999", np.int16)
    entries = [{"id": 0, "name": "a", "mask_values": 3}, {"id": 1, "name": "b", "mask_values": 4}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries, "ignore_index": 254}))
    ddep_hub.prepare(source, tmp_path / "output", classes=tmp_path / "classes.json")
    assert np.array_equal(masks_of(tmp_path / "output")["a"], np.array([254, 0, 1])[BLOCKS])
    # A class of this value stays one.
    entries.append({"id": 2, "name": "c", "mask_values": -9999})
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    summary = ddep_hub.prepare(source, tmp_path / "other", classes=tmp_path / "classes.json")
    assert "GDAL_NODATA" not in summary
    assert np.array_equal(masks_of(tmp_path / "other")["a"], np.array([2, 0, 1])[BLOCKS])


@pytest.mark.parametrize(
    ("text", "values"), [("0", [0, 1, 2]), ("nan", [0, 1, 2]), ("9", [0, 1, 2]), (None, [5, 0, 1])]
)
def test_other_values_stay_classes(tmp_path, text, values):
    source = put_rasters(tmp_path / "source", values, text, np.uint8)
    summary = ddep_hub.prepare(source, tmp_path / "output")
    assert "GDAL_NODATA" not in summary and "3 classes" in summary


def test_white_beside_black_is_an_object_whatever_the_tag_says(tmp_path):
    source = put_rasters(tmp_path / "source", [0, 255, 255], "255", np.uint8)
    ddep_hub.prepare(source, tmp_path / "output")
    assert np.array_equal(masks_of(tmp_path / "output")["a"], BLOCKS > 0)
