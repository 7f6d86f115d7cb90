"""A run on the Hub: checked before it starts, its checkpoints if asked for, and its model when it has ended."""

import tempfile
import warnings
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError

from ddep_hub import DDePPreTrainedModel
from ddep_hub.publishing.publish import prepare_repository, publish_folder
from ddep_hub.publishing.staging import read_config

from .arguments import RunArguments
from .sources import encoder_beside
from .task import Task


CHECKPOINTS = "checkpoints"  # the branch


def check_publishing(args: RunArguments) -> None:
    """Makes the repository before the run, so that a missing token or right does not show up after it.

    Raises:
        OSError: the Hub refused.
    """
    if args.push_to_hub or args.push_checkpoints:
        try:
            prepare_repository(HfApi(), str(args.hub_model_id), private=args.hub_private, tag=args.hub_tag)
        except OSError as error:
            raise OSError(
                f"push_to_hub: {args.hub_model_id} cannot be written to: {error} Or leave push_to_hub out, and "
                "publish later by `ddep-hub publish`."
            ) from error


def publish_final(args: RunArguments, final: Path) -> None:
    """Publishes the model of a run.

    Raises:
        OSError: that failed; the run's folder is whole.
    """
    if not args.push_to_hub:
        return
    weights = None if args.encoder_weights == "none" else args.encoder_weights
    try:
        address = publish_folder(
            final,
            str(args.hub_model_id),
            private=args.hub_private,
            revision=args.hub_revision,
            tag=args.hub_tag,
            create_pr=args.hub_create_pr,
            decoder_only=args.hub_decoder_only,
            remote_code=args.hub_remote_code,
            encoder_weights=encoder_beside(read_config(final), weights, decoder_only=args.hub_decoder_only),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"Publishing to {args.hub_model_id} failed: {error} The run is whole in {final}; publish it with "
            f"`ddep-hub publish {final} {args.hub_model_id}`."
        ) from error
    print(f"Published: {address}")


def push_checkpoint(args: RunArguments, task: Task, model: DDePPreTrainedModel, step: int) -> None:
    """Publishes the model after a step to the branch `checkpoints`; where that fails, a warning says so.

    Args:
        args: the run's arguments.
        task: what is trained.
        model: the model, as it would be saved.
        step: optimizer steps done.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ddep-checkpoint-") as folder:
            task.save(model, Path(folder))
            publish_folder(
                folder,
                str(args.hub_model_id),
                private=args.hub_private,
                revision=CHECKPOINTS,
                remote_code=args.hub_remote_code,
                message=f"Step {step}",
                verify=False,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        warnings.warn(f"The checkpoint of step {step} was not published: {error} The run goes on.", stacklevel=2)
