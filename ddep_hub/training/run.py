"""A run: train, save, measure, describe, draw and publish, in this order."""

import contextlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers.utils import logging

from ddep_hub import DDePImageProcessor, DDePPreTrainedModel
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.hub.model_card import LOSS, PREDICTIONS, Kind, write_card, write_run_record
from ddep_hub.utils.arguments import write_yaml
from ddep_hub.utils.distributed import on_main_process
from ddep_hub.utils.files import atomic_dir, atomic_write, remove_dir

from .arguments import RunArguments
from .hub import check_publishing, publish_final
from .logging import draw_loss
from .run_dir import check_run_dir, run_lock
from .trainer import Task, Training


# Processes wait for each other this long: the first one may have a data set of millions of files to list, or to fetch.
TIMEOUT = timedelta(hours=2)


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
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    resume = args.resume_from_checkpoint is not None
    output = Path(args.output_dir)
    on_main_process(accelerator, lambda: check_run_dir(output, overwrite=args.overwrite, resume=resume))
    return accelerator


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
    accelerator: Accelerator, task: Task, args: RunArguments, kind: Kind, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains a model and writes the run's folder; the weights are in `final/` before anything else can fail.

    Args:
        accelerator: from [`begin`].
        task: what is trained.
        args: the run's arguments.
        kind: what it is, for the card.
        facts: what the card says beside the arguments and the results, see [`write_run_record`].

    Returns:
        What was measured, `seconds` of training, and `final`, the folder.

    Raises:
        FloatingPointError: the loss is not finite.
        RunInterrupted: a signal came or the time was up; a checkpoint was written.
        CheckpointError: a checkpoint cannot be written or read.
        BlockingIOError: another process runs in the same folder.
        OSError: the Hub refused, before the run; or publishing failed, after it: the folder is whole then.
    """
    final = Path(args.output_dir) / "final"
    with contextlib.ExitStack() as stack:
        on_main_process(accelerator, lambda: stack.enter_context(run_lock(Path(args.output_dir))))
        on_main_process(accelerator, lambda: check_publishing(args))
        results = _train_and_describe(accelerator, task, args, kind, facts)
        on_main_process(accelerator, lambda: publish_final(args, final))
    return {**results, "final": str(final)}


def _may_be_shown(args: RunArguments) -> bool:
    """Whether pictures of the run's images may go into its card: images of others have their own licence."""
    others = getattr(args, "images", None) or getattr(args, "data", None)
    return not others if args.card_pictures is None else args.card_pictures


def _train_and_describe(
    accelerator: Accelerator, task: Task, args: RunArguments, kind: Kind, facts: Mapping[str, Any]
) -> dict[str, Any]:
    output = Path(args.output_dir)
    final = output / "final"
    training = Training(accelerator, task, args)

    def record() -> None:
        for old in ("checkpoints", "best"):
            if args.overwrite and (output / old).exists():
                remove_dir(output / old)
        write_yaml(args, output / "config.yaml")
        task.record()

    def save() -> None:
        model.name_or_path = str(final)
        with atomic_dir(final) as folder:
            task.save(model, folder)

    def describe() -> None:
        write_run_record(final, kind, args, results, **facts)
        write_card(final)  # before the pictures: a run without one still has its card
        pictures = output / "pictures"
        pictures.mkdir(exist_ok=True)
        if draw_loss(output / "metrics.jsonl", pictures / LOSS):
            atomic_write(final / LOSS, (pictures / LOSS).read_bytes())
        task.picture(model).save(pictures / PREDICTIONS)
        if _may_be_shown(args):
            atomic_write(final / PREDICTIONS, (pictures / PREDICTIONS).read_bytes())
        write_card(final)

    try:
        on_main_process(accelerator, record)
        row = training.run()
        model = training.weights.plain().eval()
        on_main_process(accelerator, save)
        results = {**task.evaluate(model), "seconds": round(training.seconds, 1)}
        training.tracking.write({**row, **results})
        if args.eval_steps:
            training.keep_if_best(results, model)
    finally:
        training.tracking.close()
    on_main_process(accelerator, describe)
    return results
