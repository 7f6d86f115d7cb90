"""Predictions of a fine-tuned model as pictures and masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig

from ddep_hub.data.catalog import known_by_classes
from ddep_hub.data.classes import ClassTable, class_colors, names_in_order
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.data.transforms import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import predict
from ddep_hub.evaluation.writing import MaskWriter, legend
from ddep_hub.training.parsing import parse_command

from .arguments import PredictArguments
from .inputs import find_images, read_image
from .models import image_size, load_model


IMAGES = {"nargs": "+", "help": "Image files, folders, patterns such as 'photos/*.jpg', or URLs."}


def main(argv: list[str]) -> None:
    """`ddep-hub predict`."""
    args, given = parse_command(PredictArguments, argv, command="ddep-hub predict", positionals={"images": IMAGES})
    for name in predict_images(given["images"], args):
        print(name)


def predict_images(names: Sequence[str], args: PredictArguments) -> list[str]:
    """Predicts images at their own size and writes `<kind>/<name>.png` for each, and `legend.png`.

    Args:
        names: files, folders, patterns and URLs, see [`find_images`].
        args: the arguments.

    Returns:
        The names of the results.

    Raises:
        OSError: an image or the model cannot be read.
        ValueError: an image is damaged, or an argument does not fit the model.
    """
    images = find_images(names)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(str(args.model_name_or_path), args.encoder_weights).to(device)
    classes = classes_of(model.config)
    output = Path(args.output_dir)
    writer = MaskWriter(output, classes, args.predictions)
    output.mkdir(parents=True, exist_ok=True)
    legend(classes).save(output / "legend.png")
    transform, options = EvalTransform(image_size=image_size(args)), args.options()
    normalize = Normalize(*encoder_mean_std(model.config.encoder_name))
    for name, place in images.items():
        image = read_image(place)
        size = image.height, image.width
        example = transform({"image": image, "annotation": np.zeros(size, dtype=np.uint8)})
        found = predict(model, normalize(example["pixel_values"][None].to(device)), size, options)
        writer.write(name, found[0].cpu().numpy(), image)
    return list(images)


def classes_of(config: PretrainedConfig) -> ClassTable:
    """A model's classes, in the colours that it was fine-tuned with.

    A model that says none has those of the known data set with these very names, or some that differ from each other.
    The embedded scenes count as known.
    """
    names = names_in_order(config.id2label)
    known = known_by_classes(names)
    if config.label_colors and len(config.label_colors) == len(names):
        colors = tuple((red, green, blue) for red, green, blue in config.label_colors)
    elif names == SCENE_CLASSES.names:
        return SCENE_CLASSES
    elif known is not None:
        return known.classes
    else:
        colors = class_colors(len(names))
    # A prediction ignores no pixel, so the value can be one that no mask holds.
    return ClassTable(names=names, colors=colors, ignore_index=-1)
