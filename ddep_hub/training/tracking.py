"""What a run tells of itself: metrics.jsonl, trackers, and the files it had to pass over."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from .arguments import RunArguments
from .parsing import tracked
from .run_folder import MetricsLog, write_whole


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
            write_whole(self.bad_files, "".join(f"{path}\n" for path in sorted(self.skipped)))
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
