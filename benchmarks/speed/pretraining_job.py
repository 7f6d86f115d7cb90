"""A whole pretraining run, with its data and its log, against its own step on tensors in memory.

    python benchmarks/speed/pretraining_job.py [--device cuda] [--workers 15]

`ddep-hub pretrain` on photographs of 500x375 (EfficientNet-Lite0, 16 crops of 128 pixels a step) with one worker that
reads them; on a GPU with more. The first steps are not counted. The bare step has the same format and memory settings.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ddep_step import ours
from measuring import LITE0, Round, compare, formats, set_up, value_of, write_rows
from photographs import write_photographs

from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import pretrain


CROP, WARM_UP, STEPS = 128, 10, 20
BATCH = {"cpu": 16, "cuda": 256}


@set_up
def job(images: Path, output: Path, batch: int, workers: int, precision: Any) -> Round:
    """Seconds of a step of a whole run."""

    def run() -> float:
        args = PretrainArguments(
            output_dir=str(output),
            images=[str(images)],
            batch_size=batch,
            crop_size=CROP,
            max_steps=WARM_UP + STEPS,
            logging_steps=WARM_UP,
            num_val_images=16,
            save_steps=0,
            encoder_weights="none",
            dataloader_num_workers=workers,
            mixed_precision=precision,
            overwrite=True,
            **LITE0,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pretrain(args)
        speeds = [row["images_per_second"] for row in read_metrics(output / "metrics.jsonl")[1:]]
        return batch * sum(1 / speed for speed in speeds) / len(speeds)

    return run


@set_up
def bare(batch: int, device: str, precision: str) -> Round:
    """Mean seconds of as many bare steps."""
    step = ours(LITE0, batch, CROP, device, precision)()

    def run() -> float:
        for _ in range(3):
            step()
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / STEPS

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    batch = BATCH[args.device]
    with tempfile.TemporaryDirectory() as root:
        images = write_photographs(Path(root) / "photographs", 100 if args.device == "cpu" else 4000, 500, 375)
        rows = []
        for title, precision in formats(args.device).items():
            jobs, steps = [], []
            for _ in range(args.rounds):  # each in a new process, in turns: a run's workers are only its own
                jobs.append(value_of(job(images, Path(root) / "run", batch, args.workers, precision)))
                steps.append(value_of(bare(batch, args.device, precision)))
            setting = f"EfficientNet-Lite0, {batch} crops of {CROP} px, {args.workers} worker(s), {title}"
            peer = {"its own step on tensors in memory": (steps, 0.97 if args.device == "cpu" else 0.95)}
            rows += compare("whole pretraining job", setting, jobs, peer, "s")
    write_rows("pretraining_job" if args.device == "cpu" else "pretraining_job_gpu", rows)


if __name__ == "__main__":
    main()
