"""Arguments: defaults, files, the command line, and what is said of mistakes."""

import pytest

from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.utils.arguments import parse_arguments, write_yaml


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
    file.write_text("images: photos\nsigma: 0.3\nmax_steps: null\n")
    args = parse_arguments(PretrainArguments, ["--config", str(file)])
    assert (args.images, args.sigma, args.max_steps) == (["photos"], [0.3], PretrainArguments().max_steps)


def test_the_written_file_repeats_the_run(tmp_path):
    args = parse_arguments(
        FinetuneArguments, ["--label_fraction", "1/30", "--scale", "0.8", "1.2", "--max_steps", "3"]
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
        (["--eval_split", "train"], "eval_split"),
        (["--pretrained", "x", "--decoder_width", "2"], "decoder_width belongs to the model"),
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
        ("a: [", "not a YAML"),
        ("sigma: [1, 2, 3]", "sigma"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type"),
        ("max_steps: 7.5", "max_steps"),
        ("freeze_encoder: 3", "freeze_encoder"),
        ("num_val_images: 0", "num_val_images"),
        ("decoder_only: true\nfreeze_encoder: false", "decoder_only"),
        ("max_steps: [1, 2]", "run.yaml: `max_steps` takes one value, not [1, 2]"),
        ("sigma: [[0.2], 0.3]", "run.yaml: `sigma` takes a list of values"),
        ("seed: {a: 1}", "run.yaml: `seed` takes one value"),
        ("preset: transunet-1x", "run.yaml: `preset` cannot be set in a file. Pass `--preset` on the command line"),
    ],
)
def test_mistakes_in_the_file_are_named(text, said, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", str(file)])
    assert said in capsys.readouterr().err


def test_a_file_in_another_encoding_is_named(tmp_path, capsys):
    (tmp_path / "run.yaml").write_bytes("output_dir: café".encode("latin-1"))
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml is not a text file in UTF-8" in capsys.readouterr().err


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--config", "nowhere.yaml"])
    assert "nowhere.yaml" in capsys.readouterr().err
