import os
import sys

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.pascal_context import convert_annotations, convert_label_map, main
from ddep_hub.data.segmentation_datasets import SegmentationFolder


savemat = pytest.importorskip("scipy.io", reason="SciPy is not installed").savemat

# unknown, aeroplane, window, wood, person, an id without a class, the largest id, sky
RAW = np.array([[0, 2, 454, 458], [284, 1, 459, 360]], dtype=np.uint16)
VALUES = [[0, 1, 58, 59], [37, 0, 0, 47]]


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2010"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "trainval").mkdir()
    for stem, split in [("2008_000002", "train"), ("2008_000003", "val")]:
        Image.new("RGB", (4, 2)).save(root / "JPEGImages" / f"{stem}.jpg")
        savemat(tmp_path / "trainval" / f"{stem}.mat", {"LabelMap": RAW})
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{stem}\n")
    return root


def test_ids_become_values():
    assert convert_label_map(RAW).tolist() == VALUES
    names = get_dataset_info("pascal_context").classes.names
    assert [names[value - 1] for value in (1, 58, 59, 37, 47)] == ["aeroplane", "window", "wood", "person", "sky"]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.array([[0, 460]]), r"holds 0\.\.460; the official ids are 0\.\.459"),
        (np.array([[-1, 3]]), r"holds -1\.\.3"),
        (np.zeros((2, 2)), r"must be integers of shape \(H, W\), not float64"),
        (np.zeros((2, 2, 3), dtype=int), r"not int64 of \(2, 2, 3\)"),
        (np.zeros((0, 0), dtype=int), r"of \(0, 0\)"),
    ],
)
def test_bad_label_maps(label_map, message):
    with pytest.raises(ValueError, match=message):
        convert_label_map(label_map)


def test_converted_masks_are_a_data_set(voc):
    assert convert_annotations(voc, voc.parent / "trainval") == 2
    masks = voc / "SegmentationClassContext"
    assert sorted(path.name for path in masks.iterdir()) == ["2008_000002.png", "2008_000003.png"]
    with Image.open(masks / "2008_000002.png") as mask:
        assert mask.mode == "L"
        assert np.array(mask).tolist() == VALUES
    row = SegmentationFolder(voc, "val")[0]
    assert row["annotation"].tolist() == [[255, 0, 57, 58], [36, 255, 255, 46]]


def test_masks_that_are_there_are_kept(voc):
    masks = voc / "SegmentationClassContext"
    masks.mkdir()
    (masks / "2008_000002.png").write_bytes(b"kept")
    assert convert_annotations(voc, voc.parent / "trainval") == 1
    assert (masks / "2008_000002.png").read_bytes() == b"kept"
    assert convert_annotations(voc, voc.parent / "trainval") == 0


def test_an_interrupted_write_leaves_nothing(voc, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_annotations(voc, voc.parent / "trainval")
    assert list((voc / "SegmentationClassContext").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other", "range"])
def test_annotations_that_cannot_be_used_are_named(voc, damage):
    path = voc.parent / "trainval" / "2008_000003.mat"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:150])
    elif damage == "text":
        path.write_text("<html>not found</html>" * 20)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        savemat(path, {"Other": RAW})
    else:
        savemat(path, {"LabelMap": RAW + 100})
    with pytest.raises(BadFileError, match=r"2008_000003\.mat cannot be used: ") as caught:
        convert_annotations(voc, voc.parent / "trainval")
    assert caught.value.path == str(path)
    assert [mask.name for mask in (voc / "SegmentationClassContext").iterdir()] == ["2008_000002.png"]


def test_missing_folders_are_named(voc):
    with pytest.raises(FileNotFoundError, match=r"nowhere/JPEGImages is not a folder; pass the folder VOC2010"):
        convert_annotations(voc / "nowhere", voc.parent / "trainval")
    with pytest.raises(FileNotFoundError, match=r"JPEGImages holds no \.mat file"):
        convert_annotations(voc, voc / "JPEGImages")


def test_missing_scipy_names_the_extra(voc, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"ddep-hub\[pascal-context\]"):
        convert_annotations(voc, voc.parent / "trainval")


def test_command(voc, capsys):
    main([str(voc), str(voc.parent / "trainval")])
    assert capsys.readouterr().out == f"2 masks written to {voc / 'SegmentationClassContext'}\n"
