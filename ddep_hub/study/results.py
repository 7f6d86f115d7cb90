"""The table of a study: one row a finished run."""

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddep_hub.data.label_splits import parse_fraction
from ddep_hub.training.run_folder import locked, write_whole


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
        write_whole(path, text.getvalue())
