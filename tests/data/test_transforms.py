"""Random transforms of labelled images, and those of an image processor."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_samples import lettered, noisy_row, row

from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.transforms import (
    STRONG,
    STRONG_INTENSITIES,
    RandomGamma,
    RandomIntensity,
    SegmentationTrainTransform,
    SensorNoise,
    _random_window,
    sample_class_pixel,
)
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_a_rare_class_is_drawn_as_often_as_another(dtype):
    mask = torch.zeros(8, 9, dtype=dtype)
    mask[3, 4], mask[0] = 200, 255
    torch.manual_seed(0)
    pixels = [sample_class_pixel(mask, 255) for _ in range(40)]
    assert 10 < pixels.count((3, 4)) < 30 and all(row > 0 for row, _ in pixels)
    assert sample_class_pixel(torch.full((2, 2), 255, dtype=dtype), 255) is None


@pytest.mark.parametrize("crop_size", [32, (24, 48), (90, 20), 200])
@pytest.mark.parametrize("image_size", [None, 30])
def test_train_transform_moves_image_and_labels_together(crop_size, image_size):
    transform = SegmentationTrainTransform(crop_size=crop_size, image_size=image_size)
    torch.manual_seed(0)
    for _ in range(20):
        result = transform(row())
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        assert result["pixel_values"].shape == (3, height, width)
        assert result["pixel_values"].dtype == torch.uint8
        assert result["labels"].shape == (height, width)
        assert result["labels"].dtype == torch.uint8
        assert result["pixel_values"].is_contiguous()
        red = result["pixel_values"][0].int() > result["pixel_values"][2].int()
        inside = result["labels"] != 255
        # Interpolated columns beside the edge may fall to either side.
        wrong = (red != (result["labels"] == 0)) & inside
        assert wrong.sum() <= 2 * height


def test_without_randomness_the_row_comes_back():
    example = noisy_row()
    result = SegmentationTrainTransform(crop_size=(24, 36), scale=(1.0, 1.0), horizontal_flip=0.0)(example)
    assert np.array_equal(result["pixel_values"].permute(1, 2, 0).numpy(), np.asarray(example["image"]))
    assert np.array_equal(result["labels"].numpy(), example["annotation"])


def test_flip_mirrors_both():
    example = noisy_row()
    result = SegmentationTrainTransform(crop_size=(24, 36), scale=(1.0, 1.0), horizontal_flip=1.0)(example)
    assert np.array_equal(result["pixel_values"].permute(1, 2, 0).numpy(), np.asarray(example["image"])[:, ::-1])
    assert np.array_equal(result["labels"].numpy(), example["annotation"][:, ::-1])


def test_a_smaller_mask_has_the_labels_at_the_centres_of_its_pixels():
    """Those of the corners would shift the labels against the image, by half of a pixel of the smaller one."""
    mask = np.add.outer(np.arange(0, 160, 10), np.arange(16)).astype(np.uint8)
    sample = {"image": Image.new("RGB", (16, 16)), "annotation": mask}
    found = SegmentationTrainTransform(crop_size=4, scale=(0.25, 0.25), horizontal_flip=0.0)(sample)["labels"]
    assert np.array_equal(found.numpy(), mask[2::4, 2::4])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("pixel", [0, 13, 59])
def test_a_crop_on_a_pixel_holds_it(pixel, scale):
    places = set()
    for _ in range(200):
        start, part, size, offset = _random_window(60, 20, scale, pixel)
        assert start <= pixel < start + part and 0 <= start and start + part <= 60 and (size, offset) == (20, 0)
        places.add(pixel - start)
    assert (min(places), max(places)) == (max(0, pixel + part - 60), min(pixel, part - 1))  # each place of the crop


def test_border_has_the_mean_colour_and_is_ignored():
    example = noisy_row()
    mean = np.asarray(example["image"]).mean((0, 1))
    places = set()
    torch.manual_seed(0)
    for _ in range(10):
        transform = SegmentationTrainTransform(crop_size=64, scale=(1.0, 1.0), horizontal_flip=0.0, ignore_index=9)
        result = transform(example)
        outside = result["labels"] == 9
        assert (~outside).sum() == 24 * 36
        assert np.abs(result["pixel_values"][:, outside].numpy().T - mean).max() <= 1
        places.add(tuple(torch.nonzero(~outside)[0].tolist()))
    assert len(places) > 5


def test_image_size_sets_what_scale_one_means():
    transform = SegmentationTrainTransform(crop_size=100, image_size=20, scale=(1.0, 1.0))
    assert (transform(row(40, 60))["labels"] != 255).sum() == 20 * 30


def test_random_scale_covers_its_range():
    transform = SegmentationTrainTransform(crop_size=100, scale=(0.5, 2.0))
    torch.manual_seed(0)
    shares = [float((transform(row(40, 40))["labels"] != 255).sum()) ** 0.5 / 40 for _ in range(200)]
    assert 0.5 <= min(shares) < 0.6
    assert 1.9 < max(shares) <= 2.0
    assert abs(np.mean(shares) - 1.25) < 0.1


def test_photometric_changes_the_image_only():
    example = row()
    options = {"crop_size": (40, 60), "scale": (1.0, 1.0), "horizontal_flip": 0.0}
    torch.manual_seed(0)
    result = SegmentationTrainTransform(**options, augmentation="photo")(example)
    assert not np.array_equal(result["pixel_values"].permute(1, 2, 0).numpy(), np.asarray(example["image"]))
    assert result["pixel_values"].dtype == torch.uint8
    assert np.array_equal(result["labels"].numpy(), example["annotation"])


def test_powers_brighten_as_often_as_they_darken():
    middle = torch.tensor([[[0, 128, 255]]], dtype=torch.uint8).repeat(3, 1, 1)
    for change in (RandomGamma(1.5), RandomIntensity(1.5, 0.0)):
        results = torch.stack([change(middle) for _ in range(200)])
        assert results.dtype == torch.uint8 and (results[..., 0] == 0).all() and (results[..., 2] == 255).all()
        found = results[:, 0, 0, 1].float()
        # 0.5 to the power of 1.5 and of 1 / 1.5
        assert 90 <= found.min() < 95 and 156 < found.max() <= 162 and 70 < (found > 128).sum() < 130
    assert (results[:, 0] != results[:, 1]).any()  # channels of which each has a power of its own


def test_changed_intensities_stay_within_their_range():
    image = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 8, 8)
    for change in (RandomIntensity(1.0, 0.3), SensorNoise(8.0)):
        for _ in range(20):
            result = change(image).float()
            assert result[..., ::2].max() < 60 and result[..., 1::2].min() > 195


def test_noise_of_a_sensor_differs_between_images_and_keeps_their_mean():
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    image[0] = 100  # not grey
    noise = torch.stack([SensorNoise(8.0)(image).float() - image for _ in range(50)])
    stds = noise.std((2, 3))
    assert stds.max() < 9 and stds.min() < 2 and stds.mean() == pytest.approx(4, abs=1)
    assert noise.mean().abs() < 0.2 and not torch.equal(noise[:, 0], noise[:, 1])


def test_wide_ids_survive_scaling():
    example = row(dtype=np.int32)
    example["annotation"][example["annotation"] == 1] = 70000
    result = SegmentationTrainTransform(crop_size=32, scale=(0.7, 0.7), ignore_index=255)(example)
    assert set(result["labels"].unique().tolist()) <= {0, 70000, 255}


def test_eval_transform_keeps_the_masks_size():
    example = noisy_row(24, 36)
    plain = EvalTransform(DDePImageProcessor(do_resize=False))(example)
    assert plain["pixel_values"].shape == (3, 24, 36)
    scaled = EvalTransform(DDePImageProcessor(size={"shortest_edge": 16}))(example)
    assert scaled["pixel_values"].shape == (3, 16, 24)
    assert scaled["pixel_values"].dtype == torch.uint8
    assert scaled["labels"].shape == (24, 36)
    assert scaled["labels"].dtype == torch.int64
    assert np.array_equal(scaled["labels"].numpy(), example["annotation"])


PROCESSOR_OPTIONS = [
    {},
    {"do_resize": False},
    {"size": {"shortest_edge": 36}},
    {"size": {"height": 30, "width": 70}, "resample": Image.Resampling.BICUBIC},
    {"size": {"shortest_edge": 90}, "resample": Image.Resampling.NEAREST, "image_mean": [0.4, 0.5, 0.1]},
    {"do_resize": False, "do_rescale": False},
    {"do_resize": False, "do_normalize": False},
    {"do_resize": False, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
]


@pytest.mark.parametrize("options", PROCESSOR_OPTIONS)
@pytest.mark.parametrize("backend", [DDePImageProcessor, DDePImageProcessorPil])
def test_transforms_of_a_processor_give_its_pixel_values(tmp_path, backend, options):
    backend(**options).save_pretrained(tmp_path)
    for processor in (backend(**options), backend.from_pretrained(tmp_path)):
        example = noisy_row(51, 83)
        expected = processor(example["image"], return_tensors="pt")["pixel_values"]
        result = EvalTransform(processor)(example)
        assert result["pixel_values"].dtype == torch.uint8
        normalized = Normalize.from_processor(processor)(result["pixel_values"][None])
        assert (normalized - expected).abs().max() <= 1e-5
        assert np.array_equal(result["labels"].numpy(), example["annotation"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_stay_as_they_were_when_they_are_normalised(dtype):
    """A batch is normalised more than once where there are several losses."""
    images = torch.randint(0, 256, (2, 3, 4, 4)).to(dtype)
    before, normalize = images.clone(), Normalize([0.5] * 3, [0.25] * 3)
    assert torch.equal(normalize(images), normalize(images)) and torch.equal(images, before)


@pytest.mark.parametrize("options", PROCESSOR_OPTIONS)
def test_training_at_scale_one_resizes_as_the_processor(options):
    processor = DDePImageProcessor(**options)
    example = noisy_row(48, 72)
    expected = EvalTransform(processor)(example)["pixel_values"]
    height, width = expected.shape[-2:]
    transform = SegmentationTrainTransform.from_processor(
        processor, crop_size=(height, width), scale=(1.0, 1.0), horizontal_flip=0.0
    )
    assert torch.equal(transform(example)["pixel_values"], expected)


def test_sizes_without_a_meaning_in_training_are_refused():
    processor = DDePImageProcessor(size={"max_height": 30, "max_width": 30})
    with pytest.raises(ValueError, match="shortest_edge"):
        SegmentationTrainTransform.from_processor(processor, crop_size=32)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="scale"):
        SegmentationTrainTransform(crop_size=8, scale=(2.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "size", "ways"), [("overhead", (48, 48), 8), ("overhead", (40, 48), 4), (None, (48, 48), 2)]
)
def test_all_ways_to_lay_an_image_and_its_mask_with_it(kind, size, ways):
    transform = SegmentationTrainTransform(crop_size=size, scale=(1.0, 1.0), augmentation=kind)
    if kind is not None:
        transform.augmentation = dataclasses.replace(transform.augmentation, photometric=torch.nn.Identity())
    seen = set()
    for _ in range(100):
        result = transform(lettered(size))
        assert torch.equal(result["pixel_values"][0], result["labels"])
        seen.add(result["labels"].numpy().tobytes())
    assert len(seen) == ways


@pytest.mark.parametrize("kind", ["photo", "overhead", "microscopy"])
def test_augmentations_keep_grey_images_grey(kind):
    transform = SegmentationTrainTransform(crop_size=48, scale=(1.0, 1.0), augmentation=kind)
    changed = 0
    for _ in range(20):
        pixels = transform(lettered())["pixel_values"].int()
        assert (pixels - pixels[:1]).abs().max() <= 1  # of rounding
        changed += not torch.equal(pixels[0].sort()[0], torch.from_numpy(lettered()["annotation"]).int().sort()[0])
    assert changed > 15


def test_crops_on_rare_classes():
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[150, 30], mask[:, 199] = 1, 255
    sample = {"image": Image.new("RGB", (200, 200)), "annotation": mask}
    shares = {}
    for probability in (0.0, 0.5, 1.0):
        transform = SegmentationTrainTransform(crop_size=20, scale=(1.0, 1.0), class_crops=probability)
        found = [bool((transform(sample)["labels"] == 1).any()) for _ in range(200)]
        shares[probability] = np.mean(found)
    # Half of the chosen classes are the rare one; few crops hold its pixel by chance.
    assert shares[0.0] < 0.05 and 0.15 < shares[0.5] < 0.35 and 0.4 < shares[1.0] < 0.6
    ignored = {**sample, "annotation": np.full((200, 200), 255, dtype=np.uint8)}
    transform(ignored)  # no class to choose


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(40, 4), (4, 40), (1, 1), (2, 3)])
def test_images_smaller_than_a_blur_are_taken(channels, height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, height, width), dtype=np.uint8)
    image = Image.fromarray(np.moveaxis(pixels, 0, -1)) if channels == 3 else ChannelImage(pixels)
    sample = {"image": image, "annotation": np.zeros((height, width), np.uint8)}
    transform = SegmentationTrainTransform(crop_size=16, augmentation="microscopy")
    for seed in range(20):  # blurred at random
        torch.manual_seed(seed)
        assert transform(sample)["pixel_values"].shape == (channels, 16, 16)
        tensor = torch.from_numpy(pixels)
        assert (STRONG if channels == 3 else STRONG_INTENSITIES)(tensor).shape == tensor.shape
