"""`ddep-hub prepare --format unlabelled`: each page of a stack is an image, large images become tiles."""

import json

import numpy as np
import pytest
from annotated_sources import BLOCKS, put_masks
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

import ddep_hub
from ddep_hub.data.image_datasets import open_images
from ddep_hub.data.image_io import decode_channels, decode_image


RANDOM = np.random.default_rng(0)


def prepare(source, output, **options):
    return ddep_hub.prepare(source, output, format="unlabelled", **options)


def written(output):
    return sorted(path.relative_to(output / "images").as_posix() for path in (output / "images").rglob("*.*"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_each_page_is_an_image_with_its_own_values(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    pages = RANDOM.integers(0, 200, (4, 20, 30)).astype(dtype)
    tifffile.imwrite(tmp_path / "volume.tif", pages, photometric="minisblack")
    summary = prepare(tmp_path / "volume.tif", tmp_path / "out")  # the file alone, though a folder is around it
    assert "1 image with 4 pages" in summary and "4 images" in summary
    names = written(tmp_path / "out")
    assert [name.split(".")[0] for name in names] == [f"volume-{page:04d}" for page in range(4)]
    for name, page in zip(names, pages, strict=True):
        (pixels,) = decode_channels(tmp_path / "out" / "images" / name, 1).pixels
        scale = {"uint8": 1, "uint16": 1 / 257, "float32": 255}[np.dtype(dtype).name]
        np.testing.assert_allclose(pixels, page * np.float32(scale), rtol=1e-6)
    (source,) = open_images([str(tmp_path / "out")])
    assert len(source) == 4
    prepare(tmp_path / "volume.tif", tmp_path / "out", tile=20, overwrite=True)  # what it wrote itself
    assert len(written(tmp_path / "out")) == 8


def test_a_page_that_pillow_does_not_decode_is_read_by_tifffile(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    pages = RANDOM.integers(0, 200, (3, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "volume.tif", pages, photometric="minisblack")

    def fail(self):
        raise OSError("decoder not available")

    with monkeypatch.context() as patch:
        patch.setattr(TiffImageFile, "load", fail)
        prepare(tmp_path / "volume.tif", tmp_path / "out")
    for page, name in zip(pages, written(tmp_path / "out"), strict=True):
        assert np.array_equal(np.asarray(decode_image(tmp_path / "out" / "images" / name).convert("L")), page)


def test_tiles_cover_an_image_and_masks_are_left_out(tmp_path):
    source = put_masks(tmp_path / "source", dict.fromkeys("ab", BLOCKS), (64, 64))
    picture = np.asarray(decode_image(source / "images" / "a.png"))
    summary = prepare(source, tmp_path / "out", tile=40, overlap=8)
    assert "2 images" in summary and "8 tiles" in summary
    found = np.zeros_like(picture)
    for top in (0, 24):
        for left in (0, 24):
            tile = decode_image(tmp_path / "out" / "images" / f"a_{top}_{left}.png")
            found[top : top + 40, left : left + 40] = tile
    assert np.array_equal(found, picture)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "prepared.json"}
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["tile"] == 40


def test_images_of_one_name_and_arrays(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for suffix in ("png", "bmp"):
        Image.fromarray(RANDOM.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(source / f"a.{suffix}")
    prepare(source, tmp_path / "out", tile=16)
    assert written(tmp_path / "out") == ["a_0_0.png", "a_0_0_2.png", "a_16_0.png", "a_16_0_2.png"]
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "a.npy", RANDOM.random((5, 32, 16), dtype=np.float32))
    prepare(arrays, tmp_path / "tiles", tile=16)
    assert written(tmp_path / "tiles") == ["a_0_0.npy", "a_16_0.npy"]
    assert np.load(tmp_path / "tiles" / "images" / "a_16_0.npy").shape == (5, 16, 16)


def test_masks_of_stacks_are_left_out_and_no_page_replaces_an_image(tmp_path, caplog):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train-volume", "train-labels"):
        pages = RANDOM.integers(0, 2, (3, 20, 30), np.uint8)
        tifffile.imwrite(source / f"{name}.tif", pages, photometric="minisblack")
    Image.new("L", (30, 20), 99).save(source / "train-volume-0000.png")
    prepare(source, tmp_path / "out")
    pages = ["0000", "0000_2", "0001", "0002"]
    assert written(tmp_path / "out") == [f"train-volume-{page}.png" for page in pages]
    assert "skipping the masks of stacks: " in caplog.text and "train-labels.tif" in caplog.text


def test_what_needs_no_preparation_or_cannot_be_taken_apart(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (8, 8)).save(source / "a.png")
    for path in (source, source / "a.png"):
        with pytest.raises(ValueError, match="holds no TIFF stacks: use the images as they are, or cut them"):
            prepare(path, tmp_path / "out")
    with pytest.raises(ValueError, match="classes has no effect on unlabelled images"):
        prepare(source, tmp_path / "out", tile=4, classes="classes.json")
    with pytest.raises(FileNotFoundError, match=r"b\.tif does not exist"):
        prepare(source / "b.tif", tmp_path / "out")
    (source / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is neither a folder nor an image"):
        prepare(source / "notes.txt", tmp_path / "out", tile=4)
    (source / "broken.tif").write_bytes(b"II*\0broken")
    with pytest.raises(ValueError, match=r"broken\.tif"):
        prepare(source, tmp_path / "out", tile=4)
    assert not (tmp_path / "out").exists()
