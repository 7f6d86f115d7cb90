"""Prediction: one image and windows against plain PyTorch, a folder against a straight loop, exported models.

    python benchmarks/speed/prediction.py

The model is EfficientNet-Lite0 with random weights and 19 classes; photographs are generated. "Plain PyTorch" is the
same network as it is loaded, without gradient; the straight loop opens, prepares, predicts and saves one image after
the other.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import LITE0, Round, compare, peak_memory, rounds_of, set_up, value_of, write_rows
from photographs import write_photographs
from PIL import Image

from ddep_hub import DDePConfig, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.evaluation.arguments import InferenceArguments, PredictArguments
from ddep_hub.evaluation.inference import InferenceOptions, predict_ids
from ddep_hub.evaluation.predict import load_for_prediction, predict_images
from ddep_hub.utils.processes import keep_freed_memory


CLASSES = 19
WINDOWS = InferenceOptions(window=(512, 512), stride=(384, 384), window_batch=1)


def write_model(folder: Path) -> str:
    def write() -> Callable[[], float]:
        torch.manual_seed(0)
        config = DDePConfig(num_labels=CLASSES, **LITE0)
        DDePForSemanticSegmentation(config).save_pretrained(folder)
        DDePImageProcessor(do_resize=False).save_pretrained(folder)
        return lambda: 0.0

    value_of(write)
    return str(folder)


def image_of(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@set_up
def ours(model: str, height: int, width: int, options: InferenceOptions | None = None) -> Round:
    keep_freed_memory()
    network = load_for_prediction(model, InferenceArguments(model=model))
    images = image_of(height, width).contiguous(memory_format=torch.channels_last)
    return lambda: predict_ids(network, images, (height, width), options)


@set_up
def plain(model: str, height: int, width: int) -> Round:
    network = DDePForSemanticSegmentation.from_pretrained(model)
    images = image_of(height, width)

    def run() -> torch.Tensor:
        with torch.no_grad():
            ids: torch.Tensor = network(images).logits.argmax(1)
        return ids

    return run


@set_up
def ours_on_folder(model: str, folder: str, output: str) -> Round:
    return lambda: predict_images([folder], PredictArguments(model=model, predictions=["ids"], output_dir=output))


@set_up
def loop_on_folder(model: str, folder: str, output: str) -> Round:
    def run() -> None:
        network = DDePForSemanticSegmentation.from_pretrained(model)
        processor = DDePImageProcessor.from_pretrained(model)
        Path(output).mkdir(exist_ok=True)
        for path in sorted(Path(folder).iterdir()):
            image = Image.open(path).convert("RGB")
            inputs = processor(image, return_tensors="pt")
            with torch.no_grad():
                logits = network(**inputs).logits
            ids = torch.nn.functional.interpolate(logits, image.size[::-1], mode="bilinear").argmax(1)[0]
            Image.fromarray(ids.numpy().astype(np.uint8)).save(Path(output) / f"{path.stem}.png")

    return run


def write_exported(model: str, folder: Path) -> None:
    """Exports to both formats; the command fails where the classes differ from the model's."""
    command = [sys.executable, "-m", "ddep_hub", "export", "--model", model, "--output_dir", str(folder)]
    subprocess.run([*command, "--size", "512"], check=True)


@set_up
def exported(model: str, kind: str, folder: str, height: int, width: int) -> Round:
    """A round of an exported model; both kinds return class ids."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        array = image_of(height, width).numpy()
        return lambda: session.run(None, {entry.name: array})
    program = torch.export.load(f"{folder}/model.pt2").module()
    images = image_of(height, width)

    def run() -> Any:
        with torch.no_grad():
            return program(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=200)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model = write_model(root / "model")
        times = rounds_of({"ours": ours(model, 512, 512), "plain PyTorch": plain(model, 512, 512)}, args.rounds)
        peer = {"plain PyTorch": (times["plain PyTorch"], 1.0)}
        rows += compare("prediction", "one image of 512x512", times["ours"], peer, "s")

        ways = {"ours": ours(model, 1024, 2048, WINDOWS), "whole": plain(model, 1024, 2048)}
        times = rounds_of(ways, 3, warm_up=0)
        peer = {"the whole image, plain PyTorch": (times["whole"], None)}
        rows += compare("prediction", "1024x2048 in windows of 512", times["ours"], peer, "s")
        memory = peak_memory(ways["ours"], calls=1), peak_memory(ways["whole"], calls=1)
        peer = {"the whole image, plain PyTorch": (memory[1], 1 / 0.25)}
        rows += compare("memory of prediction", "1024x2048 in windows of 512", memory[0], peer, "MiB")

        write_exported(model, root / "exported")
        ways = {
            "onnx": exported(model, "onnx", f"{root}/exported", 512, 512),
            "torch": exported(model, "torch", f"{root}/exported", 512, 512),
        }
        times = rounds_of({**ways, "plain": plain(model, 512, 512)}, args.rounds)
        for kind, title in (("onnx", "ONNX Runtime"), ("torch", "torch.export")):
            peer = {"the model in plain PyTorch": (times["plain"], 1.3)}
            rows += compare(f"exported model, {title}", "one image of 512x512", times[kind], peer, "s")

        photographs = str(write_photographs(root / "photographs", args.photographs, 500, 375))
        ways = {
            "ours": ours_on_folder(model, photographs, f"{root}/ours"),
            "loop": loop_on_folder(model, photographs, f"{root}/loop"),
        }
        times = rounds_of(ways, 1, warm_up=0)
        peer = {"a loop with PIL and the model": (times["loop"], 1.5)}
        rows += compare("ddep-hub predict", f"{args.photographs} photographs of 500x375", times["ours"], peer, "s")
        write_rows("prediction", rows)


if __name__ == "__main__":
    main()
