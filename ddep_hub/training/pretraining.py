"""Decoder denoising pretraining: the objective, the held-out measurement, and the run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from ddep_hub import DDePConfig, DDePForPreTraining, DDePPreTrainedModel
from ddep_hub.data.dataloading import AugmentedDataset, bad_file
from ddep_hub.data.image_datasets import MapSource, ShardedImages, identity, open_images
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.samplers import epoch_order, example_seed
from ddep_hub.data.segmentation_datasets import SizedDataset
from ddep_hub.data.streaming import ImageStream
from ddep_hub.data.synthetic import embedded_scenes
from ddep_hub.data.transforms import Normalize, PretrainTransform
from ddep_hub.denoising import sample_sigma
from ddep_hub.encoder_weights import encoder_file, encoder_source, needs_image_skip
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.denoising import denoising_error, denoising_references
from ddep_hub.evaluation.visualization import denoising_picture
from ddep_hub.utils.paths import resolve_data

from .arguments import PretrainArguments, micro_batches
from .feeds import DatasetFeed, Feed, StreamFeed
from .run import begin, run, save_model
from .trainer import Batch, Task


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


# Training images that the linear filter among the references is fitted on.
REFERENCE_IMAGES = 32


@dataclass
class TrainingImages:
    """Images of a run.

    Args:
        feed: the training examples.
        held_out: crops of the held-out images that are not broken, uint8 `(n, 3, H, W)`, the same in every run.
        examples: crops of a few training images, uint8 `(m, 3, H, W)`.
        skipped: broken files among them, with `skip_bad_files`.
    """

    feed: Feed
    held_out: torch.Tensor
    examples: torch.Tensor
    skipped: list[str]


def open_sources(args: PretrainArguments) -> list[MapSource] | list[ShardedImages]:
    """Opens the sources of a run; the embedded scenes where its arguments name none.

    Raises:
        FileNotFoundError, ValueError: a source cannot be used.
    """
    return open_images(source_names(args), column=args.image_column, streaming=args.streaming)


def source_names(args: PretrainArguments) -> list[str]:
    """The sources of a run by folder or name, in the order of [`open_sources`]."""
    names = [name if "://" in name else str(resolve_data(name)) for name in args.images]
    return names or [str(embedded_scenes() / "unlabelled")]


def open_training_images(args: PretrainArguments, transform: PretrainTransform) -> TrainingImages:
    """Opens the sources of a run, and keeps some images out.

    Args:
        args: the run's arguments.
        transform: makes crops.

    Raises:
        ValueError: there are no more images than `num_val_images`, or a source cannot be used.
    """
    names, sources = source_names(args), open_sources(args)
    streams = [source for source in sources if isinstance(source, ShardedImages)]
    data = identity(sources)
    number = args.num_val_images
    if streams:
        make = functools.partial(
            ImageStream,
            streams,
            transform,
            seed=args.seed,
            weights=args.image_weights or None,
            window=args.shuffle_window,
            skip_bad_files=args.skip_bad_files,
            held_out=number,
        )
        rows: SizedDataset = make(global_batch_size=1, start_step=0, end_step=0).head(number + REFERENCE_IMAGES)
        held_out, training = np.split(np.arange(len(rows)), [number])
        feed: Feed = StreamFeed(make, data, f"a stream of {sum(source.num_shards for source in streams)} shards")
    else:
        joined = ConcatDataset(sources)
        rows = joined
        # One choice for all seeds of a run, so that their errors can be compared.
        held_out, training = np.split(epoch_order(len(joined), 0, 0), [number])
        training.sort()
        sizes = np.diff(np.searchsorted(training, [0, *joined.cumulative_sizes])).tolist()
        if args.image_weights and min(sizes) == 0:
            raise ValueError(
                f"num_val_images: all images of {names[sizes.index(0)]} would be kept out. Keep fewer out."
            )
        subset: Any = Subset(joined, training)
        dataset = AugmentedDataset(subset, transform, args.seed, skip_bad_files=args.skip_bad_files)
        feed = DatasetFeed(dataset, data, sizes, args.image_weights)
    if not len(training):
        raise ValueError(f"num_val_images is {number}, but {names} hold {len(rows)} images in all. Keep fewer out.")
    fixed, skipped = AugmentedDataset(rows, transform, 0), list[str]()

    def crops(indices: np.ndarray, what: str) -> torch.Tensor:
        found = []
        for index in indices:
            try:
                found.append(fixed[(0, int(index))]["pixel_values"])
            except (BadFileError, OSError) as error:
                if not args.skip_bad_files:
                    raise
                skipped.append(bad_file(error))
        if not found:
            raise BadFileError(f"All {len(indices)} {what} images are broken, such as {skipped[0]}; look at the files")
        return torch.stack(found)

    return TrainingImages(
        feed, crops(held_out, "held-out"), crops(training[:REFERENCE_IMAGES], "of the first training"), skipped
    )
