"""The command `ddep-hub`."""

import sys

from accelerate import PartialState
from transformers import HfArgumentParser

from ddep_hub.commands.arguments import EvaluateArguments, PredictArguments
from ddep_hub.commands.evaluate import evaluate
from ddep_hub.commands.predict import predict_images
from ddep_hub.training.parsing import parse_arguments


USAGE = """usage: ddep-hub evaluate --model_name_or_path MODEL --data DATA [options]
       ddep-hub predict IMAGE|FOLDER|PATTERN|URL ... --model_name_or_path MODEL [options]

evaluate  measure a fine-tuned model on labelled images
predict   write the masks and overlays of images

`ddep-hub evaluate --help` and `ddep-hub predict --help` list the options."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: what follows `ddep-hub`; `sys.argv[1:]` by default.

    Returns:
        Exit code: 0, or 1 where images, model or data cannot be used.

    Raises:
        SystemExit: after help, and for arguments that cannot be read (code 2).
    """
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in ("evaluate", "predict"):
        print(f"{USAGE}\n\nddep-hub: unknown command {command!r}" if command else USAGE, file=sys.stderr)
        return 2
    try:
        if command == "evaluate":
            evaluate(parse_arguments(EvaluateArguments, rest))
            PartialState().destroy_process_group()  # as examples/evaluate.py does
        else:
            images, args = _prediction_arguments(rest)
            for name in predict_images(images, args):
                print(name)
    except (OSError, ValueError) as error:
        print(f"ddep-hub: {error}", file=sys.stderr)
        return 1
    return 0


def _prediction_arguments(argv: list[str]) -> tuple[list[str], PredictArguments]:
    parser = HfArgumentParser(
        PredictArguments, prog="ddep-hub predict", allow_abbrev=False, description="Predict images."
    )
    parser.add_argument("images", nargs="+", help="Image files, folders, patterns such as 'photos/*.jpg', or URLs.")
    values = vars(parser.parse_args(argv))
    images = values.pop("images")
    try:
        return images, PredictArguments(**values)
    except ValueError as error:
        raise parser.error(str(error)) from error
