"""A run: train, save, measure, describe, draw and publish, in this order."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from huggingface_hub import HfApi
from transformers.utils import logging

from ddep_hub import DDePImageProcessor, DDePPreTrainedModel
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.publishing.publish import publish_folder

from .arguments import RunArguments
from .loop import Task, Training
from .parsing import write_yaml
from .run_folder import start_run, whole_folder, write_whole


def begin(args: RunArguments, *, unused_parameters: bool = False) -> Accelerator:
    """The accelerator of a run, whose folder is made.

    Args:
        args: the run's arguments.
        unused_parameters: whether there are steps in which some parameters get no gradient.

    Raises:
        FileExistsError: the folder holds another run.
        ValueError: a tracker is not known, or not installed.
    """
    known = [str(name) for name in get_available_trackers()]
    for name in args.report_to:
        if name not in known:
            raise ValueError(f"report_to: {name} is not there (there are: {', '.join(known)}). Install it.")
    accelerator = Accelerator(
        log_with=args.report_to or None,
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
    )
    if accelerator.is_main_process:
        start_run(Path(args.output_dir), overwrite=args.overwrite, resume=args.resume_from_checkpoint is not None)
    return accelerator


def check_publishing(args: RunArguments) -> None:
    """Makes the repository before the run, so that a missing token or right does not show up after it.

    Raises:
        OSError: the Hub refused.
    """
    if args.push_to_hub:
        try:
            HfApi().create_repo(str(args.hub_model_id), private=args.hub_private, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"push_to_hub: {args.hub_model_id} cannot be written to: {error} Log in with `hf auth login`, or "
                "leave push_to_hub out and publish later."
            ) from error


def save_model(
    model: DDePPreTrainedModel, folder: Path, *, decoder_only: bool = False, image_size: int | None = None
) -> None:
    """Writes a model and its image processor.

    Args:
        model: the model.
        folder: where to.
        decoder_only: leave the encoder out.
        image_size: shorter side that the model is measured at; `None` for images as they are.
    """
    # Training may have them in another order of memory.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would break the bar of the run
    model.save_pretrained(folder, decoder_only=decoder_only, state_dict=state)
    if shown:
        logging.enable_progress_bar()
    mean, std = encoder_mean_std(model.config.encoder_name)
    # The geometry the model was measured with.
    size: dict[str, Any] = {"size": {"shortest_edge": image_size}} if image_size else {"do_resize": False}
    DDePImageProcessor(image_mean=mean, image_std=std, **size).save_pretrained(folder)


def run(
    accelerator: Accelerator, task: Task, args: RunArguments, card: Callable[[Mapping[str, Any]], str]
) -> dict[str, Any]:
    """Trains a model and writes the run's folder; the weights are in `final/` before anything else can fail.

    Args:
        accelerator: from [`begin`].
        task: what is trained.
        args: the run's arguments.
        card: makes the model card from the results.

    Returns:
        What was measured, `seconds` of training, and `final`, the folder.

    Raises:
        FloatingPointError: the loss is not finite.
        RunInterrupted: a signal came or the time was up; a checkpoint was written.
        CheckpointError: a checkpoint cannot be written or read.
        OSError: the Hub refused, before the run; or publishing failed, after it: the folder is whole then.
    """
    output = Path(args.output_dir)
    final = output / "final"
    if accelerator.is_main_process:
        check_publishing(args)
    training = Training(accelerator, task, args)
    if accelerator.is_main_process:
        if args.overwrite:
            for old in ("checkpoints", "best"):
                shutil.rmtree(output / old, ignore_errors=True)
        write_yaml(args, output / "config.yaml")
        task.record()
    row = training.run()
    model = training.weights.plain().eval()
    if accelerator.is_main_process:
        model.name_or_path = str(final)
        with whole_folder(final) as folder:
            task.save(model, folder)
    results = {**task.evaluate(model), "seconds": round(training.seconds, 1)}
    training.tracking.write({**row, **results})
    if args.eval_every:
        training.keep_if_best(results, model)
    training.tracking.close()
    if accelerator.is_main_process:
        write_whole(final / "results.json", json.dumps(results, indent=1) + "\n")
        write_whole(final / "README.md", card(results))
        (output / "pictures").mkdir(exist_ok=True)
        task.picture(model).save(output / "pictures" / "predictions.png")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and args.push_to_hub:
        try:
            accelerator.print(f"Published: {publish_folder(final, str(args.hub_model_id), private=args.hub_private)}")
        except OSError as error:
            raise OSError(
                f"Publishing to {args.hub_model_id} failed: {error} The run is whole in {final}; publish it with "
                f"`hf upload {args.hub_model_id} {final}`."
            ) from error
    return {**results, "final": str(final)}
