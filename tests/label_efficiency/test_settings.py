"""Study files: methods, and the arguments of the runs."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from ddep_hub.label_efficiency import runner
from ddep_hub.label_efficiency.config import Method, Study, StudyArguments, read_study
from ddep_hub.label_efficiency.report import Row, read_rows
from ddep_hub.label_efficiency.runner import build_study, compare
from ddep_hub.training.arguments import FinetuneArguments


CONTENT = {
    "fractions": {"1/30": 5, 1: 3},
    "images": ["pool"],
    "data": "labelled",
    "model": {"decoder_width": 0.5},
    "pretraining": {"max_steps": 7, "sigma": [0.3]},
    "finetuning": {"max_steps": 3},
    "methods": {
        "encoder": None,
        "long": {"finetuning": {"max_steps": 10}},
        "dep": {"pretraining": {"freeze_encoder": False, "encoder_weights": "none"}},
        "ddep": {"pretraining": {}},
    },
    "baselines": ["encoder", "long"],
}


def test_a_run_whose_row_was_removed_starts_again(tmp_path, monkeypatch, hybrid_config):
    hybrid_config().save_pretrained(tmp_path / "whole")
    fields = {"pretrained": str(tmp_path / "whole"), "encoder_weights": "for-decoders.pth"}
    method = Method("tuned", None, fields, baseline=True)
    final = tmp_path / "runs" / "tuned-1-0" / "final"
    final.mkdir(parents=True)
    (final / "results.json").touch()

    def finetune(args):
        raise FloatingPointError(f"{args.encoder_weights} {final.exists()}")

    monkeypatch.setattr(runner, "finetune", finetune)
    with pytest.raises(FloatingPointError, match="None False"):
        runner._run_method(Study([method], {"1": 1}), method, "1", 0, tmp_path)


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "study.yaml"
        content = {name: value for name, value in {**CONTENT, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def method(study, name):
    return next(method for method in study.methods if method.name == name)


def test_methods_share_and_override(write, tmp_path):
    study = read_study(write())
    assert study.seeds == {"1/30": 5, "1": 3}
    assert [a.name for a in study.methods if a.baseline] == ["encoder", "long"]

    plain = study.finetune_arguments(method(study, "encoder"), "1/30", 2, tmp_path, None)
    assert (plain.max_steps, plain.decoder_width, plain.pretrained) == (3, 0.5, None)
    assert (plain.seed, plain.split_seed, plain.label_fraction, plain.data) == (2, 2, "1/30", "labelled")
    assert study.finetune_arguments(method(study, "long"), "1", 0, tmp_path, None).max_steps == 10

    first = study.pretrain_arguments(method(study, "ddep"), tmp_path)
    assert (first.max_steps, first.sigma, first.decoder_width, first.images) == (7, [0.3], 0.5, ["pool"])
    assert first.freeze_encoder and first.decoder_only
    # The pretrained model says how wide its decoder is.
    tuned = study.finetune_arguments(method(study, "ddep"), "1/30", 0, tmp_path, "decoder")
    assert (tuned.pretrained, tuned.decoder_width) == ("decoder", 1.0)
    dep = study.pretrain_arguments(method(study, "dep"), tmp_path)
    assert not dep.freeze_encoder and not dep.decoder_only and dep.encoder_weights == "none"


def test_a_file_of_arguments_beside_the_study_is_read(write, tmp_path):
    (tmp_path / "finetune.yaml").write_text("max_steps: 44\ncrop_size: 96\n")
    study = read_study(write(finetuning={"config": "finetune.yaml"}))
    encoder, long = (
        study.finetune_arguments(method(study, name), "1", 0, tmp_path, None) for name in ("encoder", "long")
    )
    assert (encoder.max_steps, encoder.crop_size) == (44, 96) and (long.max_steps, long.crop_size) == (10, 96)


def test_null_in_a_study_overrides_nothing(write, tmp_path):
    """Neither what a file of arguments says, the data among it, nor a preset; but `config: null` undoes that file."""
    (tmp_path / "finetune.yaml").write_text("max_steps: 44\ndata: mine\nunlabelled: pool\n")
    methods = {
        "encoder": {"finetuning": {"max_steps": None, "consistency_weight": 1.0, "model_ema_decay": 0.9}},
        "long": {"finetuning": {"config": None, "preset": "few-labels", "max_steps": None, "crop_size": 32}},
    }
    study = read_study(
        write(data=None, images=None, finetuning={"config": "finetune.yaml"}, methods=methods, baselines=["encoder"])
    )
    encoder, long = (study.finetune_arguments(method, "1", 0, tmp_path, None) for method in study.methods)
    assert (encoder.max_steps, encoder.data, encoder.unlabelled) == (44, "mine", ["pool"])
    assert (long.max_steps, long.data, long.crop_size) == (600, None, 32)


@pytest.mark.parametrize(
    ("finetuning", "message"),
    [
        ({"preset": True}, "preset must be text"),
        ({"preset": [["few-labels"]]}, "preset must be text"),
        ({"preset": "few"}, "there is no `few`"),
        ({"config": True}, "config must be text"),
        ({"config": ["a.yaml"]}, "config must be text"),
        ({"config": "none.yaml"}, "none.yaml"),
    ],
)
def test_presets_and_files_that_are_none_are_named(write, finetuning, message, tmp_path):
    for sections in ({"finetuning": finetuning}, {"methods": {"encoder": {"finetuning": finetuning}}}):
        with pytest.raises(ValueError, match=message):
            study = read_study(write(**{"baselines": ["encoder"], **sections}))
            study.finetune_arguments(method(study, "encoder"), "1", 0, tmp_path, None)


def test_runs_have_folders_of_their_own_and_equal_decoders_share_one(write, tmp_path):
    study = read_study(
        write(methods={**CONTENT["methods"], "again": {"pretraining": {}, "finetuning": {"max_steps": 5}}})
    )
    folders = {
        study.finetune_arguments(a, fraction, seed, tmp_path, None).output_dir
        for a in study.methods
        for fraction in study.seeds
        for seed in (0, 1)
    }
    assert len(folders) == 5 * 2 * 2 and all(Path(folder).parent == tmp_path for folder in folders)
    decoders = [
        study.pretrain_arguments(method(study, name), tmp_path).output_dir for name in ("ddep", "again", "dep")
    ]
    assert decoders[0] == decoders[1] != decoders[2]
    seeds = {f"seed {seed}": {"pretraining": {"seed": seed}} for seed in range(3)}
    study = read_study(write(methods={**CONTENT["methods"], **seeds}))
    folders = [study.pretrain_arguments(method(study, name), tmp_path).output_dir for name in seeds]
    assert len({study.settings(method(study, name)) for name in seeds}) == len(set(folders)) == 3
    assert folders[0] == decoders[0]  # as in studies from before


def test_settings_follow_what_matters(write):
    settings = {a.name: read_study(write()).settings(a) for a in read_study(write()).methods}
    assert len(set(settings.values())) == 4
    moved = read_study(write(data="elsewhere", images=["other"], fractions={"1/2": 1}))
    assert {a.name: moved.settings(a) for a in moved.methods} == settings
    other = read_study(write(pretraining={"max_steps": 8, "sigma": [0.3]}))
    changed = {a.name for a in other.methods if other.settings(a) != settings[a.name]}
    assert changed == {"dep", "ddep"}


def test_settings_follow_the_weights_of_a_decoder(write, tmp_path):
    """But not where its folder lies."""

    def settings(pretrained):
        methods = {"mine": {"finetuning": {"pretrained": str(pretrained)}}, "encoder": None}
        study = read_study(write(methods=methods, baselines=["encoder"]))
        return study.settings(method(study, "mine"))

    for name, content in {"a": b"1", "b": b"2", "copy of a": b"1"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    first = settings(tmp_path / "a")
    assert first == settings(tmp_path / "copy of a") != settings(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"pretrained again")
    assert settings(tmp_path / "a") != first
    assert settings("ddep-nuclei-lite0") != settings("ddep-efficientnet-lite0")


def test_settings_follow_a_default_that_changes(write, monkeypatch):
    before = read_study(write())
    old = {a.name: before.settings(a) for a in before.methods}
    defaults = FinetuneArguments.__init__.__kwdefaults__
    written = read_study(write(finetuning={**CONTENT["finetuning"], "dice_weight": defaults["dice_weight"]}))
    monkeypatch.setitem(defaults, "dice_weight", defaults["dice_weight"] + 1)
    assert all(before.settings(a) != old[a.name] for a in before.methods)
    assert {a.name: written.settings(a) for a in written.methods} == old


def test_images_of_a_method_pretrain_a_decoder_of_its_own(write, tmp_path):
    both = {f"ddep {name}": {"pretraining": {"images": name}} for name in ("photographs", "streets")}
    study = read_study(write(methods={**CONTENT["methods"], **both}))
    methods = [method(study, name) for name in both]
    found = [study.pretrain_arguments(each, tmp_path) for each in methods]
    assert [args.images for args in found] == [["photographs"], ["streets"]]
    assert found[0].output_dir != found[1].output_dir
    assert study.settings(methods[0]) != study.settings(methods[1])


def test_scores_on_another_split_are_other_results(write):
    found = [read_study(write(finetuning={"max_steps": 3, "eval_split": split})) for split in ("val", "test")]
    for name in ("encoder", "ddep"):
        assert found[0].settings(method(found[0], name)) != found[1].settings(method(found[1], name))


def test_one_name_may_stand_for_a_list(write):
    study = read_study(write(images="pool", baselines="encoder"))
    assert study.images == ["pool"] and [a.name for a in study.methods if a.baseline] == ["encoder"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": None}, "lacks `methods`"),
        ({"fraction": {1: 1}}, "Did you mean `fractions`"),
        ({"baselines": ["encodr"]}, "encodr"),
        ({"methods": {"encoder": {"finetune": {}}}}, "finetune"),
        ({"methods": ["encoder"]}, "`methods` must be `name: value` lines"),
        ({"methods": {"encoder": "ddep"}}, "method `encoder`: 'ddep' must be"),
        ({"methods": {"encoder": {"finetuning": [1]}}}, r"method `encoder`: \[1\] must be"),
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


def test_lists_and_encodings_that_cannot_be_read_are_named(write, tmp_path):
    study = read_study(write(finetuning={"max_steps": [1, 2]}))
    with pytest.raises(ValueError, match=r"method `encoder`, finetuning: `max_steps` takes one value, not \[1, 2\]"):
        study.finetune_arguments(method(study, "encoder"), "1", 0, tmp_path, None)
    study = read_study(write(finetuning={"max_steps": "abc"}))
    with pytest.raises(ValueError, match="method `encoder`, finetuning: max_steps must be a whole number, got 'abc'"):
        study.finetune_arguments(method(study, "encoder"), "1", 0, tmp_path, None)
    (tmp_path / "study.yaml").write_bytes("data: café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"study\.yaml is not a text file in UTF-8"):
        read_study(tmp_path / "study.yaml")


def test_a_report_of_no_rows_is_an_error(write, tmp_path):
    args = StudyArguments(study=str(write()), output_dir=str(tmp_path / "none"), report_only=True)
    for each in (args, StudyArguments(output_dir=str(tmp_path / "none"), report_only=True)):
        with pytest.raises(FileNotFoundError, match=r"report_only: .*none has no results\.csv"):
            compare(each)
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").mkdir()
    header = ",".join(field.name for field in dataclasses.fields(Row))
    (tmp_path / "none" / "results.csv").write_text(f"{header}\n")
    with pytest.raises(ValueError, match=r"report_only: .*results\.csv has no rows of ddep, dep, encoder, long"):
        compare(args)


def test_methods_that_would_share_folders_are_refused(write):
    with pytest.raises(ValueError, match=r"study\.yaml: the names of two methods differ only in .* Rename one"):
        read_study(write(methods={"a/b": {}, "a_b": {}, **CONTENT["methods"]}))


def test_a_wrong_argument_is_named(write, tmp_path):
    study = read_study(write(pretraining={"sigmas": [0.3]}))
    with pytest.raises(ValueError, match=r"method `ddep`, pretraining.*Did you mean `sigma`"):
        study.settings(method(study, "ddep"))
    with pytest.raises(ValueError, match=r"methods: unknown `dde`. Did you mean `ddep`"):
        build_study(StudyArguments(study=str(write()), methods=["dde"]))


@pytest.mark.parametrize("name", ["camvid", "camvid-dice"])
def test_the_committed_rows_belong_to_the_studies(name):
    root = Path(__file__).parents[2]
    study = read_study(root / "examples" / "configs" / f"label-efficiency-{name}.yaml")
    rows = read_rows(root / "benchmarks" / "results" / f"label_efficiency_{name.replace('-', '_')}.csv")
    settings = {method.name: study.settings(method) for method in study.methods}
    assert rows and all(settings[row.method] == row.settings for row in rows)


def test_unlabelled_images_of_a_method_are_no_first_stage(write, tmp_path):
    joint = {"finetuning": {"denoising_weight": 1.0, "unlabelled": ["x"]}}
    study = read_study(write(methods={**CONTENT["methods"], "joint": joint}))
    args = study.finetune_arguments(method(study, "joint"), "1", 0, tmp_path, None)
    assert args.pretraining_steps == 0 and args.unlabelled == ["x"]
    joint["finetuning"]["pretraining_minutes"] = 5
    study = read_study(write(methods={**CONTENT["methods"], "joint": joint}))
    assert study.finetune_arguments(method(study, "joint"), "1", 0, tmp_path, None).pretraining_steps > 0
