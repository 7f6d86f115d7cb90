"""Arguments: defaults, files, the command line, and what is said of mistakes."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SchedulerType

from ddep_hub.evaluation.arguments import EvaluateArguments, InferenceArguments
from ddep_hub.label_efficiency.config import StudyArguments
from ddep_hub.label_efficiency.runner import compare
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.pretraining import pretrain
from ddep_hub.utils.arguments import build_arguments, load_yaml, parse_arguments, write_yaml


def test_no_arguments_at_all_is_a_run():
    args = parse_arguments(PretrainArguments, [])
    assert args.images == [] and args.sigma == [0.22] and args.freeze_encoder


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("max_steps: 7\nlearning_rate: 1e-4\nfreeze_encoder: false\nsigma: [0.2, 0.3]\n")
    args = parse_arguments(PretrainArguments, ["--config", str(file), "--max_steps", "9"])
    assert (args.max_steps, args.learning_rate, args.freeze_encoder, args.sigma) == (9, 1e-4, False, [0.2, 0.3])


def test_a_file_may_give_one_value_for_a_list_and_nothing_for_a_default(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("images: photos\nsigma: 0.3\nmax_steps: null\noutput_dir: 2026-11-30\n")
    args = parse_arguments(PretrainArguments, ["--config", str(file)])
    assert args.output_dir == "2026-11-30"
    assert (args.images, args.sigma, args.max_steps) == (["photos"], [0.3], PretrainArguments().max_steps)


def test_an_empty_preset_or_file_is_none():
    """As of a shell's variable that is not set."""
    assert parse_arguments(PretrainArguments, ["--config", "", "--preset", ""]) == PretrainArguments()


def test_the_home_folder_may_be_written_as_in_a_shell():
    args = PretrainArguments(output_dir="~/run", images=["~/photos", "hf://datasets/a/b"], pretrained="~")
    home = os.path.expanduser("~")
    assert args.output_dir == f"{home}/run" and args.images == [f"{home}/photos", "hf://datasets/a/b"]
    assert args.pretrained == home and PretrainArguments().pretrained is None


@pytest.mark.parametrize("preset", ["convnext", "transunet-2x"])
def test_a_preset_leaves_the_architecture_to_a_pretrained_model(preset):
    argv = ["--preset", preset]
    args, alone = (parse_arguments(PretrainArguments, [*argv, *more]) for more in (["--pretrained", "x"], []))
    assert args.encoder_name == PretrainArguments().encoder_name != alone.encoder_name
    assert args.learning_rate == alone.learning_rate
    assert args.encoder_weights is None and alone.encoder_weights == "hub"
    assert build_arguments(PretrainArguments, {"preset": preset, "pretrained": "x"}) == args
    with pytest.raises(ValueError, match=r"encoder_name is set by the model in pretrained"):
        PretrainArguments(pretrained="x", encoder_name="resnet18")


def test_a_file_takes_a_value_of_the_preset_back(tmp_path):
    (tmp_path / "a.yaml").write_text("image_size: null\n")
    args = parse_arguments(FinetuneArguments, ["--preset", "few-labels", "--config", str(tmp_path / "a.yaml")])
    preset = parse_arguments(FinetuneArguments, ["--preset", "few-labels"])
    assert args.image_size is None and preset.image_size is not None and args.head_lr_factor == preset.head_lr_factor


def test_the_written_file_repeats_the_run(tmp_path):
    args = parse_arguments(
        FinetuneArguments,
        ["--label_fraction", "1/30", "--scale", "0.8", "1.2", "--max_steps", "3", "--mask_suffix=-mask"],
    )
    write_yaml(args, tmp_path / "config.yaml")
    assert parse_arguments(FinetuneArguments, ["--config", str(tmp_path / "config.yaml")]) == args


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning_rat", "1"], "learning_rate"),
        (["--max_steps", "many"], "max_steps"),
        (["--max_steps", "0"], "max_steps must be positive"),
        (["--lr_scheduler_type", "step"], "lr_scheduler_type"),
        (["--batch_size", "2", "--gradient_accumulation_steps", "4"], "gradient_accumulation_steps"),
        (["--push_to_hub"], "hub_model_id"),
        (["stray"], "stray"),
        (["--label_fraction", "1/4", "--num_labelled_images", "3"], "label_fraction"),
        (["--warmup_steps", "-1"], "warmup_steps"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--eval_split", "train"], "eval_split"),
        (["--pretrained", "x", "--decoder_width", "2"], "decoder_width is set by the model"),
    ],
)
def test_mistakes_are_named(argv, said, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(FinetuneArguments, argv)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_step: 3", "max_steps"),
        ("- 3", "must hold"),
        ("seed: 1\na: [", "run.yaml, line 2: expected the node content, but found '<stream end>'. Correct the YAML"),
        ("a: \x01", "run.yaml is not a YAML file"),
        ("seed: 1\nsigma: 0.2\nseed: 2", "run.yaml, line 3: `seed` is set twice. Correct the YAML"),
        ("0.5: 1\n0.50: 2", "run.yaml, line 2: `0.50` is set twice"),
        ("sigma: [1, 2, 3]", "sigma"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type"),
        ("max_steps: 7.5", "max_steps"),
        ("freeze_encoder: 3", "freeze_encoder"),
        ("num_val_images: 0", "num_val_images"),
        ("crop_scale_min: 2", "crop_scale_min must be in (0, 1], got 2.0"),
        ("decoder_only: true\nfreeze_encoder: false", "decoder_only"),
        ("max_steps: [1, 2]", "run.yaml: `max_steps` takes one value, not [1, 2]"),
        ("sigma: [[0.2], 0.3]", "run.yaml: `sigma` takes a list of values"),
        ("max_steps: []", "run.yaml: `max_steps` takes one value, not []"),
        ("seed: {a: 1}", "run.yaml: `seed` takes one value"),
        ("images: !!set {a, b}", "run.yaml: images must be a list"),
        ("images: !!binary aGk=", "run.yaml: images must be a list"),
        ("license: no", "run.yaml: `license` is false, which YAML makes of yes, no, on and off. Put text in quotes"),
        ("image_column: yes", "run.yaml: `image_column` is true"),
        ("preset: transunet-1x", "run.yaml: `preset` cannot be set in a file. Pass `--preset` on the command line"),
    ],
)
def test_mistakes_in_the_file_are_named(text, said, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", str(file)])
    assert said in capsys.readouterr().err


def test_keys_may_be_merged_and_replaced(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("base: &base {a: 1, b: {c: 2}}\nmore:\n  <<: *base\n  a: 3\n  b: {<<: {c: 4}, d: 5}\n")
    assert load_yaml(file)["more"] == {"a": 3, "b": {"c": 4, "d": 5}}


def test_a_negative_number_with_an_exponent_is_a_number():
    flags = "--num_channels 2 --image_mean -3e-06 -0.1 --image_std 1 1".split()
    assert parse_arguments(FinetuneArguments, flags).image_mean == [-3e-06, -0.1]


def test_a_file_in_another_encoding_is_named(tmp_path, capsys):
    (tmp_path / "run.yaml").write_bytes("output_dir: café".encode("latin-1"))
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml is not a text file in UTF-8" in capsys.readouterr().err


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", "nowhere.yaml"])
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "stored"),
    [
        ("max_steps", "7", 7),
        ("max_steps", 7.0, 7),
        ("max_steps", np.int64(7), 7),
        ("seed", torch.tensor(7), 7),
        ("image_size", np.int32(96), 96),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", np.float64(1e-3), 1e-3),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", 1, 1.0),
        ("freeze_encoder", "false", False),
        ("freeze_encoder", np.bool_(True), True),
        ("lr_scheduler_type", SchedulerType.COSINE, "cosine"),
        ("max_time", 100, "100"),
        ("label_fraction", Fraction(1, 3), "1/3"),
        ("label_fraction", np.float64(0.5), "0.5"),
        ("class_weights", np.ones(2), ["1.0", "1.0"]),
        ("class_weights", torch.ones(2), ["1.0", "1.0"]),
        ("scale", np.array([1, 1.5]), [1.0, 1.5]),
        ("scale", (1, 1.5), [1.0, 1.5]),
        ("channel_order", (np.int64(1), np.int64(0)), [1, 0]),
        ("unlabelled", Path("photos"), ["photos"]),
        ("output_dir", Path("runs"), "runs"),
        ("encoder_out_indices", None, None),
        ("report_to", "none", []),
    ],
)
@pytest.mark.parametrize("build", [lambda **values: build_arguments(FinetuneArguments, values), FinetuneArguments])
def test_values_become_plain_ones_of_their_fields_types(build, name, given, stored, tmp_path):
    args = build(**{"data": "x", name: given})
    found = getattr(args, name)
    assert found == stored and type(found) is type(stored)
    write_yaml(args, tmp_path / "config.yaml")
    assert parse_arguments(FinetuneArguments, ["--config", str(tmp_path / "config.yaml")]) == args


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("optim", "sgd", r"optim must be `adamw` or `adam`, got `sgd`\.$"),
        ("lr_scheduler_type", "cosin", r"or `constant`, got `cosin`\. Did you mean `cosine`\?$"),
        ("augmentation", "fotos", r"`microscopy` or None, got `fotos`\. Did you mean `photo`\?$"),
        ("mixed_precision", None, "or `fp16`, got None"),
        ("freeze_encoder", "off", "freeze_encoder must be true or false, got 'off'"),
        ("freeze_encoder", 3, "freeze_encoder must be true or false, got 3"),
        ("max_steps", 1.5, "max_steps must be a whole number, got 1.5"),
        ("max_steps", True, "max_steps must be a whole number, got True"),
        ("max_steps", np.inf, "max_steps must be a whole number, got inf"),
        ("crop_size", (64, 64), r"crop_size must be a whole number, got \(64, 64\)"),
        ("seed", None, "seed must be a whole number, got None"),
        ("image_size", "large", "image_size must be a whole number or None, got 'large'"),
        ("learning_rate", "fast", "learning_rate must be a number, got 'fast'"),
        ("scale", "0.5 2", "scale must be a list of numbers, got '0.5 2'"),
        ("scale", None, "scale must be a list of numbers, got None"),
        ("scale", {0.5: 1, 2: 1}, "scale must be a list of numbers"),
        ("channel_order", np.ones((2, 2)), "channel_order must be a list of whole numbers, got a ndarray"),
        ("output_dir", None, "output_dir must be text, got None"),
        ("pretrained", torch.nn.Sequential(torch.nn.ReLU()), "pretrained must be text or None, got a Sequential"),
    ],
)
@pytest.mark.parametrize("build", [lambda **values: build_arguments(FinetuneArguments, values), FinetuneArguments])
def test_values_of_other_types_are_named(build, name, given, said):
    with pytest.raises(ValueError, match=said) as error:
        build(**{name: given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -5])
def test_no_image_has_a_side_of_no_pixels(size):
    needed = {FinetuneArguments: {}, PretrainArguments: {"scale": [0.5, 2]}, EvaluateArguments: {"model": "m"}}
    for arguments, values in needed.items():
        with pytest.raises(ValueError, match=rf"^image_size must be (positive|at least 8 pixels), got {size}\.$"):
            arguments(image_size=size, **values)


def test_all_arguments_are_checked():
    assert PretrainArguments(sigma=np.float64(0.25)).sigma == [0.25]
    assert EvaluateArguments(model=Path("m"), batch_size=np.int64(2)).model == "m"
    assert StudyArguments(data=Path("d"), labels=np.array([6, 12])).labels == [6, 12]
    assert InferenceArguments(model="m", window=(64, 64), flip="false").flip is False
    with pytest.raises(ValueError, match="blending must be `uniform` or `hann`"):
        InferenceArguments(model="m", blending="mean")


def test_keywords_override_arguments_which_stay():
    args = FinetuneArguments(seed=1, max_steps=5)
    found = build_arguments(FinetuneArguments, {"max_steps": np.int64(3), "output_dir": Path("other")}, args)
    assert (found.seed, found.max_steps, found.output_dir) == (1, 3, "other")
    assert (args.max_steps, args.output_dir) == (5, "runs/finetune")
    assert build_arguments(FinetuneArguments, {}, args) == args
    with pytest.raises(TypeError, match="preset cannot be combined with FinetuneArguments"):
        build_arguments(FinetuneArguments, {"preset": "few-labels"}, args)


@pytest.mark.parametrize(("function", "kind"), [(finetune, "Finetune"), (pretrain, "Pretrain"), (compare, "Study")])
@pytest.mark.parametrize("given", ["my-data", {"data": "my-data"}, EvaluateArguments(model="m")])
def test_what_is_no_arguments_is_refused(function, kind, given):
    with pytest.raises(TypeError, match=f"arguments must be {kind}Arguments, got a {type(given).__name__}. Pass"):
        function(given)


@pytest.mark.parametrize("function", [finetune, pretrain])
def test_the_functions_take_keywords_beside_arguments(function, monkeypatch):
    def stop(self, args, *_):
        raise ValueError(f"{args.seed} {args.max_steps}")

    monkeypatch.setattr("ddep_hub.training.finetuning.FinetuneTrainer.__init__", stop)
    monkeypatch.setattr("ddep_hub.training.pretraining.PretrainTrainer.__init__", stop)
    kind = {finetune: FinetuneArguments, pretrain: PretrainArguments}[function]
    with pytest.raises(ValueError, match=r"^4 9$"):
        function(kind(seed=4), max_steps=9)


def test_compare_takes_keywords_beside_arguments(tmp_path):
    with pytest.raises(ValueError, match="methods: unknown `nothing`"):
        compare(StudyArguments(output_dir=str(tmp_path)), methods=["nothing"])


def test_compare_without_data_needs_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data: pass your labelled images as data.*only in the repository"):
        compare(output_dir=str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
