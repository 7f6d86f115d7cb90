"""Images whose EXIF block is damaged are read upright as far as the orientation can be told."""

import io
import logging
import random
import struct

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.unlabelled_transforms import read_jpeg_header


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def exif_block(order, orientation):
    """A TIFF block of six tags, the third of them the orientation; and the places of what must stay as it is."""
    extra = b"Maker\0" + struct.pack(order + "II", 72, 1)
    entries = [
        (0x010F, 2, 6, 86),
        (0x0110, 2, 4, 0x41424300),
        (0x0112, 3, 1, None),
        (0x011A, 5, 1, 92),
        (0x8769, 4, 1, 86),
        (0x8825, 4, 1, 92),
    ]
    block = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(order + "HHI", tag, kind, count)
        block += struct.pack(order + "HH", orientation, 0) if value is None else struct.pack(order + "I", value)
    return block + struct.pack(order + "I", 0) + extra, {*range(10), *range(34, 46)}


def with_exif(kind, block):
    stream = io.BytesIO()
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    Image.fromarray(PIXELS).save(stream, kind, exif=b"Exif\0\0" + block, **options)
    return {"path": "photo", "bytes": stream.getvalue()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_only_the_orientation_matters(kind):
    numbers = random.Random(kind)
    for turn in range(150):
        order = numbers.choice("<>")
        block, kept = exif_block(order, 6)
        mutated = bytearray(block)
        for _ in range(numbers.randrange(1, 12)):
            place = numbers.randrange(len(block))
            if place not in kept:
                mutated[place] = numbers.randrange(256)
        for start in range(10, 82, 12):  # no second orientation
            if start != 34 and struct.unpack_from(order + "H", mutated, start)[0] == 0x0112:
                mutated[start : start + 2] = b"\0\0"
        block = bytes(mutated[: numbers.choice([46, 60, len(block), len(block), len(block)])])
        file = with_exif(kind, block)
        found = np.asarray(decode_image(file))
        expected = np.rot90(PIXELS, -1)
        assert found.shape == expected.shape, (turn, block)
        assert np.abs(found.astype(int) - expected).mean() < (6 if kind == "JPEG" else 0.01)
        header = read_jpeg_header(file)
        assert (header and header.upright_size) == ((96, 64) if kind == "JPEG" else None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_block_leaves_the_pixels(kind):
    numbers = random.Random(kind)
    for _ in range(150):
        block = bytearray(exif_block(numbers.choice("<>"), numbers.randrange(12))[0])
        for _ in range(numbers.randrange(1, 40)):
            block[numbers.randrange(len(block))] = numbers.randrange(256)
        assert sorted(decode_image(with_exif(kind, bytes(block[: numbers.randrange(len(block))]))).size) == [64, 96]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_all_orientations(kind, orientation):
    steps = {
        1: lambda image: image,
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, -1),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    found = np.asarray(decode_image(with_exif(kind, exif_block(">", orientation)[0])))
    expected = steps[orientation](PIXELS)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (6 if kind == "JPEG" else 0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_damaged_files_raise_one_error(kind):
    numbers = random.Random(kind)
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    for _ in range(100):
        content = bytearray(stream.getvalue())
        for _ in range(numbers.randrange(1, 20)):
            content[numbers.randrange(min(len(content), 600))] = numbers.randrange(256)
        try:
            decode_image({"path": "photo", "bytes": bytes(content)})
        except BadFileError as error:
            assert "photo" in str(error)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".MPO", "JPEG"),
        (".GIF", "GIF"),
        (".jp2", "JPEG2000"),
        (".ppm", "PPM"),
        (".pgm", "PPM"),
        (".pnm", "PPM"),
        pytest.param(
            ".avif",
            "AVIF",
            marks=pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="Pillow has no AVIF"),
        ),
        (".dib", "DIB"),
        (".JPG", "JPEG"),
    ],
)
def test_suffixes(tmp_path, caplog, suffix, kind):
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", kind)
    (tmp_path / "b.heic").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        (sample,) = list(ImageFolder(tmp_path))
    assert decode_image(sample["image"]).size == (96, 64)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: skipping 2 files that are not images: b.heic, notes.txt"
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_greyscale_of_pnm_is_scaled_by_its_highest_value(channels):
    for header, values in ((b"P5 4 1 3\n", bytes([0, 1, 2, 3])), (b"P2 4 1 3\n", b"0 1 2 3\n")):
        image = decode_image({"path": "a.pgm", "bytes": header + values}, channels)
        first = np.asarray(image)[..., 0] if channels == 3 else image.pixels[0]
        assert first.tolist() == [[0, 85, 170, 255]]


def test_wide_greyscale_of_pnm_is_scaled_by_its_depth():
    header = b"P5 3 1 65535\n"
    file = {"path": "a.pgm", "bytes": header + np.array([0, 255, 65535], dtype=">u2").tobytes()}
    assert np.asarray(decode_image(file))[0, :, 0].tolist() == [0, 1, 255]
    file = {"path": "dark.pgm", "bytes": b"P5 2 1 65535\n" + np.array([0, 255], dtype=">u2").tobytes()}
    assert np.asarray(decode_image(file))[0, :, 0].tolist() == [0, 1]
