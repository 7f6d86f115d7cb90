"""Evaluation of a fine-tuned model on labelled images: metrics, confusion matrix, figures, masks."""

import contextlib
import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddep_hub.data.classes import ClassTable, ordered_names
from ddep_hub.data.image_io import lift_size_limit
from ddep_hub.data.labelled_data import dataset_summary, open_split
from ddep_hub.data.preprocessing import EvalTransform, Normalize, warn_about_scale
from ddep_hub.data.segmentation_datasets import SegmentationDataset
from ddep_hub.data.splits import evenly_spaced, read_split_file
from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_ddep import DDePForSemanticSegmentation
from ddep_hub.pretrained import load_model
from ddep_hub.utils.arguments import build_arguments
from ddep_hub.utils.files import (
    atomic_write,
    check_output_dir,
    explain_write_errors,
    format_list,
    output_dir_error,
    write_json,
)
from ddep_hub.utils.hardware import choose_device
from ddep_hub.utils.processes import build_accelerator, get_launcher_precision, isolate_state, on_main_process

from .arguments import EvaluateArguments
from .counting import count_pixels
from .inference import eval_mode, input_device
from .metrics import METRICS, BoundaryIoU, absent_message, confusion_csv
from .predict import get_model_name, get_processor, override_image_size
from .prediction_files import MaskWriter
from .visualization import confusion_picture, segmentation_picture, to_png


logger = logging.getLogger(__name__)

NUM_COMPARED_SIZES = 8  # number of images whose sizes are compared with those of training

RESULT_FILES = ("results.json", "confusion.csv", "confusion.png", "predictions.png")


@isolate_state()
def evaluate(
    model: str | Path | DDePForSemanticSegmentation,
    data: str | Path | SegmentationDataset | None = None,
    split: str = "val",
    *,
    processor: DDePImageProcessor | None = None,
    output_dir: str | Path | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Evaluates a fine-tuned model on labelled images.

    Args:
        model: A model, a folder or a Hub id.
        data: Labelled data, as in fine-tuning: a folder or `hf://datasets/org/name`, or an object with the attributes
            of [`SegmentationDataset`]. Default: rendered scenes.
        split: The split to evaluate on.
        processor: The image processor; by default the one saved with the model.
        output_dir: Folder for `results.json`, `confusion.csv`, `confusion.png`, `predictions.png` and `masks/`; by
            default nothing is written.
        **kwargs: Further fields of [`EvaluateArguments`], such as `window=(512, 512)` or `flip=True`.

    Returns:
        A dictionary with metrics in 0..1 (`mean_iou`, `iou` per class, `mean_boundary_iou`, ...), the number of
        `images`, and how they were predicted.

    Raises:
        FileExistsError: `output_dir` holds a model, or files not written by an evaluation.
        FileNotFoundError: The model or data do not exist.
        TypeError: The model, data or processor has the wrong type.
        ValueError: The model is not fine-tuned or has other classes than the data, no pixel is labelled, or an item of
            `data` cannot be read.
    """
    network = None if isinstance(model, str | Path) else model
    dataset = None if data is None or isinstance(data, str | Path) else data
    if dataset is not None:
        _check_dataset(dataset)
    values = {"data": data if dataset is None else None, "eval_split": split, "output_dir": output_dir, **kwargs}
    arguments = build_arguments(EvaluateArguments, {"model": get_model_name(model), **values})
    with contextlib.nullcontext() if network is None else _restore_state(network):
        return run_evaluation(arguments, model=network, dataset=dataset, processor=processor)


def _check_dataset(data: Any) -> None:
    """Raises a TypeError or ValueError if an object cannot be used as data."""
    if not (hasattr(data, "classes") and hasattr(data, "sample_ids")):
        raise TypeError(
            f"data: got {type(data).__name__}. Pass a folder, hf://datasets/org/name, or an object with classes and "
            "sample_ids (docs/extending.md)."
        )
    if not isinstance(data.classes, ClassTable):
        raise TypeError(
            f"data: `classes` is a {type(data.classes).__name__}. Pass a ddep_hub.data.classes.ClassTable "
            "(docs/extending.md)."
        )
    if other_ids := [name for name in data.sample_ids if not isinstance(name, str)]:
        raise TypeError(f"data: sample_ids must be strings, got {other_ids[0]!r}.")
    if len(data.sample_ids) < len(data):
        raise ValueError(
            f"data: {len(data)} items have {len(data.sample_ids)} sample_ids. Pass one sample id per item."
        )
    name, count = max(Counter(data.sample_ids).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:  # their predictions would overwrite each other
        raise ValueError(f"data: sample_ids must be unique, but {count} are {name!r}.")


@contextlib.contextmanager
def _restore_state(model: nn.Module) -> Iterator[None]:
    """Restores a caller's model: its modes, its device, and its `forward`, which Accelerate wraps."""
    saved, device = dict(vars(model)), input_device(model)
    try:
        with eval_mode(model):
            yield
    finally:
        for name in vars(model).keys() - saved.keys():  # set by Accelerate, which would otherwise not wrap it again
            del vars(model)[name]
        vars(model).update(saved)
        if input_device(model) != device:
            model.to(device)


def run_evaluation(
    args: EvaluateArguments,
    *,
    model: DDePForSemanticSegmentation | None = None,
    dataset: SegmentationDataset | None = None,
    processor: DDePImageProcessor | None = None,
) -> dict[str, Any]:
    """Runs [`evaluate`] with these arguments, in each process of a launcher.

    `model`, `dataset` and `processor` replace those named in `args`.
    """
    # Not at the precision of an earlier run in this process, on which metrics must not depend.
    accelerator = build_accelerator(get_launcher_precision() or "no")
    output = None if args.output_dir is None else Path(args.output_dir)
    is_given = dataset is not None
    if output is not None:
        on_main_process(accelerator, lambda: check_output(output))
    with accelerator.main_process_first():
        if model is None:  # not `or`, because a compiled model has no truth value
            model = load_model(str(args.model), args.encoder_weights)
        if dataset is None:
            dataset = open_split(args, args.eval_split, args.split_file, num_channels=model.config.num_channels)
        elif args.split_file is not None:
            if not hasattr(dataset, "select"):
                raise TypeError(
                    f"split_file: {type(dataset).__name__} has no method `select`. Pass an object with only these "
                    "samples."
                )
            dataset = dataset.select(read_split_file(args.split_file, set(dataset.sample_ids)))
        if not is_given:
            accelerator.print(dataset_summary(dataset))
        processor = override_image_size(processor or get_processor(model), args)
    classes, names = dataset.classes, dataset.classes.labels
    model_names = ordered_names(model.config.id2label)
    if model_names == tuple(f"LABEL_{index}" for index in range(len(names))):
        accelerator.print(f"{args.model} has no class names: its classes are assumed to be the data's, in order.")
    elif model_names != names:
        raise _class_names_error(str(args.model), model_names, names)
    order = getattr(processor, "channel_order", None)
    writer = MaskWriter((output or Path()) / "masks", classes, args.predictions, order)
    if args.predictions and output is not None:
        writer.check(dataset.sample_ids)
        accelerator.wait_for_everyone()  # before the first mask is written
    # On the same device as in `predict`: accelerate would use a Mac's GPU.
    stays = accelerator.device.type not in (choose_device().type, input_device(model).type)
    # With the launcher's mixed precision; logits are float32.
    model = accelerator.prepare_model(model, device_placement=False if stays else None, evaluation_mode=True)
    transform, normalize = EvalTransform(processor), Normalize.from_processor(processor)
    options = args.options()
    boundary = BoundaryIoU(classes.num_classes, classes.ignore_index, input_device(model))
    statistics = ClassStatistics(classes.names, classes.ignore_index)

    def write_mask(index: int, predicted: torch.Tensor) -> None:
        # The image is read once more, so only if it is shown.
        image = dataset[index]["image"] if "overlays" in args.predictions else None
        writer.write(dataset.sample_ids[index], predicted.cpu().numpy(), image)

    has_windows, scale_range = options.window is not None, model.config.image_scale_range
    with lift_size_limit(has_windows):
        for index in evenly_spaced(len(dataset), NUM_COMPARED_SIZES if hasattr(dataset, "mask") else 0):
            name = f"{getattr(dataset, 'name', '')}/{dataset.sample_ids[index]}"
            height, width = dataset.mask(index).shape
            warn_about_scale(processor, scale_range, height, width, name)
        matrix = count_pixels(
            model,
            dataset,
            transform,
            normalize,
            batch_size=args.batch_size,
            num_workers=args.dataloader_num_workers,
            accelerator=accelerator,
            options=options,
            boundary=boundary,
            statistics=statistics,
            on_prediction=write_mask if args.predictions else None,
        )
    if not matrix.counts.any():
        masks_note = f" The masks are in {writer.folder}." if args.predictions else ""
        raise ValueError(
            f"eval_split: no pixel of `{args.eval_split}` is labelled, so there is nothing to measure.{masks_note} "
            "Check the masks, or use `ddep-hub predict` for images without labels."
        )
    scores = matrix.compute(names) | boundary.compute(names)
    if scores["absent_classes"] and accelerator.is_main_process:
        logger.warning("%s", absent_message(scores["absent_classes"], len(names), args.eval_split))
    results = {
        **scores,
        "labelled_pixels": dict(zip(classes.names, statistics.pixels.tolist(), strict=True)),
        "labelled_images": dict(zip(classes.names, statistics.images.tolist(), strict=True)),
        "ignored_share": statistics.ignored_share,
        "images": len(dataset),
        "image_size": transform.image_size,
        "inference": dataclasses.asdict(options),
        "mixed_precision": accelerator.mixed_precision,
        "arguments": _recorded_arguments(args, dataset if is_given else None),
    }

    def write(output: Path) -> None:
        table, matrix_picture, predictions = (output / name for name in RESULT_FILES[1:])
        with explain_write_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            writer.remove_others(dataset.sample_ids)
            # Written first, because it tells the next evaluation that it may replace these files.
            write_json(output / RESULT_FILES[0], results)
            atomic_write(table, confusion_csv(matrix.counts, classes.names))
            atomic_write(matrix_picture, to_png(confusion_picture(matrix.counts, classes.names)))
        picture = segmentation_picture({"prediction": model}, dataset, transform, normalize, options=options)
        with explain_write_errors(output):
            atomic_write(predictions, to_png(picture))

    if output is not None:
        with lift_size_limit(has_windows):
            on_main_process(accelerator, lambda: write(output))
    return results


def _class_names_error(model: str, model_names: Sequence[str], names: Sequence[str]) -> ValueError:
    """The error for data whose classes differ from the model's."""

    def describe(own: Sequence[str], others: Sequence[str]) -> str:
        """The first names or, if there are equally many others, those that differ, with their ids."""
        if len(own) != len(others):
            return format_list(own, 3)
        pairs = enumerate(zip(own, others, strict=True))
        return format_list([f"{index}: {name}" for index, (name, other) in pairs if name != other], 3)

    hint = "Use data with the classes it was trained for"
    if len(model_names) == len(names):
        hint += ", or correct the model's config.id2label if they are the same classes in this order"
    return ValueError(
        f"model: {model} was trained for {len(model_names)} classes ({describe(model_names, names)}), but the data "
        f"has {len(names)} ({describe(names, model_names)}). {hint}."
    )


def _recorded_arguments(args: EvaluateArguments, dataset: SegmentationDataset | None) -> dict[str, Any]:
    """The arguments for `results.json`; a `dataset` object is recorded by its location, or else its type."""
    # Absolute, so that `ddep-hub card` finds the folders from any working directory.
    named = {"model": args.model, "data": args.data}
    folders = {name: os.path.abspath(path) for name, path in named.items() if path and os.path.isdir(path)}
    given: dict[str, Any] = {}
    if dataset is not None:  # an object's split is unknown
        source = getattr(dataset, "root", None) or getattr(dataset, "name", None) or type(dataset).__name__
        given = {"data": str(source), "eval_split": None}
    return dataclasses.asdict(args) | folders | given


def check_output(output: Path) -> None:
    """Raises a FileExistsError if the results would replace those of a training run, or other files."""
    if os.path.lexists(output / "config.json"):
        raise output_dir_error(output, "holds a model")
    try:
        is_evaluation = "inference" in json.loads((output / RESULT_FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        is_evaluation = False
    check_output_dir(output, f"{RESULT_FILES[0]} of an evaluation", is_own=is_evaluation, names=RESULT_FILES)


def summary(results: dict[str, Any]) -> str:
    """Formats the metrics in percent."""
    formatted = {name: "-" if results[name] is None else f"{100 * results[name]:.2f}" for name in METRICS}
    if results["absent_classes"]:
        formatted["mean_iou"] += f" (over {results['mean_iou_classes']} of {results['num_classes']} classes)"
    lines = [f"{title}: {formatted[name]}" for name, title in METRICS.items()]
    lines += [f"images: {results['images']}; {results['ignored_share']:.2%} of the pixels are ignored", ""]
    pixels, images = results["labelled_pixels"], results["labelled_images"]
    width, total = max(map(len, pixels)), max(1, sum(pixels.values()))
    for name in pixels:
        iou = results["iou"].get(name)
        formatted_iou = "     -" if iou is None else f"{100 * iou:6.2f}"
        lines.append(
            f"{name:{width}}  IoU {formatted_iou}  {pixels[name]:>12,} pixels ({pixels[name] / total:6.2%})  "
            f"{images[name]:>7,} images"
        )
    return "\n".join(lines)
