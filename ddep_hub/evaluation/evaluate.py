"""Evaluation of a fine-tuned model on labelled images: metrics, confusion matrix, pictures, masks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ddep_hub.data.classes import names_in_order
from ddep_hub.data.segmentation_datasets import open_split
from ddep_hub.data.transforms import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.pretrained import image_size, load_model
from ddep_hub.utils.distributed import on_main_process
from ddep_hub.utils.files import atomic_write

from .arguments import EvaluateArguments
from .inference import count_pixels
from .metrics import BoundaryIoU, confusion_csv
from .visualization import MaskWriter, confusion_picture, segmentation_picture


def evaluate(args: EvaluateArguments) -> dict[str, Any]:
    """Measures a model and writes `results.json`, `confusion.csv`, `confusion.png` and `predictions.png`.

    With `predictions`, the masks are written to `masks/<kind>/<stem>.png`.

    Args:
        args: the arguments.

    Returns:
        What `results.json` holds: the figures of [`ConfusionMatrix`] and [`BoundaryIoU`], the number of `images`,
        and how they were predicted.

    Raises:
        FileNotFoundError: something of the data set is missing.
        ValueError: the model has other classes than the data, or no pixel is labelled.
    """
    accelerator = Accelerator()
    with accelerator.main_process_first():
        rows = open_split(args, args.eval_split)
        model = load_model(str(args.model_name_or_path), args.encoder_weights)
    classes, names = rows.classes, list(rows.classes.names)
    found = list(names_in_order(model.config.id2label))
    if found != names:
        raise ValueError(
            f"model_name_or_path: {args.model_name_or_path} was trained for {len(found)} classes "
            f"({', '.join(found[:3])}, ...), but the data has {len(names)} ({', '.join(names[:3])}, ...). "
            "Choose the data that it was trained for."
        )
    output = Path(args.output_dir)
    writer = MaskWriter(output / "masks", classes, args.predictions)
    # On its device, under the launcher's mixed precision; logits come out in float32.
    model = accelerator.prepare_model(model, evaluation_mode=True)
    transform = EvalTransform(image_size=image_size(args))
    normalize = Normalize(*encoder_mean_std(model.config.encoder_name))
    options = args.options()
    boundary = BoundaryIoU(classes.num_classes, classes.ignore_index, accelerator.device)

    def write_mask(index: int, predicted: torch.Tensor) -> None:
        # The image is read once more, so only where it is shown.
        image = rows[index]["image"] if "overlays" in args.predictions else None
        writer.write(rows.sample_ids[index], predicted.cpu().numpy(), image)

    matrix = count_pixels(
        model,
        rows,
        transform,
        normalize,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        accelerator=accelerator,
        options=options,
        boundary=boundary,
        on_prediction=write_mask if args.predictions else None,
    )
    if not matrix.counts.any():
        written = f" The masks are in {output / 'masks'}." if args.predictions else ""
        raise ValueError(
            f"eval_split: no pixel of `{args.eval_split}` is labelled, so there is nothing to measure.{written} For "
            "images without labels there is `ddep-hub predict`; else check the masks."
        )
    results = {
        **matrix.compute(names),
        **boundary.compute(names),
        "images": len(rows),
        "image_size": transform.image_size,
        "inference": dataclasses.asdict(options),
        "mixed_precision": accelerator.mixed_precision,
        "arguments": dataclasses.asdict(args),
    }

    def describe() -> None:
        output.mkdir(parents=True, exist_ok=True)
        writer.remove_others(rows.sample_ids)
        atomic_write(output / "results.json", json.dumps(results, indent=1) + "\n")
        atomic_write(output / "confusion.csv", confusion_csv(matrix.counts, names))
        confusion_picture(matrix.counts, names).save(output / "confusion.png")
        picture = segmentation_picture({"prediction": model}, rows, transform, normalize, options=options)
        picture.save(output / "predictions.png")

    on_main_process(accelerator, describe)
    accelerator.print(summary(results))
    return results


def summary(results: dict[str, Any]) -> str:
    """The figures in a few lines, in per cent."""
    titles = {
        "mean_iou": "mIoU",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "mean_boundary_iou": "boundary IoU",
        "mean_accuracy": "mean accuracy",
        "overall_accuracy": "overall accuracy",
    }
    shown = {name: "-" if results[name] is None else f"{100 * results[name]:.2f}" for name in titles}
    lines = [f"{title}: {shown[name]}" for name, title in titles.items()]
    return "\n".join([*lines, f"images: {results['images']}"])
