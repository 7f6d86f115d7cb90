"""Decoder denoising pretraining: the objective, the held-out measurement, and the run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from ddep_hub import DDePConfig, DDePForPreTraining, DDePImageProcessor
from ddep_hub.data.loading import ImageFolder
from ddep_hub.data.sampling import epoch_order, example_seed
from ddep_hub.data.transforms import AugmentedDataset, PretrainTransform
from ddep_hub.denoising import sample_sigma
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.denoising_error import denoising_error
from ddep_hub.evaluation.plots import denoising_picture
from ddep_hub.publishing.card import pretraining_card
from ddep_hub.publishing.publish import publish_folder

from .arguments import PretrainArguments, write_yaml
from .embedded import embedded_scenes, encoder_source
from .loop import Batch, train
from .run_folder import MetricsLog, whole_folder


class Normalize:
    """uint8 images to normalised `pixel_values`, on the device they lie on."""

    def __init__(self, encoder_name: str) -> None:
        self.mean, self.std = encoder_mean_std(encoder_name)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps uint8 `(batch, 3, H, W)` in 0..255 to float32 of the same shape, channels last in memory."""
        mean = torch.tensor(self.mean, device=images.device).reshape(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).reshape(-1, 1, 1)
        images = images.float().contiguous(memory_format=torch.channels_last)
        return (images / 255 - mean) / std


class DenoisingObjective:
    """Squared error of the prediction; the noise of an example depends on (seed, step, position) alone."""

    def __init__(self, config: DDePConfig, seed: int) -> None:
        self.normalize = Normalize(config.encoder_name)
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
            generator = torch.Generator(images.device).manual_seed(example_seed(self.seed, step, position) >> 1)
            noise[row].normal_(generator=generator)
            sigma[row] = sample_sigma(self.sigma_range, 1, generator=generator, device=images.device)[0]
        return model(pixel_values=images, noise=noise, sigma=sigma).loss * images.numel()


def pretrain(args: PretrainArguments) -> dict[str, Any]:
    """Pretrains a decoder by denoising and writes the run's folder.

    Args:
        args: the run's arguments.

    Returns:
        The held-out figures of [`denoising_error`], `seconds`, and `final`, the folder with the model.
    """
    accelerator = Accelerator()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        folders = args.images or [str(embedded_scenes(output.parent) / "unlabelled")]
        weights = encoder_source(args.encoder_name, args.encoder_weights, output.parent)
    rows: Any = ConcatDataset([ImageFolder(folder) for folder in folders])
    if len(rows) <= args.num_held_out:
        raise ValueError(
            f"num_held_out is {args.num_held_out}, but {folders} hold {len(rows)} images in all. Keep fewer out."
        )
    # One choice for all seeds of a run, so that their errors can be compared.
    order = epoch_order(len(rows), 0, 0).tolist()
    held_out, training = order[: args.num_held_out], order[args.num_held_out :]
    transform = PretrainTransform(crop_size=args.crop_size, scale=(args.crop_scale_min, 1.0))
    dataset = AugmentedDataset(Subset(rows, sorted(training)), transform, args.seed)

    set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
    model = DDePForPreTraining.from_pretrained_encoder(
        args.encoder_name,
        encoder_weights=weights,
        decoder_hidden_sizes=args.decoder_hidden_sizes,
        decoder_bottleneck_size=args.decoder_bottleneck_size,
        decoder_width=args.decoder_width,
        decoder_norm=args.decoder_norm,
        freeze_encoder=args.freeze_encoder,
        corruption=args.corruption,
        prediction_type=args.prediction_type,
        sigma=args.sigma[0] if len(args.sigma) == 1 else args.sigma,
        image_skip=args.image_skip,
    )
    objective = DenoisingObjective(model.config, args.seed)
    if accelerator.is_main_process:
        write_yaml(args, output / "config.yaml")
    log = MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None)

    # The held-out crops are drawn once, with a seed of their own.
    held_out_set = AugmentedDataset(Subset(rows, held_out), transform, 0)
    clean = torch.stack([held_out_set[(0, index)]["pixel_values"] for index in range(len(held_out))])
    clean = objective.normalize(clean)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return denoising_error(model, clean, batch_size=args.batch_size)

    results = train(
        accelerator=accelerator,
        model=model,
        dataset=dataset,
        objective=objective,
        args=args,
        log=log,
        evaluate=evaluate,
        eval_every=args.eval_every,
    )
    accelerator.print(
        f"Held-out error of the predicted noise: {results['denoising_error']:.4f} "
        f"(predicting zero: {results['predicting_zero']:.4f}, best Gaussian blur: {results['gaussian_blur']:.4f})"
    )
    final = output / "final"
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model).eval()
        model.name_or_path = str(final)
        with whole_folder(output / "pictures") as pictures:
            denoising_picture(model, clean[:4]).save(pictures / "denoising.png")
        with whole_folder(final) as folder:
            model.save_pretrained(folder, decoder_only=args.decoder_only)
            mean, std = encoder_mean_std(args.encoder_name)
            DDePImageProcessor(image_mean=mean, image_std=std, do_resize=False).save_pretrained(folder)
            (folder / "README.md").write_text(
                pretraining_card(dataclasses.asdict(args), model.config, results, len(training))
            )
        if args.push_to_hub:
            publish_folder(final, str(args.hub_model_id), private=args.hub_private)
    accelerator.wait_for_everyone()
    return {**results, "final": str(final)}
