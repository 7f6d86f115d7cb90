"""Fine-tuned models as ONNX and `torch.export` files, checked against PyTorch before they get their name."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ddep_hub import DDePForSemanticSegmentation, __version__
from ddep_hub.data.synthetic import render_scene
from ddep_hub.data.transforms import Normalize
from ddep_hub.training.run_folder import whole_folder, write_whole


Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
# Largest difference of a logit as a share of the largest logit, and the share of pixels whose class must be the same.
TOLERANCE, SAME_CLASS = 1e-4, 0.9999
BATCHES = (1, 3)


class _Logits(nn.Module):
    def __init__(self, model: DDePForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def export(
    model: DDePForSemanticSegmentation,
    folder: str | Path,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    formats: Sequence[Format] = ("onnx", "torch"),
) -> dict[str, dict[str, float]]:
    """Writes `model.onnx`, `model.pt2` and `export.json`: images of one size, any number of them at a time.

    Each file takes `pixel_values`, float32 `(batch, channels, height, width)`, RGB in [0, 1] minus `mean` over `std`,
    and gives `logits`, float32 `(batch, num_labels, height, width)`. It is read back and compared with PyTorch on
    rendered scenes, in batches of other sizes than it was traced with. `export.json` holds what a caller needs beside
    it: constants, class names in their order, names of input and output, versions.

    Args:
        model: the fine-tuned model; it is put into eval mode.
        folder: where to; a folder of an earlier export is replaced when the new one is whole.
        size: height and width in pixels; any, as the model pads to its stride itself.
        mean: of the pixels, as in training.
        std: of the pixels, as in training.
        formats: which files: `onnx` (for onnxruntime and others), `torch` (for `torch.export.load`).

    Returns:
        By format, the largest `difference` of a logit as a share of the largest one, and the share of pixels with the
        `same_class`.

    Raises:
        FileExistsError: the folder holds something else than an export.
        ValueError: the extra `export` is not installed, or a file does not do what the model does; the folder is then
            as it was.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "export.json").is_file():
        raise FileExistsError(f"{folder} holds something else than an export. Choose another output_dir.")
    if "onnx" in formats:
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f'format `onnx` needs {", ".join(missing)}: pip install "ddep-hub[export]".')
    traced = _Logits(model.cpu().float().eval())
    images = _scenes(size, max(BATCHES), model.config.num_channels, mean, std)
    program = torch.export.export(traced, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with whole_folder(folder) as new:
        found: dict[str, dict[str, float]] = {}
        for name in formats:
            file = new / FILES[name]
            run = _write_onnx(program, file) if name == "onnx" else _write_torch(program, file)
            found[name] = compare(traced, run, images, name)
        config = model.config
        described = {
            "inputs": {"pixel_values": ["batch", config.num_channels, *size]},
            "outputs": {"logits": ["batch", config.num_labels, *size]},
            "dtype": "float32",
            "rescale_factor": 1 / 255,
            "image_mean": list(mean),
            "image_std": list(std),
            "classes": [config.id2label[index] for index in range(config.num_labels)],
            "checked": found,
            "versions": {"ddep_hub": __version__, "torch": torch.__version__},
        }
        write_whole(new / "export.json", json.dumps(described, indent=1) + "\n")
    return found


def compare(
    model: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, name: Format
) -> dict[str, float]:
    """Compares an exported model with PyTorch, see [`export`].

    Raises:
        ValueError: they differ by more than rounding.
    """
    difference, same = 0.0, 1.0
    for batch in BATCHES:
        with torch.no_grad():
            expected, found = model(images[:batch]), run(images[:batch])
        difference = max(difference, float((found - expected).abs().max() / expected.abs().max()))
        same = min(same, float((found.argmax(1) == expected.argmax(1)).float().mean()))
    if not (difference <= TOLERANCE and same >= SAME_CLASS):
        raise ValueError(
            f"The exported {FILES[name]} is not the model: its logits differ by {difference:.1e} of the largest one "
            f"(at most {TOLERANCE:g}), and {100 * same:.3f} % of the pixels have the same class (at least "
            f"{100 * SAME_CLASS:g} %). Nothing was written. Try another release of torch or onnxruntime."
        )
    return {"difference": difference, "same_class": same}


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
    loaded: Any = torch.export.load(file).module()
    return lambda images: loaded(images)


def _scenes(
    size: tuple[int, int], number: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Rendered scenes, normalised; of another number of channels than 3, the red one is repeated."""
    pixels = np.stack([render_scene(0, index, size)[0] for index in range(number)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if channels != images.shape[1]:
        images = images[:, :1].expand(-1, channels, -1, -1)
    return Normalize(mean, std)(images).contiguous()
