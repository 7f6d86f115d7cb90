"""Pretraining on the user's own unlabelled images, as the pretraining stage of a fine-tuning run."""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.data.image_datasets import images_fingerprint
from ddep_hub.data.preprocessing import processor_size
from ddep_hub.data.segmentation_datasets import SegmentationDataset
from ddep_hub.hub.run_record import EMBEDDED, RESULTS
from ddep_hub.hub.staging import RUN, read_json_object
from ddep_hub.pretrained import load_processor, stored_config
from ddep_hub.utils.arguments import list_field_names, read_yaml
from ddep_hub.utils.processes import build_accelerator, on_main_process

from .arguments import MASK_PATCH_SIZE, FinetuneArguments, PretrainArguments
from .checkpointing import checkpoint_folders
from .finetuning_data import FinetuneData, unlabelled_sources
from .interruption import RunInterrupted
from .logging import read_metrics
from .models import get_num_channels
from .pretraining import PretrainTrainer, print_report
from .run_arguments import RunArguments
from .run_dir import check_run_dir, is_finished, is_run, remove_old_run, run_lock, write_config
from .saving import check_publishing


STAGE = "pretraining"
# Argument groups that the pretraining stage takes from the run; its optimisation arguments are pretraining's own.
SHARED_GROUPS = ("data", "model", "checkpoints", "logging")
# Number of steps to time for converting minutes to steps.
TIMED_STEPS = 12
# More would only take longer to measure.
MAX_VAL_IMAGES = 32
Arguments = TypeVar("Arguments", bound=RunArguments)


def pretrain_first(args: FinetuneArguments, images: FinetuneData) -> str:
    """Runs the pretraining stage of a fine-tuning run, in the folder `pretraining/` of the run.

    An interrupted stage is resumed, a complete one is not repeated. The labelled `images` are used too, and crops have
    the same size and scales as in fine-tuning, so that objects have the same size in both stages. All `images` are
    read first, so that errors appear before hours of training. Returns the folder of the decoder.
    """
    labelled = images.labelled
    arguments, output = stage_arguments(args, labelled), Path(args.output_dir)
    resume = args.resume_from_checkpoint is not None

    def lock_folder() -> None:
        check_run_dir(args)
        stack.enter_context(run_lock(output))  # before anything changes: another run may be fine-tuning there

    def start_folder() -> None:
        if args.overwrite:
            remove_old_run(output)
        if not (resume and is_run(output)):  # otherwise after the fine-tuning stage has checked the arguments
            write_config(args, output)

    accelerator = build_accelerator(args.mixed_precision, channels=get_num_channels(args))
    with contextlib.ExitStack() as stack:
        on_main_process(accelerator, lock_folder)
        images.read(accelerator)
        on_main_process(accelerator, lambda: check_publishing(args))
        _check_minutes(args)
        if args.pretraining_minutes is not None:
            arguments.max_steps = _steps_for_minutes(args.pretraining_minutes, arguments, labelled, accelerator)
        arguments.warmup_steps = min(arguments.warmup_steps, arguments.max_steps // 5)
        if resume and _is_complete(arguments, labelled):
            accelerator.print(f"Stage 1 of 2 is complete in {arguments.output_dir}")
            return str(output / STAGE / "final")
        trainer = PretrainTrainer(arguments, more_images={args.data or EMBEDDED: labelled})
        on_main_process(accelerator, start_folder)
        trainer.accelerator.print(f"Stage 1 of 2: pretraining the decoder in {arguments.output_dir}")
        results = trainer.run()
    print_report(trainer, results)
    trainer.accelerator.print("Stage 2 of 2: fine-tuning")
    return str(results["final"])


def _check_minutes(args: FinetuneArguments) -> None:
    """Raises a ValueError if a run is resumed with a different number of minutes, which determined its steps."""
    config = Path(args.output_dir) / "config.yaml"
    if args.resume_from_checkpoint is None or not config.is_file():
        return
    minutes = read_yaml(config, FinetuneArguments).get("pretraining_minutes")
    if minutes != args.pretraining_minutes:
        raise ValueError(
            f"resume_from_checkpoint: pretraining_minutes of {args.output_dir} was {minutes}. Undo that, start again "
            "with `--overwrite`, or choose another output_dir."
        )


def keep_image_size(args: FinetuneArguments) -> FinetuneArguments:
    """The arguments with the `image_size` of `pretrained`, which a pretraining stage does not preserve.

    Raises a ValueError if that is a height and a width, which `image_size` cannot express.
    """
    if args.pretrained is None or args.image_size is not None:
        return args
    config = DDePConfig.from_pretrained(args.pretrained)
    if config.num_channels != get_num_channels(args):  # fine-tuned with a new image processor
        return args
    size = processor_size(load_processor(args.pretrained, config))
    if isinstance(size, tuple):
        raise ValueError(f"image_size: {args.pretrained} resizes images to {size[0]}x{size[1]}. Set a shorter side.")
    return dataclasses.replace(args, image_size=size)


def stage_arguments(args: FinetuneArguments, labelled: SegmentationDataset) -> PretrainArguments:
    """Arguments of the pretraining stage: those shared with fine-tuning, and those derived from its images."""
    shared_names = [
        field.name for field in dataclasses.fields(PretrainArguments) if field.metadata["group"] in SHARED_GROUPS
    ]
    finetune_names = {field.name for field in dataclasses.fields(FinetuneArguments)} - {"freeze_encoder"}
    shared_names += ["seed", "sync_bn", "activation_checkpointing", "mixed_precision", "torch_compile"]
    values: dict[str, Any] = {name: getattr(args, name) for name in finetune_names & {*shared_names}}
    batch_size = args.pretraining_batch_size or PretrainArguments.batch_size
    has_stock_encoder = args.pretrained is None or stored_config(args.pretrained).get("decoder_only")
    num_images = sum(len(source) for source in unlabelled_sources(args.unlabelled)) + len(labelled)
    values |= {
        "output_dir": str(Path(args.output_dir) / STAGE),
        "images": args.unlabelled,
        "image_column": PretrainArguments.image_column,  # not that of the labelled images
        "max_steps": args.pretraining_steps,
        "corruption": args.pretraining_corruption,
        "mask_patch_size": max(1, min(MASK_PATCH_SIZE, args.crop_size // 2)),
        "batch_size": batch_size,
        "gradient_accumulation_steps": min(args.gradient_accumulation_steps, batch_size),
        "num_val_images": max(1, min(MAX_VAL_IMAGES, num_images // 10)),
        # A random encoder, or that of a whole model, is not available elsewhere.
        "decoder_only": args.encoder_weights != "none" and bool(has_stock_encoder),
    }
    if args.resume_from_checkpoint is not None:  # the stage has its own checkpoints
        values["resume_from_checkpoint"] = "latest"
    return PretrainArguments(**values)


def read_stage_record(decoder: str) -> dict[str, Any]:
    """The pretraining stage's record and results, for the model card of the run."""
    record, results = (read_json_object(Path(decoder) / name) for name in (RUN, RESULTS))
    return {"pretraining": {**record, "results": results}}


def _is_complete(args: PretrainArguments, labelled: SegmentationDataset) -> bool:
    """Whether the stage is complete, without checkpoints to resume from; changed arguments are an error."""
    output = Path(args.output_dir)
    if not is_finished(output) or checkpoint_folders(output):
        return False
    stored = PretrainArguments(**read_yaml(output / "config.yaml", PretrainArguments))
    names = vars(stored).keys() - set(list_field_names(PretrainArguments, "resumable"))
    changed = sorted(name for name in names if getattr(stored, name) != getattr(args, name))
    sources: list[Any] = [*unlabelled_sources(args.images), labelled]
    fingerprint = images_fingerprint(sources)
    if read_json_object(output / "final" / RUN)["data_fingerprint"] != fingerprint:
        changed.append("images")
    if changed:
        raise ValueError(
            f"resume_from_checkpoint: {', '.join(changed)} of {output} changed since it was pretrained. "
            "Undo that, start again with `--overwrite`, or choose another output_dir."
        )
    return True


def _steps_for_minutes(
    minutes: float, args: PretrainArguments, labelled: SegmentationDataset, accelerator: Accelerator
) -> int:
    """Number of steps for this many minutes, from timing a few; for a resumed run, the number chosen at its start."""
    config = Path(args.output_dir) / "config.yaml"
    if args.resume_from_checkpoint is not None and config.is_file():
        return int(read_yaml(config, PretrainArguments)["max_steps"])
    folder = Path(args.output_dir).with_name(".timing")
    timing_args = dataclasses.replace(timing_arguments(args, folder), num_val_images=1)
    try:
        PretrainTrainer(timing_args, more_images={"labelled": labelled}).run()
        steps = round(60 * minutes / seconds_per_step(timing_args)) if accelerator.is_main_process else 0
    except RunInterrupted as error:
        message = "Stopped while measuring pretraining_minutes; nothing was saved. Repeat the same command."
        accelerator.print(message, flush=True)
        raise RunInterrupted(message) from error
    finally:
        if accelerator.is_main_process:  # which ends last, see `Trainer.run`
            shutil.rmtree(folder, ignore_errors=True)
    (steps,) = broadcast_object_list([max(TIMED_STEPS, steps)])
    return int(steps)


def timing_arguments(args: Arguments, folder: Path) -> Arguments:
    """Arguments of a short run in `folder`, for [`seconds_per_step`]."""
    steps = TIMED_STEPS + 4 * args.dataloader_num_workers  # more than workers read ahead
    return dataclasses.replace(
        args,
        output_dir=str(folder),
        max_steps=steps,
        warmup_steps=0,
        save_steps=0,
        report_to=[],
        overwrite=True,
        resume_from_checkpoint=None,
        logging_steps=steps // 2,
    )


def seconds_per_step(args: RunArguments) -> float:
    """Time of a step in a run of [`timing_arguments`], from its second half: the first steps start the workers."""
    return float(args.batch_size / read_metrics(Path(args.output_dir) / "metrics.jsonl")[-1]["images_per_second"])
