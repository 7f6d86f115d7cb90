"""Kills training runs at random moments, resumes them, and compares what comes out with runs that were not killed.

    python benchmarks/kill_resume.py --kills 20 --output benchmarks/kill_resume.csv
    python benchmarks/kill_resume.py --kills 1 --encoder hiera_tiny_224 --output hiera.csv

`kill_resume_encoders.csv` holds the rows of the second for four encoders.

Both scripts run on the CPU, with all that makes resuming hard: random crops, BatchNorm, a moving average of the
weights, warm-up, accumulation over two micro-batches, epochs that are not a whole number of steps, data from a folder
(with 0 and 2 workers) and from a stream of shards. The whole process group gets SIGKILL, in the middle of training,
while a checkpoint is being written, or after the last step, and the run is started again with
`--resume_from_checkpoint latest`. The CSV has one row per kill; `identical` says whether the weights and results in
final/ and best/, the last checkpoint (weights, average, optimizer) and the metrics are bit for bit those of the run
that was not killed, and no half-written folder is left. Exits with 1 if one is not.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ddep_hub.data.synthetic import write_scenes
from ddep_hub.training.logging import read_metrics


ROOT = Path(__file__).parent.parent
STEPS, SAVE_EVERY = 24, 5
COMMON = (
    f"--max_steps {STEPS} --save_steps {SAVE_EVERY} --logging_steps 1 --eval_steps 10 --model_ema_decay 0.99 "
    "--warmup_steps 4 "
    "--batch_size 4 --gradient_accumulation_steps 2 --crop_size 32 --decoder_hidden_sizes 16 8 8 8 8 "
    "--decoder_bottleneck_size 16"
).split()
VARIANTS = [("pretrain", "folder"), ("finetune", "folder"), ("pretrain", "stream")]


def write_data(root: Path) -> Path:
    """Small scenes as folders, and the unlabelled ones as four shards as well."""
    data = write_scenes(root / "scenes", splits={"train": 6, "val": 3}, unlabelled=22, size=(64, 64))
    images = sorted((data / "unlabelled").iterdir())
    for shard in range(4):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as tar:
            for path in images[shard::4]:
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    return root


def arguments(script: str, kind: str, workers: int, data: Path, output: Path) -> list[str]:
    """Command line of a run."""
    if script == "finetune":
        source = ["--data", str(data / "scenes")]
    else:
        images = data / "scenes" / "unlabelled" if kind == "folder" else data / "shard-{0..3}.tar"
        source = ["--images", str(images), "--num_val_images", "2", "--shuffle_window", "6"]
    return [*COMMON, *source, "--dataloader_num_workers", str(workers), "--output_dir", str(output)]


def launch(script: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a script as a user would, in a process group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / f"{script}.py"), *command],
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a run.

    Raises:
        RuntimeError: it failed.
    """
    if process.wait(timeout=300):
        raise RuntimeError(f"The run failed:\n{log.read_text(errors='replace')[-3000:]}")


def wait_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Looks again and again, a thousand times a second, so that short moments are hit as well."""
    while not condition() and process.poll() is None:
        time.sleep(0.001)


def steps_done(output: Path) -> int:
    """The last step in the metrics."""
    file = output / "metrics.jsonl"
    rows = read_metrics(file) if file.exists() else []
    return rows[-1]["step"] if rows else 0


def checkpoints(output: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    return sorted(int(path.name[5:]) for path in (output / "checkpoints").glob("step-*"))


def kill_at(moment: str, process: subprocess.Popen[bytes], output: Path, choice: random.Random) -> None:
    """Kills a run at a moment of the named kind."""
    if moment == "training":
        step = choice.randrange(1, STEPS)
        wait_until(process, lambda: steps_done(output) >= step)
        time.sleep(choice.uniform(0, 0.1))
    elif moment == "writing":
        written = choice.randrange(STEPS // SAVE_EVERY)
        wait_until(process, lambda: len(checkpoints(output)) >= min(written, 2))
        folder = output / "checkpoints"
        wait_until(process, lambda: folder.exists() and any(folder.glob(".step-*.partial")))
        time.sleep(choice.uniform(0, 0.01))
    else:
        wait_until(process, lambda: STEPS in checkpoints(output))
        time.sleep(choice.uniform(0, 1.0))
    os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"The run ended before it was killed, with code {process.returncode}.")


def outcome(output: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on the kill."""
    files = {"final": output / "final" / "model.safetensors", "best": output / "best" / "model.safetensors"}
    last = output / "checkpoints" / f"step-{STEPS}"
    files |= {path.name: path for path in last.iterdir() if path.suffix in (".safetensors", ".pt")}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    timings = ("images_per_second", "seconds")
    rows = [{k: v for k, v in row.items() if k not in timings} for row in read_metrics(output / "metrics.jsonl")]
    results = {
        f"{name}/results.json": json.loads((output / name / "results.json").read_text()) for name in ("best", "final")
    }
    found |= {name: json.dumps({k: v for k, v in row.items() if k not in timings}) for name, row in results.items()}
    return found | {"metrics": json.dumps(rows)}


def kills(number: int, data: Path, seed: int, encoder: str | None = None) -> Iterator[dict[str, object]]:
    """Kills each script `number` times, and tells what came of it."""
    choice = random.Random(seed)
    own = [] if encoder is None else ["--encoder_name", encoder, "--encoder_weights", "none"]
    expected: dict[tuple[str, str], dict[str, str]] = {}
    counts = dict.fromkeys(("pretrain", "finetune"), 0)
    turn = 0
    while min(counts.values()) < number:
        script, kind = VARIANTS[turn % len(VARIANTS)]
        turn += 1
        if counts[script] == number:
            continue
        # Two of five kills fall into the writing of a checkpoint, one of five comes after the last step.
        moment = ["training", "writing", "training", "ending", "writing"][counts[script] % 5]
        # No worker and two in turn, for each kind of data.
        workers = 2 * (counts[script] // sum(name == script for name, _ in VARIANTS) % 2)
        counts[script] += 1
        if (script, kind) not in expected:
            output = data / f"whole-{script}-{kind}"
            log = output.with_suffix(".log")
            finish(launch(script, [*arguments(script, kind, 0, data, output), *own], log), log)
            expected[script, kind] = outcome(output)
        output = data / f"killed-{turn}"
        log = output.with_suffix(".log")
        command = [*arguments(script, kind, workers, data, output), *own]
        half_written = 0
        while not half_written:
            shutil.rmtree(output, ignore_errors=True)
            process = launch(script, command, log)
            kill_at(moment, process, output, choice)
            whole, done = checkpoints(output), steps_done(output)
            half_written = len(list(output.rglob(".*.partial")))
            if moment != "writing":
                break  # of the others it need not have hit a half-written folder
        finish(launch(script, [*command, "--resume_from_checkpoint", "latest"], log), log)
        found = outcome(output)
        resumed_from = whole[-1] if whole else 0
        different = [name for name in expected[script, kind] if expected[script, kind][name] != found.get(name)]
        left = [path.name for path in output.rglob(".*.partial")]
        yield {
            **({} if encoder is None else {"encoder": encoder}),
            "script": script,
            "data": kind,
            "workers": workers,
            "killed_while": moment,
            "steps_logged": done,
            "half_written_folders": half_written,
            "resumed_from_step": resumed_from,
            "steps_repeated": max(0, done - resumed_from),
            "identical": not different and not left,
            "different": " ".join([*different, *left]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each script")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--encoder", help="timm name of an encoder with random weights; EfficientNet-Lite0 by default")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, args.output.open("w", newline="") as file:
        writer = None
        all_identical = True
        for row in kills(args.kills, write_data(Path(folder)), args.seed, args.encoder):
            writer = writer or csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(row, flush=True)
            all_identical &= bool(row["identical"])
    sys.exit(not all_identical)


if __name__ == "__main__":
    main()
