"""The table of a study: one row a finished run."""

import contextlib
import csv
import gc
import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddep_hub.data.image_datasets import identity
from ddep_hub.data.segmentation_datasets import open_split
from ddep_hub.data.splits import parse_fraction
from ddep_hub.evaluation.evaluate import run_evaluation
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.feeds import fingerprint_of
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.pretraining import open_sources, pretrain
from ddep_hub.utils.files import atomic_write, locked

from .config import Arm, Study


@dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        arm: name of the arm.
        fraction: share of the labelled images, such as `1/30`; a table may say it as a decimal number.
        seed: seed of the choice of images and of the run.
        labelled: number of labelled images.
        mean_iou: in %, as are the accuracies.
        mean_accuracy: mean over the classes.
        overall_accuracy: over the pixels.
        denoising_error: of the pretrained decoder on held-out images; `None` without one.
        pretraining_steps: optimizer steps, 0 without pretraining.
        finetuning_steps: optimizer steps.
        seconds: of fine-tuning.
        settings: digest of the arguments, see [`Study.settings`].
    """

    arm: str
    fraction: str
    seed: int
    labelled: int
    mean_iou: float
    mean_accuracy: float
    overall_accuracy: float
    denoising_error: float | None
    pretraining_steps: int
    finetuning_steps: int
    seconds: float
    settings: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What there is one row of."""
        return self.arm, self.fraction, self.seed


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a table; none where there is no file.

    Raises:
        ValueError: it is no table of a study; names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = [known.name for known in fields(Row)]
        if reader.fieldnames != names:
            raise ValueError(f"{path} is no table of a study: its columns must be {','.join(names)}.")
        rows: dict[tuple[str, str, int], Row] = {}
        for entry in reader:
            try:
                row = Row(
                    arm=entry["arm"],
                    fraction=str(parse_fraction(entry["fraction"])),
                    seed=int(entry["seed"]),
                    labelled=int(entry["labelled"]),
                    mean_iou=_percent(entry["mean_iou"]),
                    mean_accuracy=_percent(entry["mean_accuracy"]),
                    overall_accuracy=_percent(entry["overall_accuracy"]),
                    denoising_error=float(entry["denoising_error"]) if entry["denoising_error"] else None,
                    pretraining_steps=int(entry["pretraining_steps"]),
                    finetuning_steps=int(entry["finetuning_steps"]),
                    seconds=float(entry["seconds"]),
                    settings=entry["settings"],
                )
                if row.key in rows:
                    raise ValueError("there is one of this arm, fraction and seed above")
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num} is no row of a study ({error}). Take it out."
                ) from error
            rows[row.key] = row
    return list(rows.values())


def _percent(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"{text} is not from 0 to 100 %")
    return value


def add_row(path: str | Path, row: Row) -> None:
    """Adds a row to a table that several processes may write to; a kill leaves the old table or the new one."""
    path = Path(path)
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        rows = {known.key: known for known in read_rows(path)} | {row.key: row}
        text = io.StringIO()
        writer = csv.DictWriter(text, [known.name for known in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(known) for known in rows.values())
        atomic_write(path, text.getvalue())


FILE = "data.json"


def check_data(study: Study, output: Path) -> None:
    """Compares a study's images with those that its folder was begun with, and notes them where it is new.

    The settings of a row do not say where the images lie, so that they may be moved; names and sizes tell other ones.

    Args:
        study: the study; images that an arm names itself are told by its settings.
        output: the study's folder, which holds `data.json`: short hashes of the labelled and the unlabelled images.

    Raises:
        OSError: images are missing.
        ValueError: they are others than those of the rows, or of the pretrained decoders.
    """
    path, now = output / FILE, _identities(study)
    with locked(path.with_name(f".{FILE}.lock"), wait=True):
        before: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, made in (("data", "results.csv has rows"), ("images", "pretrained/ has decoders")):
            if name in before and name in now and before[name] != now[name]:
                raise ValueError(
                    f"{output / made} of other images than those of `{name}` now: names or sizes of the files differ. "
                    "Choose another output_dir, or give the images that it was begun with."
                )
        if now.keys() - before.keys():
            atomic_write(path, json.dumps(before | now, indent=2) + "\n")


def _identities(study: Study) -> dict[str, str]:
    finetuning = study.finetune_arguments(study.arms[0], "1", 0, Path(), None)
    splits = [open_split(finetuning, split) for split in (finetuning.train_split, finetuning.eval_split)]
    found = {
        "data": fingerprint_of(*[(rows.fingerprint, rows.classes.names, rows.classes.ignore_index) for rows in splits])
    }
    for arm in study.arms:
        if arm.pretraining is not None and "images" not in arm.pretraining:
            return found | {"images": identity(open_sources(study.pretrain_arguments(arm, Path())))}
    return found


WAIT = 5.0  # seconds between two looks at what other processes do


@dataclass(frozen=True)
class Run:
    """A run that is wanted."""

    arm: Arm
    fraction: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Key of its row."""
        return self.arm.name, self.fraction, self.seed


def wanted_runs(study: Study) -> list[Run]:
    """All runs: the first seed of every arm and fraction, then the second, so that an early look sees all arms."""
    most = max(study.seeds.values())
    return [
        Run(arm, fraction, seed)
        for seed in range(most)
        for fraction, seeds in study.seeds.items()
        for arm in study.arms
        if seed < seeds
    ]


def check_study(study: Study, table: Path) -> None:
    """Checks the arguments of every run, and the rows that are there, before the first run.

    Raises:
        ValueError: an argument of an arm, or a row that was made with other settings.
    """
    settings = {arm.name: study.settings(arm) for arm in study.arms}
    for row in read_rows(table):
        if settings.get(row.arm, row.settings) != row.settings:
            raise ValueError(
                f"{table}: the row of `{row.arm}`, fraction {row.fraction}, seed {row.seed} was made with other "
                "settings than the study file has now. Choose another output_dir, or take those rows out."
            )


def run_study(study: Study, output: Path) -> None:
    """Runs what has no row yet in `output/results.csv`, and adds a row for each run that ends.

    Decoders are kept in `output/pretrained/`, and in `output/data.json` what tells other images ([`check_data`]). Of a
    fine-tuning run `output/runs/<run>/` keeps the arguments, metrics, chosen images and pictures, but no weights. Runs
    that were interrupted go on from their checkpoints. Started several times on one folder, the processes share the
    runs.

    Args:
        study: what to run.
        output: the study's folder.

    Raises:
        ValueError: see [`check_study`] and [`check_data`].
        FloatingPointError: the loss of some runs was not finite; all others have been run.
        RunInterrupted: a signal came; a checkpoint was written.
    """
    table = output / "results.csv"
    failed: dict[tuple[str, str, int], str] = {}
    output.mkdir(parents=True, exist_ok=True)
    check_study(study, table)
    check_data(study, output)
    while True:
        done = {row.key for row in read_rows(table)}
        pending = [run for run in wanted_runs(study) if run.key not in done and run.key not in failed]
        if not pending:
            break
        for run in pending:
            try:
                ran = _run(study, run, output)
            except BlockingIOError:
                continue  # another process is at it
            except FloatingPointError as error:
                failed[run.key] = str(error)
                break
            if ran:
                break
        else:
            time.sleep(WAIT)
    if failed:
        listed = "\n".join(f"{arm}, {fraction}, seed {seed}: {why}" for (arm, fraction, seed), why in failed.items())
        raise FloatingPointError(f"{len(failed)} runs have no row:\n{listed}")


def _run(study: Study, run: Run, output: Path) -> bool:
    """Pretrains the decoder of a run if there is none yet, fine-tunes and adds the row.

    Returns:
        Whether there was something to do.

    Raises:
        BlockingIOError: another process pretrains this decoder or has this run.
    """
    decoder, error, steps = None, None, 0
    if run.arm.pretraining is not None:
        pretraining = study.pretrain_arguments(run.arm, output / "pretrained")
        decoder, error = _decoder(pretraining)
        steps = pretraining.max_steps
    args = study.finetune_arguments(run.arm, run.fraction, run.seed, output / "runs", decoder)
    folder = Path(args.output_dir)
    with _claimed(folder):
        if any(row.key == run.key for row in read_rows(output / "results.csv")):
            return False  # another process has just ended it
        print(f"\n=== {run.arm.name}, {run.fraction} of the labels, seed {run.seed}", flush=True)
        results = finetune(args)
        if (evaluation := study.evaluate_arguments(args)) is not None:
            results |= run_evaluation(evaluation)
        row = Row(
            arm=run.arm.name,
            fraction=run.fraction,
            seed=run.seed,
            labelled=results["labelled"],
            mean_iou=round(100 * results["mean_iou"], 3),
            mean_accuracy=round(100 * results["mean_accuracy"], 3),
            overall_accuracy=round(100 * results["overall_accuracy"], 3),
            denoising_error=error,
            pretraining_steps=steps,
            finetuning_steps=args.max_steps,
            seconds=results["seconds"],
            settings=study.settings(run.arm),
        )
        add_row(output / "results.csv", row)
        for name in ("final", "best", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
    gc.collect()  # models and optimizers hold cycles
    return True


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes of the study off a run; its own lock covers the training alone, and not the row.

    Raises:
        BlockingIOError: another process has it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.claim")):
        yield


def _decoder(args: PretrainArguments) -> tuple[str, float]:
    """Folder of a pretrained decoder, which is trained if it is not there, and its denoising error."""
    folder = Path(args.output_dir)
    results = folder / "final" / "results.json"  # written when the decoder is whole and measured
    if not results.exists():
        with _claimed(folder):
            if not results.exists():
                print(f"\n=== pretraining {folder}", flush=True)
                pretrain(args)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    error = json.loads(results.read_text(encoding="utf-8"))["denoising_error"]
    return str(folder / "final"), round(error, 5)
