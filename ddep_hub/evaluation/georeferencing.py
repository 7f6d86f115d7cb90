"""Georeference of masks: the tags of a GeoTIFF, in a sidecar file that GDAL and QGIS read with a PNG.

The tags are those of OGC GeoTIFF 1.1, the file is that of GDAL's persistent auxiliary metadata: `mask.png.aux.xml`.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import TiffImagePlugin

from ddep_hub.data.generated_files import SOFTWARE
from ddep_hub.tiff import looks_like_tiff, read_tags


_ORIENTATION, _PIXEL_SCALE, _TIEPOINTS, _TRANSFORMATION, _GEO_KEYS = 274, 33550, 33922, 34264, 34735
# GeoKeys: whether a pixel is an area (1) or a point (2), and EPSG codes of coordinate systems.
_RASTER_TYPE, _GEOGRAPHIC_CRS, _PROJECTED_CRS = 1025, 2048, 3072
_USER_DEFINED = 32767
_MARK = "TIFFTAG_SOFTWARE"


@dataclass(frozen=True)
class Georeference:
    """Georeference of an image.

    Args:
        transform: GDAL's geotransform (x0, a, b, y0, c, d): the upper left corner of the pixel at (column, row),
            counted from 0, lies at (x0 + a * column + b * row, y0 + c * column + d * row).
        epsg: EPSG code of the coordinate system, if it has one.
    """

    transform: tuple[float, ...]
    epsg: int | None


def read_georeference(path: str | os.PathLike[str]) -> Georeference | None:
    """Reads the georeference of a GeoTIFF; `None` for other files, and for those with only ground control points."""
    if not looks_like_tiff(str(path)):
        return None
    try:
        tags = read_tags(path)
        if tags.get(_ORIENTATION, 1) != 1:  # the mask is upright, the file is not
            return None
        directory = [int(value) for value in tags.get(_GEO_KEYS, ())]
        keys = {key: value for key, place, _, value in zip(*[iter(directory[4:])] * 4, strict=False) if place == 0}
        transform = _geotransform(tags, is_point=keys.get(_RASTER_TYPE) == 2)
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):  # a damaged tag must not stop the prediction
        return None
    if transform is None or not all(map(math.isfinite, transform)):
        return None
    epsg = keys.get(_PROJECTED_CRS, keys.get(_GEOGRAPHIC_CRS, _USER_DEFINED))
    return Georeference(transform, epsg if 0 < epsg < _USER_DEFINED else None)


def _geotransform(tags: TiffImagePlugin.ImageFileDirectory_v2, *, is_point: bool) -> tuple[float, ...] | None:
    matrix, scale, tiepoints = (tags.get(name, ()) for name in (_TRANSFORMATION, _PIXEL_SCALE, _TIEPOINTS))
    if len(matrix) == 16:
        a, b, _, x, c, d, _, y = (float(value) for value in matrix[:8])
    elif len(scale) >= 2 and len(tiepoints) == 6:
        (a, d), b, c = (float(scale[0]), -float(scale[1])), 0.0, 0.0
        column, row, _, x, y, _ = (float(value) for value in tiepoints)
        x, y = x - a * column, y - d * row
    else:
        return None
    if is_point:  # the point is the centre of the pixel
        x, y = x - (a + b) / 2, y - (c + d) / 2
    return x, a, b, y, c, d


def to_auxiliary_file(georeference: Georeference) -> str:
    """The content of the `.aux.xml` file for an image with this georeference."""
    root = ElementTree.Element("PAMDataset")
    if georeference.epsg is not None:
        ElementTree.SubElement(root, "SRS").text = f"EPSG:{georeference.epsg}"
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, georeference.transform))
    ElementTree.SubElement(ElementTree.SubElement(root, "Metadata"), "MDI", key=_MARK).text = SOFTWARE
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def is_auxiliary_file(path: Path) -> bool:
    """Whether a file is from [`to_auxiliary_file`]; GDAL keeps its marker when it adds statistics."""
    try:
        entries = ElementTree.parse(path).getroot().iterfind("Metadata/MDI")
    except (OSError, ElementTree.ParseError):
        return False
    return any(entry.get("key") == _MARK and entry.text == SOFTWARE for entry in entries)
