"""Metrics of a run: metrics.jsonl, trackers, skipped files and the loss curve."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.utils.generic import flatten_dict

from ddep_hub.utils.files import atomic_write, warn_on_write_error

from .run_arguments import RunArguments


class MetricsLog:
    """Appends one JSON object per step to `metrics.jsonl`, each step once, even in a resumed run.

    `path` is `None` in processes that do not write. In a resumed run, the rows up to `last_step` are kept; later ones
    are dropped, because their steps are repeated.
    """

    def __init__(self, path: Path | None, *, last_step: int = 0) -> None:
        self.path = path
        if path is not None:
            rows = read_metrics(path) if last_step and path.exists() else []
            atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last_step))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        if self.path is not None:
            with warn_on_write_error(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl`, without a last line truncated by a kill."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class MetricsLogger:
    """Writes a run's metrics and its list of broken files.

    `accelerator` must have been created with the run's trackers. For a resumed run, `step` is the number of completed
    steps and `skipped` lists the broken files skipped so far.
    """

    def __init__(self, accelerator: Accelerator, args: RunArguments, step: int, skipped: Iterable[str]) -> None:
        self.accelerator, self.args = accelerator, args
        output = Path(args.output_dir)
        # The last step's row is written at the end, with its evaluation, so a resumed run writes it again.
        last_step = min(step, args.max_steps - 1)
        self.log = MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None, last_step=last_step)
        self.bad_files = output / "bad_files.txt"
        self.skipped = set(skipped)
        self.num_listed = 0
        if args.report_to:
            # In a new run too, because it may replace an earlier one with its events.
            init_kwargs = {"tensorboard": {"purge_step": step + 1}} if "tensorboard" in args.report_to else {}
            # Trackers need plain values: lists and `None` become strings.
            fields = dataclasses.asdict(args).items()
            config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in fields}
            accelerator.init_trackers("ddep_hub", config=config, init_kwargs=init_kwargs)

    def write(self, row: dict[str, Any]) -> None:
        """Writes the metrics of a step. For trackers, nested ones are flattened, for example to `iou/sky`."""
        self.log.write(row)
        if self.args.report_to:
            metrics = flatten_dict(row, delimiter="/").items()
            metrics = {name: value for name, value in metrics if name != "step" and value not in (None, {})}
            self.accelerator.log(metrics, step=row["step"])

    def bad_file_count(self) -> dict[str, int]:
        """Counts the broken files of all processes, for a row of metrics, and lists them in `bad_files.txt`."""
        if not self.args.skip_bad_files:
            return {}
        self.skipped = set(gather_object(sorted(self.skipped)))
        if self.accelerator.is_main_process and len(self.skipped) > self.num_listed:
            with warn_on_write_error(self.bad_files):
                atomic_write(self.bad_files, "".join(f"{path}\n" for path in sorted(self.skipped)))
                self.num_listed = len(self.skipped)
        return {"bad_files": len(self.skipped)}

    def close(self) -> None:
        """Finishes the trackers, which writes their buffers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def plot_loss(metrics: Path, picture: Path) -> bool:
    """Plots the loss of a run over its steps, on a logarithmic axis, from `metrics.jsonl` to a PNG file.

    Returns whether the file was written: not if matplotlib (extra `plots`) is missing or fewer than two rows have a
    loss.
    """
    rows = [row for row in read_metrics(metrics) if row.get("loss")]
    if len(rows) < 2 or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(6, 3.5))
    axes = figure.add_axes((0.16, 0.15, 0.81, 0.81))  # automatic layout takes twice as long
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    # A loss spans only a decade or two: more ticks than the powers of ten, formatted as plain numbers.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    atomic_write(picture, buffer.getvalue())
    return True
