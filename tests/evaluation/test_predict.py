"""`ddep_hub.predict` and `ddep_hub.evaluate`: what they take, and what they return."""

import copy
import io
import json
import pickle
import shutil
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from transformers import CLIPImageProcessor, SegformerImageProcessor

import ddep_hub
from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor, image_conversion
from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.evaluation import inference
from ddep_hub.evaluation import predict as prediction
from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.predict import MAX_PENDING, get_processor, predict_images
from ddep_hub.evaluation.prediction_files import MaskWriter, read_image


@pytest.fixture(scope="module")
def model_of(hybrid_config):
    """An untrained model of any number of channels."""

    def build(channels):
        torch.manual_seed(0)
        return DDePForSemanticSegmentation(hybrid_config(num_channels=channels, num_labels=3)).eval()

    return build


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hybrid_config):
    names = SCENE_CLASSES.names
    torch.manual_seed(0)
    config = hybrid_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    path = tmp_path_factory.mktemp("model")
    DDePForSemanticSegmentation(config).save_pretrained(path)
    DDePImageProcessor(do_resize=False, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(path)
    return path


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


def test_a_folder_gets_the_masks_of_its_images_in_order(folder, scenes, tmp_path):
    """They are read and written by other threads than the one that predicts."""
    images = sorted((scenes / "images" / "train").iterdir())
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    names = predict_images([str(scenes / "images" / "train")], arguments)
    assert names == [path.stem for path in images] and len(names) > MAX_PENDING
    for path, mask in zip(images, ddep_hub.predict(folder, images), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "ids" / f"{path.stem}.png")), mask)


def test_masks_in_a_folder_are_not_predicted(folder, scenes):
    """A folder of labelled data has as many results as images."""
    assert len(ddep_hub.predict(folder, scenes)) == 6 + 3 + 12


def test_images_of_one_name_keep_their_endings(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "a.tif", "b.jpg"):
        Image.new("RGB", (40, 36)).save(images / name)
    assert len(ddep_hub.predict(folder, images)) == 3
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    for name in (str(images), str(images / "*")):
        assert predict_images([name], arguments) == ["a.jpg", "a.tif", "b"]


def test_a_pattern_for_any_depth_leaves_out_earlier_predictions(folder, tmp_path):
    Image.new("RGB", (40, 36)).save(tmp_path / "a.png")
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    predict_images([str(tmp_path / "a.png")], arguments)
    arguments.output_dir = str(tmp_path / "again")
    assert predict_images([f"{tmp_path}/**/*.png"], arguments) == ["a"]


def test_masks_of_a_folder_are_in_the_order_of_the_path_strings(folder, tmp_path):
    names = ["a b/x.png", "a-1/x.png", "a.b/x.png", "a/x.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40 + number, 36)).save(tmp_path / name)
    assert [mask.shape[1] for mask in ddep_hub.predict(folder, tmp_path)] == [40, 41, 42, 43]


def test_an_evaluation_leaves_the_masks_of_predict(folder, scenes, tmp_path):
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    predict_images([str(scenes / "images" / "train")], arguments)
    before = sorted((tmp_path / "masks" / "ids").iterdir())
    ddep_hub.evaluate(folder, str(scenes), output_dir=str(tmp_path), predictions=["ids"])
    ddep_hub.evaluate(folder, str(scenes), output_dir=str(tmp_path))
    assert set(before) <= set((tmp_path / "masks" / "ids").iterdir())


def test_damaged_images_are_skipped_and_named_at_the_end(folder, scenes, tmp_path, caplog):
    mixed = tmp_path / "images"
    mixed.mkdir()
    for number, path in enumerate(sorted((scenes / "images" / "train").iterdir())):
        (mixed / f"{number}.png").write_bytes(path.read_bytes()[: {1: 100, 4: 0}.get(number)])
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    said = r"2 of 6 images could not be read and were skipped; the results .* are in .*masks: .*/1\.png, .*/4\.png\."
    with pytest.raises(BadFileError, match=said):
        predict_images([str(mixed)], arguments)
    written = sorted((tmp_path / "masks" / "ids").iterdir())
    assert [path.stem for path in written] == ["0", "2", "3", "5"]
    assert all(Image.open(path).size == (64, 64) for path in written)
    assert "4.png is empty (0 bytes)" in caplog.text and "skipping it" in caplog.text


def test_values_that_cannot_be_scaled_are_skipped_too(model_of, tmp_path, caplog):
    model_of(2).save_pretrained(tmp_path / "model")
    processor = DDePImageProcessor(image_mean=[0.4] * 2, image_std=[0.3] * 2, do_convert_rgb=False, do_resize=False)
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for name, value in (("a", 0.5), ("b", -3.4e38), ("c", 0.2)):
        np.save(tmp_path / "images" / f"{name}.npy", np.full((2, 48, 64), value, np.float32))
    arguments = PredictArguments(
        model=str(tmp_path / "model"), predictions=["ids"], output_dir=str(tmp_path / "masks")
    )
    with pytest.raises(BadFileError, match=r"1 of 3 images could not be read and were skipped.*/b\.npy\."):
        predict_images([str(tmp_path / "images")], arguments)
    assert sorted(path.stem for path in (tmp_path / "masks" / "ids").iterdir()) == ["a", "c"]
    assert "b.npy holds values that are not finite, or too large" in caplog.text


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


def test_addresses_and_long_names(tmp_path):
    with pytest.raises(OSError, match=r"could not be downloaded \(<urlopen error"):  # and not for its letters
        read_image("http://127.0.0.1:9/ä b.jpg")
    name = "x" * 247
    MaskWriter(tmp_path, SCENE_CLASSES, ["ids"]).write(name, np.zeros((4, 4), np.uint8))
    assert [path.name for path in tmp_path.rglob("*.png")] == [f"{name}.png"]


def test_few_large_rasters_are_held_at_a_time(folder, tmp_path, monkeypatch):
    for name in range(12):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name:02d}.png")
    held, most = [], []
    read = prediction.read_image

    def read_image(source, channels):
        image = read(source, channels)
        held.append(weakref.ref(image))
        most.append(sum(reference() is not None for reference in held))
        return image

    monkeypatch.setattr(prediction, "read_image", read_image)
    arguments = {"model": str(folder), "predictions": ["ids"], "output_dir": str(tmp_path / "masks")}
    assert len(prediction.predict_images([str(tmp_path)], PredictArguments(window=[16], **arguments))) == 12
    assert max(most) <= 5


def test_nothing_is_written_where_no_image_can_be_read(folder, tmp_path):
    (tmp_path / "a.png").touch()
    arguments = PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks"))
    with pytest.raises(BadFileError, match=r"a\.png is empty"):
        predict_images([str(tmp_path / "a.png")], arguments)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_images_that_need_much_memory_are_warned_of_once(action, folder, scenes, monkeypatch):
    def run():
        ddep_hub.predict(folder, images) if action == "predict" else ddep_hub.evaluate(folder, scenes)

    images = sorted((scenes / "images" / "val").iterdir())[:2]
    monkeypatch.setattr(inference, "MEMORY_WARNING_GB", 1e-3)
    with pytest.warns(UserWarning) as caught:
        run()
    (said,) = [str(warning.message) for warning in caught if "GB of memory" in str(warning.message)]
    assert "64x64 pixels" in said and "`window=1024`" in said and "`image_size=1024`" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddep_hub.predict(folder, images, window=32)
        monkeypatch.undo()
        run()


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_images_of_another_scale_than_those_of_training(action, folder, scenes, monkeypatch):
    """Fine-tuned on tiles of 64 pixels as they are, a scene of 640 must not be scaled down to 64."""
    model = DDePForSemanticSegmentation.from_pretrained(folder)
    processor = DDePImageProcessor(size={"shortest_edge": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3)

    def run(**options):
        if action == "predict":
            image = next((scenes / "images" / "val").iterdir())  # 64x64
            return ddep_hub.predict(model, image, processor=processor, **options)
        return ddep_hub.evaluate(model, scenes, processor=processor, **options)

    model.config.image_scale_range = [0.9, 1.1]
    monkeypatch.setattr(image_conversion, "_warned", set())
    said = r"64x64 .* by a factor of 0\.25, those of training by 0\.90 to 1\.10"
    with pytest.warns(UserWarning, match=said) as caught:
        run()
    assert "set image_size=64, and `window`" in str(caught[0].message)
    monkeypatch.setattr(image_conversion, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(image_size=64)
        run(image_size=40)
        model.config.image_scale_range = None  # of a model that was not fine-tuned here
        run()


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


def test_the_processor_of_the_model_is_used(folder, scenes):
    """The same as transformers' own way: processor, model, post-processing."""
    image = Image.open(sorted((scenes / "images" / "val").iterdir())[0])
    model, processor = DDePForSemanticSegmentation.from_pretrained(folder), DDePImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = model.eval()(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(output, target_sizes=[(64, 64)])
    assert np.array_equal(ddep_hub.predict(model, image), expected.numpy())
    assert not np.array_equal(ddep_hub.predict(model, image, processor=DDePImageProcessor()), expected.numpy())
    windows = ddep_hub.predict(model, image, window=32, image_size=48)
    assert windows.shape == (64, 64) and not np.array_equal(windows, expected.numpy())


def test_the_processor_lies_where_the_model_was_loaded_from(folder, tmp_path):
    """At its revision, in its subfolder, from its cache; for copies too, but a pickled one holds no token."""
    repository, model = tmp_path / "cache" / "models--org--seg", DDePForSemanticSegmentation.from_pretrained(folder)
    (repository / "refs").mkdir(parents=True)
    for revision, mean in (("main", 0.1), ("v1", 0.2)):
        commit = revision[0] * 40
        (repository / "refs" / revision).write_text(commit)
        for part in (model, DDePImageProcessor(image_mean=[mean] * 3)):
            part.save_pretrained(repository / "snapshots" / commit / "final")
    where = {"subfolder": "final", "cache_dir": tmp_path / "cache", "local_files_only": True, "token": "hf_secret"}
    model = DDePForSemanticSegmentation.from_pretrained("org/seg", revision="v1", **where)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert tuple(get_processor(same).image_mean) == (0.2, 0.2, 0.2)
    assert copy.deepcopy(model)._hub_arguments["token"] == "hf_secret" and b"hf_secret" not in pickle.dumps(model)
    model.save_pretrained(tmp_path / "saved")
    assert "final" not in (tmp_path / "saved" / "config.json").read_text()
    local = DDePForSemanticSegmentation.from_pretrained(repository / "snapshots" / ("m" * 40), subfolder="final")
    assert tuple(get_processor(local).image_mean) == (0.1, 0.1, 0.1)


def test_a_processor_that_cannot_be_had_is_no_missing_one(folder, scenes, tmp_path, monkeypatch):
    """Predictions normalised otherwise would be wrong without a word."""
    image = Image.open(sorted((scenes / "images" / "val").iterdir())[0])
    repository = tmp_path / "cache" / "models--org--seg"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    DDePForSemanticSegmentation.from_pretrained(folder).save_pretrained(repository / "snapshots" / ("a" * 40))
    where = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    model = DDePForSemanticSegmentation.from_pretrained("org/seg", **where)
    with pytest.raises(OSError, match=r"org/seg: preprocessor_config\.json is not in the cache.*pass `processor`"):
        ddep_hub.predict(model, image)
    # The Hub has said before that there is none.
    (repository / ".no_exist" / ("a" * 40)).mkdir(parents=True)
    (repository / ".no_exist" / ("a" * 40) / "preprocessor_config.json").touch()
    assert ddep_hub.predict(model, image).shape == (64, 64)

    copied = shutil.copytree(folder, tmp_path / "runs" / "final")
    monkeypatch.chdir(tmp_path)
    model = DDePForSemanticSegmentation.from_pretrained("runs/final")
    monkeypatch.chdir("/")
    assert np.array_equal(ddep_hub.predict(model, image), ddep_hub.predict(folder, image))
    shutil.rmtree(copied)
    with pytest.raises(FileNotFoundError, match=r"processor: .*runs/final.*no longer there"):
        ddep_hub.predict(model, image)


def test_a_mean_for_all_channels_serves(folder, scenes, tmp_path):
    image, path = Image.open(sorted((scenes / "images" / "val").iterdir())[0]), shutil.copytree(folder, tmp_path / "m")
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": 0.4, "image_std": 0.3}))
    assert np.array_equal(ddep_hub.predict(path, image), ddep_hub.predict(folder, image))


def test_a_processor_that_crops_or_pads_does_not_shift_the_masks(folder, scenes):
    image = Image.open(sorted((scenes / "images" / "val").iterdir())[0])
    options = {"size": {"shortest_edge": 48}, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    masks = [
        ddep_hub.predict(folder, image, processor=CLIPImageProcessor(crop_size=32, do_center_crop=crop, **options))
        for crop in (True, False)
    ]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_wrapped_models_are_taken_or_named(action, folder, scenes):
    def run(model):
        if action == "predict":
            return ddep_hub.predict(model, scenes / "images" / "val")
        return ddep_hub.evaluate(model, scenes)

    model = DDePForSemanticSegmentation.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"DataParallel is not a DDePForSemanticSegmentation\. .*`\.module`"):
        run(torch.nn.DataParallel(model))
    with pytest.raises(ValueError, match="Linear is not a DDePForSemanticSegmentation"):
        run(torch.nn.Linear(2, 2))
    expected, found = run(model), run(torch.compile(model, backend="eager"))
    if action == "predict":
        assert all(map(np.array_equal, found, expected))
    else:
        assert found["mean_iou"] == expected["mean_iou"]


def test_evaluate_leaves_the_accelerator_around_it(folder, scenes):
    AcceleratorState._reset_state()
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    ddep_hub.evaluate(folder, scenes)
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    ddep_hub.evaluate(folder, scenes)
    assert not AcceleratorState._shared_state  # as before: a program may still choose its own


def test_a_processor_of_transformers_serves(folder, scenes):
    image = Image.open(sorted((scenes / "images" / "val").iterdir())[0])
    options = {"do_resize": False, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    mask = ddep_hub.predict(folder, image, processor=SegformerImageProcessor(**options))
    assert np.array_equal(mask, ddep_hub.predict(folder, image))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_object_is_left_as_it_was(folder, scenes, monkeypatch, precision):
    model = DDePForSemanticSegmentation.from_pretrained(folder).train()
    model.ddep.encoder.eval()
    before, modes = set(vars(model)), [module.training for module in model.modules()]
    ddep_hub.predict(model, Image.new("RGB", (64, 64)))
    assert [module.training for module in model.modules()] == modes
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state()
    try:
        results = [ddep_hub.evaluate(model, scenes) for _ in range(2)]
        assert [result["mixed_precision"] for result in results] == [precision] * 2
        assert results[0]["iou"] == results[1]["iou"]
    finally:
        AcceleratorState._reset_state()
    assert [module.training for module in model.modules()] == modes and set(vars(model)) == before
    with pytest.raises(ValueError, match="no pixels"):
        ddep_hub.predict(model, Image.new("RGB", (64, 0)))
    assert [module.training for module in model.modules()] == modes


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


def test_the_processor_of_a_model_from_nowhere_is_named(model_of, caplog):
    ddep_hub.predict(model_of(3), Image.new("RGB", (64, 64)))
    assert "not loaded from a folder or the Hub, so images get timm's mean and std" in caplog.text


def test_masks_as_pictures_with_palette(folder, scenes):
    path = sorted((scenes / "images" / "val").iterdir())[0]
    picture = ddep_hub.predict(folder, path, return_type="pil")
    mask = ddep_hub.predict(folder, path)
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), mask)
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.array(SCENE_CLASSES.colors, dtype=np.uint8)[mask])


def test_evaluate_takes_names_and_objects_and_writes_only_where_it_is_told(folder, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = ddep_hub.evaluate(folder, scenes, split="val")
    model = DDePForSemanticSegmentation.from_pretrained(folder)
    same = ddep_hub.evaluate(model, SegmentationFolder(scenes, "val"), batch_size=3)
    assert results["mean_iou"] == same["mean_iou"] and results["images"] == 3
    assert list(tmp_path.iterdir()) == []
    ddep_hub.evaluate(model, scenes, output_dir=tmp_path / "out", predictions=["ids"])
    assert (tmp_path / "out" / "results.json").is_file() and (tmp_path / "out" / "masks" / "ids").is_dir()
    dataset = SegmentationFolder(scenes, "train")
    (tmp_path / "two.txt").write_text("\n".join(dataset.sample_ids[:2]))
    results = ddep_hub.evaluate(model, dataset, split_file=str(tmp_path / "two.txt"))
    assert results["images"] == 2 and results["arguments"]["eval_split"] is None
    samples = type("Pairs", (list,), {"classes": dataset.classes, "sample_ids": dataset.sample_ids})(dataset)
    with pytest.raises(TypeError, match="split_file: Pairs has no method `select`"):
        ddep_hub.evaluate(model, samples, split_file=str(tmp_path / "two.txt"))
    assert results["arguments"]["data"] == str(scenes)


def test_masks_stay_in_their_folder(tmp_path):
    writer = MaskWriter(tmp_path / "out", SCENE_CLASSES, ["ids", "colors"])
    names = [f"{tmp_path}/photos/x", "../photos/y", "C:\\photos\\z"]
    writer.check(names)
    for name in names:
        writer.write(name, np.zeros((2, 2), int))
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    expected = {f"{tmp_path.as_posix().lstrip('/')}/photos/x", "photos/y", "photos/z"}
    assert written == {f"out/{kind}/{name}.png" for kind in ("ids", "colors") for name in expected}
    with pytest.raises(ValueError, match=r"\.\./a and a would both be written as a\.png"):
        writer.check(["../a", "a"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": np.zeros((4, 4, 3))}, ValueError, "images: arrays must be uint8"),
        ({"images": torch.zeros(3, 64, 64)}, TypeError, "images: got Tensor. Pass paths, URLs, PIL images or NumPy"),
        ({"images": [torch.zeros(3, 64, 64)]}, TypeError, "images: got Tensor"),
        ({"images": b"\x89PNG"}, TypeError, "images: got bytes"),
        ({"images": io.BytesIO(b"\x89PNG\n1")}, TypeError, "images: got BytesIO"),
        ({"images": ""}, ValueError, "images: an empty name"),
        ({"images": [""]}, ValueError, "images: an empty name"),
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


@pytest.mark.parametrize(
    ("annotation", "error", "message"),
    [
        (np.full((96, 128), 77), ValueError, r"of a holds 77: class ids are 0 to \d, and 255 is ignored"),
        (np.full((96, 128), -1), ValueError, "of a holds -1: class ids"),
        (np.zeros((48, 64), int), ValueError, r"of a has shape \(48, 64\), but its image 96x128"),
        (torch.zeros(96, 128), TypeError, r"of a is a Tensor\. Give an array \(height, width\)"),
    ],
)
def test_samples_of_a_dataset_object_are_checked(annotation, error, message, folder):
    class Own:
        classes, sample_ids = SCENE_CLASSES, ["a"]

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": Image.new("RGB", (128, 96)), "annotation": annotation}

    with pytest.raises(error, match=f"^data: `annotation` {message}"):
        ddep_hub.evaluate(folder, Own())
    Own.classes = ["sky"]
    with pytest.raises(TypeError, match=r"data: its `classes` is a list\. Give a ddep_hub\.data\.classes\.ClassTable"):
        ddep_hub.evaluate(folder, Own())


def test_items_of_a_dataset_object_are_pictures_with_a_name_each(model_of):
    class Own(list):
        classes, sample_ids = ClassTable(tuple("xyz"), class_colors(3)), ["a"]

    mask = np.zeros((48, 64), np.uint8)
    data = Own([{"image": np.zeros((48, 64, 3), np.uint8), "annotation": mask}])
    model, processor = model_of(3), DDePImageProcessor(do_resize=False)
    with pytest.raises(TypeError, match=r"^data: `image` of a is of type ndarray\. Give a PIL image\.$"):
        ddep_hub.evaluate(model, data, processor=processor)
    data = Own([{"image": Image.new("RGB", (64, 48)), "annotation": mask}] * 2)
    with pytest.raises(ValueError, match=r"^data: it has 2 items, but 1 sample_ids\. Give each item its own\.$"):
        ddep_hub.evaluate(model, data, processor=processor)
    data.sample_ids = ["a", "b"]
    assert ddep_hub.evaluate(model, data, processor=processor)["images"] == 2


def test_evaluate_runs_where_predict_does(folder, scenes, monkeypatch):
    """And not on a Mac's GPU, as accelerate would have it."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args, **kwargs: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # which accelerate sets
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert ddep_hub.evaluate(folder, scenes)["images"] == 3
        assert PartialState().device.type == "mps"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "data",
    [[], {}, datasets.Dataset.from_dict({"image": [1]}), datasets.DatasetDict()],
    ids=["list", "dict", "Dataset", "DatasetDict"],
)
def test_what_is_no_labelled_data_is_named(data, folder):
    with pytest.raises(TypeError, match=rf"^data: got {type(data).__name__}\. Pass a folder.*docs/extending\.md"):
        ddep_hub.evaluate(folder, data)


def test_a_killed_command_leaves_no_half_mask_and_runs_again(folder, scenes, tmp_path, monkeypatch):
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    images, original, saved = [str(scenes / "images" / "val")], Image.Image.save, []

    def killed(self, place, *args, **kwargs):
        saved.append(place)
        if len(saved) == 3:
            Path(place).write_bytes(b"half")
            raise KeyboardInterrupt
        original(self, place, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", killed)
        predict_images(images, arguments)
    left = sorted((tmp_path / "masks" / "ids").glob("[!.]*"))
    assert left and all(Image.open(path).size == (64, 64) for path in left)
    assert len(predict_images(images, arguments)) == 3
    assert not list((tmp_path / "masks").rglob("*.partial"))


def test_masks_of_geotiffs_keep_their_place(folder, tmp_path):
    info = ImageFileDirectory_v2()
    info[33550], info[33922] = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0)
    Image.new("RGB", (64, 48)).save(tmp_path / "placed.tif", tiffinfo=info)
    Image.new("RGB", (64, 48)).save(tmp_path / "plain.tif")
    predict_images([str(tmp_path)], PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks")))
    for kind in ("ids", "overlays"):
        files = sorted(path.name for path in (tmp_path / "masks" / kind).iterdir())
        assert files == ["placed.png", "placed.png.aux.xml", "plain.png"]


def test_what_cannot_be_written_is_named(folder, scenes, tmp_path, monkeypatch):
    images = [str(scenes / "images" / "val")]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"output_dir: .*file is a file"):
        predict_images(images, PredictArguments(model=str(folder), output_dir=str(tmp_path / "file")))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(
            OSError, match=r"output_dir: .*legend\.png could not be written: No space left.*Free some space"
        ):
            predict_images(images, PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks")))
    monkeypatch.setattr("ddep_hub.utils.files._flush", full)
    with pytest.raises(OSError, match=r"output_dir: .*scores could not be written: No space left.*Free some space"):
        ddep_hub.evaluate(str(folder), str(scenes), split="val", output_dir=str(tmp_path / "scores"))
    assert not list((tmp_path / "scores").iterdir())
