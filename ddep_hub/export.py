"""Exports fine-tuned models to ONNX and `torch.export` files, each verified against the model."""

import contextlib
import copy
import functools
import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from PIL.Image import Resampling
from torch import nn
from torch._dynamo.exc import UserError
from torch.export import Dim

from ddep_hub.configuration_ddep import __version__
from ddep_hub.data.classes import ordered_names
from ddep_hub.data.preprocessing import Normalize, get_normalization
from ddep_hub.data.synthetic import render_scene
from ddep_hub.evaluation.predict import get_processor
from ddep_hub.folding import fold_batch_norms
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_ddep import DDePForSemanticSegmentation
from ddep_hub.segmentation import class_logits
from ddep_hub.utils.files import (
    atomic_dir,
    changed_output_error,
    check_output_dir,
    explain_write_errors,
    write_json,
)


Format = Literal["onnx", "torch"]
Function = Callable[[torch.Tensor], torch.Tensor]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
WRITTEN_FILES = {*FILES.values(), "model.onnx.data", "export.json"}
BATCH_SIZES = (1, 3)
MAX_SIDE = 8192  # of images of any size, in pixels
# Tolerance of outputs, relative to the largest one, and the fraction of pixels that must get the same class.
TOLERANCE, MIN_SAME_CLASS = 1e-4, 0.9999


def export(
    model: DDePForSemanticSegmentation,
    folder: str | Path,
    *,
    size: tuple[int, int] | None = None,
    processor: DDePImageProcessor | None = None,
    formats: Sequence[Format] = ("onnx", "torch"),
) -> dict[Format, dict[str, float]]:
    """Writes `model.onnx`, `model.pt2` and `export.json`, with a dynamic batch size.

    Each file maps `pixel_values`, float32 (batch, channels, height, width), preprocessed by the image processor, to
    `logits`, float32 (batch, num_labels, height, width). Each file is read back and compared with the model on
    rendered scenes, at batch sizes (and, if the image size is dynamic, image sizes) other than those of tracing.
    `export.json` holds what a caller needs: mean, std and size, class names, names of input and output, versions.

    Args:
        model: The fine-tuned model; it is moved to the CPU, made float32 and put into eval mode.
        folder: Folder to write. An earlier export there is replaced when the new one is complete.
        size: Height and width in pixels of the preprocessed images; they need not be multiples of the encoder's
            stride. By default the processor's height and width; if it has none, any size with sides longer than the
            stride.
        processor: The model's image processor; by default the one it was saved with.
        formats: Files to write: `onnx` (for onnxruntime and others), `torch` (for `torch.export.load`).

    Returns:
        For each format, the largest `difference` of a logit, relative to the largest logit, and the fraction of pixels
        with the `same_class`.

    Raises:
        FileExistsError: The folder holds something other than an export.
        OSError: The files cannot be written, as on a full disk.
        TypeError: `model` is not a model.
        ValueError: A format is unknown, the extra `export` is not installed, the encoder needs a size, the processor
            resizes images to a smaller size, or a file differs from the model; the folder is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}. Load it with DDePForSemanticSegmentation.from_pretrained."
        )
    unknown = set(formats) - set(FILES)
    if isinstance(formats, str) or unknown or not formats:
        raise ValueError(f"formats: got {formats!r}. Pass a list with {' or '.join(FILES)}, or both.")
    folder = Path(folder)
    is_export = (folder / "export.json").is_file()
    existing = check_output_dir(folder, "export.json of an export", is_own=is_export)
    if added := sorted({*existing} - WRITTEN_FILES):
        raise changed_output_error(folder, added)
    if "onnx" in formats:
        missing_packages = [
            name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None
        ]
        if missing_packages:
            raise ValueError(f'format `onnx` needs {", ".join(missing_packages)}: pip install "ddep-hub[export]".')
    model = model.cpu().float().eval()
    config, stride = model.config, model.ddep.stride
    processor = processor or get_processor(model)
    resize = (
        {name: value for name, value in dict(processor.size or {}).items() if value} if processor.do_resize else {}
    )
    if size is None and resize.keys() == {"height", "width"}:
        size = resize["height"], resize["width"]
    if size is not None:
        size = (size[0], size[1])
        _check_size(size, resize)
    resample = processor.resample
    channel_order = getattr(processor, "channel_order", None)  # missing in transformers' processors
    # With dynamic sizes: multiples of the stride and others, and a side that is padded by nearly a whole stride.
    sizes = (
        [size] if size else [(3 * stride - 5, 4 * stride - 3), (2 * stride, 3 * stride), (5 * stride + 1, stride + 1)]
    )
    (mean, std, rescale_factor), normalize = get_normalization(processor), Normalize.from_processor(processor)
    images = [render_images(image_size, max(BATCH_SIZES), config.num_channels, normalize) for image_size in sizes]
    # With folded BatchNorms; the file is compared with the original model.
    fast_model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    folded = fold_batch_norms(fast_model, lambda network: [network(pixel_values=images[0][:1]).logits])
    trace = functools.partial(_export_program, _Logits(folded), images[0][:2], any_size=size is None)
    program = trace()
    with explain_write_errors(folder), atomic_dir(folder) as temp_dir:
        comparisons: dict[Format, dict[str, float]] = {}
        for name in formats:
            if name == "torch":
                exported = _write_torch(program, temp_dir / FILES[name])
            else:
                try:
                    exported = _write_onnx(program, temp_dir / FILES[name])
                except torch.onnx.OnnxExporterError:
                    # Hiera's attention has five dimensions: without torch's fused operator, it is exported as matmuls.
                    with _disable_fused_attention(folded):
                        exported = _write_onnx(trace(), temp_dir / FILES[name])
            try:
                comparisons[name] = compare_outputs(
                    _Logits(model), exported, [batch[:batch_size] for batch in images for batch_size in BATCH_SIZES]
                )
            except ValueError as error:
                raise ValueError(
                    f"The exported {FILES[name]} does not match the model: {error}. Nothing was written. Try another "
                    "release of torch or onnxruntime."
                ) from error
        sides = list(size or ("height", "width"))
        metadata = {
            "inputs": {"pixel_values": ["batch", config.num_channels, *sides]},
            "outputs": {"logits": ["batch", config.num_labels, *sides]},
            **({} if size else {"sides": {"min": stride + 1, "max": MAX_SIDE}}),
            "dtype": "float32",
            "rescale_factor": rescale_factor,
            "rescale_factor_uint16": rescale_factor * 255 / 65535,
            "rescale_factor_float": rescale_factor * 255,
            "image_mean": mean,
            "image_std": std,
            **({"channel_order": channel_order} if channel_order else {}),
            "resize": resize or None,
            **({"resample": Resampling(resample).name.lower()} if resize and resample is not None else {}),
            **({"antialias": True} if resize else {}),
            "classes": ordered_names(config.id2label),
            "checked": comparisons,
            "versions": {"ddep_hub": __version__, "torch": torch.__version__},
        }
        write_json(temp_dir / "export.json", metadata)
    return comparisons


def _check_size(size: tuple[int, int], resize: Mapping[str, int]) -> None:
    """Rejects a size larger than the image processor's: the model would see images at a different scale.

    Smaller ones may be windows of resized images.
    """
    limit = size
    if resize.keys() == {"height", "width"}:
        limit = resize["height"], resize["width"]
    elif (side := resize.get("shortest_edge")) and min(size) > side:
        height, width = (length * side // min(size) for length in size)
        limit = height, width
    if size[0] > limit[0] or size[1] > limit[1]:
        raise ValueError(
            f"size: the model's image processor resizes images of {size[0]}x{size[1]} to {limit[0]}x{limit[1]}. Pass "
            f"{limit[0]} {limit[1]}, or smaller windows."
        )


class _Logits(nn.Module):
    """Wraps a segmentation model: images in, logits out."""

    def __init__(self, model: DDePForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.model(pixel_values=pixel_values).logits)


def _export_program(traced: _Logits, example: torch.Tensor, any_size: bool) -> torch.export.ExportedProgram:
    """Traces a model; not all encoders can be traced with dynamic image sizes."""
    batch = Dim("batch", min=1)
    if not any_size:
        return torch.export.export(traced, (example,), dynamic_shapes=({0: batch},))
    encoder = traced.model.ddep.encoder
    message = (
        f"size: {type(encoder).__name__} cannot be exported for images of any size. Pass the height and width that "
        "the image processor gives, such as `--size 512 1024`."
    )
    # With size-dependent padding (TensorFlow's "same", Swin's windows), torch's tracing does not terminate.
    type_names = [type(module).__name__ for module in encoder.modules()]
    if any(type_name.endswith("Same") or type_name.startswith("SwinTransformer") for type_name in type_names):
        raise ValueError(message)
    # torch specialises on dimensions of 1.
    side_range = {"min": traced.model.ddep.stride + 1, "max": MAX_SIDE}
    try:
        return torch.export.export(
            traced,
            (example,),
            dynamic_shapes=({0: batch, 2: Dim("height", **side_range), 3: Dim("width", **side_range)},),
            # For strided convolutions, torch needs guards that hold for all sizes, which it cannot prove.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except UserError as error:
        raise ValueError(message) from error


@contextlib.contextmanager
def _disable_fused_attention(model: nn.Module) -> Iterator[None]:
    fused_modules = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused_modules:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused_modules:
            module.fused_attn = True


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> Function:
    import onnxruntime

    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert onnx_program is not None  # a program without a file name gives one
    onnx_program.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"pixel_values": images.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, file: Path) -> Function:
    # Not directly to the file: torch aborts the process if it cannot write, as on a full disk.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    file.write_bytes(buffer.getbuffer())
    return torch.export.load(file).module()


def compare_outputs(expected: Function, actual: Function, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Compares two models on normalised images (batch, C, H, W) with outputs (batch, K, H, W).

    Returns the largest `difference` of an output, relative to the largest output, and the smallest fraction of pixels
    with the `same_class` (argmax). Raises a ValueError if they differ by more than rounding.
    """
    difference, same_class = 0.0, 1.0
    for images in batches:
        with torch.no_grad():
            expected_logits, actual_logits = class_logits(expected(images)), class_logits(actual(images))
        gap = (actual_logits - expected_logits).abs().max()
        share = gap / expected_logits.abs().max() if gap else gap  # equal, even if all are 0; NaN counts as true
        difference = max(difference, float(share.nan_to_num(nan=math.inf, posinf=math.inf)))  # `max` would drop NaN
        same_class = min(same_class, float((actual_logits.argmax(1) == expected_logits.argmax(1)).float().mean()))
    if not (difference <= TOLERANCE and same_class >= MIN_SAME_CLASS):
        raise ValueError(
            f"its outputs differ by {difference:.1e} of the largest one (at most {TOLERANCE:g}), and "
            f"{100 * same_class:.3f}% of the pixels have the same class (at least {100 * MIN_SAME_CLASS:g}%)"
        )
    return {"difference": difference, "same_class": same_class}


def render_images(size: tuple[int, int], num_images: int, channels: int, normalize: Normalize) -> torch.Tensor:
    """Rendered and normalised scenes, float32 (number, channels, *size); red is repeated if channels are not 3."""
    pixels = np.stack([render_scene(0, index, size)[0] for index in range(num_images)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return normalize(images if channels == 3 else images[:, :1].expand(-1, channels, -1, -1)).contiguous()
