"""Metrics of a run: metrics.jsonl, trackers, skipped files and the loss curve."""

import contextlib
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ddep_hub.utils.arguments import tracked
from ddep_hub.utils.files import atomic_write, warn_on_write_error

from .arguments import RunArguments


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`, each step once, also where a run was resumed.

    Args:
        path: the file; `None` on processes that do not write.
        keep: rows of an earlier part of the run up to this step are kept, later ones are written again.
    """

    def __init__(self, path: Path | None, *, keep: int = 0) -> None:
        self.path = path
        if path is not None:
            rows = read_metrics(path) if keep and path.exists() else []
            atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= keep))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        if self.path is not None:
            with warn_on_write_error(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that a kill cut off is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class Tracking:
    """Writes a run's metrics, each step once, also where it was resumed.

    Args:
        accelerator: the process's accelerator, with the trackers it was made with.
        args: the run's arguments.
        step: steps done before; what was written of later ones is written again.
    """

    def __init__(self, accelerator: Accelerator, args: RunArguments, step: int) -> None:
        self.accelerator, self.args = accelerator, args
        output = Path(args.output_dir)
        # The row of the last step is written at the very end, with what is measured then: it is written again too.
        keep = min(step, args.max_steps - 1)
        self.log = MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None, keep=keep)
        self.bad_files = output / "bad_files.txt"
        self.skipped: set[str] = set()
        self.listed = 0
        if args.skip_bad_files and step and self.bad_files.exists():
            self.skipped.update(self.bad_files.read_text("utf-8", "surrogateescape").splitlines())
        if args.report_to:
            purge = {"tensorboard": {"purge_step": step + 1}} if step and "tensorboard" in args.report_to else {}
            accelerator.init_trackers("ddep_hub", config=tracked(args), init_kwargs=purge)

    def write(self, row: dict[str, Any]) -> None:
        """Writes what is known of a step: `step` and figures, of which nested ones are named by their path."""
        self.log.write(row)
        if self.args.report_to:
            figures = {name: value for name, value in flat(row).items() if name != "step" and value is not None}
            self.accelerator.log(figures, step=row["step"])

    def note_skipped(self, paths: Iterable[str]) -> None:
        """Notes broken files that were passed over."""
        self.skipped.update(paths)

    def skipped_so_far(self) -> dict[str, int]:
        """How many files were passed over, in all processes, as a part of a row; also lists them in bad_files.txt."""
        if not self.args.skip_bad_files:
            return {}
        self.skipped = set(gather_object(sorted(self.skipped)))
        if self.accelerator.is_main_process and len(self.skipped) > self.listed:
            self.listed = len(self.skipped)
            atomic_write(self.bad_files, "".join(f"{path}\n" for path in sorted(self.skipped)))
        return {"bad_files": len(self.skipped)}

    def close(self) -> None:
        """Has the trackers write what they hold."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one of depth one, its keys joined by `/`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{name}/"))
        else:
            result[prefix + name] = value
    return result


def draw_loss(metrics: Path, picture: Path) -> bool:
    """Draws the loss over the steps of a run, on a logarithmic axis.

    Args:
        metrics: its `metrics.jsonl`.
        picture: PNG file to write.

    Returns:
        Whether there is a picture: none without matplotlib (extra `plots`), nor of fewer than two rows with a loss.
    """
    rows = [row for row in read_metrics(metrics) if row.get("loss")]
    if len(rows) < 2 or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    # A loss falls by less than a decade or two: more ticks than the powers of ten, written as plain numbers.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.savefig(picture, dpi=110, format="png")
    return True
