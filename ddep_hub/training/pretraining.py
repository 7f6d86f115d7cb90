"""Decoder denoising pretraining: the objective, the held-out measurement, and the run."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from ddep_hub import DDePConfig, DDePForPreTraining, DDePPreTrainedModel
from ddep_hub.data.loading import ImageFolder
from ddep_hub.data.sampling import epoch_order, example_seed
from ddep_hub.data.transforms import AugmentedDataset, Normalize, PretrainTransform
from ddep_hub.denoising import sample_sigma
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.denoising_error import denoising_error, denoising_references
from ddep_hub.evaluation.plots import denoising_picture
from ddep_hub.publishing.card import pretraining_card

from .arguments import PretrainArguments
from .loop import Batch
from .run import run
from .run_folder import start_run
from .sources import data_folder, embedded_scenes, encoder_file, encoder_source, needs_image_skip


Model = TypeVar("Model", bound=DDePPreTrainedModel)


class DenoisingObjective:
    """Squared error of the prediction; the noise of an example depends on (seed, step, position) alone."""

    def __init__(self, config: DDePConfig, seed: int) -> None:
        self.normalize = Normalize(*encoder_mean_std(config.encoder_name))
        self.sigma_range = config.sigma_range
        self.seed = seed

    def count(self, batch: Batch) -> int:
        """Elements of the images."""
        return batch["pixel_values"].numel()

    def loss_sum(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> torch.Tensor:
        """Squared error summed over all elements."""
        images = self.normalize(batch["pixel_values"])
        noise = torch.empty(images.shape, device=images.device)
        sigma = torch.empty(len(images), device=images.device)
        for row, position in enumerate(positions):
            generator = torch.Generator(images.device).manual_seed(example_seed(self.seed, step, position))
            noise[row].normal_(generator=generator)
            sigma[row] = sample_sigma(self.sigma_range, 1, generator=generator, device=images.device)[0]
        return model(pixel_values=images, noise=noise, sigma=sigma).loss * images.numel()


def pretrain(args: PretrainArguments) -> dict[str, Any]:
    """Pretrains a decoder by denoising and writes the run's folder.

    Args:
        args: the run's arguments.

    Returns:
        `denoising_error` on held-out images and its references, see [`denoising_references`]; `seconds`, and `final`,
        the folder with the model.
    """
    accelerator = Accelerator()
    output = Path(args.output_dir)
    start_run(output, overwrite=args.overwrite or not accelerator.is_main_process)
    source = encoder_source(args.encoder_name, args.encoder_weights)
    with accelerator.main_process_first():
        folders = [str(data_folder(name)) for name in args.images] or [str(embedded_scenes() / "unlabelled")]
        weights = encoder_file(source)
    rows: Any = ConcatDataset([ImageFolder(folder) for folder in folders])
    if len(rows) <= args.num_held_out:
        raise ValueError(
            f"num_held_out is {args.num_held_out}, but {folders} hold {len(rows)} images in all. Keep fewer out."
        )
    # One choice for all seeds of a run, so that their errors can be compared.
    order = epoch_order(len(rows), 0, 0).tolist()
    held_out, training = order[: args.num_held_out], sorted(order[args.num_held_out :])
    transform = PretrainTransform(crop_size=args.crop_size, scale=(args.crop_scale_min, 1.0))
    dataset = AugmentedDataset(Subset(rows, training), transform, args.seed)
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
    level = sum(model.config.sigma_range) / 2
    clean = crops(rows, held_out, transform, objective.normalize)
    references = denoising_references(clean, crops(rows, training[:32], transform, objective.normalize), level)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        return {"denoising_error": denoising_error(model, clean, batch_size=args.batch_size), **references}

    results = run(
        accelerator=accelerator,
        model=model,
        dataset=dataset,
        objective=objective,
        args=args,
        evaluate=evaluate,
        card=lambda results: pretraining_card(dataclasses.asdict(args), source, model.config, results, len(training)),
        picture=lambda: denoising_picture(model, clean[:4]),
        decoder_only=args.decoder_only,
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


def crops(rows: Any, indices: Sequence[int], transform: PretrainTransform, normalize: Normalize) -> torch.Tensor:
    """One crop of each image, normalised; the same in every run."""
    fixed = AugmentedDataset(rows, transform, 0)
    return normalize(torch.stack([fixed[(0, index)]["pixel_values"] for index in indices]))


def new_model(cls: type[Model], encoder_name: str, source: str, weights: Path | None, **fields: Any) -> Model:
    """A model with a random decoder, on an encoder from `source` (see [`encoder_source`])."""
    if source == "none":
        return cls(DDePConfig(encoder_name=encoder_name, **fields))
    return cls.from_pretrained_encoder(encoder_name, encoder_weights=weights, **fields)
