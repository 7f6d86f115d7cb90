"""A run: train, save, measure, describe, draw and publish, in this order."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import HfApi
from PIL import Image
from torch import nn

from ddep_hub import DDePImageProcessor, DDePPreTrainedModel
from ddep_hub.data.transforms import AugmentedDataset
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.publishing.publish import publish_folder

from .arguments import RunArguments, write_yaml
from .loop import Objective, synchronized, train
from .run_folder import MetricsLog, whole_folder, write_whole


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


def run(
    *,
    accelerator: Accelerator,
    model: DDePPreTrainedModel,
    dataset: AugmentedDataset,
    objective: Objective,
    args: RunArguments,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    card: Callable[[Mapping[str, Any]], str],
    picture: Callable[[], Image.Image],
    encoder_lr_factor: float = 1.0,
    decoder_only: bool = False,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Trains a model and writes the run's folder; the weights are in `final/` before anything else can fail.

    Args:
        accelerator: the process's accelerator.
        model: the model to train.
        dataset: the training examples.
        objective: what is minimised.
        args: the run's arguments.
        evaluate: measures the model; called in every process.
        card: makes the model card from the results.
        picture: draws what the model does.
        encoder_lr_factor: factor on the encoder's learning rate.
        decoder_only: leave the encoder out of `final/`.
        image_size: shorter side that the model is measured at; `None` for images as they are.

    Returns:
        What `evaluate` measured, `seconds` of training, and `final`, the folder.

    Raises:
        FloatingPointError: the loss is not finite.
        OSError: the Hub refused, before the run; or publishing failed, after it: the folder is whole then.
    """
    output = Path(args.output_dir)
    final = output / "final"
    if accelerator.is_main_process:
        check_publishing(args)
        write_yaml(args, output / "config.yaml")
    log = MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None)
    row, seconds = train(
        accelerator=accelerator,
        model=model,
        dataset=dataset,
        objective=objective,
        args=args,
        log=log,
        evaluate=evaluate,
        encoder_lr_factor=encoder_lr_factor,
    )
    model = synchronized(accelerator, model).eval()
    if accelerator.is_main_process:
        model.name_or_path = str(final)
        mean, std = encoder_mean_std(model.config.encoder_name)
        # The geometry the model was measured with.
        size: dict[str, Any] = {"size": {"shortest_edge": image_size}} if image_size else {"do_resize": False}
        with whole_folder(final) as folder:
            model.save_pretrained(folder, decoder_only=decoder_only)
            DDePImageProcessor(image_mean=mean, image_std=std, **size).save_pretrained(folder)
    results = {**evaluate(model), "seconds": round(seconds, 1)}
    log.write({**row, **results})
    if accelerator.is_main_process:
        write_whole(final / "results.json", json.dumps(results, indent=1) + "\n")
        write_whole(final / "README.md", card(results))
        with whole_folder(output / "pictures") as folder:
            picture().save(folder / "predictions.png")
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
