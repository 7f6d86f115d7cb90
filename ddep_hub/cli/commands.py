"""The commands of `ddep-hub`: each parses its arguments, then imports what it needs and calls a function of Python."""

import argparse

from ddep_hub.utils.arguments import list_presets, parse_command


def pretrain(argv: list[str]) -> None:
    """`ddep-hub pretrain`."""
    from ddep_hub.training.arguments import PretrainArguments

    arguments, _ = parse_command(PretrainArguments, argv, command="ddep-hub pretrain")
    from ddep_hub.training.pretraining import pretrain

    pretrain(arguments)
    _end_processes()


def finetune(argv: list[str]) -> None:
    """`ddep-hub finetune`."""
    from ddep_hub.training.arguments import FinetuneArguments

    arguments, _ = parse_command(FinetuneArguments, argv, command="ddep-hub finetune")
    from ddep_hub.training.finetuning import finetune

    finetune(arguments)
    _end_processes()


def evaluate(argv: list[str]) -> None:
    """`ddep-hub evaluate`."""
    from ddep_hub.evaluation.arguments import EvaluateArguments

    arguments, _ = parse_command(EvaluateArguments, argv, command="ddep-hub evaluate")
    from accelerate import PartialState

    from ddep_hub.evaluation.evaluate import run_evaluation, summary

    results = run_evaluation(arguments)
    if PartialState().is_main_process:
        print(summary(results))
    _end_processes()


def predict(argv: list[str]) -> None:
    """`ddep-hub predict`."""
    from ddep_hub.evaluation.arguments import PredictArguments

    images = {"nargs": "+", "help": "Image files, folders, patterns such as 'photos/*.jpg', or URLs."}
    arguments, given = parse_command(
        PredictArguments, argv, command="ddep-hub predict", positionals={"images": images}
    )
    from ddep_hub.evaluation.predict import predict_images

    for name in predict_images(given["images"], arguments):
        print(name)


def compare(argv: list[str]) -> None:
    """`ddep-hub compare`."""
    from ddep_hub.label_efficiency.config import StudyArguments

    arguments, _ = parse_command(StudyArguments, argv, command="ddep-hub compare")
    from ddep_hub.label_efficiency.runner import study

    study(arguments)


def export(argv: list[str]) -> None:
    """`ddep-hub export`."""
    from .export import main

    main(argv)


def convert(argv: list[str]) -> None:
    """`ddep-hub convert`."""
    from .convert import main

    main(argv)


def card(argv: list[str]) -> None:
    """`ddep-hub card`."""
    from .card import main

    main(argv)


def publish(argv: list[str]) -> None:
    """`ddep-hub publish`."""
    from .publish import main

    main(argv)


def list_shipped(argv: list[str]) -> None:
    """`ddep-hub list`."""
    argparse.ArgumentParser(
        prog="ddep-hub list", description="List the decoders and the presets that ship with the package."
    ).parse_args(argv)
    from ddep_hub.pretrained import list_pretrained

    print("Decoders, for `--pretrained` and `from_pretrained`:")
    for model in list_pretrained():
        print(f"  {model.name}: for {model.encoder_name}, {model.size} MB, {model.license}, {model.measured}")
    for kind in ("pretrain", "finetune"):
        print(f"Presets of `ddep-hub {kind}`: {', '.join(list_presets(kind))}")


def _end_processes() -> None:
    """Ends the process group of a launcher: its threads may outlive the interpreter, which then aborts."""
    from accelerate import PartialState

    PartialState().destroy_process_group()
