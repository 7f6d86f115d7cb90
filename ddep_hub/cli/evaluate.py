"""Evaluation of a fine-tuned model on labelled images: figures, confusion, pictures, masks."""

from accelerate import PartialState

from ddep_hub.evaluation.arguments import EvaluateArguments
from ddep_hub.evaluation.evaluate import evaluate
from ddep_hub.utils.arguments import parse_command


def main(argv: list[str]) -> None:
    """`ddep-hub evaluate`."""
    evaluate(parse_command(EvaluateArguments, argv, command="ddep-hub evaluate")[0])
    PartialState().destroy_process_group()  # as examples/evaluate.py does
