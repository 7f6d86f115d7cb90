"""Masks as files, and the names in pictures."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.masks import decode_mask
from ddep_hub.evaluation.prediction_files import MaskWriter
from ddep_hub.evaluation.visualization import _load_dejavu, draw_legend, load_class_font, load_font, overlay


CITYSCAPES = get_dataset_info("cityscapes")


def test_every_kind(tmp_path):
    mask = np.arange(19).reshape(1, 19).repeat(4, 0)
    image = Image.new("RGB", (19, 4), (255, 255, 255))
    kinds = ["ids", "colors", "overlays", "cityscapes"]
    MaskWriter(tmp_path, CITYSCAPES.classes, kinds).write("aachen/aachen_000000_000019", mask, image)
    ids, colors, overlay, labels = (
        np.asarray(Image.open(tmp_path / kind / "aachen" / "aachen_000000_000019.png")) for kind in kinds
    )
    assert np.array_equal(ids, mask) and ids.dtype == np.uint8
    assert np.array_equal(colors[0], CITYSCAPES.classes.colors)
    assert np.abs(overlay - (colors / 2 + 127.5)).max() <= 1
    assert labels[0, [0, 1, 2, 13, 18]].tolist() == [7, 8, 11, 26, 33] and labels.ndim == 2
    # The server looks below the folder for one file of each image, by city, sequence and frame.
    path = tmp_path / "cityscapes" / "aachen" / "aachen_000000_000019.png"
    assert list((tmp_path / "cityscapes").rglob("aachen_000000_000019*.png")) == [path]
    # Read as an official mask, they are the training classes again.
    again = decode_mask(path, num_classes=19, ignore_index=255, mapping=CITYSCAPES.mapping)
    assert np.array_equal(again, mask)


def test_more_classes_than_eight_bits_hold(tmp_path):
    names = tuple(f"class {index}" for index in range(300))
    classes = ClassTable(names=names, colors=class_colors(300), ignore_index=-1)
    mask = np.arange(300).reshape(15, 20)
    MaskWriter(tmp_path, classes, ["ids"]).write("a", mask, Image.new("RGB", (20, 15)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ids" / "a.png")), mask)


def test_messages(tmp_path):
    with pytest.raises(ValueError, match="'id' is unknown; choose from ids"):
        MaskWriter(tmp_path, CITYSCAPES.classes, ["id"])
    with pytest.raises(ValueError, match="19 training classes"):
        MaskWriter(tmp_path, get_dataset_info("camvid").classes, ["cityscapes"])


def test_the_legend_shows_every_colour():
    colors = {tuple(color) for color in np.asarray(draw_legend(CITYSCAPES.classes)).reshape(-1, 3).tolist()}
    assert set(CITYSCAPES.classes.colors) <= colors


@pytest.mark.parametrize("installed", [True, False])
def test_names_are_legible_in_any_script(monkeypatch, installed):
    """Not boxes: by matplotlib's font, or without accents, or by the class id."""
    _load_dejavu.cache_clear()
    if installed:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    names = ("Fläche", "建物", "вода", "road")
    font, shown = load_class_font(names, 14)
    assert shown == (["Fläche", "class 1", "вода", "road"] if installed else ["Flache", "class 1", "class 2", "road"])
    box = bytes(font.getmask("\uffff"))
    assert not any(bytes(font.getmask(letter)) == box for name in shown for letter in name)
    assert load_font(["photo-建.png"], 11)[1] == ["photo-\\u5efa.png"]
    assert load_class_font(("sky", "road"), 14)[0].getname()[0] == "Aileron"  # as before
    colors = class_colors(4)
    other = ClassTable(names=tuple(shown), colors=colors)
    assert np.array_equal(draw_legend(ClassTable(names=names, colors=colors)), draw_legend(other)) or not installed
    _load_dejavu.cache_clear()


def test_classes_of_one_colour_are_warned_of_where_they_are_painted(tmp_path):
    same = ClassTable(names=("sky", "road", "tree"), colors=((1, 2, 3), (4, 5, 6), (1, 2, 3)))
    with pytest.warns(UserWarning, match=r"The classes sky and tree have the same colour.*`color` in classes\.json"):
        MaskWriter(tmp_path, same, ["ids", "overlays"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskWriter(tmp_path, same, ["ids"])
        MaskWriter(tmp_path, CITYSCAPES.classes, ["overlays"])


def test_an_overlay_leaves_the_background_as_it_is():
    image = Image.new("RGB", (4, 2), (200, 100, 0))
    mask = np.array([[0, 0, 1, 1]] * 2)
    for names, kept in ((("Background", "leaf"), True), (("soil", "leaf"), False)):
        classes = ClassTable(names=names, colors=((64, 64, 64), (0, 0, 200)), ignore_index=255)
        pixels = np.asarray(overlay(image, mask, classes))
        assert (tuple(pixels[0, 0]) == (200, 100, 0)) is kept
        assert tuple(pixels[0, 3]) == (100, 50, 100)


def test_files_of_others_are_neither_replaced_nor_removed(tmp_path):
    writer = MaskWriter(tmp_path, CITYSCAPES.classes, ["ids"])
    mask = np.zeros((4, 5), int)
    (tmp_path / "ids").mkdir()
    own = tmp_path / "ids" / "own.png"
    Image.fromarray(mask.astype(np.uint8)).save(own)
    writer.check(["a"])
    with pytest.raises(FileExistsError, match=r"own\.png already exists"):
        writer.check(["a", "own"])
    writer.write("a", mask)
    writer.write("b", mask)
    writer.check(["a", "b"])
    writer.remove_others(["b"])
    assert sorted(path.name for path in own.parent.iterdir()) == ["b.png", "own.png"]
    own.rename(tmp_path / "legend.png")
    with pytest.raises(FileExistsError, match=r"legend\.png"):
        writer.write_legend()
    (tmp_path / "legend.png").unlink()
    writer.write_legend()
    writer.write_legend()  # its own
