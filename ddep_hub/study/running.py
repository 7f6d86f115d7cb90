"""The runs of a study, one after the other; several processes may share the work of one folder."""

import contextlib
import gc
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddep_hub.commands.evaluate import evaluate
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.pretraining import pretrain
from ddep_hub.training.run_folder import locked

from .data_identity import check_data
from .results import Row, add_row, read_rows
from .settings import Arm, Study


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
            results |= evaluate(evaluation)
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
