"""Decoder denoising pretraining: the objective, the held-out measurement, and the run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import set_seed
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePPreTrainedModel
from ddep_hub.data.sampling import example_seed
from ddep_hub.data.transforms import Normalize, PretrainTransform
from ddep_hub.denoising import sample_sigma
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.denoising_error import denoising_error, denoising_references
from ddep_hub.evaluation.plots import denoising_picture

from .arguments import PretrainArguments, micro_batches
from .run import begin, run, save_model
from .sources import encoder_file, encoder_source, needs_image_skip
from .task import Batch, Task
from .training_images import open_training_images


Model = TypeVar("Model", bound=DDePPreTrainedModel)


class DenoisingObjective:
    """Squared error of the prediction; the noise of an example depends on (seed, step, position) alone."""

    def __init__(self, config: DDePConfig, seed: int) -> None:
        self.normalize = Normalize(*encoder_mean_std(config.encoder_name))
        self.sigma_range = config.sigma_range
        self.seed = seed

    def counts(self, batch: Batch) -> list[torch.Tensor]:
        """Elements of the images."""
        images = batch["pixel_values"]
        return [torch.full((), float(images.numel()), device=images.device)]

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        """Squared error summed over all elements."""
        images = self.normalize(batch["pixel_values"])
        noise = torch.empty(images.shape, device=images.device)
        sigma = torch.empty(len(images), device=images.device)
        for row, position in enumerate(positions):
            generator = torch.Generator(images.device).manual_seed(example_seed(self.seed, step, position))
            noise[row].normal_(generator=generator)
            sigma[row] = sample_sigma(self.sigma_range, 1, generator=generator, device=images.device)[0]
        return [model(pixel_values=images, noise=noise, sigma=sigma).loss * images.numel()]


def pretrain(args: PretrainArguments) -> dict[str, Any]:
    """Pretrains a decoder by denoising and writes the run's folder.

    Args:
        args: the run's arguments.

    Returns:
        `denoising_error` on held-out images and its references, see [`denoising_references`]; `seconds`, and `final`,
        the folder with the model.
    """
    accelerator = begin(args)
    source = encoder_source(args.encoder_name, args.encoder_weights)
    transform = PretrainTransform(crop_size=args.crop_size, scale=(args.crop_scale_min, 1.0))
    with accelerator.main_process_first():
        images = open_training_images(args, transform)
        weights = encoder_file(source)
    skip = needs_image_skip(args.encoder_name) if args.image_skip is None else args.image_skip

    set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
    fields = {name: value for name, value in dataclasses.asdict(args).items() if name.startswith("decoder_")}
    del fields["decoder_only"]
    model = new_model(
        DDePForPreTraining,
        args.encoder_name,
        source,
        weights,
        **fields,
        freeze_encoder=args.freeze_encoder,
        corruption=args.corruption,
        prediction_type=args.prediction_type,
        sigma=args.sigma[0] if len(args.sigma) == 1 else args.sigma,
        image_skip=skip,
    )
    objective = DenoisingObjective(model.config, args.seed)
    clean = objective.normalize(images.held_out)
    at_a_time = -(-args.batch_size // (accelerator.num_processes * micro_batches(args, accelerator.num_processes)))
    level = sum(model.config.sigma_range) / 2
    references = denoising_references(clean, objective.normalize(images.examples), level)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        return {"denoising_error": denoising_error(model, clean, batch_size=at_a_time), **references}

    task = Task(
        model=model,
        feed=images.feed,
        objective=objective,
        evaluate=evaluate,
        score=lambda results: -results["denoising_error"],
        picture=lambda model: denoising_picture(model, clean[:4]),
        save=functools.partial(save_model, decoder_only=args.decoder_only),
        set_mode=lambda step: model.train(),
        skipped=images.skipped,
    )
    results = run(
        accelerator,
        task,
        args,
        "pretraining",
        {"encoder_source": source, "images": images.feed.description},
    )
    accelerator.print(
        f"Held-out error of the found noise: {results['denoising_error']:.4f} (finding none "
        f"{references['predicting_zero']:.4f}, best Gaussian blur {references['gaussian_blur']:.4f}, "
        f"best linear filter {references['linear_filter']:.4f})"
    )
    if not has_learned(results):
        accelerator.print("The decoder has not learned to denoise better than that yet: train for longer.")
    return results


def has_learned(results: Mapping[str, float]) -> bool:
    """Whether the model beats every reference that learns no features."""
    references = ("predicting_zero", "gaussian_blur", "linear_filter")
    return results["denoising_error"] < min(results[name] for name in references)


def new_model(cls: type[Model], encoder_name: str, source: str, weights: Path | None, **fields: Any) -> Model:
    """A model with a random decoder, on an encoder from `source` (see [`encoder_source`])."""
    if source == "none":
        return cls(DDePConfig(encoder_name=encoder_name, **fields))
    return cls.from_pretrained_encoder(encoder_name, encoder_weights=weights, **fields)
