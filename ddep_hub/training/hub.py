"""A run on the Hub: checked before it starts, its checkpoints if asked for, and its model when it has ended."""

from pathlib import Path

from huggingface_hub import HfApi

from ddep_hub.hub.publish import prepare_repository, publish_folder

from .arguments import RunArguments


def check_publishing(args: RunArguments) -> None:
    """Makes the repository before the run, so that a missing token or right does not show up after it.

    Raises:
        OSError: the Hub refused.
    """
    if args.push_to_hub:
        try:
            prepare_repository(HfApi(), str(args.hub_model_id), private=args.hub_private_repo)
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
    try:
        address = publish_folder(
            final,
            str(args.hub_model_id),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            decoder_only=args.hub_decoder_only,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"Publishing to {args.hub_model_id} failed: {error} The run is whole in {final}; publish it with "
            f"`ddep-hub publish {final} {args.hub_model_id}`."
        ) from error
    print(f"Published: {address}")
