"""Saves the models of a run, `best/` and `final/`, with their cards, and publishes the final one."""

import filecmp
import shlex
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import logging

from ddep_hub.encoder_weights import WEIGHTS_NAME
from ddep_hub.hub.model_card import LOSS, PREDICTIONS, write_card
from ddep_hub.hub.publish import call_hub, prepare_repository, publish_folder
from ddep_hub.hub.run_record import BASELINE, CONFUSION, EMBEDDED, EVALUATION, RESULTS, Kind, write_run_record
from ddep_hub.hub.staging import CARD, RUN, WEIGHTS_PATTERN
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.modeling_ddep import DDePForSemanticSegmentation
from ddep_hub.utils.files import atomic_dir, atomic_write, warn_on_write_error

from .logging import plot_loss
from .run_arguments import RunArguments


logger = logging.get_logger(__name__)
EXPORT_SUFFIXES = (".onnx", ".data", ".pt2")  # weights of large ONNX models are in `model.onnx.data`


def save_model(model: DDePPreTrainedModel, processor: DDePImageProcessor, args: RunArguments, folder: Path) -> None:
    """Saves a model with its image processor."""
    # Training may have the tensors in another memory format.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Fine-tuning may have trained a denoising head beside the model.
    if isinstance(model, DDePForSemanticSegmentation):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("noise_head.")}
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would break the run's own bar
    model.save_pretrained(folder, decoder_only=getattr(args, "decoder_only", False), state_dict=state)
    if was_enabled:
        logging.enable_progress_bar()
    processor.save_pretrained(folder)


def save_best(
    model: DDePPreTrainedModel,
    processor: DDePImageProcessor,
    args: RunArguments,
    kind: Kind,
    results: Mapping[str, Any],
    run_info: Mapping[str, Any],
) -> None:
    """Saves the best model so far to `best/`, with its results and card; only warns if the disk is full."""
    best = Path(args.output_dir) / "best"
    with warn_on_write_error(best), atomic_dir(best) as folder:
        save_model(model, processor, args, folder)
        copy_additions(best, folder)
        write_run_record(folder, kind, args, results, **run_info)
        try:
            write_card(folder)
        except ValueError as error:  # of what the user has changed
            logger.warning("%s stays as it is: %s", best / CARD, error)


def save_final(model: DDePPreTrainedModel, processor: DDePImageProcessor, args: RunArguments, final: Path) -> None:
    """Saves the model of a run, and names it after its folder."""
    model.name_or_path = str(final)
    with atomic_dir(final) as folder:
        save_model(model, processor, args, folder)
        # Of the same run, whose record `remove_old_run` has not removed.
        if args.resume_from_checkpoint is not None and (final / RUN).is_file():
            copy_additions(final, folder)


def copy_additions(old: Path, new: Path) -> None:
    """Copies what was added to the folder of a model, such as text in its card, to that of the model to replace it.

    Not the results, which the run writes again, and evaluations and exports only if the weights are the same.
    """
    replaced = {RESULTS, LOSS, PREDICTIONS}
    same_weights = all((folder / WEIGHTS_NAME).is_file() for folder in (old, new)) and filecmp.cmp(
        old / WEIGHTS_NAME, new / WEIGHTS_NAME, shallow=False
    )
    for path in sorted(old.iterdir()) if old.is_dir() else ():
        if path.name in replaced or fnmatch(path.name, WEIGHTS_PATTERN) or (new / path.name).exists():
            continue
        is_export = path.suffix in EXPORT_SUFFIXES or (path / "export.json").is_file()
        if (path.name in (BASELINE, EVALUATION, CONFUSION) or is_export) and not same_weights:
            command = "export" if is_export else "card"
            logger.warning("%s is of other weights, and is removed: add it again with `ddep-hub %s`", path, command)
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new, follow_symlinks=False)
        except OSError as error:  # which must not end a run
            logger.warning("%s is lost, because it could not be copied: %s", path, error)


def add_pictures(final: Path, args: RunArguments, run_info: Mapping[str, Any], predictions: bytes) -> None:
    """Adds the loss curve to the card of a run and, unless they show other people's images, the predictions."""
    loss_picture = Path(args.output_dir) / "pictures" / LOSS
    if plot_loss(Path(args.output_dir) / "metrics.jsonl", loss_picture):
        atomic_write(final / LOSS, loss_picture.read_bytes())
    # Images of others have their own license.
    names = [*getattr(args, "images", ()), getattr(args, "data", None), *run_info.get("more_images", ())]
    has_user_images = any(name not in (None, EMBEDDED) for name in names)
    if args.card_pictures or (args.card_pictures is None and not has_user_images):
        atomic_write(final / PREDICTIONS, predictions)
    write_card(final)


def check_publishing(args: RunArguments) -> None:
    """Creates the Hub repository before the run, so that a missing token or permission shows up before it, not after.

    Raises an OSError if the Hub refuses.
    """
    if args.push_to_hub:
        try:
            api, revision = HfApi(), args.hub_revision
            repo_id = prepare_repository(api, str(args.hub_model_id), private=args.hub_private_repo, revision=revision)
            # The Hub lets any token "create" a repository that exists.
            call_hub(lambda: api.auth_check(repo_id, write=True), f"looking for the right to write to {repo_id}")
        except OSError as error:
            raise OSError(
                f"push_to_hub: cannot write to {args.hub_model_id}: {error} Or leave push_to_hub out, and use "
                "`ddep-hub publish` later."
            ) from error


def publish_final(args: RunArguments, final: Path) -> None:
    """Publishes the model of a run. Raises an OSError if that fails; the run's folder is complete then."""
    if not args.push_to_hub:
        return
    try:
        url = publish_folder(
            final,
            str(args.hub_model_id),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            decoder_only=args.hub_decoder_only,
        )
    except (OSError, RuntimeError, ValueError) as error:
        flags = f" --revision {args.hub_revision}" if args.hub_revision else ""
        flags += " --decoder_only" * args.hub_decoder_only + " --private" * args.hub_private_repo
        raise OSError(
            f"Publishing to {args.hub_model_id} failed: {error} The run is complete in {final}. Publish it with "
            f"`ddep-hub publish {shlex.quote(str(final))} {args.hub_model_id}{flags}`."
        ) from error
    print(f"Published: {url}")
