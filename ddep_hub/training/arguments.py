"""Arguments of pretraining and of fine-tuning, as dataclasses."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ddep_hub.data.arguments import LabelledDataArguments

from .run_arguments import OUTPUT_DIR, RunArguments, data_arg, eval_arg, model_arg, optim_arg, save_arg


@dataclass(kw_only=True)
class PretrainArguments(RunArguments):
    """Pretrain a decoder by denoising, on images without labels."""

    output_dir: str = save_arg("runs/pretrain", OUTPUT_DIR, common=True, path=True)
    max_steps: int = optim_arg(600, "Optimizer steps.", common=True)
    learning_rate: float = optim_arg(
        3e-3, "Peak learning rate; the default suits small crops and a short run.", common=True
    )
    images: list[str] = data_arg(
        [],
        "Sources of unlabelled images: folders (searched recursively), "
        "hf://datasets/org/name[@revision][/split], folders of parquet or save_to_disk data sets, patterns of "
        "WebDataset shards such as shards/*.tar. None: the built-in rendered scenes.",
        common=True,
        resumable=True,
        path=True,
    )
    image_weights: list[float] = data_arg([], "Shares of the sources in the training images; default: by their sizes.")
    image_column: str = data_arg("image", "Column of the images in Hub data sets.")
    streaming: bool = data_arg(False, "Stream Hub data sets; WebDataset shards always are.")
    shuffle_window: int = data_arg(1000, "Images of a stream that are shuffled among each other.")
    crop_size: int = data_arg(64, "Side of the random crops in pixels.", common=True)
    crop_scale_min: float = data_arg(0.2, "Smallest share of the image's area that a crop covers.")
    scale: list[float] | None = data_arg(
        None, "Range of the random scale of crops, as in fine-tuning, in place of crop_scale_min."
    )
    image_size: int | None = data_arg(None, "Shorter side that a scale of 1 stands for; default: the image's own.")
    num_val_images: int = eval_arg(
        32, "Images kept out of training, to measure the denoising error on.", renamed_from="num_held_out"
    )
    freeze_encoder: bool = model_arg(
        True, "True is DDeP. False trains the encoder too; DeP does so from random weights."
    )
    corruption: Literal["scaled", "simple"] = optim_arg("scaled", "How noise is added.")
    prediction_type: Literal["epsilon", "sample"] = model_arg("epsilon", "Predict the noise or the clean image.")
    sigma: list[float] = optim_arg(
        [0.22], "Noise level in units of normalised pixels; two numbers are a range.", common=True
    )
    image_skip: bool | None = model_arg(
        None, "Let the denoising head see the noisy image too. Default: for EfficientNet-Lite0, which loses the noise."
    )
    decoder_only: bool = save_arg(False, "Leave the encoder out of final/.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sigma) not in (1, 2):
            raise ValueError(f"sigma takes one number or two, got {self.sigma}.")
        if self.image_size is not None and self.scale is None:
            raise ValueError("image_size belongs to scale. Set both, or neither.")
        if self.scale is not None and len(self.scale) != 2:
            raise ValueError(f"scale takes two numbers, got {self.scale}.")
        self.check_positive("num_val_images", "shuffle_window", "crop_size", "crop_scale_min")
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
    """Fine-tune a segmentation model on few labels."""

    output_dir: str = save_arg("runs/finetune", OUTPUT_DIR, common=True, path=True)
    batch_size: int = optim_arg(8, "Images per step, over all processes and accumulated micro-batches.", common=True)
    train_split: str = data_arg("train", "Split to train on.")
    allow_empty_classes: bool = data_arg(
        False, "Train even if a class has no pixel in the training labels.", resumable=True
    )
    eval_split: str = eval_arg("val", "Split to measure mIoU on.", resumable=True)
    val_fraction: str | None = data_arg(
        None,
        "Share of train_split to keep for validation, such as 0.2, if the data has no validation split.",
        common=True,
    )
    group_pattern: str | None = data_arg(
        None,
        "Regular expression whose first group, or match, in a sample's name says what belongs together, such as a "
        "slide or a video: val_fraction keeps whole groups. Default: column `group` of pairs.csv.",
    )
    keep_decoder_blocks: int | None = model_arg(
        None,
        "Blocks of the pretrained decoder to keep, from the coarsest on; the others are new. Default: all.",
    )
    restore_decoder_norms: bool = model_arg(
        True, "Scale the decoder's weights to the norms of newly initialised ones; the paper does not."
    )
    label_fraction: str | None = data_arg(None, "Share of the labelled images to use, such as 1/30.")
    num_labelled_images: int | None = data_arg(
        None, "Number of labelled images to use, instead of a share.", common=True
    )
    split_file: str | None = data_arg(
        None, "File that lists the labelled images to use, instead of a share.", resumable=True, path=True
    )
    split_seed: int = data_arg(0, "Seed of the choice of labelled images.")
    image_size: int | None = data_arg(
        None, "Shorter side that images are resized to; scores are at the masks' size.", common=True
    )
    crop_size: int = data_arg(128, "Side of the random crops in pixels.", common=True)
    scale: list[float] = data_arg([0.5, 2.0], "Range of the random scale.")
    augmentation: Literal["photo", "overhead", "microscopy"] | None = data_arg(
        None,
        "Kind of image. photo: colours change at random; overhead: also vertical flips and right-angle turns; "
        "microscopy: these, and intensity, blur and noise. Default: horizontal flips alone.",
        common=True,
    )
    class_crops: float = data_arg(
        0.0,
        "Probability that a crop is placed on a class drawn evenly among those of its image, for rare ones.",
    )
    unlabelled: list[str] = data_arg(
        [],
        "Unlabelled images, as `ddep-hub pretrain` takes them: the decoder is pretrained on them and on the labelled "
        "ones first.",
        common=True,
        resumable=True,
        path=True,
    )
    pretraining_steps: int = optim_arg(
        1500, "Steps of pretraining on unlabelled images; 0 leaves it out.", common=True
    )
    pretraining_minutes: float | None = optim_arg(None, "Time for that pretraining, in place of pretraining_steps.")
    pretraining_batch_size: int | None = optim_arg(
        None, "Images per step of that pretraining; default: that of `ddep-hub pretrain`."
    )
    denoising_weight: float = optim_arg(
        0.0, "Weight of the denoising loss on unlabelled images during fine-tuning (DenoiSeg)."
    )
    consistency_weight: float = optim_arg(
        0.0,
        "Weight of the consistency with a teacher on unlabelled images: the moving average of the model "
        "(model_ema_decay).",
    )
    class_weights: list[str] = optim_arg(
        [], "Weights of the classes in the cross-entropy: a number each, or `median_frequency` of the labelled images."
    )
    dice_weight: float = optim_arg(
        1.0, "Weight of a Dice loss that is added to the cross-entropy; the paper has none: 0."
    )
    encoder_lr_factor: float = optim_arg(1.0, "Factor on the learning rate for the encoder.")
    encoder_layer_decay: float = optim_arg(1.0, "Further factor for each layer of the encoder towards its input.")
    head_lr_factor: float = optim_arg(1.0, "Factor on the learning rate for the classifier.")
    freeze_encoder: bool = model_arg(False, "Train the decoder and the classifier alone.")
    freeze_encoder_steps: int = optim_arg(0, "Steps at the start in which the encoder is frozen.")
    freeze_encoder_norms: bool = model_arg(False, "Leave the encoder's norms, statistics included, as they are.")
    per_device_eval_batch_size: int = eval_arg(
        8,
        "Images per forward pass in evaluation, where they have the same size.",
        resumable=True,
        renamed_from="eval_batch_size",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [n for n in ("label_fraction", "num_labelled_images", "split_file") if getattr(self, n) is not None]
        if len(chosen) > 1:
            raise ValueError(f"Set one of label_fraction, num_labelled_images and split_file, not {chosen}.")
        if self.val_fraction is not None and _parse_fraction(self.val_fraction) == 1:
            raise ValueError("val_fraction is 1, which leaves nothing to train on. Keep less, such as 0.2.")
        if self.group_pattern is not None and self.val_fraction is None:
            raise ValueError("group_pattern belongs to val_fraction. Set both, or neither.")
        if len(self.scale) != 2:
            raise ValueError(f"scale takes two numbers, got {self.scale}.")
        if self.eval_split == self.train_split:
            raise ValueError(f"eval_split and train_split are both `{self.train_split}`. Measure on other images.")
        if self.hub_decoder_only and not self.freeze_encoder:
            raise ValueError("hub_decoder_only would lose the encoder that is fine-tuned. Leave it out, or freeze it.")
        self.check_positive("crop_size", "per_device_eval_batch_size")
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
                    f"class_weights takes `median_frequency` or a number of at least 0 per class, not all 0, got "
                    f"{self.class_weights}."
                )
        if self.keep_decoder_blocks is not None:
            self.check_not_negative("keep_decoder_blocks")
            if self.pretrained is None:
                raise ValueError("keep_decoder_blocks belongs to pretrained. Set both, or neither.")

    def _check_unlabelled(self) -> None:
        weights = [name for name in ("denoising_weight", "consistency_weight") if getattr(self, name)]
        if weights and not self.unlabelled:
            raise ValueError(f"{weights[0]} needs unlabelled images. Name them by unlabelled.")
        if self.unlabelled and not (weights or self.pretraining_steps):
            raise ValueError("unlabelled would not be used: pretraining_steps is 0. Set it, or a weight of a loss.")
        if self.consistency_weight and not self.model_ema_decay:
            raise ValueError("consistency_weight needs a teacher. Set model_ema_decay, such as 0.99.")
        # Layers that compute their activations twice would see the unlabelled images in BatchNorm's statistics.
        for name in ("freeze_encoder_steps", "activation_checkpointing"):
            if weights and getattr(self, name):
                raise ValueError(f"{weights[0]} and {name} do not go together. Set one of them.")
        if self.pretraining_minutes is not None:
            self.check_positive("pretraining_minutes")
            if not (self.unlabelled and self.pretraining_steps):
                raise ValueError("pretraining_minutes needs unlabelled images, and pretraining_steps that are not 0.")
        if self.pretraining_batch_size is not None:
            self.check_positive("pretraining_batch_size")


def _parse_fraction(value: str) -> Fraction:
    from ddep_hub.data.splits import parse_fraction  # imports torch, which `--help` does without

    return parse_fraction(value)
