"""Images whose channels come to the model in another order than they are stored in."""

import numpy as np
import pytest
import torch
from PIL import Image

import ddep_hub
from ddep_hub import DDePConfig, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.cli import main
from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene
from ddep_hub.evaluation.visualization import to_rgb_image
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil
from ddep_hub.training.arguments import FinetuneArguments


RNG = np.random.default_rng(0)
SIZES = {"decoder_hidden_sizes": [8, 8, 8, 8, 8], "decoder_bottleneck_size": 8}
SMALL = {**SIZES, "encoder_weights": "none"}
ORDER = [2, 0, 1, 3]


@pytest.mark.parametrize("backend", [DDePImageProcessor, DDePImageProcessorPil])
def test_the_order_of_channels_is_that_of_the_processor(backend, tmp_path):
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    pixels = RNG.integers(0, 256, (4, 20, 24), dtype=np.uint8)
    backend(
        image_mean=mean, image_std=std, do_convert_rgb=False, do_resize=False, channel_order=ORDER
    ).save_pretrained(tmp_path)
    processor = backend.from_pretrained(tmp_path)
    values = processor(pixels, return_tensors="pt")["pixel_values"][0]
    for place, channel in enumerate(ORDER):
        expected = (pixels[channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(values[place], expected, atol=1e-6)
    normalize, transform = Normalize.from_processor(processor), EvalTransform(processor)
    sample = transform({"image": ChannelImage(pixels), "annotation": np.zeros((20, 24), np.uint8)})
    for raw in (torch.from_numpy(pixels), sample["pixel_values"]):  # as in training, and in evaluation
        torch.testing.assert_close(normalize(raw[None])[0], values)
    with pytest.raises(ValueError, match=r"channel_order is \[0, 0, 1, 3\].*each of 4 channels once"):
        processor(pixels, channel_order=[0, 0, 1, 3])


def test_bgr_images_give_what_their_rgb_twins_give():
    """In both image processors, training, evaluation and prediction, whatever the encoder's mean."""
    pixels = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    rgb = ddep_hub.pretrained.processor_for_encoder("resnet18.a1_in1k")
    bgr = ddep_hub.pretrained.processor_for_encoder("resnet18.a1_in1k", channel_order=[2, 1, 0])
    assert bgr.image_mean == rgb.image_mean[::-1] != rgb.image_mean
    again = ddep_hub.pretrained.with_channel_order(bgr, [0, 1, 2], 3)
    expected = rgb(pixels, return_tensors="pt")["pixel_values"]
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name="resnet10t", num_labels=5, **SIZES)).eval()
    for processor, image in ((bgr, pixels[..., ::-1].copy()), (again, pixels)):
        torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], expected)
        sample = {"image": Image.fromarray(image), "annotation": np.zeros((32, 64), np.uint8)}
        seen = EvalTransform(processor)(sample)["pixel_values"][None]
        torch.testing.assert_close(Normalize.from_processor(processor)(seen), expected)
        np.testing.assert_array_equal(
            ddep_hub.predict(model, image, processor=processor), ddep_hub.predict(model, pixels, processor=rgb)
        )


def test_a_mean_for_all_channels_stays_as_it_is():
    for mean in (0.4, [0.4]):
        options = {"image_mean": mean, "image_std": mean, "do_convert_rgb": False}
        processor = ddep_hub.pretrained.with_channel_order(DDePImageProcessor(**options), ORDER, 4)
        assert processor.channel_order == ORDER and processor.image_mean in (mean, (0.4,))


def test_a_run_keeps_the_order_in_its_processor_and_another_can_change_it(tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (tmp_path / "data" / folder / split).mkdir(parents=True)
        for index in range(2):
            image, mask = render_scene(7 if split == "train" else 8, index, (48, 48))
            Image.fromarray(image).save(tmp_path / "data" / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "annotations" / split / f"{index}.png")
    write_class_table(SCENE_CLASSES, tmp_path / "data" / "classes.json")
    common = {"max_steps": 1, "batch_size": 2, "crop_size": 32}
    pretrained = ddep_hub.pretrain(
        images=[str(tmp_path / "data" / "images" / "train")],
        num_val_images=1,
        channel_order=[2, 1, 0],
        encoder_name="resnet10t",
        output_dir=str(tmp_path / "pretrain"),
        **SMALL,
        **common,
    )["final"]
    assert DDePImageProcessor.from_pretrained(pretrained).channel_order == [2, 1, 0]
    again = ddep_hub.pretrain(
        images=[str(tmp_path / "data" / "images" / "train")],
        num_val_images=1,
        pretrained=pretrained,
        output_dir=str(tmp_path / "again"),
        **common,
    )["final"]
    assert DDePImageProcessor.from_pretrained(again).channel_order == [2, 1, 0]
    for order, more in (([], {}), ([1, 2, 0], {}), ([], {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3})):
        final = ddep_hub.finetune(
            **more,
            data=str(tmp_path / "data"),
            pretrained=pretrained,
            channel_order=order,
            allow_empty_classes=True,
            output_dir=str(tmp_path / f"finetune-{len(order)}-{len(more)}"),
            **common,
        )["final"]
        assert DDePImageProcessor.from_pretrained(final).channel_order == (order or [2, 1, 0])
    with pytest.raises(ValueError, match="must name each of 3 channels once"):
        ddep_hub.finetune(
            data=str(tmp_path / "data"),
            pretrained=pretrained,
            channel_order=[1, 0],
            output_dir=str(tmp_path / "wrong"),
            **common,
        )
    with pytest.raises(ValueError, match=r"channel_order must name each channel once, from 0; got \[1, 2\]"):
        FinetuneArguments(channel_order=[1, 2])


@pytest.mark.parametrize("old_order", [None, [1, 2, 0], [2, 1, 0]])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_images_in_another_order_come_to_the_model_as_before(order, old_order):
    old = DDePImageProcessor(
        do_resize=False, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], channel_order=old_order
    )
    image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    other = np.empty_like(image)
    other[..., order] = image[..., old_order or [0, 1, 2]]
    new = ddep_hub.pretrained.with_channel_order(old, order, 3)
    found, wanted = (
        processor(x, return_tensors="pt")["pixel_values"] for processor, x in ((new, other), (old, image))
    )
    torch.testing.assert_close(found, wanted)


def test_pictures_show_the_channels_that_the_model_sees_first():
    pixels = RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    first = ChannelImage(pixels).to_rgb()
    ordered = to_rgb_image(ChannelImage(pixels), [2, 1, 0, 3])
    np.testing.assert_array_equal(np.asarray(ordered), np.asarray(first)[..., ::-1])
    np.testing.assert_array_equal(np.asarray(to_rgb_image(ChannelImage(pixels))), np.asarray(first))
    np.testing.assert_array_equal(np.asarray(to_rgb_image(first, [2, 1, 0])), np.asarray(first)[..., ::-1])


def test_overlays_of_prediction_and_evaluation_are_in_that_order(tmp_path):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name="resnet10t", num_labels=2, **SIZES)).eval()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([100.0, -100.0]))
    model.config.id2label = {0: "background", 1: "leaf"}
    model.save_pretrained(tmp_path / "model")
    processor = DDePImageProcessor(do_resize=False, channel_order=[2, 1, 0])
    processor.save_pretrained(tmp_path / "model")
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for folder, image in (("images", pixels), ("annotations", np.zeros((32, 32), np.uint8))):
        (tmp_path / "data" / folder / "val").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / folder / "val" / "a.png")
    (tmp_path / "data" / "classes.json").write_text('["background", "leaf"]')
    name = str(tmp_path / "model")
    image = str(tmp_path / "data" / "images" / "val" / "a.png")
    assert main(["predict", image, "--model", name, "--output_dir", str(tmp_path / "predicted")]) == 0
    arguments = ["--data", str(tmp_path / "data"), "--predictions", "overlays"]
    assert main(["evaluate", "--model", name, *arguments, "--output_dir", str(tmp_path / "evaluated")]) == 0
    for path in ("predicted/overlays/a.png", "evaluated/masks/overlays/a.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / path)), pixels[..., ::-1])
