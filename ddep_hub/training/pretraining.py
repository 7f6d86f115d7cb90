"""Pretraining of a decoder on unlabelled images."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from ddep_hub.checkpoints import hash_weights
from ddep_hub.data.dataloading import (
    MAX_CONSECUTIVE_BAD,
    AugmentedDataset,
    bad_file_path,
    compute_fingerprint,
    train_dataloader,
)
from ddep_hub.data.image_datasets import ImageFolder, MapSource, ShardedImages, images_fingerprint, open_images
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.preprocessing import Normalize, get_normalization, warn_about_units
from ddep_hub.data.samplers import StepBatchSampler, epoch_order
from ddep_hub.data.segmentation_datasets import SegmentationFolder, SizedDataset
from ddep_hub.data.splits import evenly_spaced
from ddep_hub.data.streaming import ImageStream
from ddep_hub.data.synthetic import rendered_scenes
from ddep_hub.data.transforms import SegmentationTrainTransform
from ddep_hub.data.unlabelled_transforms import PretrainTransform, UnlabelledTransform
from ddep_hub.denoising import CORRUPTIONS
from ddep_hub.encoder_weights import encoder_file
from ddep_hub.evaluation.denoising import EVALUATIONS, REFERENCES, denoising_error, denoising_picture
from ddep_hub.modeling_ddep import DDePForPreTraining
from ddep_hub.pretrained import stored_config
from ddep_hub.utils.arguments import build_arguments
from ddep_hub.utils.files import resolve_data
from ddep_hub.utils.processes import isolate_state

from .arguments import PretrainArguments
from .interruption import track_time
from .losses import sample_noise
from .models import build_processor, find_encoder, get_num_channels, iter_pixels, pretraining_model
from .run_arguments import micro_batches
from .trainer import Batch, Trainer


logger = logging.getLogger(__name__)

# Number of training images used to fit the linear filter baseline, and to measure mean and std.
REFERENCE_IMAGES = 32


@track_time()
@isolate_state()
def pretrain(arguments: PretrainArguments | None = None, **kwargs: Any) -> dict[str, Any]:
    """Pretrains a decoder on unlabelled images and writes the run folder.

    The program's random generators are restored afterwards.

    Args:
        arguments: The arguments of the run.
        **kwargs: Arguments as keywords, which override `arguments`; or, without `arguments`, also `preset`.

    Returns:
        A dictionary with the `denoising_error` on validation images and its baselines, see [`denoising_references`],
        [`masking_references`] and [`feature_references`], the `seconds` of training, and `final`, the model's folder.

    Raises:
        RunInterrupted: A signal was received or `max_time` was up; a checkpoint was written.
        CheckpointError: A checkpoint cannot be written or read, or belongs to another run.
        BlockingIOError: Another process runs in the same folder.
        FileExistsError: The run folder holds another run, or files that are not a run's.
        FileNotFoundError: A source of images does not exist.
        FloatingPointError: A loss or gradient is not finite; names the step and its files.
        OSError: The Hub denied access before the run, or publishing failed after it; the folder is then complete.
        RuntimeError: Another thread of this process is training, or `torch.autocast` is on.
        TypeError: An argument does not exist; names the closest one.
        ValueError: An argument is out of range, or does not fit the images or the model; names it.
    """
    trainer = PretrainTrainer(build_arguments(PretrainArguments, kwargs, arguments))
    results = trainer.run()
    print_report(trainer, results)
    return results


def print_report(trainer: "PretrainTrainer", results: Mapping[str, float]) -> None:
    """Prints the results of pretraining."""
    references = ", ".join(f"{label} {results[name]:.4f}" for name, label in REFERENCES.items() if name in results)
    what, error = EVALUATIONS[trainer.args.corruption].predicted, results["denoising_error"]
    trainer.accelerator.print(f"Error of {what} on validation images: {error:.4f} ({references})")
    if not has_learned(results):
        trainer.accelerator.print("The decoder does not beat these baselines yet. Train for longer.")


def has_learned(results: Mapping[str, float]) -> bool:
    """Whether the model beats every baseline that learns no features."""
    return results["denoising_error"] < min(results[name] for name in REFERENCES if name in results)


class PretrainTrainer(Trainer):
    """Minimises the squared error of the prediction; noise and masks depend only on (seed, step, position).

    `more_images` are further data sets to train on, keyed by their names in the model card.
    """

    kind = "pretraining"
    args: PretrainArguments
    model: DDePForPreTraining

    def __init__(self, args: PretrainArguments, more_images: Mapping[str, SizedDataset] | None = None) -> None:
        super().__init__(args)
        self.more_images = more_images or {}
        stored = {} if args.pretrained is None else stored_config(args.pretrained)
        source = find_encoder(args, args.pretrained)
        self.transform = train_transform(args)
        with self.accelerator.main_process_first():
            validation, examples = self._open_data()
            encoder_file(source)
        if len(set(gather_object([self.fingerprint]))) > 1:
            raise BadFileError("images: the processes read different files. Use storage that all of them can read.")
        set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
        self.model = pretraining_model(args, source, stored)
        if args.decoder_only and source in ("none", args.pretrained):
            recorded_hash = self.model.config.encoder_weights_hash
            if source == "none" or hash_weights(self.model.ddep.encoder.state_dict()) != recorded_hash:
                raise ValueError(
                    "decoder_only: the encoder would be lost, because its weights are not timm's. Leave it out, "
                    "or set it to false if a preset sets it."
                )
        self.run_info = {
            "encoder_source": source,
            "images": self.data,
            "more_images": list(self.more_images),
            "data_fingerprint": self.fingerprint,
        }
        # On whole images, because scaled crops would vary less.
        pixels = iter_pixels(self.reference, self.transform.num_channels, skip_bad_files=args.skip_bad_files)
        self.processor = build_processor(args, args.pretrained, self.model.config, pixels)
        self.processor.do_resize = False
        self.normalize = Normalize.from_processor(self.processor)
        if self.model.config.num_channels != 3:  # measured by default, so they also detect changed images
            self.fingerprint = compute_fingerprint(self.fingerprint, *get_normalization(self.processor))
        self.sigma_range = self.model.config.sigma_range
        self.validation = self.normalize(validation)
        warn_about_units(self.validation, next(iter(self.more_images), None) or source_names(args)[0])
        self.run_info["evaluated"] = len(validation)
        if self.model.config.prediction_type == "features":  # their references run the encoder
            self.model.to(self.accelerator.device).eval()
        references = EVALUATIONS[args.corruption].references
        self.references = references(self.model, self.validation, self.normalize(examples))
        processes = self.accelerator.num_processes
        self.eval_batch_size = -(-args.batch_size // (processes * micro_batches(args, processes)))

    def _open_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Opens the sources and keeps validation images out of training.

        Returns crops of the validation images and of a few training images, each `(n, C, H, W)` in 0..255, the same
        for all seeds.
        """
        args, num_validation = self.args, self.args.num_val_images
        # Without images, rendered scenes are used, which are written first.
        names = source_names(args) if args.images or not self.more_images else []
        sources = [*(open_sources(args) if names else ()), *self.more_images.values()]
        self.fingerprint = images_fingerprint(sources)
        # An image that is in two sources must not be trained on if it is held out.
        sources = _without_repeated_files(sources)
        self.streams = [source for source in sources if isinstance(source, ShardedImages)]
        if self.streams:
            self.any_world_size = False
            self.data = f"a stream of {sum(source.num_shards for source in self.streams)} shards"
            images: SizedDataset = self._make_stream(global_batch_size=1, start_step=0, end_step=0).head(
                num_validation + REFERENCE_IMAGES
            )
            order, num_spare = np.arange(len(images)), 0
        else:
            images = dataset = ConcatDataset(sources)
            # The same for all seeds, so that the errors of their runs can be compared.
            order, num_spare = epoch_order(len(dataset), 0, 0), MAX_CONSECUTIVE_BAD
        if len(images) <= num_validation:
            raise ValueError(f"num_val_images is {num_validation}, but {names} hold {len(images)} images. Lower it.")
        # The next ones take the place of broken ones; one is left to train on.
        candidates = order[: min(num_validation + num_spare, len(order) - 1)]
        validation, num_read = self._load_crops(images, candidates, "validation", num_validation)
        if num_read > num_validation:  # the training images are others then
            self.fingerprint = compute_fingerprint(self.fingerprint, num_read)
        training = reference = order[max(num_read, num_validation) :]
        if not self.streams:
            training.sort()
            reference = training[evenly_spaced(len(training), REFERENCE_IMAGES)]
            self.sizes = np.diff(np.searchsorted(training, [0, *dataset.cumulative_sizes])).tolist()
            if args.image_weights and min(self.sizes) == 0:
                raise ValueError(
                    f"num_val_images: no image of {names[self.sizes.index(0)]} is left for training. Lower it."
                )
            subset: Any = Subset(dataset, training)
            self.dataset = AugmentedDataset(subset, self.transform, args.seed, skip_bad_files=args.skip_bad_files)
            self.data = f"{len(self.dataset)} images"
        if not self.streams and num_validation > len(training) and self.accelerator.is_main_process:
            logger.warning(
                "num_val_images: %d of %d images are held out for validation; lower it to train on more",
                num_validation,
                len(images),
            )
        self.reference = Subset[Any](images, reference.tolist())
        return validation, self._load_crops(self.reference, range(len(reference)), "reference")[0]

    def _make_stream(self, **options: Any) -> ImageStream:
        args = self.args
        return ImageStream(
            self.streams,
            self.transform,
            seed=args.seed,
            weights=args.image_weights or None,
            window=args.shuffle_window,
            skip_bad_files=args.skip_bad_files,
            num_validation=args.num_val_images,
            **options,
        )

    def _load_crops(
        self, images: SizedDataset, indices: Iterable[int], description: str, number: int | None = None
    ) -> tuple[torch.Tensor, int]:
        """Crops of all images, or of the first `number` that are not broken; and how many images were read."""
        dataset, crops, bad_files = AugmentedDataset(images, self.transform, 0), list[torch.Tensor](), list[str]()
        for index in indices:
            if len(crops) == number:
                break
            try:
                crops.append(dataset[(0, int(index))]["pixel_values"])
            except (BadFileError, OSError) as error:
                if not self.args.skip_bad_files:
                    raise
                bad_files.append(bad_file_path(error))
        if not crops:
            raise BadFileError(
                f"All {len(bad_files)} images tried for {description} are broken, such as {bad_files[0]}. Check the "
                "files."
            )
        self.bad_files = [*self.bad_files, *bad_files]
        return torch.stack(crops), len(crops) + len(bad_files)

    def dataloader(self, start_step: int, states: dict[str, Any] | None) -> DataLoader[Any]:
        args, options = self.args, self.batch_options(start_step)
        if self.streams:
            stream = self._make_stream(states=states, **options)
            num_workers = stream.usable_workers(args.dataloader_num_workers)
            return train_dataloader(stream, num_workers=num_workers, device=self.accelerator.device)
        sampler = StepBatchSampler(
            self.sizes if args.image_weights else len(self.dataset),
            weights=args.image_weights or None,
            seed=args.seed,
            **options,
        )
        return train_dataloader(
            self.dataset, sampler, num_workers=args.dataloader_num_workers, device=self.accelerator.device
        )

    def before_training(self) -> None:
        if self.args.freeze_encoder and not self.weights.sharded:
            self.model.ddep.fold_encoder()

    def input_side(self) -> int:
        return CORRUPTIONS[self.args.corruption].size_factor * super().input_side()

    def loss_counts(self, batch: Batch) -> list[torch.Tensor]:
        images = batch["pixel_values"]
        return [torch.full((), float(images.numel()), device=images.device)]

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        images = self.normalize(batch["pixel_values"])
        if not CORRUPTIONS[self.args.corruption].needs_noise:
            return [model(pixel_values=images).loss * images.numel()]
        noise, sigma = sample_noise(images, self.sigma_range, self.args.seed, step, positions)
        return [model(pixel_values=images, noise=noise, sigma=sigma).loss * images.numel()]

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        error = denoising_error(model, self.validation, batch_size=self.eval_batch_size)
        return {"denoising_error": error, **self.references}

    def score(self, results: Mapping[str, Any]) -> float:
        return -results["denoising_error"]

    def draw(self, model: nn.Module) -> Image.Image:
        return denoising_picture(model, self.validation[:4])


def _without_repeated_files(sources: list[Any]) -> list[Any]:
    """Removes images of labelled folders whose files are also in a folder of unlabelled images."""
    labelled = [source for source in sources if isinstance(source, SegmentationFolder)]
    others = [source for source in sources if not isinstance(source, SegmentationFolder)]
    folders = [source for source in others if isinstance(source, ImageFolder)] if labelled else []
    names = {path.name for source in labelled for path in source.images}
    known = {  # links are resolved only if the names are equal, because there may be millions of files
        os.path.realpath(folder.root / name)
        for folder in folders
        for name in folder.names
        if name.rpartition("/")[2] in names
    }
    for source in labelled:
        paths = zip(source.sample_ids, source.images, strict=True)
        source = source.select(sample_id for sample_id, path in paths if os.path.realpath(path) not in known)
        others += [source] if len(source) else []
    return others


def train_transform(args: PretrainArguments) -> PretrainTransform | UnlabelledTransform:
    """The random crops of a run, random resized or as in fine-tuning; twice as large if the model downsamples them."""
    factor = CORRUPTIONS[args.corruption].size_factor
    if args.scale is None:
        return PretrainTransform(
            crop_size=factor * args.crop_size, scale=(args.crop_scale_min, 1.0), num_channels=get_num_channels(args)
        )
    geometry = SegmentationTrainTransform(
        crop_size=factor * args.crop_size,
        image_size=args.image_size,
        scale=(factor * args.scale[0], factor * args.scale[1]),
    )
    return UnlabelledTransform(geometry, num_channels=get_num_channels(args))


def open_sources(args: PretrainArguments) -> list[MapSource] | list[ShardedImages]:
    """Opens the sources of a run; by default the rendered scenes."""
    return open_images(source_names(args), column=args.image_column, streaming=args.streaming)


def source_names(args: PretrainArguments) -> list[str]:
    """The folders or names of a run's sources, in the order of [`open_sources`]."""
    return list(map(resolve_data, args.images)) or [str(rendered_scenes() / "unlabelled")]
