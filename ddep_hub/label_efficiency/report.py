"""The report of a study: means, paired differences, and label savings."""

import csv
import io
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ddep_hub.data.splits import parse_fraction
from ddep_hub.utils.files import atomic_write, lock_file

from .config import Study


@dataclass(frozen=True)
class Row:
    """A finished run: scores in %, the decoder's denoising error, if any, and a digest of its settings."""

    method: str
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
        """Method, fraction and seed, which identify the row."""
        return self.method, self.fraction, self.seed


COLUMNS = typing.get_type_hints(Row)


def read_rows(path: str | Path) -> list[Row]:
    """Reads the rows of a table; none if the file does not exist.

    Raises:
        ValueError: It is not the table of a study; names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows: dict[tuple[str, str, int], Row] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(COLUMNS):
            raise ValueError(f"{path} is not the table of a study: its columns must be {','.join(COLUMNS)}.")
        for entry in reader:
            try:
                row = Row(**{name: _parse_value(name, entry[name]) for name in COLUMNS})
                if row.key in rows:
                    raise ValueError("an earlier row has the same method, fraction and seed")
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num} is not a row of a study ({error}). Remove it."
                ) from error
            rows[row.key] = row
    return list(rows.values())


def _parse_value(name: str, text: str) -> Any:
    if name == "fraction":
        return str(parse_fraction(text))
    if name == "denoising_error":
        return float(text) if text else None
    if name in ("mean_iou", "mean_accuracy", "overall_accuracy") and not 0 <= float(text) <= 100:
        raise ValueError(f"{text} is not from 0 to 100%")
    return COLUMNS[name](text)


def add_row(path: str | Path, row: Row) -> None:
    """Adds a row to a table that several processes may write to; atomic, even if the process is killed."""
    path = Path(path)
    with lock_file(path.with_name(f".{path.name}.lock"), wait=True):
        rows = {existing.key: existing for existing in read_rows(path)} | {row.key: row}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(existing) for existing in rows.values())
        atomic_write(path, text.getvalue())


@dataclass(frozen=True)
class Point:
    """A method at a label fraction: the number of labelled images, and mIoU in % by seed."""

    labelled: int
    scores: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.scores.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; `None` for one seed."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Paired difference of two methods in points of mIoU, and the 95% t interval of its mean (`None` for one seed)."""

    by_seed: dict[int, float]
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.by_seed.values())


@dataclass(frozen=True)
class LabelsNeeded:
    """Number of labelled images with which a method reaches a score; `at_most` if that is its smallest number."""

    number: float
    at_most: bool


Curves = dict[str, dict[str, Point]]


def build_curves(rows: Iterable[Row]) -> Curves:
    """Points by method and fraction, the smallest fraction first."""
    points: Curves = {}
    for row in sorted(rows, key=lambda row: (parse_fraction(row.fraction), row.seed)):
        point = points.setdefault(row.method, {}).setdefault(row.fraction, Point(row.labelled, {}))
        point.scores[row.seed] = row.mean_iou
    return points


def paired_difference(treated: Point, baseline: Point) -> Difference | None:
    """Difference over the seeds of both points; `None` if they share none.

    A seed determines the labelled images, their order and the classifier's initialisation.
    """
    seeds = sorted(treated.scores.keys() & baseline.scores.keys())
    if not seeds:
        return None
    values = [treated.scores[seed] - baseline.scores[seed] for seed in seeds]
    interval = None
    if len(seeds) > 1:
        margin = student_quantile(len(seeds) - 1) * stdev(values) / len(seeds) ** 0.5
        interval = mean(values) - margin, mean(values) + margin
    return Difference(dict(zip(seeds, values, strict=True)), interval)


def student_quantile(df: int) -> float:
    """The 97.5% quantile of Student's t distribution, for a two-sided 95% interval.

    `df` is the number of degrees of freedom; above 10, the result is an approximation, accurate to 0.01.
    """
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return table[df - 1] if df <= len(table) else 1.96 + 2.372 / df + 2.82 / df**2


def best_baseline(points: Curves, baselines: Sequence[str], treated: Point, fraction: str) -> str | None:
    """The baseline with the best scores on the seeds it shares with `treated`; `None` if none shares a seed.

    It is selected by the same scores as the comparison, which favours the baseline.
    """
    baseline_points = {name: points[name][fraction] for name in baselines if fraction in points.get(name, {})}
    differences = {name: paired_difference(treated, point) for name, point in baseline_points.items()}
    means = {name: difference.mean for name, difference in differences.items() if difference is not None}
    return min(means, key=means.__getitem__, default=None)


def labels_needed(curve: dict[str, Point], treated: Point) -> LabelsNeeded | None:
    """Number of labelled images at which a curve first reaches a point's score; `None` if it never does.

    Each fraction is compared on shared seeds, as in [`paired_difference`]. Between fractions, the difference is
    interpolated linearly in the logarithm of the number of images.
    """
    previous: tuple[int, float] | None = None
    for point in curve.values():
        difference = paired_difference(treated, point)
        if difference is None:
            continue
        lead = difference.mean
        if lead <= 0:
            if previous is None:
                return LabelsNeeded(point.labelled, at_most=True)
            fraction = previous[1] / (previous[1] - lead)
            return LabelsNeeded(previous[0] * (point.labelled / previous[0]) ** fraction, at_most=False)
        previous = point.labelled, lead
    return None


def write_report(study: Study, rows: list[Row], output: Path, *, title: str, summary: str | None = None) -> str:
    """Writes `report.md` and `figure.png` to `output` from the rows of a study's methods, and returns the report."""
    points = build_curves(row for row in rows if row.method in [method.name for method in study.methods])
    steps = sorted({row.finetuning_steps for row in rows if row.method in points})
    described = f"Fine-tuning: {' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} steps." if steps else ""
    heading = [f"# {title}", "", *([] if summary is None else [summary, ""]), described, ""]
    report = "\n".join([*heading, *_means_table(study, points), "", *_differences_table(study, points), ""])
    atomic_write(output / "report.md", report)
    draw_figure(study, points, output / "figure.png", title=title)
    return report


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _means_table(study: Study, points: Curves) -> list[str]:
    # All fractions with a row, even if only some were requested, because the differences use all of them.
    labelled = {fraction: point.labelled for curve in points.values() for fraction, point in curve.items()}
    fractions = sorted(labelled, key=parse_fraction)

    def cell(point: Point | None) -> str:
        if point is None:
            return ""
        spread = "" if point.std is None else f" ± {point.std:.2f}"
        return f"{point.mean:.2f}{spread} ({len(point.scores)})"

    names = [method.name for method in study.methods]
    head = [
        "mIoU in %, mean ± standard deviation (seeds)",
        *(f"{fraction} = {labelled[fraction]} images" for fraction in fractions),
    ]
    return _table(
        head, ([name, *(cell(points.get(name, {}).get(fraction)) for fraction in fractions)] for name in names)
    )


def _differences_table(study: Study, points: Curves) -> list[str]:
    baselines = [method.name for method in study.methods if method.baseline]
    rows = []
    for name in (method.name for method in study.methods if not method.baseline):
        for fraction, point in points.get(name, {}).items():
            best = best_baseline(points, baselines, point, fraction)
            difference = paired_difference(point, points[best][fraction]) if best else None
            if best is None or difference is None:
                continue
            interval = "" if difference.interval is None else " [{:+.2f}, {:+.2f}]".format(*difference.interval)
            by_seed = ", ".join(f"{value:+.2f}" for value in difference.by_seed.values())
            needed, labels = _format_labels_needed(points, baselines, point), f"{fraction} = {point.labelled}"
            rows.append([name, labels, best, f"{difference.mean:+.2f}{interval}", by_seed, needed])
    head = ["method", "labels", "best baseline", "difference, 95% t interval", "by seed", "labels the baseline needs"]
    return _table(head, rows)


def _format_labels_needed(points: Curves, baselines: list[str], treated: Point) -> str:
    """Number of labels that the best baseline needs for a method's score, and the ratio to the method's labels."""
    baseline_curves = {name: points[name] for name in baselines if name in points}
    needed = {
        name: estimate
        for name, curve in baseline_curves.items()
        if (estimate := labels_needed(curve, treated)) is not None
    }
    if needed:
        name = min(needed, key=lambda name: needed[name].number)
        bound = "at most " if needed[name].at_most else ""
        return f"{name}: {bound}{needed[name].number:.0f} ({needed[name].number / treated.labelled:.1f}x)"
    max_labels = {
        name: max((p.labelled for p in curve.values() if treated.scores.keys() & p.scores.keys()), default=0)
        for name, curve in baseline_curves.items()
    }
    # A baseline measured only with fewer labels gives no bound.
    return ", ".join(
        f"{name}: more than {number}" for name, number in max_labels.items() if number >= treated.labelled
    )


def import_figure() -> Any:
    """matplotlib's class `Figure`; raises an ImportError that says how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The figure needs matplotlib. Install it with `pip install "ddep-hub[plots]"`.') from error
    return Figure


def _plain(name: str) -> str:
    """A name escaped for matplotlib, where `$` starts a formula and a leading `_` hides a line from the legend."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")


def draw_figure(study: Study, points: Curves, path: Path, *, title: str) -> None:
    """Draws mean and standard deviation of each method over the number of labelled images."""
    figure = import_figure()(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    fractions = {fraction: point.labelled for curve in points.values() for fraction, point in curve.items()}
    ticks = {
        number: fraction for fraction, number in fractions.items()
    }  # two fractions may give the same number of images
    max_seeds = {f: max(len(curve[f].scores) for curve in points.values() if f in curve) for f in fractions}
    methods = [method for method in study.methods if points.get(method.name)]
    for index, method in enumerate(methods):
        shift = 1.04 ** (index - (len(methods) - 1) / 2)  # side by side, so that equal scores do not hide each other
        by_fraction = points[method.name]
        x = [point.labelled * shift for point in by_fraction.values()]
        y = [point.mean for point in by_fraction.values()]
        stds = [point.std or 0 for point in by_fraction.values()]
        line = "--" if method.baseline else "-"
        axes.errorbar(x, y, yerr=stds, label=_plain(method.name), marker="o", linestyle=line, capsize=3)
        for x_position, y_position, (fraction, point) in zip(x, y, by_fraction.items(), strict=True):
            if len(point.scores) < max_seeds[fraction]:  # its mean is over fewer images than the others'
                note = f" {len(point.scores)} of {max_seeds[fraction]} seeds"
                axes.annotate(note, (x_position, y_position), fontsize="x-small")
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), [f"{number}\n({fraction})" for number, fraction in ticks.items()])
    axes.minorticks_off()
    if len(ticks) == 1:  # otherwise the shifted methods would seem to have different numbers of labels
        (number,) = ticks
        axes.set_xlim(number / 2, number * 2)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel="labelled images (share)", ylabel="mIoU in %", title=_plain(title))
    axes.grid(alpha=0.3)
    if ticks:
        figure.legend(loc="outside lower center", ncols=2)  # inside, it would hide points of many methods
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    atomic_write(path, picture.getvalue())
