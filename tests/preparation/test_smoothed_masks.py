"""`ddep-hub prepare` and colour masks: smoothed borders are refused, the palettes of data sets are not."""

import colorsys
import io
import json

import numpy as np
import pytest
from annotated_sources import masks_of, put_masks
from PIL import Image, ImageDraw

import ddep_hub
from ddep_hub.data.class_files import suggest_classes
from ddep_hub.data.classes import class_colors
from ddep_hub.data.dataset_registry import get_dataset_info, list_datasets
from ddep_hub.data.mask_inspection import colors_look_smoothed, find_areas
from ddep_hub.data.masks import count_values


def voc_colors(number):
    """The colour map of Pascal VOC, whose channels hold the bits of the index."""
    bits = np.arange(number)[:, None] >> np.arange(24) & 1
    return [tuple(row[channel::3] @ 2 ** np.arange(7, -1, -1) for channel in range(3)) for row in bits]


PALETTES = {name: get_dataset_info(name).classes.colors for name in list_datasets()}
PALETTES |= {f"{number} of the package": class_colors(number) for number in (20, 100, 256)}
PALETTES |= {"VOC 64": voc_colors(64), "VOC 256": voc_colors(256)}
PALETTES["hues"] = [tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue / 60, 1, 1)) for hue in range(60)]


def look_smoothed(masks):
    colors, areas = (set().union(*map(find, masks)) for find in (count_values, find_areas))
    return colors_look_smoothed(colors, areas)


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_of_classes_do_not_look_smoothed(name):
    """Any part of them, in small masks, whose objects have down to one pixel."""
    rng = np.random.default_rng(0)
    colors = np.array(PALETTES[name], np.uint8)
    for _ in range(20):
        part = rng.permutation(colors)[: rng.integers(min(17, len(colors)), len(colors) + 1)]
        masks = []
        for size in (24, 40):
            picture = Image.new("I", (size, size), 0)
            draw = ImageDraw.Draw(picture)
            for x, y in rng.uniform(0, size, (40, 2)):
                radius = rng.exponential(3)
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.integers(len(part))))
            masks.append(part[np.asarray(picture)])
        assert not look_smoothed(masks)


@pytest.mark.parametrize("quality", [98, 100])
def test_traces_of_jpeg_look_smoothed(quality):
    file = io.BytesIO()
    soft_circles([(0, 0, 0), (200, 0, 0)], Image.Resampling.NEAREST).save(file, "JPEG", quality=quality, subsampling=0)
    mask = np.asarray(Image.open(file))
    assert 16 < len(count_values(mask)) <= 256 and look_smoothed([mask])


def test_no_classes_are_suggested_for_smoothed_colours(tmp_path):
    soft_circles([(0, 0, 0), (200, 0, 0), (0, 0, 255)], Image.Resampling.BOX).save(tmp_path / "a.png")
    assert "colours, and most look like smoothed borders. Save the masks" in suggest_classes([tmp_path / "a.png"])


def soft_circles(colors, resampling, number=4):
    """Circles in colours on the first of them, 96x96 pixels, whose borders are smoothed."""
    picture = Image.new("RGB", (384, 384), colors[0])
    draw = ImageDraw.Draw(picture)
    for index in range(number):
        x, y, radius = 90 * index + 50, 70 * index + 60, 40 + 17 * index
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colors[1 + index % (len(colors) - 1)])
    return picture.resize((96, 96), resampling)


@pytest.mark.parametrize("resampling", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_colours_with_soft_borders_are_refused(tmp_path, resampling, number):
    colors = [(255, 255, 255), (200, 0, 0), (150, 200, 150), (0, 0, 255)][:number]
    source = put_masks(tmp_path / "source", dict.fromkeys("ab", soft_circles(colors, resampling)), (96, 96))
    with pytest.raises(ValueError, match=r"The masks hold \d+ different colours: they are smoothed, or not masks"):
        ddep_hub.prepare(source, tmp_path / "output")
    entries = [{"id": index, "name": f"c{index}", "color": list(color)} for index, color in enumerate(colors)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    with pytest.raises(ValueError, match=r'Add it to the classes, or set "other_values": "ignore" there if the edges'):
        ddep_hub.prepare(source, tmp_path / "output", classes=tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries, "other_values": "ignore"}))
    ddep_hub.prepare(source, tmp_path / "output", classes=tmp_path / "classes.json")
    assert {*np.unique(masks_of(tmp_path / "output")["a"])} == {*range(number), 255}


@pytest.mark.parametrize("factor", [2, 4])
def test_white_objects_that_were_reduced_are_refused(tmp_path, factor):
    circle = Image.new("L", (320, 240))
    ImageDraw.Draw(circle).ellipse((41, 43, 180, 160), fill=255)
    mask = circle.reduce(factor)
    faint = Image.new("L", mask.size)  # an object whose light part is smaller than a pixel
    ImageDraw.Draw(faint).rectangle((9, 9, 10, 10), fill=64)
    source = put_masks(tmp_path / "source", {"a": mask, "b": mask, "c": faint}, mask.size)
    with pytest.raises(ValueError, match=r"The masks hold \d+ different values: they are smoothed, or not masks"):
        ddep_hub.prepare(source, tmp_path / "output")
    mask.save(tmp_path / "a.png")
    assert "If their borders are smoothed" in suggest_classes([tmp_path / "a.png"])


def test_thin_classes_beside_ignored_pixels_are_classes(tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    mask[:30, 5:7], mask[9, :], mask[35:] = 85, 170, 255
    source = put_masks(tmp_path / "source", dict.fromkeys("ab", mask), (40, 40))
    assert "3 classes" in ddep_hub.prepare(source, tmp_path / "output")


@pytest.mark.parametrize("number", [150, 20])
def test_many_colours_with_hard_borders_are_classes(tmp_path, number):
    colors = np.array(get_dataset_info("ade20k").classes.colors, np.uint8)[:number]
    ids = np.arange(number).reshape(-1, 10).repeat(4, 0).repeat(4, 1)
    ids[0] = np.arange(40) % number  # and single pixels
    put_masks(tmp_path / "source", dict.fromkeys("ab", colors[ids]), ids.shape[::-1])
    assert f"{len(np.unique(colors, axis=0))} classes" in ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
