"""Arguments of pretraining and of fine-tuning, as dataclasses."""

import math
from dataclasses import dataclass
from typing import Literal

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.data.splits import parse_fraction
from ddep_hub.utils.arguments import data_arg, eval_arg, model_arg, optim_arg

from .run_arguments import OUTPUT_DIR, RunArguments, save_arg


MASK_PATCH_SIZE = 16
Corruption = Literal["scaled", "simple", "masked", "downsampled"]


@dataclass(kw_only=True)
class PretrainArguments(RunArguments):
    """Pretrain a decoder on unlabelled images, by denoising or another corruption."""

    output_dir: str = save_arg("runs/pretrain", OUTPUT_DIR, common=True, path=True)
    max_steps: int = optim_arg(600, "Optimizer steps.", common=True)
    learning_rate: float = optim_arg(3e-3, "Peak learning rate; the default suits small crops and a short run.")
    images: list[str] = data_arg(
        [],
        "Sources of unlabelled images: folders (searched recursively), hf://datasets/org/name[@revision][/split], "
        "folders of Parquet or save_to_disk data sets, patterns of WebDataset shards such as shards/*.tar. Default: "
        "rendered scenes.",
        common=True,
        resumable=True,
        path=True,
    )
    image_weights: list[float] = data_arg(
        [], "Mixing weights of the sources. Default: in proportion to their sizes, or equal for streams."
    )
    image_column: str = data_arg("image", "Image column of Hub data sets.")
    streaming: bool = data_arg(False, "Stream Hub data sets; WebDataset shards are always streamed.")
    shuffle_window: int = data_arg(1000, "Size of the shuffle buffer of a stream, in images.")
    crop_size: int = data_arg(64, "Side of the random crops in pixels.", common=True)
    crop_scale_min: float = data_arg(0.2, "Smallest fraction of the image's area that a crop covers.")
    scale: list[float] | None = data_arg(
        None, "Range of the random scale, as in fine-tuning; replaces crop_scale_min."
    )
    image_size: int | None = data_arg(None, "Shorter side of the images at scale 1. Default: unchanged.")
    num_val_images: int = eval_arg(32, "Number of held-out images to measure the denoising error on.")
    freeze_encoder: bool = model_arg(
        True, "True is DDeP; False also trains the encoder (DeP, if it starts from random weights)."
    )
    corruption: Corruption = optim_arg(
        "scaled",
        "How images are corrupted. scaled (keeps the variance) and simple add noise. Not in the DDeP paper: masked "
        "masks patches, which the decoder predicts; downsampled halves crops of twice crop_size, and the decoder "
        "predicts the encoder's features of the full-resolution crops.",
        common=True,
    )
    mask_ratio: float = optim_arg(0.5, "Fraction of the patches that are masked with corruption=masked.")
    mask_patch_size: int = optim_arg(MASK_PATCH_SIZE, "Side of the masked patches in pixels.")
    prediction_type: Literal["epsilon", "sample"] = model_arg(
        "epsilon", "Predict the noise (epsilon) or the clean image (sample); only if the corruption is noise."
    )
    sigma: list[float] = optim_arg([0.22], "Noise level in units of normalised pixels; two numbers define a range.")
    image_skip: bool | None = model_arg(
        None,
        "Feed the noisy image to the denoising head too; only if the corruption is noise. Default: only for "
        "EfficientNet-Lite0, which loses the noise.",
    )
    decoder_only: bool = save_arg(False, "Save only the decoder in final/.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sigma) not in (1, 2):
            raise ValueError(f"sigma takes one number or two, got {self.sigma}.")
        if self.image_size is not None and self.scale is None:
            raise ValueError("image_size needs scale. Set both, or neither.")
        if self.scale is not None and len(self.scale) != 2:
            raise ValueError(f"scale takes two numbers, got {self.scale}.")
        self.check_positive("num_val_images", "shuffle_window", "image_size", "crop_size", "mask_patch_size")
        if not 0 < self.crop_scale_min <= 1:
            raise ValueError(f"crop_scale_min must be in (0, 1], got {self.crop_scale_min}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {self.mask_ratio}.")
        if self.corruption == "masked" and self.mask_patch_size > self.crop_size // 2:
            raise ValueError(
                f"mask_patch_size is {self.mask_patch_size}, but must be at most half of crop_size, {self.crop_size}, "
                "so that part of each crop stays visible."
            )
        if self.corruption == "downsampled" and not self.freeze_encoder:
            raise ValueError(
                "corruption=downsampled predicts features of the encoder, which must not change. Leave freeze_encoder "
                "out."
            )
        if self.image_weights and len(self.image_weights) != len(self.images):
            raise ValueError(f"image_weights has {len(self.image_weights)} numbers for {len(self.images)} images.")
        if any(weight <= 0 for weight in self.image_weights):
            raise ValueError(f"image_weights must be positive, got {self.image_weights}.")
        if self.decoder_only and not self.freeze_encoder:
            raise ValueError("decoder_only would lose the encoder that freeze_encoder=false trains. Set one of them.")
        if self.hub_decoder_only and not self.freeze_encoder:
            raise ValueError("hub_decoder_only would lose the encoder that freeze_encoder=false trains. Leave it out.")


@dataclass(kw_only=True)
class FinetuneArguments(LabelledDataArguments, RunArguments):
    """Fine-tune a segmentation model on a few labelled images."""

    output_dir: str = save_arg("runs/finetune", OUTPUT_DIR, common=True, path=True)
    batch_size: int = optim_arg(8, "Images per step, over all processes and accumulated micro-batches.")
    train_split: str = data_arg("train", "Split to train on.")
    allow_empty_classes: bool = data_arg(
        False, "Train even if a class has no pixels in the training labels.", resumable=True
    )
    eval_split: str = eval_arg("val", "Split to measure mIoU on.", resumable=True)
    val_fraction: str | None = data_arg(
        None,
        "Fraction of train_split to hold out for validation, such as 0.2, if the data has no validation split.",
    )
    group_pattern: str | None = data_arg(
        None,
        "Regular expression whose first group, or whole match, in a sample's name identifies samples that belong "
        "together, such as those of a slide or video; val_fraction never splits a group. Default: column `group` of "
        "pairs.csv.",
    )
    keep_decoder_blocks: int | None = model_arg(
        None,
        "Number of pretrained decoder blocks to keep, coarsest first; the others are newly initialised. Default: all.",
    )
    restore_decoder_norms: bool = model_arg(
        True, "Rescale the decoder's weights to the norms of newly initialised ones; the paper does not."
    )
    label_fraction: str | None = data_arg(None, "Fraction of the labelled images to use, such as 1/30.")
    num_labelled_images: int | None = data_arg(None, "Number of labelled images to use, instead of a fraction.")
    split_file: str | None = data_arg(
        None, "File that lists the labelled images to use, instead of a fraction.", resumable=True, path=True
    )
    split_seed: int = data_arg(0, "Seed for choosing the labelled images.")
    image_size: int | None = data_arg(
        None, "Resize images to this shorter side; scores are computed at the size of the masks.", common=True
    )
    crop_size: int = data_arg(128, "Side of the random crops in pixels.")
    scale: list[float] = data_arg([0.5, 2.0], "Range of the random scale.")
    augmentation: Literal["photo", "overhead", "microscopy"] | None = data_arg(
        None,
        "Augmentation for a kind of image. photo: random colour changes; overhead: also vertical flips and 90-degree "
        "rotations; microscopy: flips, rotations, intensity, blur and noise. Default: horizontal flips only.",
        common=True,
    )
    class_crops: float = data_arg(
        0.0,
        "Probability that a crop is placed on a class, drawn uniformly from those in its image; helps rare classes.",
    )
    unlabelled: list[str] = data_arg(
        [],
        "Unlabelled images, as for `ddep-hub pretrain`; the decoder is first pretrained on them and on the labelled "
        "ones.",
        common=True,
        resumable=True,
        path=True,
    )
    pretraining_steps: int = optim_arg(1500, "Steps of pretraining on unlabelled images; 0 skips it.")
    pretraining_minutes: float | None = optim_arg(
        None, "Minutes of pretraining on unlabelled images, instead of pretraining_steps."
    )
    pretraining_batch_size: int | None = optim_arg(
        None, "Images per step of pretraining on unlabelled images. Default: as in `ddep-hub pretrain`."
    )
    pretraining_corruption: Corruption = optim_arg(
        "scaled",
        "How pretraining on unlabelled images corrupts them, as in `ddep-hub pretrain --corruption`. masked uses "
        "patches of 16 pixels, or of half the crop if that is less.",
    )
    denoising_weight: float = optim_arg(
        0.0, "Weight of the denoising loss on unlabelled images during fine-tuning (DenoiSeg)."
    )
    consistency_weight: float = optim_arg(
        0.0,
        "Weight of the consistency loss on unlabelled images; the teacher is the EMA of the model (model_ema_decay).",
    )
    class_weights: list[str] = optim_arg(
        [], "Class weights of the cross-entropy: one number per class, or `median_frequency` of the labelled images."
    )
    dice_weight: float = optim_arg(1.0, "Weight of the Dice loss added to the cross-entropy; the paper uses none (0).")
    encoder_lr_factor: float = optim_arg(1.0, "Multiplier of the encoder's learning rate.")
    encoder_layer_decay: float = optim_arg(
        1.0, "Layer-wise learning rate decay of the encoder: multiplier per layer group, towards the input."
    )
    head_lr_factor: float = optim_arg(1.0, "Multiplier of the classifier's learning rate.")
    freeze_encoder: bool = model_arg(False, "Train only the decoder and the classifier.")
    freeze_encoder_steps: int = optim_arg(0, "Freeze the encoder for this many steps at the start.")
    freeze_encoder_norms: bool = model_arg(
        False, "Freeze the encoder's normalisation layers, including their statistics."
    )
    per_device_eval_batch_size: int = eval_arg(
        8, "Images per forward pass in evaluation, if they have the same size.", resumable=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [
            name for name in ("label_fraction", "num_labelled_images", "split_file") if getattr(self, name) is not None
        ]
        if len(chosen) > 1:
            raise ValueError(f"Set only one of label_fraction, num_labelled_images and split_file, not {chosen}.")
        if self.val_fraction is not None and parse_fraction(self.val_fraction, "val_fraction") == 1:
            raise ValueError("val_fraction is 1, which leaves no images to train on. Set less, such as 0.2.")
        if self.group_pattern is not None and self.val_fraction is None:
            raise ValueError("group_pattern needs val_fraction. Set both, or neither.")
        if len(self.scale) != 2:
            raise ValueError(f"scale takes two numbers, got {self.scale}.")
        if self.eval_split == self.train_split:
            raise ValueError(f"eval_split and train_split are both `{self.train_split}`. Evaluate on other images.")
        if self.hub_decoder_only and not self.freeze_encoder:
            raise ValueError(
                "hub_decoder_only would lose the fine-tuned encoder. Leave it out, or set freeze_encoder."
            )
        self.check_positive("image_size", "crop_size", "per_device_eval_batch_size")
        self.check_not_negative(
            "dice_weight", "encoder_lr_factor", "head_lr_factor", "freeze_encoder_steps", "pretraining_steps"
        )
        self.check_not_negative("denoising_weight", "consistency_weight")
        self._check_unlabelled()
        if not 0 <= self.class_crops <= 1:
            raise ValueError(f"class_crops must be in [0, 1], got {self.class_crops}.")
        if not 0 < self.encoder_layer_decay <= 1:
            raise ValueError(f"encoder_layer_decay must be in (0, 1], got {self.encoder_layer_decay}.")
        if self.class_weights and self.class_weights != ["median_frequency"]:
            try:
                weights = [float(weight) for weight in self.class_weights]
                usable = all(0 <= weight < math.inf for weight in weights) and max(weights) > 0
            except ValueError:
                usable = False
            if not usable:
                raise ValueError(
                    "class_weights takes `median_frequency` or one number per class, at least 0 and not all 0, got "
                    f"{self.class_weights}."
                )
        if self.keep_decoder_blocks is not None:
            self.check_not_negative("keep_decoder_blocks")
            if self.pretrained is None and not (self.unlabelled and self.pretraining_steps):
                raise ValueError("keep_decoder_blocks needs a pretrained decoder. Set pretrained or unlabelled.")

    def _check_unlabelled(self) -> None:
        weights = [name for name in ("denoising_weight", "consistency_weight") if getattr(self, name)]
        if weights and not self.unlabelled:
            raise ValueError(f"{weights[0]} needs unlabelled images. Pass them as unlabelled.")
        if self.unlabelled and not (weights or self.pretraining_steps):
            raise ValueError(
                "unlabelled would not be used, because pretraining_steps is 0. Set it, denoising_weight or "
                "consistency_weight."
            )
        if self.consistency_weight and not self.model_ema_decay:
            raise ValueError("consistency_weight needs a teacher. Set model_ema_decay, such as 0.99.")
        # Recomputed activations would update BatchNorm's statistics with the unlabelled images.
        for name in ("freeze_encoder_steps", "activation_checkpointing"):
            if weights and getattr(self, name):
                raise ValueError(f"{weights[0]} and {name} cannot be combined. Set only one of them.")
        if self.denoising_weight and self.pretraining_steps and self.pretraining_corruption == "downsampled":
            raise ValueError(
                "denoising_weight needs a decoder that was pretrained on images, not on features. Set "
                "pretraining_corruption, which the preset few-labels sets to downsampled, to scaled or masked, or "
                "pretraining_steps to 0."
            )
        self.check_positive("pretraining_batch_size", "pretraining_minutes")
        if self.pretraining_minutes is not None:
            if not (self.unlabelled and self.pretraining_steps):
                raise ValueError("pretraining_minutes needs unlabelled images and pretraining_steps above 0.")
        if self.unlabelled and self.data is None:
            raise ValueError(
                "unlabelled: without data, the labelled images are rendered scenes, which would be mixed with yours. "
                "Pass your labelled images as data."
            )
