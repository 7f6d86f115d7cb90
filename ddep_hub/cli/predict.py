"""Predictions of a fine-tuned model as pictures and masks."""

from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.predict import predict_images
from ddep_hub.utils.arguments import parse_command


IMAGES = {"nargs": "+", "help": "Image files, folders, patterns such as 'photos/*.jpg', or URLs."}


def main(argv: list[str]) -> None:
    """`ddep-hub predict`."""
    args, given = parse_command(PredictArguments, argv, command="ddep-hub predict", positionals={"images": IMAGES})
    for name in predict_images(given["images"], args):
        print(name)
