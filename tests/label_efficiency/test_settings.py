"""Study files: arms, axes, and the arguments of the runs."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from ddep_hub.label_efficiency.config import read_study, vary
from ddep_hub.training.arguments import FinetuneArguments


CONTENT = {
    "fractions": {"1/30": 5, 1: 3},
    "images": ["pool"],
    "data": "labelled",
    "model": {"decoder_width": 0.5},
    "pretraining": {"max_steps": 7, "sigma": [0.3]},
    "finetuning": {"max_steps": 3},
    "arms": {
        "encoder": None,
        "long": {"finetuning": {"max_steps": 10}},
        "dep": {"pretraining": {"freeze_encoder": False, "encoder_weights": "none"}},
        "ddep": {"pretraining": {}},
    },
    "baselines": ["encoder", "long"],
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "study.yaml"
        content = {name: value for name, value in {**CONTENT, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def arm(study, name):
    return next(arm for arm in study.arms if arm.name == name)


def test_arms_share_and_override(write, tmp_path):
    study = read_study(write())
    assert study.seeds == {"1/30": 5, "1": 3}
    assert [a.name for a in study.arms if a.baseline] == ["encoder", "long"]

    plain = study.finetune_arguments(arm(study, "encoder"), "1/30", 2, tmp_path, None)
    assert (plain.max_steps, plain.decoder_width, plain.pretrained) == (3, 0.5, None)
    assert (plain.seed, plain.split_seed, plain.label_fraction, plain.data) == (2, 2, "1/30", "labelled")
    assert study.finetune_arguments(arm(study, "long"), "1", 0, tmp_path, None).max_steps == 10

    first = study.pretrain_arguments(arm(study, "ddep"), tmp_path)
    assert (first.max_steps, first.sigma, first.decoder_width, first.images) == (7, [0.3], 0.5, ["pool"])
    assert first.freeze_encoder and first.decoder_only
    # The pretrained model says how wide its decoder is.
    tuned = study.finetune_arguments(arm(study, "ddep"), "1/30", 0, tmp_path, "decoder")
    assert (tuned.pretrained, tuned.decoder_width) == ("decoder", 1.0)
    dep = study.pretrain_arguments(arm(study, "dep"), tmp_path)
    assert not dep.freeze_encoder and not dep.decoder_only and dep.encoder_weights == "none"


def test_a_file_of_arguments_beside_the_study_is_read(write, tmp_path):
    (tmp_path / "finetune.yaml").write_text("max_steps: 44\ncrop_size: 96\n")
    study = read_study(write(finetuning={"config": "finetune.yaml"}))
    encoder, long = (
        study.finetune_arguments(arm(study, name), "1", 0, tmp_path, None) for name in ("encoder", "long")
    )
    assert (encoder.max_steps, encoder.crop_size) == (44, 96) and (long.max_steps, long.crop_size) == (10, 96)


def test_runs_have_folders_of_their_own_and_equal_decoders_share_one(write, tmp_path):
    study = read_study(write(arms={**CONTENT["arms"], "again": {"pretraining": {}, "finetuning": {"max_steps": 5}}}))
    folders = {
        study.finetune_arguments(a, fraction, seed, tmp_path, None).output_dir
        for a in study.arms
        for fraction in study.seeds
        for seed in (0, 1)
    }
    assert len(folders) == 5 * 2 * 2 and all(Path(folder).parent == tmp_path for folder in folders)
    decoders = [study.pretrain_arguments(arm(study, name), tmp_path).output_dir for name in ("ddep", "again", "dep")]
    assert decoders[0] == decoders[1] != decoders[2]


def test_settings_follow_what_matters(write):
    settings = {a.name: read_study(write()).settings(a) for a in read_study(write()).arms}
    assert len(set(settings.values())) == 4
    moved = read_study(write(data="elsewhere", images=["other"], fractions={"1/2": 1}))
    assert {a.name: moved.settings(a) for a in moved.arms} == settings
    other = read_study(write(pretraining={"max_steps": 8, "sigma": [0.3]}))
    changed = {a.name for a in other.arms if other.settings(a) != settings[a.name]}
    assert changed == {"dep", "ddep"}


def test_settings_follow_a_default_that_changes(write, monkeypatch):
    before = read_study(write())
    old = {a.name: before.settings(a) for a in before.arms}
    known = {field.name: field for field in dataclasses.fields(FinetuneArguments)}["dice_weight"]
    written = read_study(write(finetuning={**CONTENT["finetuning"], "dice_weight": known.default}))
    monkeypatch.setattr(known, "default", known.default + 1)
    assert all(before.settings(a) != old[a.name] for a in before.arms)
    assert {a.name: written.settings(a) for a in written.arms} == old


def test_an_axis_of_pretraining_leaves_the_baselines_alone(write, tmp_path):
    study = vary(read_study(write()), "pretraining.sigma", ["0.1", "0.2,0.3"])
    names = ["encoder", "long", "dep sigma=0.1", "dep sigma=0.2,0.3", "ddep sigma=0.1", "ddep sigma=0.2,0.3"]
    assert [a.name for a in study.arms] == names
    assert study.pretrain_arguments(arm(study, "ddep sigma=0.2,0.3"), tmp_path).sigma == [0.2, 0.3]
    assert study.pretrain_arguments(arm(study, "ddep sigma=0.1"), tmp_path).sigma == [0.1]


def test_an_axis_of_images_pretrains_a_decoder_on_each(write, tmp_path):
    study = vary(read_study(write()), "pretraining.images", ["photographs", "streets"])
    arms = [arm(study, f"ddep images={name}") for name in ("photographs", "streets")]
    found = [study.pretrain_arguments(a, tmp_path) for a in arms]
    assert [args.images for args in found] == [["photographs"], ["streets"]]
    assert found[0].output_dir != found[1].output_dir and study.settings(arms[0]) != study.settings(arms[1])


def test_scores_on_another_split_are_other_results(write):
    found = [read_study(write(finetuning={"max_steps": 3, "eval_split": split})) for split in ("val", "test")]
    for name in ("encoder", "ddep"):
        assert found[0].settings(arm(found[0], name)) != found[1].settings(arm(found[1], name))


def test_an_axis_of_the_model_concerns_every_arm(write, tmp_path):
    study = vary(read_study(write()), "model.decoder_width", ["1", "2"])
    assert len(study.arms) == 8
    assert study.finetune_arguments(arm(study, "long decoder_width=2"), "1", 0, tmp_path, None).decoder_width == 2
    ddep = arm(study, "ddep decoder_width=2")
    assert study.pretrain_arguments(ddep, tmp_path).decoder_width == 2
    assert study.finetune_arguments(ddep, "1", 0, tmp_path, "decoder").decoder_width == 1  # the decoder says it


def test_one_name_may_stand_for_a_list(write):
    study = read_study(write(images="pool", baselines="encoder"))
    assert study.images == ["pool"] and [a.name for a in study.arms if a.baseline] == ["encoder"]


def test_an_axis_leaves_alone_what_an_arm_says_itself(write):
    study = vary(read_study(write()), "finetuning.max_steps", ["5", "6"])
    names = [f"{name} max_steps={steps}" for name in ("encoder", "dep", "ddep") for steps in (5, 6)]
    assert [a.name for a in study.arms] == [*names[:2], "long", *names[2:]]
    assert not arm(study, "long").variant
    kept = vary(read_study(write()), "finetuning.keep_decoder_blocks", ["0"])
    of_decoders = ["dep keep_decoder_blocks=0", "ddep keep_decoder_blocks=0"]
    assert [a.name for a in kept.arms] == ["encoder", "long", *of_decoders]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": None}, "lacks `arms`"),
        ({"fraction": {1: 1}}, "Did you mean `fractions`"),
        ({"baselines": ["encodr"]}, "encodr"),
        ({"arms": {"encoder": {"finetune": {}}}}, "finetune"),
        ({"arms": ["encoder"]}, "`arms` must be `name: value` lines"),
        ({"arms": {"encoder": "ddep"}}, "arm `encoder`: 'ddep' must be"),
        ({"arms": {"encoder": {"finetuning": [1]}}}, r"arm `encoder`: \[1\] must be"),
        ({"fractions": ["1/30"]}, "`fractions` must be"),
        ({"fractions": {"1/30": "two"}}, "positive number of seeds, got 'two'"),
        ({"fractions": {"1/0": 2}}, r"study\.yaml, fractions: label fraction '1/0'"),
        ({"model": "unet"}, "`model` must be"),
        ({"images": 3}, "`images` must be a list of names"),
    ],
)
def test_a_wrong_file_is_named(write, changes, message):
    with pytest.raises(ValueError, match=message):
        read_study(write(**changes))


def test_a_wrong_argument_is_named(write, tmp_path):
    study = read_study(write(pretraining={"sigmas": [0.3]}))
    with pytest.raises(ValueError, match=r"arm `ddep`, pretraining.*Did you mean `sigma`"):
        study.settings(arm(study, "ddep"))
    with pytest.raises(ValueError, match="Did you mean `decoder_width`"):
        vary(read_study(write()), "model.decoder_widht", ["1"])
    with pytest.raises(ValueError, match=r"section\.argument"):
        vary(read_study(write()), "sigma", ["1"])
