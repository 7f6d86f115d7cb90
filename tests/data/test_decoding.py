import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from ddep_hub import image_conversion
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.masks import decode_mask


def picture(size=(20, 30)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([8 * columns, 8 * rows, 4 * (rows + columns)], axis=-1).astype(np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def decoded(path):
    image = decode_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_read_as_it_is(tmp_path):
    assert np.array_equal(decoded(save(tmp_path / "a.png", picture())), picture())


def test_greyscale_and_bilevel(tmp_path):
    grey = picture()[..., 0]
    assert np.array_equal(decoded(save(tmp_path / "a.png", grey)), np.repeat(grey[..., None], 3, axis=2))
    assert set(np.unique(decoded(save(tmp_path / "b.png", grey, "1")))) == {0, 255}


def test_palette(tmp_path):
    flat = np.zeros((4, 6, 3), dtype=np.uint8)
    flat[:, 3:] = (200, 10, 90)
    Image.fromarray(flat).quantize(2).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
    assert np.array_equal(decoded(tmp_path / "a.png"), flat)


def test_cmyk(tmp_path):
    found = decoded(save(tmp_path / "a.jpg", np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8), "CMYK", quality=95))
    assert np.abs(found.astype(int) - (200, 40, 90)).max() <= 4


def test_transparent_pixels_turn_white(tmp_path):
    rgba = np.dstack([picture(), np.full((20, 30), 255, dtype=np.uint8)])
    rgba[:5, :, 3] = 0
    found = decoded(save(tmp_path / "a.png", rgba))
    assert (found[:5] == 255).all()
    assert np.array_equal(found[5:], picture()[5:])
    palette = Image.fromarray(np.repeat([[0, 1]], 3, axis=0).astype(np.uint8)).convert("P")
    palette.save(tmp_path / "b.png", transparency=1)
    assert (decoded(tmp_path / "b.png")[:, 1] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert decoded(save(tmp_path / "a.png", values))[0, :, 0].tolist() == [0, 1, 128, 255]


def png(size, depth, colour_type, lines):
    """A PNG of any depth; the lines begin with a byte for their filter."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_png(pixels):
    """A PNG of 16 bits of (height, width, channels), which Pillow does not write: LA, RGB or RGBA."""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png((width, height), 16, {2: 4, 3: 2, 4: 6}[channels], lines)


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_colours_of_a_png_are_refused_where_their_depth_counts(tmp_path, channels):
    """Pillow keeps 8 of the 16 bits."""
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 9, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(pixels))
    with pytest.raises(BadFileError, match=r"a\.png has colours of 16 bits.*keeps 8; save it as TIFF or \.npy$"):
        decode_image(tmp_path / "a.png", channels)
    assert decoded(tmp_path / "a.png").shape == (6, 9, 3)
    (tmp_path / "b.png").write_bytes(save(tmp_path / "c.png", pixels.astype(np.uint8)).read_bytes())
    assert np.array_equal(decode_image(tmp_path / "b.png", channels).pixels[0], pixels[..., 0].astype(np.uint8))


def test_a_defective_pixel_does_not_hide_that_an_image_uses_few_bits(monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    values = np.full((64, 64), 4000, np.uint16)
    values[3, 3] = 65535
    with pytest.warns(UserWarning, match="has 16 bits, but hardly a value above 4000"):
        image_conversion.to_8_bit(values, "hot.tif")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_of_a_png_that_use_few_bits_are_warned_of_once(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(image_conversion, "_warned", set())
    pixels = np.full((6, 9, channels), 65535, np.uint16)
    (tmp_path / "bright.png").write_bytes(deep_png(pixels))
    pixels[..., : 1 if channels == 2 else 3] = 4095  # all but the opacity
    (tmp_path / "dark.png").write_bytes(deep_png(pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(tmp_path / "bright.png")
    with pytest.warns(UserWarning, match=r"dark\.png has 16 bits, but hardly a value above 4095"):
        decode_image(tmp_path / "dark.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(tmp_path / "dark.png")


def test_each_folder_is_warned_of_once(tmp_path, monkeypatch):
    """But not each of many, as where each image has a folder."""
    monkeypatch.setattr(image_conversion, "_warned", set())
    folders = [tmp_path / str(number) for number in range(image_conversion.MAX_WARNED_FOLDERS + 2)]
    with pytest.warns(UserWarning) as caught:
        for folder in folders:
            folder.mkdir()
            for name in "ab":
                decode_image(save(folder / f"{name}.png", np.full((6, 9), 4000, np.uint16)))
    said = [str(warning.message).split(" ", 1)[0] for warning in caught]
    assert said == [str(folder / "a.png") for folder in folders[:-2]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7, 255]], dtype=np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[0.0, 0.2, 1.0]], dtype=np.float32), [0, 51, 255]),
        (np.array([[0.0, 51.0, 255.0]], dtype=np.float32), [0, 51, 255]),
    ],
)
def test_wide_values(tmp_path, values, expected):
    assert decoded(save(tmp_path / "a.tif", values))[0, :, 0].tolist() == expected


def test_integers_of_two_depths_in_a_folder_are_warned_of(tmp_path, monkeypatch):
    """A dark one among images of 16 bits would be 257 times too bright; a black one is the same."""
    monkeypatch.setattr(image_conversion, "_warned", set())
    paths = [save(tmp_path / f"{high}.tif", np.array([[0, high]], np.int32)) for high in (4000, 0, 9000, 200, 100)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is read as 8 bits")
        for path in paths[:3]:
            decode_image(path)
        with pytest.raises(UserWarning, match=r"200\.tif is read as 8 bits and .*4000\.tif as 16 bits.* convert"):
            decode_image(paths[3])
        decode_image(paths[4])  # once


@pytest.mark.parametrize("values", [[[-1.0, 2.0]], [[0.0, 300.0]], [[0.0, float("nan")]]])
def test_values_without_a_range_are_refused(tmp_path, values):
    path = save(tmp_path / "a.tif", np.array(values, dtype=np.float32))
    with pytest.raises(BadFileError, match=r"a\.tif holds values from .* 8-bit"):
        decode_image(path)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", picture(), exif=exif)
    assert np.array_equal(decoded(path), np.rot90(picture(), -1))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_files_are_refused(tmp_path, monkeypatch, kind, tolerant):
    # Other libraries set this for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{kind}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadFileError, match=f"cut.{kind}.*(replace|remove)") as caught:
        decode_image(path)
    assert caught.value.path == str(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_empty_file_and_non_image_and_missing_file(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(BadFileError, match=r"empty\.jpg is empty"):
        decode_image(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(BadFileError, match=r"text\.jpg is not an image"):
        decode_image(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        decode_image(tmp_path / "none.jpg")


def test_damaged_png_is_refused(tmp_path):
    content = bytearray(save(tmp_path / "bad.png", picture()).read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(BadFileError, match=r"bad\.png is damaged"):
        decode_image(tmp_path / "bad.png")


def test_bad_file_error_survives_a_data_loader_worker():
    error = pickle.loads(pickle.dumps(BadFileError("x.png is empty", "x.png")))
    assert error.path == "x.png"
    assert str(error) == "x.png is empty"
    assert str(BadFileError("a message alone")) == "a message alone"


IDS = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)


def read_mask(path, num_classes=3, ignore_index=255):
    return decode_mask(path, num_classes=num_classes, ignore_index=ignore_index)


def test_greyscale_and_palette_masks_give_ids(tmp_path):
    palette = Image.fromarray(IDS).convert("L")
    indexed = Image.frombytes("P", palette.size, palette.tobytes())
    indexed.putpalette(list(np.random.default_rng(0).permutation(768) % 256))
    indexed.save(tmp_path / "p.png")
    for path in (save(tmp_path / "l.png", IDS), tmp_path / "p.png"):
        mask = read_mask(path)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, IDS)


def test_sixteen_bit_and_bilevel_masks_give_ids(tmp_path):
    mask = read_mask(save(tmp_path / "a.png", IDS.astype(np.uint16)))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, IDS)
    bits = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    assert read_mask(save(tmp_path / "b.png", bits, "1")).tolist() == [[0, 1], [1, 0]]


def shallow_png(rows, depth):
    """A greyscale PNG of 2 or 4 bits a pixel, which Pillow reads but does not write."""
    lines = b""
    for row in rows:
        bits = "".join(format(value, f"0{depth}b") for value in row)
        lines += b"\0" + int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return png((len(rows[0]), len(rows)), depth, 0, lines)


@pytest.mark.parametrize(("depth", "rows"), [(2, [[0, 1, 2, 3, 1]]), (4, [[0, 9, 15], [3, 2, 1]])])
def test_shallow_greyscale_masks_are_not_stretched(tmp_path, depth, rows):
    (tmp_path / "a.png").write_bytes(shallow_png(rows, depth))
    assert read_mask(tmp_path / "a.png", num_classes=16).tolist() == rows


def test_many_classes_give_int32(tmp_path):
    values = np.array([[0, 299], [65535, 256]], dtype=np.uint16)
    mask = read_mask(save(tmp_path / "a.png", values), num_classes=300, ignore_index=65535)
    assert mask.dtype == np.int32
    assert mask.tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_of_colours_are_refused(tmp_path, mode):
    colors = np.stack([IDS, 2 * IDS, 0 * IDS], -1)
    path = save(tmp_path / "rgb.png", IDS if mode == "LA" else colors, mode)
    with pytest.raises(BadFileError, match=rf"rgb\.png has colour mode {mode}, but masks hold class ids"):
        read_mask(path)


def test_jpeg_masks_are_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"m\.jpg is a JPEG"):
        read_mask(save(tmp_path / "m.jpg", IDS))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ids_beyond_the_classes_are_listed(tmp_path, dtype):
    path = save(tmp_path / "far.png", np.array([[0, 3, 200, 255]], dtype=dtype))
    with pytest.raises(BadFileError, match=r"far\.png holds the ids 3, 200, .*classes\.json has the ids 0\.\.2"):
        read_mask(path)
    with pytest.raises(BadFileError, match="ids 255,"):
        read_mask(path, num_classes=201, ignore_index=250)


def test_truncated_mask_is_refused(tmp_path):
    path = save(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadFileError, match=r"cut\.png is damaged or cut off.*mask"):
        read_mask(path)


def test_what_is_kept_of_folders_is_bounded(monkeypatch):
    """A data set may have a folder for each image."""
    monkeypatch.setattr(image_conversion, "_white_levels", {})
    monkeypatch.setattr(image_conversion, "MAX_COMPARED_FOLDERS", 3)
    for number in range(10):
        image_conversion.to_8_bit(np.full((2, 2), 200, dtype=np.int32), f"{number}/a.tif")
    assert list(image_conversion._white_levels) == ["7", "8", "9"]
