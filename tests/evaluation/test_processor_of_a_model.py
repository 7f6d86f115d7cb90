"""The image processor with which a model predicts."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SegformerImageProcessor

import ddep_hub
from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.evaluation.predict import get_processor


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
    with pytest.raises(FileNotFoundError, match=r"processor: .*runs/final.*no longer exists"):
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


def test_a_processor_of_transformers_serves(folder, scenes):
    image = Image.open(sorted((scenes / "images" / "val").iterdir())[0])
    options = {"do_resize": False, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    mask = ddep_hub.predict(folder, image, processor=SegformerImageProcessor(**options))
    assert np.array_equal(mask, ddep_hub.predict(folder, image))


def test_the_processor_of_a_model_from_nowhere_is_named(model_of, caplog):
    ddep_hub.predict(model_of(3), Image.new("RGB", (64, 64)))
    assert "not loaded from a folder or the Hub, so images get timm's mean and std" in caplog.text
