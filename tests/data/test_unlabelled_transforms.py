"""Random transforms of unlabelled images, and the part of a JPEG that they decode."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tiny_samples import lettered, noisy_row

from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.transforms import SegmentationTrainTransform
from ddep_hub.data.unlabelled_transforms import PretrainTransform, UnlabelledTransform
from ddep_hub.image_conversion import ChannelImage


@pytest.mark.filterwarnings("error")
def test_the_border_of_an_unlabelled_image_takes_no_memory():
    transform = UnlabelledTransform(SegmentationTrainTransform(crop_size=32, scale=(0.5, 0.5)))
    image = Image.new("RGB", (3000, 2000))
    tracemalloc.start()
    example = transform({"image": image})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert example["inside"].all() and peak < 1e6
    assert not transform({"image": Image.new("RGB", (8, 8))})["inside"].all()
    zero = UnlabelledTransform(SegmentationTrainTransform(crop_size=32, scale=(1.0, 1.0), ignore_index=0))
    assert zero({"image": Image.new("RGB", (16, 32))})["inside"].sum() == 16 * 32


def test_pretrain_transform():
    transform = PretrainTransform(crop_size=(24, 40))
    torch.manual_seed(0)
    results = [transform(noisy_row()) for _ in range(8)]
    for result in results:
        assert set(result) == {"pixel_values"}
        assert result["pixel_values"].shape == (3, 24, 40)
        assert result["pixel_values"].dtype == torch.uint8
    assert len({result["pixel_values"].numpy().tobytes() for result in results}) == 8


def test_pretrain_transform_without_randomness():
    example = noisy_row(32, 32)
    transform = PretrainTransform(crop_size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0)
    pixels = transform(example)["pixel_values"]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(example["image"]))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_pretraining_mirrors_images(probability):
    example = noisy_row(32, 32)
    transform = PretrainTransform(crop_size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=probability)
    pixels = transform(example)["pixel_values"].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(example["image"])[:, ::-1] if probability else example["image"])


def smooth_jpeg(width, height, orientation=1, mode="RGB", **options):
    """A JPEG of a few waves, which looks the same at any scale, and with every turn different."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * columns + 2 * rows), np.sin(7 * rows), np.cos(5 * columns * rows + 3 * rows)]
    pixels = (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=95, exif=exif, **options)
    return {"path": "photo.jpg", "bytes": stream.getvalue()}


def both(file, transform, seed):
    """The pixels of the undecoded and of the decoded row, with the same random numbers."""
    results = []
    for image in (file, decode_image(file)):
        torch.manual_seed(seed)
        results.append(transform({"image": image})["pixel_values"])
        results.append(torch.rand(()))
    assert results[1] == results[3]
    return results[0], results[2]


@pytest.mark.parametrize("orientation", [*range(9), 77])
@pytest.mark.parametrize("size", [(403, 297), (1001, 613)])
def test_reduced_decoding_shows_the_same_part(orientation, size):
    transform = PretrainTransform(crop_size=(24, 32))
    for seed in range(6):
        reduced, full = both(smooth_jpeg(*size, orientation), transform, seed)
        assert reduced.shape == (3, 24, 32)
        assert reduced.is_contiguous()
        assert not torch.equal(reduced, full)
        # A shift by one reduced pixel would be seen.
        assert (reduced.int() - full.int()).abs().float().mean() < 1.0


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_reduced_decoding_of_other_jpegs(mode):
    reduced, full = both(smooth_jpeg(400, 300, mode=mode, progressive=True), PretrainTransform(crop_size=16), 0)
    assert (reduced.int() - full.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_without_reduction_undecoded_samples_give_the_same_pixels(tmp_path, kind):
    image = decode_image(smooth_jpeg(60, 50))
    image.putalpha(128) if kind == "PNG" else None
    image.save(tmp_path / "a", kind)
    file = {"path": str(tmp_path / "a"), "bytes": None}
    for seed in range(5):
        assert torch.equal(*both(file, PretrainTransform(crop_size=(48, 40)), seed))


def test_the_scale_is_the_coarsest_that_is_large_enough(monkeypatch):
    drafts = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(
        JpegImageFile, "draft", lambda self, mode, size: drafts.append(size) or draft(self, mode, size)
    )
    whole = {"scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3)}
    for crop_size in [(38, 50), (37, 50), (75, 100), (76, 100), (150, 200), (151, 200)]:
        PretrainTransform(crop_size=crop_size, **whole)({"image": smooth_jpeg(400, 300)})
    assert [400 // width for width, _ in drafts] == [4, 8, 4, 2, 2]


@pytest.mark.parametrize("crop_size", [16, 200])
def test_broken_undecoded_files_are_named(crop_size):
    transform = PretrainTransform(crop_size=crop_size)
    file = smooth_jpeg(400, 300)
    for content, message in [
        (file["bytes"][:-3000], r"photo\.jpg is damaged or cut off"),
        (b"", r"photo\.jpg is empty"),
        (b"text", r"photo\.jpg is not an image"),
    ]:
        with pytest.raises(BadFileError, match=message) as caught:
            transform({"image": {"path": "photo.jpg", "bytes": content}})
        assert caught.value.path == "photo.jpg"
    with pytest.raises(BadFileError, match="an image of 4 bytes without a name"):
        transform({"image": {"path": None, "bytes": b"text"}})


def test_undecoded_image_folder(tmp_path):
    decode_image(smooth_jpeg(40, 30)).save(tmp_path / "a.png")
    row = ImageFolder(tmp_path)[0]
    assert row == {"image": {"path": str(tmp_path / "a.png"), "bytes": None}, "path": str(tmp_path / "a.png")}
    torch.manual_seed(0)
    undecoded = PretrainTransform(crop_size=16)(row)["pixel_values"]
    torch.manual_seed(0)
    decoded = {"image": decode_image(row["path"])}
    assert torch.equal(undecoded, PretrainTransform(crop_size=16)(decoded)["pixel_values"])


def test_unlabelled_crops_are_those_of_labelled_images():
    geometry = SegmentationTrainTransform(crop_size=64, scale=(0.5, 2.0), augmentation="microscopy", class_crops=1.0)
    transform = UnlabelledTransform(geometry, strong=True)
    sizes, strong = set(), 0
    for _ in range(20):
        result = transform({"image": lettered()["image"]})
        inside = result["inside"]
        sizes.add(int(inside.sum()))
        assert result["pixel_values"].shape == result["strong"].shape == (3, 64, 64)
        border = result["pixel_values"][:, ~inside]
        assert not border.numel() or (border == border[:, :1]).all()  # the mean colour
        strong += not torch.equal(result["strong"], result["pixel_values"])
    assert len(sizes) > 10 and strong > 10
    assert "strong" not in UnlabelledTransform(geometry)({"image": lettered()["image"]})


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("augmentation", ["photo", "microscopy"])
def test_the_teacher_sees_unlabelled_images_as_they_are(channels, augmentation):
    geometry = SegmentationTrainTransform(crop_size=32, scale=(1.0, 1.0), augmentation=augmentation)
    pixels = np.random.default_rng(0).integers(0, 255, (channels, 32, 32)).astype(np.float32)
    image = ChannelImage(pixels if channels != 3 else pixels.astype(np.uint8))
    found = UnlabelledTransform(geometry, num_channels=channels)({"image": image})["pixel_values"]
    assert sorted(found.ravel().tolist()) == sorted(pixels.ravel().tolist())  # flips and turns alone
