"""Masks of GeoTIFFs lie where the images lie. The expected values are what rasterio 1.4 (GDAL 3.10) reads."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.evaluation.georeferencing import Georeference, read_georeference
from ddep_hub.evaluation.prediction_files import MaskWriter


DOUBLE, SHORT = 12, 3
SCALE, TIEPOINTS, MATRIX, KEYS = 33550, 33922, 34264, 34735


def keys(**entries):
    """A GeoKeyDirectory of short values."""
    numbers = {"raster": 1025, "model": 1024, "geographic": 2048, "projected": 3072}
    rows = [(numbers[name], 0, 1, value) for name, value in entries.items()]
    return (1, 1, 0, len(rows), *(value for row in rows for value in row))


def put_tiff(path, **tags):
    info = ImageFileDirectory_v2()
    names = {"scale": SCALE, "tiepoints": TIEPOINTS, "matrix": MATRIX, "keys": KEYS, "orientation": 274}
    for name, values in tags.items():
        info[names[name]] = values
        info.tagtype[names[name]] = SHORT if name in ("keys", "orientation") else DOUBLE
    Image.new("RGB", (64, 48)).save(path, tiffinfo=info)
    return path


PLACE = {"scale": (10.0, 10.0, 0.0), "tiepoints": (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0)}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({**PLACE, "keys": keys(model=1, projected=32633)}, ((500000, 10, 0, 4600000, 0, -10), 32633)),
        # Of a point, the coordinates are those of the middle of the pixel.
        ({**PLACE, "keys": keys(raster=2, projected=32633)}, ((499995, 10, 0, 4600005, 0, -10), 32633)),
        # The datum of a coordinate system of one's own is not that system.
        ({**PLACE, "keys": keys(geographic=4326, projected=32767)}, ((500000, 10, 0, 4600000, 0, -10), None)),
        ({**PLACE, "keys": keys(geographic=4326)}, ((500000, 10, 0, 4600000, 0, -10), 4326)),
        (PLACE, ((500000, 10, 0, 4600000, 0, -10), None)),
        ({**PLACE, "tiepoints": (2.0, 1.0, 0.0, 7.0, 9.0, 0.0)}, ((-13, 10, 0, 19, 0, -10), None)),
        (
            {"matrix": (0.5, 0.1, 0.0, 5.0, 0.1, -0.5, 0.0, 4.0, *[0.0] * 7, 1.0), "keys": keys(projected=25832)},
            ((5, 0.5, 0.1, 4, 0.1, -0.5), 25832),
        ),
    ],
)
def test_tags(tags, expected, tmp_path):
    assert read_georeference(put_tiff(tmp_path / "a.tif", **tags)) == Georeference(*expected)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"keys": keys(projected=32633)},
        {"tiepoints": PLACE["tiepoints"] * 3},  # ground control points
        {**PLACE, "scale": (float("nan"), 1.0, 0.0)},
        {**PLACE, "orientation": 6},
    ],
)
def test_what_has_no_place(tags, tmp_path):
    assert read_georeference(put_tiff(tmp_path / "a.tif", **tags)) is None


def test_other_files(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "damaged.tif").write_bytes(b"II*\0\x08")
    assert all(read_georeference(tmp_path / name) is None for name in ("a.png", "damaged.tif", "absent.tif"))
    assert read_georeference("https://example.com/a.tif") is None


def test_file_beside_the_mask(tmp_path):
    """Exact numbers are kept; a mask without a place loses that of an earlier one, but not the file of a program."""
    writer, mask = MaskWriter(tmp_path, SCENE_CLASSES, ["ids"]), np.zeros((48, 64), np.uint8)
    place = Georeference((13.123456789012345, 1e-5, 0.0, 52.5, 0.0, -1e-5), 4326)
    writer.write("a", mask, None, place)
    file = tmp_path / "ids" / "a.png.aux.xml"
    root = ElementTree.parse(file).getroot()
    assert root.tag == "PAMDataset" and root.findtext("SRS") == "EPSG:4326"
    assert tuple(map(float, root.findtext("GeoTransform").split(","))) == place.transform
    writer.write("a", mask)
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.png"]
    file.write_text("<PAMDataset><PAMRasterBand band='1'/></PAMDataset>")
    writer.write("a", mask, None, place)
    assert "PAMRasterBand" in file.read_text()
