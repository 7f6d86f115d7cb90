"""Parts of JPEGs: the same pixels as from the whole image, whatever decodes it."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddep_hub.data.image_io import BadFileError, decode_image, load_bytes
from ddep_hub.data.preprocessing import resize, to_tensor
from ddep_hub.data.unlabelled_transforms import PretrainTransform, decode_jpeg_part, read_jpeg_header


@pytest.fixture
def photograph():
    rows, columns = np.mgrid[:90, :121]
    noise = np.random.default_rng(0).normal(0, 8, (90, 121, 3))
    return Image.fromarray(
        np.clip(np.stack([2 * columns, 2 * rows, rows + columns], -1) + noise, 0, 255).astype(np.uint8)
    )


def decode_part(path, box, size):
    return decode_jpeg_part(load_bytes(path), read_jpeg_header(path), box, size)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30, "optimize": True}])
def test_a_part_has_the_pixels_of_the_whole(photograph, tmp_path, options):
    path = tmp_path / "a.jpg"
    photograph.save(path, **options)
    found = decode_part(path, (10, 20, 60, 70), (48, 56))
    image = decode_image(path)
    wanted = resize(to_tensor(image.crop((20, 10, 90, 70))), (48, 56))
    assert found is not None and torch.equal(found, wanted)


def test_uncommon_kinds_are_left_to_pillow(photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"grey": photograph.convert("L"), "cmyk": photograph.convert("CMYK"), "turned": photograph}
    for kind, image in kinds.items():
        path = tmp_path / f"{kind}.jpg"
        image.save(path, **({"exif": exif} if kind == "turned" else {}))
        assert decode_part(path, (0, 0, 60, 60), (48, 48)) is None
        assert PretrainTransform(crop_size=48)({"image": load_bytes(path)})["pixel_values"].shape == (3, 48, 48)


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_file_that_is_cut_off_is_no_image(photograph, tmp_path, ending):
    path = tmp_path / "a.jpg"
    photograph.save(path)
    path.write_bytes(path.read_bytes()[:1500] + ending)
    transform = PretrainTransform(crop_size=64)
    if ending:  # a complete file of few lines: as Pillow, we take it
        assert transform({"image": {"path": str(path), "bytes": None}})["pixel_values"].shape == (3, 64, 64)
        return
    with pytest.raises(BadFileError, match=r"a\.jpg is damaged or cut off"):
        transform({"image": {"path": str(path), "bytes": None}})


def test_what_follows_the_image_does_not_matter(photograph, tmp_path):
    path = tmp_path / "a.jpg"
    photograph.save(path)
    wanted = np.asarray(decode_image(path))
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    found = PretrainTransform(crop_size=(90, 121), scale=(1.0, 1.0), ratio=(121 / 90, 121 / 90), horizontal_flip=0)(
        {"image": {"path": str(path), "bytes": None}}
    )
    assert np.array_equal(found["pixel_values"].permute(1, 2, 0).numpy(), wanted)


def test_releases_of_torchvision_without_a_decoder_give_the_same(photograph, tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    photograph.save(path)
    transform, sample = PretrainTransform(crop_size=48), {"image": load_bytes(path)}
    torch.manual_seed(0)
    wanted = transform(sample)["pixel_values"]
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    torch.manual_seed(0)
    assert torch.equal(transform(sample)["pixel_values"], wanted)
    assert decode_part(path, (10, 20, 60, 70), (48, 56)) is None
