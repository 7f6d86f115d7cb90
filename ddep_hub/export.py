"""Fine-tuned models as ONNX and `torch.export` files, checked against PyTorch before they get their name."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn
from torch._dynamo.exc import UserError
from torch.export import Dim

from ddep_hub import DDePForSemanticSegmentation, __version__
from ddep_hub.data.classes import names_in_order
from ddep_hub.export_check import compare, scenes
from ddep_hub.utils.files import atomic_dir, atomic_write


Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
BATCHES = (1, 3)
LARGEST_SIDE = 8192  # of images of any size, in pixels


class _Logits(nn.Module):
    """A segmentation model, images in and logits out.

    Args:
        model: the model.
        any_size: pad and crop so that the sides may be symbols, which the model's own code would branch on.
    """

    def __init__(self, model: DDePForSemanticSegmentation, any_size: bool) -> None:
        super().__init__()
        self.model, self.any_size = model, any_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.any_size:
            return cast(torch.Tensor, self.model(pixel_values=pixel_values).logits)
        height, width = pixel_values.shape[-2:]
        logits = self.model(pixel_values=self._padded(pixel_values)).logits
        # Indices and no slices, which would ask whether the padded sides are long enough.
        return cast(torch.Tensor, logits[:, :, torch.arange(height)][..., torch.arange(width)])

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        """Images with their last row and column repeated up to multiples of the stride, as the model does it."""
        stride = self.model.ddep.stride
        rows, columns = (
            torch.arange((side + stride - 1) // stride * stride).clamp(max=side - 1) for side in images.shape[-2:]
        )
        return images[:, :, rows][..., columns]


def export(
    model: DDePForSemanticSegmentation,
    folder: str | Path,
    *,
    size: tuple[int, int] | None,
    mean: Sequence[float],
    std: Sequence[float],
    formats: Sequence[Format] = ("onnx", "torch"),
) -> dict[Format, dict[str, float]]:
    """Writes `model.onnx`, `model.pt2` and `export.json`, for any number of images at a time.

    Each file takes `pixel_values`, float32 `(batch, channels, height, width)`, RGB in [0, 1] minus `mean` over `std`,
    and gives `logits`, float32 `(batch, num_labels, height, width)`. It is read back and compared with PyTorch on
    rendered scenes, in batches, and where it takes any size in sizes, that it was not traced with. `export.json` holds
    what a caller needs beside it: constants, class names in their order, names of input and output, versions.

    Args:
        model: the fine-tuned model; it is put into eval mode.
        folder: where to; a folder of an earlier export is replaced when the new one is whole.
        size: height and width in pixels, which need not be multiples of the encoder's stride; `None` for images of
            any size whose sides are longer than the stride, up to `LARGEST_SIDE`.
        mean: of the pixels, as in training.
        std: of the pixels, as in training.
        formats: which files: `onnx` (for onnxruntime and others), `torch` (for `torch.export.load`).

    Returns:
        By format, the largest `difference` of a logit as a share of the largest one, and the share of pixels with the
        `same_class`.

    Raises:
        FileExistsError: the folder holds something else than an export.
        ValueError: the extra `export` is not installed, the encoder allows no images of any size, or a file does not
            do what the model does; the folder is then as it was.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "export.json").is_file():
        raise FileExistsError(f"{folder} holds something else than an export. Choose another output_dir.")
    if "onnx" in formats:
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f'format `onnx` needs {", ".join(missing)}: pip install "ddep-hub[export]".')
    model = model.cpu().float().eval()
    channels = model.config.num_channels
    traced = _Logits(model, any_size=size is None)
    images = [scenes(side, max(BATCHES), channels, mean, std) for side in _sizes(model.ddep.stride, size)]
    program = _program(traced, images[0][:2])
    with atomic_dir(folder) as new:
        found: dict[Format, dict[str, float]] = {}
        for name in formats:
            file = new / FILES[name]
            run = _write_onnx(program, file) if name == "onnx" else _write_torch(program, file)
            try:
                found[name] = compare(_logits_of(model), run, [some[:n] for some in images for n in BATCHES])
            except ValueError as error:
                raise ValueError(
                    f"The exported {FILES[name]} is not the model: {error}. Nothing was written. Try another release "
                    "of torch or onnxruntime."
                ) from error
        config = model.config
        sides = list(size or ("height", "width"))
        described = {
            "inputs": {"pixel_values": ["batch", channels, *sides]},
            "outputs": {"logits": ["batch", config.num_labels, *sides]},
            **({} if size else {"sides": _side_range(model.ddep.stride)}),
            "dtype": "float32",
            "rescale_factor": 1 / 255,
            "image_mean": list(mean),
            "image_std": list(std),
            "classes": names_in_order(config.id2label),
            "checked": found,
            "versions": {"ddep_hub": __version__, "torch": torch.__version__},
        }
        atomic_write(new / "export.json", json.dumps(described, indent=1) + "\n")
    return found


def _logits_of(model: DDePForSemanticSegmentation) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: cast(torch.Tensor, model(pixel_values=images).logits)


def _sizes(stride: int, size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Sizes to trace (the first) and to compare."""
    if size is not None:
        return [size]
    # Multiples of the stride and others, and a side that is padded by nearly a whole one.
    return [(3 * stride - 5, 4 * stride - 3), (2 * stride, 3 * stride), (5 * stride + 1, stride + 1)]


def _side_range(stride: int) -> dict[str, int]:
    """Shortest and longest side of images of any size; torch takes a feature of one pixel for a constant."""
    return {"min": stride + 1, "max": LARGEST_SIDE}


def _program(traced: _Logits, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Traces a model.

    Raises:
        ValueError: its encoder allows no images of any size.
    """
    batch = Dim("batch", min=1)
    if not traced.any_size:
        return torch.export.export(traced, (example,), dynamic_shapes=({0: batch},))
    encoder = traced.model.ddep.encoder
    refused = (
        f"size: {type(encoder).__name__} cannot be exported for images of any size. Give their size, such as "
        "`--size 512 1024`."
    )
    if isinstance(encoder, SwinTransformer | SwinTransformerV2):
        raise ValueError(refused)  # padding to whole windows keeps torch busy without end
    sides = _side_range(traced.model.ddep.stride)
    with _integer_padding():
        try:
            return torch.export.export(
                traced,
                (example,),
                dynamic_shapes=({0: batch, 2: Dim("height", **sides), 3: Dim("width", **sides)},),
                # Of convolutions' strides torch asks what holds for all sizes, but cannot prove it.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except UserError as error:
            raise ValueError(refused) from error


@contextlib.contextmanager
def _integer_padding() -> Iterator[None]:
    """timm's `SAME` padding, rounded up in integers: through its floats torch follows no symbol in useful time."""
    original = timm.layers.padding.get_same_padding

    def get_same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int:
        return max((-(-side // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - side, 0)

    timm.layers.padding.get_same_padding = get_same_padding
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = original


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert written is not None  # a program without a file name gives one
    written.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"pixel_values": images.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.export.save(program, file)
    return torch.export.load(file).module()
