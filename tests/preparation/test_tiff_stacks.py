"""`ddep-hub prepare`, TIFF files: white stays white, overviews are no pages, wrong pixels are refused."""

import importlib.util

import numpy as np
import pytest
from annotated_sources import BLOCKS, HEIGHT, TRUTH, WIDTH, masks_of, put_masks
from PIL import Image, ImageFile

import ddep_hub
from ddep_hub.data.image_io import decode_channels, decode_image
from ddep_hub.preparation import image_files


tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")


def test_stacks_of_floats(tmp_path):
    root = tmp_path / "stacks"
    root.mkdir()
    pages = [Image.fromarray(np.full((HEIGHT, WIDTH), n / 8, np.float32)) for n in range(5)]
    masks = [Image.fromarray(np.roll(TRUTH, n)) for n in range(5)]
    pages[0].save(root / "volume.tif", save_all=True, append_images=pages[1:])
    masks[0].save(root / "labels.tif", save_all=True, append_images=masks[1:])
    ddep_hub.prepare(root, tmp_path / "output")
    files = sorted((tmp_path / "output" / "images").rglob("*.tif"))
    assert [float(np.asarray(Image.open(file))[0, 0]) for file in sorted(files, key=lambda p: p.name)] == [
        n / 8 for n in range(5)
    ]
    broken = [Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32))] * 5
    broken[0].save(root / "labels.tif", save_all=True, append_images=broken[1:])
    with pytest.raises(ValueError, match=r"labels\.tif, page 0, is not a mask: save one whole number"):
        ddep_hub.prepare(root, tmp_path / "other")


@pytest.mark.parametrize(("val_fraction", "last"), [("0.2", 2), ("0.01", 1), ("0.5", 5)])
def test_the_last_pages_of_a_stack_are_for_validation(tmp_path, val_fraction, last):
    """Neighbouring pages look alike, so pages between those of training would flatter the model."""
    source = tmp_path / "stacks"
    source.mkdir()
    values = np.random.default_rng(0).integers(0, 2**16, (10, 16, 16), np.uint16)
    tifffile.imwrite(source / "volume.tif", values, photometric="minisblack")
    tifffile.imwrite(source / "labels.tif", np.tile(np.eye(16, dtype=np.uint8), (10, 1, 1)), photometric="minisblack")
    ddep_hub.prepare(source, tmp_path / "output", val_fraction=val_fraction)
    names = sorted(path.stem[-4:] for path in (tmp_path / "output" / "images" / "val").iterdir())
    assert names == [f"{page:04d}" for page in range(10 - last, 10)]


@pytest.mark.parametrize("options", [{}, {"imagej": True, "photometric": "miniswhite"}])
def test_stacks_of_masks_mean_the_values_they_store(tmp_path, options):
    source = tmp_path / "stacks"
    source.mkdir()
    labels = np.zeros((4, 16, 16), bool)
    labels[:, 3:9, 2:5] = True
    tifffile.imwrite(source / "volume.tif", np.zeros((4, 16, 16), np.uint8), photometric="minisblack")
    # A bool array is written as one whose 0 is white.
    tifffile.imwrite(source / "labels.tif", labels * np.uint8(255) if options else labels, **options)
    ddep_hub.prepare(source, tmp_path / "output")
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "output" / "annotations").rglob("*.png")]
    assert len(masks) == 4 and all(np.array_equal(mask, labels[0]) for mask in masks)


@pytest.mark.parametrize("options", [{"photometric": "miniswhite"}, {"photometric": "miniswhite", "rowsperstrip": 8}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_stays_white_in_tiles(tmp_path, dtype, options):
    root = put_masks(tmp_path / "source", dict.fromkeys("ab", BLOCKS), (64, 64))
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (64, 64), dtype)
    for name in "ab":
        (root / "images" / f"{name}.png").unlink()
        tifffile.imwrite(root / "images" / f"{name}.tif", values, **options)
    ddep_hub.prepare(root, tmp_path / "output", tile=64)
    expected = decode_channels(root / "images" / "a.tif", 1).pixels
    files = list((tmp_path / "output" / "images").rglob("*.png"))
    assert len(files) == 2 and all(np.array_equal(decode_channels(file, 1).pixels, expected) for file in files)


@pytest.mark.parametrize("installed", [True, False])
def test_uncompressed_ycbcr_is_not_cut_into_tiles(tmp_path, monkeypatch, installed):
    root = put_masks(tmp_path / "source", dict.fromkeys("ab", BLOCKS), (64, 64))
    for name in "ab":
        (root / "images" / f"{name}.png").unlink()
        path = root / "images" / f"{name}.tif"
        tifffile.imwrite(path, np.stack([BLOCKS] * 3, -1), photometric="ycbcr", rowsperstrip=8)
        path.write_bytes(path.read_bytes() + bytes(9999))  # Pillow reads on beyond the pixels
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\w\.tif (has YCbCr colours; convert it|has .* YCbCr; pip install)"):
        ddep_hub.prepare(root, tmp_path / "output", tile=32)


def write_with_overview(path, pages, kind=1):
    """Each page is followed by a reduced copy (`kind` 1), or by a mask of its valid pixels (4)."""
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page)
            if kind == 1:
                file.write(page[::2, ::2], subfiletype=1)
            else:
                file.write(np.ones(page.shape[:2], bool), subfiletype=4, photometric=4)


@pytest.mark.parametrize("kind", [1, 4])
@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("of", ["images", "masks"])
def test_an_overview_is_no_page(tmp_path, monkeypatch, of, tile, kind):
    root = put_masks(tmp_path / "source", dict.fromkeys("ab", BLOCKS), (64, 64))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in "ab":
        (root / of / f"{name}.png").unlink()
        write_with_overview(root / of / f"{name}.tif", [BLOCKS if of == "masks" else pixels], kind)
    text = ddep_hub.prepare(root, tmp_path / "output", tile=tile)
    assert "pages" not in text and "2 images" in text
    for name, mask in masks_of(tmp_path / "output").items():
        top, left = map(int, f"{name}_0_0".split("_")[1:3])
        assert np.array_equal(mask, BLOCKS[top : top + (tile or 64), left : left + (tile or 64)])
    if of == "images":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert np.array_equal(np.asarray(decode_image(root / of / "a.tif")), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_overviews_in_stacks_are_no_examples(tmp_path, dtype):
    """Pillow does not open the second kind."""
    (tmp_path / "stacks").mkdir()
    pages = [np.full((64, 64), number, dtype) for number in range(1, 5)]
    write_with_overview(tmp_path / "stacks" / "volume.tif", pages)
    write_with_overview(tmp_path / "stacks" / "labels.tif", [BLOCKS + number for number in range(4)])
    ddep_hub.prepare(tmp_path / "stacks", tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert sorted(found) == [f"volume-{number:04d}" for number in range(4)]
    for name, mask in found.items():
        number = int(name[-1])
        file = next((tmp_path / "output" / "images").rglob(f"{name}.*"))
        assert np.array_equal(mask, BLOCKS + number)
        assert decode_channels(file, 1).pixels.max() == (number + 1) * (255 if dtype == np.float64 else 1)


def test_a_stack_is_opened_once_for_all_its_pages(tmp_path, monkeypatch):
    pages = np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((20, 8, 9), np.uint8)
    masks = np.tile(np.array([0, 1], np.uint8).repeat([4, 5]), (20, 8, 1))
    tifffile.imwrite(tmp_path / "volume.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", masks, photometric="minisblack")
    opened, original = [], image_files.page_indices
    monkeypatch.setattr(image_files, "page_indices", lambda image: opened.append(1) or original(image))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # another library's setting
    ddep_hub.prepare(tmp_path, tmp_path.with_name("output"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES and image_files._open_stack.cache_info().currsize == 0
    assert len(opened) < 6
    for split in ("train", "val"):
        for path in (tmp_path.with_name("output") / "images" / split).iterdir():
            assert (np.asarray(Image.open(path)) == int(path.stem[-4:])).all()


def test_the_pages_of_a_stack_that_pillow_does_not_read_are_listed_once(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "labels.tif", np.ones((9, 4, 5), np.int64), photometric="minisblack")
    files, original = [], tifffile.TiffPages.__init__
    monkeypatch.setattr(tifffile.TiffPages, "__init__", lambda *args, **kw: files.append(1) or original(*args, **kw))
    with image_files.close_stacks():
        assert image_files.count_pages(tmp_path / "labels.tif") == 9
        for page in range(9):
            assert image_files.read_image_file(tmp_path / "labels.tif", page).shape == (4, 5)
        assert image_files._read_page_indices.cache_info().misses == 1
    assert image_files._read_page_indices.cache_info().currsize == 0
