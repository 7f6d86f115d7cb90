"""`ddep_hub.predict`: what it takes, and what it returns."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import ddep_hub
from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.predict import predict_images


def test_one_image_gives_one_mask_and_a_list_a_list(folder, scenes):
    path = sorted((scenes / "images" / "val").iterdir())[0]
    image = Image.open(path)
    masks = [
        ddep_hub.predict(folder, path),
        ddep_hub.predict(str(folder), str(path)),
        ddep_hub.predict(DDePForSemanticSegmentation.from_pretrained(folder), image),
        ddep_hub.predict(folder, np.asarray(image)),
        *ddep_hub.predict(folder, [path, image]),
        ddep_hub.predict(folder, scenes / "images" / "val")[0],
        ddep_hub.predict(folder, str(scenes / "images" / "val" / "*.*"))[0],
    ]
    assert masks[0].shape == (64, 64) and masks[0].dtype == np.uint8 and len(masks) == 8
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert len(ddep_hub.predict(folder, scenes / "images" / "val")) == 3
    assert isinstance(ddep_hub.predict(folder, [path]), list) and ddep_hub.predict(folder, []) == []


def test_the_home_folder_may_be_written_as_in_a_shell(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "model")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert ddep_hub.predict("~/model", "~/a.png").shape == (48, 64)
    assert len(ddep_hub.predict("~/model", ["~/a.png"])) == 1


def test_masks_in_a_folder_are_not_predicted(folder, scenes):
    """A folder of labelled data has as many results as images."""
    assert len(ddep_hub.predict(folder, scenes)) == 6 + 3 + 12


def test_masks_of_a_folder_are_in_the_order_of_the_path_strings(folder, tmp_path):
    names = ["a b/x.png", "a-1/x.png", "a.b/x.png", "a/x.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40 + number, 36)).save(tmp_path / name)
    assert [mask.shape[1] for mask in ddep_hub.predict(folder, tmp_path)] == [40, 41, 42, 43]


def test_windows_take_images_beyond_the_limit_of_pillow(folder, tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    names = [str(tmp_path / "large.png")]
    with pytest.raises(BadFileError, match=r"large\.png is too large.*predict it in windows"):
        predict_images(names, PredictArguments(model=str(folder), output_dir=str(tmp_path / "whole")))
    args = PredictArguments(model=str(folder), output_dir=str(tmp_path / "windows"), window=[32, 32])
    assert predict_images(names, args) == ["large"] and Image.MAX_IMAGE_PIXELS == 1000
    for options in ({"window": 32}, {"protocol": "cityscapes"}):  # whose windows are of 1024 pixels
        assert ddep_hub.predict(folder, names[0], **options).shape == (48, 64) and Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("kind", ["16-bit", "transparent", "turned", "wide-pgm"])
def test_an_opened_image_gives_the_mask_of_its_file(folder, scenes, tmp_path, kind):
    rgb = Image.open(sorted((scenes / "images" / "val").iterdir())[0]).convert("RGB").crop((0, 0, 64, 48))
    path = tmp_path / ("image.pgm" if kind == "wide-pgm" else "image.png")
    if kind == "wide-pgm":  # dark values, which say nothing of their depth
        path.write_bytes(b"P5 64 48 65535\n" + np.asarray(rgb.convert("L")).astype(">u2").tobytes())
    elif kind == "16-bit":
        Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 200 + 77).save(path)
    elif kind == "transparent":
        rgb.putalpha(Image.linear_gradient("L").resize(rgb.size))
        rgb.save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        rgb.save(path, exif=exif)
    mask = ddep_hub.predict(folder, path)
    assert mask.shape == ((64, 48) if kind == "turned" else (48, 64))
    assert np.array_equal(ddep_hub.predict(folder, Image.open(path)), mask)


@pytest.mark.parametrize("opened", [False, True])
def test_images_of_other_channels_are_turned_and_have_no_palette(model_of, tmp_path, opened):
    """As a file and as an opened image; the image processor too."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = rng.integers(0, 256, (64, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    indexed = Image.fromarray(rng.integers(0, 3, (64, 96), dtype=np.uint8))
    indexed.putpalette(list(range(9, 18)))
    indexed.save(tmp_path / "indexed.png", transparency=1)
    turned, palette = (
        Image.open(path) if opened else path for path in (tmp_path / "turned.png", tmp_path / "indexed.png")
    )
    model = model_of(1)
    expected = ddep_hub.predict(model, np.rot90(pixels, -1).copy())
    mask = ddep_hub.predict(model, turned)
    assert mask.shape == (96, 64) and np.array_equal(mask, expected)
    processor = DDePImageProcessor(image_mean=[0.5], image_std=[0.5], do_convert_rgb=False, do_resize=False)
    assert processor(turned, return_tensors="pt")["pixel_values"].shape == (1, 1, 96, 64)
    with pytest.raises(ValueError, match=r"indexed\.png has 4 channels .*model takes 1"):
        ddep_hub.predict(model, palette)
    rgba = np.asarray(Image.open(tmp_path / "indexed.png").convert("RGBA"))
    assert np.array_equal(ddep_hub.predict(model_of(4), palette), ddep_hub.predict(model_of(4), rgba))


def test_arrays_of_grey_and_of_the_models_channels(folder, model_of):
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for model in (folder, model_of(1)):
        masks = [ddep_hub.predict(model, image) for image in (grey, grey[..., None], Image.fromarray(grey))]
        assert masks[0].shape == (64, 64) and all(np.array_equal(mask, masks[0]) for mask in masks)
    assert np.array_equal(ddep_hub.predict(folder, np.dstack([grey] * 3)), ddep_hub.predict(folder, grey))
    assert ddep_hub.predict(model_of(2), np.dstack([grey, grey])).shape == (64, 64)
    assert ddep_hub.predict(model_of(2), np.zeros((2, 64, 2), np.uint8)).shape == (2, 64)


def test_threads_share_a_model_and_pillows_settings(folder):
    model = DDePForSemanticSegmentation.from_pretrained(folder).train()
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)) for seed in (0, 1)]
    expected = [ddep_hub.predict(model, image, window=32) for image in images]
    state, limit = {name: tensor.clone() for name, tensor in model.state_dict().items()}, Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda image: ddep_hub.predict(model, image, window=32), images * 6))
    assert all(np.array_equal(mask, truth) for mask, truth in zip(masks, expected * 6, strict=True))
    assert model.training and Image.MAX_IMAGE_PIXELS == limit
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_masks_as_pictures_with_palette(folder, scenes):
    path = sorted((scenes / "images" / "val").iterdir())[0]
    picture = ddep_hub.predict(folder, path, return_type="pil")
    mask = ddep_hub.predict(folder, path)
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), mask)
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.array(SCENE_CLASSES.colors, dtype=np.uint8)[mask])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": np.zeros((4, 4, 3))}, ValueError, "images: arrays must be uint8"),
        ({"images": torch.zeros(3, 64, 64)}, TypeError, "images: got Tensor. Pass paths, URLs, PIL images or NumPy"),
        ({"images": [torch.zeros(3, 64, 64)]}, TypeError, "images: got Tensor"),
        ({"images": b"\x89PNG"}, TypeError, "images: got bytes"),
        ({"images": io.BytesIO(b"\x89PNG\n1")}, TypeError, "images: got BytesIO"),
        ({"images": ""}, ValueError, "images: empty name"),
        ({"images": [""]}, ValueError, "images: empty name"),
        ({"images": None}, TypeError, "images: got NoneType"),
        ({"images": {"image": "a.png"}}, TypeError, r'images: got dict.*its image column.*data\["image"\]'),
        ({"images": datasets.Dataset.from_dict({"image": [1]})}, TypeError, "images: got dict.*its image column"),
        ({"images": [], "processor": "runs/x"}, TypeError, "processor: got str. Pass an image processor, such as"),
        ({"images": np.zeros((3, 64, 64), np.uint8)}, ValueError, r"shape \(3, 64, 64\). Pass \(height, width\) or"),
        (
            {"images": np.zeros((2, 64, 64, 3), np.uint8)},
            ValueError,
            r"or \(height, width, 1\), and a batch as a list",
        ),
        ({"images": np.zeros((64, 64, 2), np.uint8)}, ValueError, r"an array has shape \(64, 64, 2\)"),
        ({"images": np.zeros((64, 64, 4), np.uint8)}, ValueError, r"an array has shape \(64, 64, 4\)"),
        ({"images": np.zeros((0, 64, 3), np.uint8)}, ValueError, r"an array has shape \(0, 64, 3\)"),
        ({"images": Image.new("RGB", (64, 0))}, ValueError, "no pixels: its size is 64x0"),
        ({"images": "nowhere.png"}, FileNotFoundError, r"nowhere\.png"),
        ({"images": [], "return_type": "torch"}, ValueError, "return_type must be"),
        ({"images": [], "windows": 3}, TypeError, "Did you mean `window`"),
        ({"images": [], "stride": 3}, ValueError, "set window as well"),
        ({"images": [], "image_size": 1}, ValueError, "image_size must be at least 8 pixels, got 1"),
    ],
)
def test_mistakes_are_named(arguments, error, message, folder):
    with pytest.raises(error, match=message):
        ddep_hub.predict(folder, **arguments)


@pytest.mark.parametrize("call", [ddep_hub.evaluate, lambda model: ddep_hub.predict(model, "a.png")])
def test_what_is_no_finetuned_model_is_named(call, hybrid_config, tmp_path):
    model = DDePForPreTraining(hybrid_config())
    with pytest.raises(ValueError, match=r"^model: DDePForPreTraining is not a fine-tuned .* Fine-tune it first"):
        call(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^model: {tmp_path} is not a fine-tuned segmentation model. Fine-tune it"):
        call(DDePForPreTraining.from_pretrained(tmp_path))
    with pytest.raises(TypeError, match=r"^model: got NoneType\. Pass a fine-tuned model, a folder or a Hub id"):
        call(None)
