"""Fine-tuning on few labelled images."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from ddep_hub.data.dataloading import AugmentedDataset, PairedDataset, compute_fingerprint, train_dataloader
from ddep_hub.data.image_datasets import images_fingerprint
from ddep_hub.data.preprocessing import (
    EvalTransform,
    Normalize,
    processor_size,
    resize_factor,
    to_tensor,
    warn_about_units,
)
from ddep_hub.data.samplers import StepBatchSampler, pair_batches
from ddep_hub.data.splits import evenly_spaced, write_split_file
from ddep_hub.data.transforms import SegmentationTrainTransform
from ddep_hub.data.unlabelled_transforms import UnlabelledTransform
from ddep_hub.evaluation.counting import evaluate_segmentation
from ddep_hub.evaluation.visualization import segmentation_picture
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.modeling_ddep import DDePForSemanticSegmentation
from ddep_hub.pretrained import with_image_size
from ddep_hub.utils.arguments import build_arguments
from ddep_hub.utils.processes import isolate_state

from .arguments import FinetuneArguments
from .finetuning_data import FinetuneData, unlabelled_sources
from .interruption import track_time
from .losses import SegmentationLoss, UnlabelledLoss
from .models import build_processor, finetuning_model, iter_pixels
from .optim import learning_rate_factors, set_encoder_mode
from .stages import STAGE, keep_image_size, pretrain_first, read_stage_record
from .trainer import Batch, Trainer


logger = logging.getLogger(__name__)


MAX_PRINTED_CLASSES = 12  # number of classes whose IoU is printed at the end


@track_time()
@isolate_state()
def finetune(arguments: FinetuneArguments | None = None, **kwargs: Any) -> dict[str, Any]:
    """Fine-tunes a model on few labelled images and writes the run folder.

    The program's random generators are restored afterwards.

    Args:
        arguments: The arguments of the run.
        **kwargs: Arguments as keywords, which override `arguments`; or, without `arguments`, also `preset`.

    Returns:
        A dictionary with the metrics of [`evaluate_segmentation`] on `eval_split`, `labelled`, the number of labelled
        images, the `seconds` of training, and `final`, the model's folder.

    Raises:
        RunInterrupted: A signal was received or `max_time` was up; a checkpoint was written, unless the run was still
            measuring `pretraining_minutes`.
        CheckpointError: A checkpoint cannot be written or read, or belongs to another run.
        BlockingIOError: Another process runs in the same folder.
        FileExistsError: The run folder holds another run, or files that are not a run's.
        FileNotFoundError: Part of the data set is missing.
        FloatingPointError: A loss or gradient is not finite; names the step and its files.
        OSError: The Hub denied access before the run, or publishing failed after it; the folder is then complete.
        RuntimeError: Another thread of this process is training, or `torch.autocast` is on.
        TypeError: An argument does not exist; names the closest one.
        ValueError: An argument is out of range, or does not fit the data or the model; names it.
    """
    args = build_arguments(FinetuneArguments, kwargs, arguments)
    images, decoder = None, None
    if args.unlabelled and args.pretraining_steps:
        args = keep_image_size(args)
        images = FinetuneData(args)
        decoder = pretrain_first(args, images)
    trainer = FinetuneTrainer(args, images, decoder)
    results = trainer.run()
    iou = {name: value for name, value in results["iou"].items() if value is not None}
    printed = sorted(iou, key=iou.__getitem__)[:MAX_PRINTED_CLASSES] if len(iou) > MAX_PRINTED_CLASSES else list(iou)
    trainer.accelerator.print(
        f"mIoU on {trainer.args.eval_split}: {100 * results['mean_iou']:.2f} ({results['labelled']} labelled images); "
        + ("lowest: " if len(printed) < len(iou) else "")
        + ", ".join(f"{name} {100 * iou[name]:.2f}" for name in printed)
    )
    found = [name for name, value in iou.items() if value]
    if len(found) < min(2, len(iou)):
        trainer.accelerator.print(
            f"Warning: the model finds no class but {found[0] if found else 'none'}. Train for more steps, and check "
            "that the masks belong to the images."
        )
    return results


# Number of labelled images whose values are compared with mean and std.
NUM_CHECKED_UNITS = 8
# Number of labelled images whose sizes are compared with those after resizing.
NUM_CHECKED_SIZES = 32


class FinetuneTrainer(Trainer):
    """Trains with cross-entropy and Dice loss on labelled images; measures mIoU on a validation split.

    After a pretraining stage, `images` are the images that it has read, and `decoder` is the folder of its decoder, to
    start from instead of `args.pretrained`.
    """

    kind = "finetuning"
    args: FinetuneArguments
    model: DDePForSemanticSegmentation
    _mode: tuple[Any, bool] | None = None  # the model whose mode was set last, and whether its encoder is frozen

    def __init__(
        self, args: FinetuneArguments, images: FinetuneData | None = None, decoder: str | None = None
    ) -> None:
        super().__init__(args, unused_parameters=args.freeze_encoder_steps > 0)
        with self.accelerator.main_process_first():
            self.images = images or FinetuneData(args)
            labelled, classes = self.images.labelled, self.images.labelled.classes
            set_seed(args.seed)  # the decoder's initialisation depends only on the seed
            self.model, source = finetuning_model(args, classes, decoder)
        config = self.model.config
        pixels = iter_pixels(labelled, config.num_channels, skip_bad_files=args.skip_bad_files)
        self.processor = build_processor(args, decoder or args.pretrained, config, pixels)
        if args.image_size is not None:
            self.processor = with_image_size(self.processor, args.image_size)
        if images is None:
            self.images.read(self.accelerator)
        usable, self.bad_files = self.images.usable, self.images.bad_files
        self.fingerprint = compute_fingerprint(labelled.fingerprint, *classes.fingerprint)
        self.validation_fingerprint = self.images.validation_fingerprint
        self.data = f"{len(usable)} images"
        self.run_info = {
            "encoder_source": source,
            "evaluated": len(self.images.validation),
            "labelled_ids": compute_fingerprint(sorted(usable.sample_ids)),
            "image_size": processor_size(self.processor),  # `pretrained` may have set it
            "untrained_classes": self.images.statistics.absent_classes,
        }
        if decoder is not None:
            self.run_info |= read_stage_record(decoder)
            self.earlier_stages = (STAGE,)
            # A run without the pretraining stage is a different run; the stage checks its own inputs.
            self.fingerprint = compute_fingerprint(self.fingerprint, STAGE)
        checked = evenly_spaced(len(usable), NUM_CHECKED_SIZES)
        shapes = [usable.mask(index).shape for index in checked]
        scales = [resize_factor(self.processor, *shape) for shape in shapes]
        config.image_scale_range = [round(min(scales), 4), round(max(scales), 4)]
        size = processor_size(self.processor)
        sides = [scale * min(shape) for scale, shape in zip(scales, shapes, strict=True)]
        side = round(args.scale[1] * (min(size) if isinstance(size, tuple) else max(sides)))
        if side < args.crop_size and self.accelerator.is_main_process:
            logger.warning(
                "crop_size: all crops of %d pixels are padded, as the images, scaled up by `scale`, have a shorter "
                "side of at most %d. Lower it, or raise image_size.",
                args.crop_size,
                side,
            )
        transform = SegmentationTrainTransform.from_processor(
            self.processor,
            crop_size=args.crop_size,
            scale=(args.scale[0], args.scale[1]),
            augmentation=args.augmentation,
            class_crops=args.class_crops,
            ignore_index=classes.ignore_index,
        )
        self.dataset = AugmentedDataset(labelled, transform, args.seed, skip_bad_files=args.skip_bad_files)
        self.normalize = Normalize.from_processor(self.processor)
        if config.num_channels != 3:
            for index in range(min(NUM_CHECKED_UNITS, len(usable))):
                sample = usable[index]
                warn_about_units(self.normalize(to_tensor(sample["image"])[None]), sample["path"])
        self.eval_transform = EvalTransform(self.processor)
        weights = self.images.class_weights
        weights = None if weights is None else weights.to(self.accelerator.device)
        self.loss = SegmentationLoss(classes.ignore_index, class_weights=weights, dice_weight=args.dice_weight)
        self.unlabelled: AugmentedDataset | None = None
        if args.denoising_weight or args.consistency_weight:
            self._add_unlabelled(transform)
        self.set_mode(self.model, args.freeze_encoder_steps)  # last, because the denoiser freezes the shared encoder

    def _add_unlabelled(self, transform: SegmentationTrainTransform) -> None:
        """Pairs each labelled image with an unlabelled one; labelled images also count as unlabelled."""
        args, sources, config = self.args, unlabelled_sources(self.args.unlabelled), self.model.config
        if args.denoising_weight and config.prediction_type == "features":
            raise ValueError(
                "denoising_weight: the decoder was pretrained to predict the encoder's features, which change during "
                "fine-tuning. Leave denoising_weight out."
            )
        if args.denoising_weight and config.corruption == "masked" and config.mask_patch_size > args.crop_size // 2:
            raise ValueError(
                f"denoising_weight: the decoder was pretrained with masked patches of {config.mask_patch_size} "
                f"pixels, which must be at most half of crop_size, {args.crop_size}. Use larger crops."
            )
        self.fingerprint = compute_fingerprint(self.fingerprint, images_fingerprint(sources))
        images: Any = ConcatDataset([*sources, self.images.labelled])
        self.data += f", {len(images)} unlabelled ones"
        self.unlabelled = AugmentedDataset(
            images,
            UnlabelledTransform(transform, strong=args.consistency_weight > 0, num_channels=config.num_channels),
            args.seed,
            skip_bad_files=args.skip_bad_files,
        )
        set_seed(args.seed)
        self.unlabelled_loss = UnlabelledLoss(self.model, args, self.normalize, self._get_teacher)

    def _get_teacher(self) -> nn.Module:
        assert self.weights.average is not None, "consistency_weight needs model_ema_decay"
        return self.weights.average.module

    def dataloader(self, start_step: int, states: dict[str, Any] | None) -> DataLoader[Any]:
        args = self.args
        options = self.batch_options(start_step)
        sampler: Any = StepBatchSampler(len(self.dataset), seed=args.seed, **options)
        dataset: Any = self.dataset
        if self.unlabelled is not None:
            unlabelled_sampler = StepBatchSampler(len(self.unlabelled), seed=args.seed, **options)
            dataset, sampler = PairedDataset(dataset, self.unlabelled), pair_batches(sampler, unlabelled_sampler)
        return train_dataloader(
            dataset, sampler, num_workers=args.dataloader_num_workers, device=self.accelerator.device
        )

    def loss_counts(self, batch: Batch) -> list[torch.Tensor]:
        counts = self.loss.counts(batch["labels"])
        return counts if self.unlabelled is None else counts + self.unlabelled_loss.counts(batch)

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        sums = self.loss.sums(model(pixel_values=self.normalize(batch["pixel_values"])).logits, batch["labels"])
        if self.unlabelled is None:
            return sums
        with self.accelerator.autocast():
            return sums + self.unlabelled_loss.sums(batch, step, positions)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        metrics = evaluate_segmentation(
            model,
            self.images.validation,
            self.eval_transform,
            self.normalize,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            accelerator=self.accelerator,
        )
        return {**metrics, "labelled": len(self.images.usable)}

    def score(self, results: Mapping[str, Any]) -> float:
        return float(results["mean_iou"])

    def draw(self, model: nn.Module) -> Image.Image:
        return segmentation_picture({"prediction": model}, self.images.validation, self.eval_transform, self.normalize)

    def set_mode(self, model: DDePPreTrainedModel, step: int) -> None:
        args = self.args
        frozen = args.freeze_encoder or step < args.freeze_encoder_steps
        mode = (model, frozen)
        if self._mode != mode or not model.training:  # setting it takes milliseconds per step
            set_encoder_mode(model, frozen=frozen, frozen_norms=args.freeze_encoder_norms)
            self._mode = mode

    def learning_rate_factors(self) -> Mapping[str, float]:
        args = self.args
        return learning_rate_factors(self.model, args.encoder_lr_factor, args.encoder_layer_decay, args.head_lr_factor)

    def save_data_files(self) -> None:
        write_split_file(self.output / "labelled.txt", self.images.usable.sample_ids)
        if self.args.val_fraction is not None:
            write_split_file(self.output / "validation.txt", self.images.validation.sample_ids)
