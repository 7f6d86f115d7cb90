"""DDePConfig: types, ranges, misspelt names, labels, formats, round trips."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Trainer, TrainingArguments

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub import __version__ as version
from ddep_hub.configuration_ddep import FORMAT_VERSION


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_channels", "3"),
        ("num_channels", True),
        ("num_channels", 0),
        ("decoder_bottleneck_size", -1),
        ("decoder_width", 0.0),
        ("decoder_width", float("nan")),
        ("decoder_norm", "layer"),
        ("decoder_interpolation", "cubic"),
        ("label_colors", [[0, 0]]),
        ("label_colors", [[0, 0, 256]]),
        ("decoder_hidden_sizes", []),
        ("decoder_hidden_sizes", [64, 0]),
        ("decoder_hidden_sizes", 64),
        ("freeze_encoder", "yes"),
        ("corruption", "Scaled"),
        ("prediction_type", "noise"),
        ("sigma", 0.0),
        ("sigma", [0.3, 0.2]),
        ("sigma", [0.1, 0.2, 0.3]),
        ("sigma", float("inf")),
        ("sigma", "0.2"),
        ("mask_ratio", 1.0),
        ("mask_patch_size", 0),
        ("encoder_kwargs", [1]),
        ("encoder_kwargs", {"features_only": True}),
        ("encoder_name", None),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        DDePConfig(**{field: value})


@pytest.mark.parametrize("fields", [{}, {"prediction_type": "sample", "image_skip": True}])
def test_masked_images_are_predicted_without_seeing_them(fields):
    with pytest.raises(StrictDataclassError, match='Set prediction_type="sample" and image_skip=False'):
        DDePConfig(corruption="masked", **fields)


def test_features_are_predicted_by_a_frozen_encoder_alone():
    fields = {"corruption": "downsampled", "prediction_type": "features"}
    assert DDePConfig(**fields).freeze_encoder
    with pytest.raises(StrictDataclassError, match='Set prediction_type="features" and image_skip=False'):
        DDePConfig(corruption="downsampled")
    with pytest.raises(StrictDataclassError, match='needs corruption="downsampled"'):
        DDePConfig(prediction_type="features")
    with pytest.raises(StrictDataclassError, match="Set freeze_encoder=True"):
        DDePConfig(freeze_encoder=False, **fields)


def test_assignment_is_checked_too():
    config = DDePConfig()
    with pytest.raises(StrictDataclassError, match="decoder_norm"):
        config.decoder_norm = "layer"


MISSPELT = [("decoder_norn", "decoder_norm"), ("freeze_encode", "freeze_encoder"), ("num_label", "num_labels")]


@pytest.mark.parametrize("wrong, right", MISSPELT)
def test_a_misspelt_name_raises_and_the_right_one_is_named(tmp_path, hybrid_config, wrong, right):
    expected = re.escape(f"no field `{wrong}`. Did you mean `{right}`?")
    with pytest.raises(ValueError, match=expected):
        DDePConfig(**{wrong: 1})
    hybrid_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=expected):
        DDePConfig.from_pretrained(tmp_path, **{wrong: 1})
    with pytest.raises(ValueError, match=expected):
        DDePForSemanticSegmentation.from_pretrained(tmp_path, **{wrong: 1})
    with pytest.raises(ValueError, match=expected):
        DDePForSemanticSegmentation.from_pretrained(tmp_path, config=hybrid_config(), **{wrong: 1})


def test_a_misspelt_name_in_a_folder_raises(tmp_path):
    DDePConfig().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["sigmas"] = 0.3
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"no field `sigmas`. Did you mean `sigma`"):
        DDePConfig.from_pretrained(tmp_path)


def test_any_other_name_is_kept_with_a_warning(tmp_path, caplog):
    config = DDePConfig(my_note="x")
    assert config.my_note == "x"
    assert "no field `my_note`" in caplog.text
    config.save_pretrained(tmp_path)
    caplog.clear()
    assert DDePConfig.from_pretrained(tmp_path, other=2).other == 2
    assert "no field `other`" in caplog.text and "no field `my_note`" in caplog.text


def test_a_misspelt_attribute_does_not_stop_saving(tmp_path):
    config = DDePConfig()
    config.decoder_norn = "group"  # a finished run must not be lost to it
    config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_what_transformers_passes_itself_needs_no_warning(tmp_path, caplog):
    config = DDePConfig(
        num_labels=4,
        attn_implementation="eager",
        output_attentions=False,
        name_or_path="x",
        torch_dtype="float32",
        architectures=["DDePModel"],
    )
    config.save_pretrained(tmp_path)
    DDePConfig.from_pretrained(tmp_path, revision="main", local_files_only=True)
    unused = DDePConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, device_map="cpu", code_revision="x", encoder_weights="w", foo=1
    )[1]
    assert unused == {"device_map": "cpu", "code_revision": "x", "encoder_weights": "w", "foo": 1}
    assert caplog.text == ""


def test_what_trainer_saves_needs_no_warning(tmp_path, hybrid_config, caplog):
    sample = {"pixel_values": torch.randn(3, 32, 32), "labels": torch.zeros(32, 32, dtype=torch.long)}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(DDePForSemanticSegmentation(hybrid_config()), arguments, train_dataset=[sample] * 2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert "use_cache" in json.loads((tmp_path / "saved" / "config.json").read_text())
    caplog.clear()
    DDePForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert caplog.text == ""


def test_labels():
    assert DDePConfig().num_labels == 2
    named = DDePConfig(id2label={"0": "road", "1": "sky", "2": "car"})
    assert named.num_labels == 3
    assert named.id2label == {0: "road", 1: "sky", 2: "car"}
    assert named.label2id == {"road": 0, "sky": 1, "car": 2}
    assert DDePConfig(label2id={"road": 0, "sky": 1}).id2label == {0: "road", 1: "sky"}
    assert DDePConfig(label2id={"road": "0", "sky": "1"}).label2id == {"road": 0, "sky": 1}
    assert DDePConfig(num_labels=np.int64(3)).num_labels == 3
    numbered = DDePConfig(num_labels=5)
    assert len(numbered.id2label) == len(numbered.label2id) == 5
    numbered.num_labels = 3
    assert len(numbered.id2label) == len(numbered.label2id) == 3


def test_names_set_on_either_map_are_saved(tmp_path):
    config = DDePConfig(num_labels=2)
    config.label2id = {"road": 0, "sky": 1}
    config.save_pretrained(tmp_path)
    assert DDePConfig.from_pretrained(tmp_path).id2label == {0: "road", 1: "sky"}
    config.id2label = {0: "sea", 1: "sky"}
    config.save_pretrained(tmp_path)
    assert DDePConfig.from_pretrained(tmp_path).label2id == {"sea": 0, "sky": 1}


def test_integers_as_class_names_become_text():
    try:
        config = DDePConfig(id2label={0: 10, 1: 20})
    except StrictDataclassError:
        pytest.skip("this release of huggingface_hub refuses them")
    assert config.label2id == {"10": 0, "20": 1}


@pytest.mark.parametrize(
    "labels, named",
    [
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels is 3, but the label map has 2"),
        ({"id2label": {1: "a", 2: "b"}}, "ids 0 to 1"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "label2id does not match id2label"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0}}, "label2id does not match id2label"),
        ({"num_labels": 0}, "num_labels must be a whole number of at least 1, got 0"),
        ({"num_labels": "3"}, "num_labels must be a whole number of at least 1, got '3'"),
        ({"num_labels": True}, "num_labels must be a whole number of at least 1, got True"),
        ({"id2label": {}}, "id2label is empty"),
        ({"id2label": {0: None, 1: "b"}}, "id2label must map ids to names|id2label.* expected"),
        ({"label2id": {"a": "zero"}}, "label2id must map names to ids"),
        # The second message is that of an older Hub library.
        ({"label2id": ["a", "b"]}, "label2id must map names to ids|label2id.* expected a dict"),
    ],
)
def test_a_label_map_that_does_not_match_is_refused(labels, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        DDePConfig(**labels)


def test_labels_given_at_loading_replace_the_stored_ones(tmp_path):
    colors = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    DDePConfig(id2label={0: "a", 1: "b", 2: "c"}, label_colors=colors).save_pretrained(tmp_path)
    assert DDePConfig.from_pretrained(tmp_path, num_labels=3).label_colors == colors
    assert DDePConfig.from_pretrained(tmp_path, num_labels=4).label_colors is None
    assert DDePConfig.from_pretrained(tmp_path, id2label={0: "x"}, label_colors=[[9, 9, 9]]).label_colors == [
        [9, 9, 9]
    ]
    assert DDePConfig.from_pretrained(tmp_path).label2id == {"a": 0, "b": 1, "c": 2}
    assert DDePConfig.from_pretrained(tmp_path, num_labels=3).id2label == {0: "a", 1: "b", 2: "c"}
    assert DDePConfig.from_pretrained(tmp_path, num_labels=2).label2id == {"LABEL_0": 0, "LABEL_1": 1}
    other = DDePConfig.from_pretrained(tmp_path, id2label={0: "x", 1: "y"})
    assert other.num_labels == 2 and other.label2id == {"x": 0, "y": 1}


def test_round_trip(tmp_path):
    config = DDePConfig(
        encoder_kwargs={"img_size": 64},
        decoder_hidden_sizes=(8, 4),
        sigma=(0.2, 0.3),
        freeze_encoder=False,
        id2label={0: "a"},
    )
    config.save_pretrained(tmp_path)
    reloaded = DDePConfig.from_pretrained(tmp_path)
    as_json = [json.loads(each.to_json_string()) for each in (config, reloaded)]
    assert as_json[0] == as_json[1]
    assert reloaded.sigma_range == (0.2, 0.3)
    assert DDePConfig(sigma=1).sigma_range == (1.0, 1.0)


def test_a_folder_of_a_newer_format_is_refused_with_both_versions(tmp_path):
    DDePConfig().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["format_version"] == FORMAT_VERSION and fields["ddep_hub_version"] == version
    # Whatever else is new in it must not be complained about first.
    fields |= {"format_version": FORMAT_VERSION + 1, "ddep_hub_version": "7.0", "sigma": "auto", "decoder_norms": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError) as error:
        DDePConfig.from_pretrained(tmp_path)
    for part in ("format_version", str(FORMAT_VERSION + 1), "7.0", version, f"up to {FORMAT_VERSION}"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="format_version"):
        DDePConfig(format_version=FORMAT_VERSION + 1)


def test_saving_names_the_version_that_saved(tmp_path):
    config = DDePConfig(ddep_hub_version="0.0.1", format_version=0)
    config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["ddep_hub_version"], fields["format_version"]) == (version, FORMAT_VERSION)


def test_renamed_classes_are_saved_with_the_ids_that_follow(tmp_path, hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3))
    model.config.id2label = {index: f"class {index}" for index in range(3)}
    model.save_pretrained(tmp_path)
    assert DDePConfig.from_pretrained(tmp_path).label2id == {"class 0": 0, "class 1": 1, "class 2": 2}
    model.config.id2label = {0: "one", 1: "two"}
    with pytest.raises(ValueError, match="names 2 classes, but the classifier has 3"):
        model.save_pretrained(tmp_path)
