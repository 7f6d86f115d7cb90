"""What the rows of a study say: means, paired differences, and how many labels a difference is worth."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from ddep_hub.data.splits import parse_fraction
from ddep_hub.utils.files import atomic_write

from .config import Arm, Study
from .runner import Row


RESAMPLES = 10_000


@dataclass(frozen=True)
class Point:
    """An arm at a label fraction.

    Attributes:
        labelled: number of labelled images.
        scores: mIoU in % by seed.
    """

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
    """Paired difference of two arms: the same labelled images, order and classifier for both.

    Attributes:
        by_seed: difference in points of mIoU.
        interval: 95 % interval of the mean difference; `None` for one seed.
    """

    by_seed: dict[int, float]
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.by_seed.values())


Curves = dict[str, dict[str, Point]]


def curves(rows: Iterable[Row]) -> Curves:
    """Points by arm and fraction, the smallest fraction first."""
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (parse_fraction(row.fraction), row.seed)):
        grouped.setdefault(row.arm, {}).setdefault(row.fraction, []).append(row)
    return {
        arm: {
            fraction: Point(found[0].labelled, {row.seed: row.mean_iou for row in found})
            for fraction, found in by_fraction.items()
        }
        for arm, by_fraction in grouped.items()
    }


def paired_difference(treated: Point, baseline: Point) -> Difference | None:
    """Difference over the seeds that both have; `None` where they share none.

    The interval is the percentile bootstrap over the seeds. With 3 or 5 of them it is too narrow: it says how much
    the seeds at hand differ, not how much all would.
    """
    seeds = sorted(treated.scores.keys() & baseline.scores.keys())
    if not seeds:
        return None
    values = np.array([treated.scores[seed] - baseline.scores[seed] for seed in seeds])
    interval = None
    if len(seeds) > 1:
        draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
        interval = float(low), float(high)
    return Difference(dict(zip(seeds, values.tolist(), strict=True)), interval)


def best_baseline(points: Curves, baselines: Sequence[str], treated: Point, fraction: str) -> str | None:
    """The baseline that is the best beside an arm, on the seeds that both have; `None` where none shares a seed.

    Means over seeds that only one of them has would say more about those seeds. It is chosen by the very scores it is
    compared on, which favours the baseline.
    """
    there = {arm: points[arm][fraction] for arm in baselines if fraction in points.get(arm, {})}
    found = {arm: paired_difference(treated, point) for arm, point in there.items()}
    means = {arm: difference.mean for arm, difference in found.items() if difference is not None}
    return min(means, key=means.__getitem__, default=None)


@dataclass(frozen=True)
class Needed:
    """Number of labelled images with which an arm reaches another's score.

    Attributes:
        number: of images.
        at_most: whether it is an upper bound, as the arm reaches the score with the fewest it was measured with.
    """

    number: float
    at_most: bool


def labels_needed(curve: dict[str, Point], treated: Point) -> Needed | None:
    """Number of labelled images at which an arm first reaches another's score.

    At each fraction both are compared on the seeds that they share, as for [`paired_difference`]: the mean over other
    seeds says more about those. Between the fractions the difference is taken as linear in the logarithm of the number
    of images.

    Args:
        curve: points of the arm, the smallest fraction first; those without a shared seed are left out.
        treated: the other's point.

    Returns:
        The number; `None` where no point reaches the score.
    """
    before: tuple[int, float] | None = None
    for point in curve.values():
        difference = paired_difference(treated, point)
        if difference is None:
            continue
        lead = difference.mean
        if lead <= 0:
            if before is None:
                return Needed(point.labelled, at_most=True)
            share = before[1] / (before[1] - lead)
            low, high = math.log(before[0]), math.log(point.labelled)
            return Needed(math.exp(low + share * (high - low)), at_most=False)
        before = point.labelled, lead
    return None


def comparison_table(scores: Mapping[str, Mapping[int, float]]) -> str:
    """Markdown table: one row an arm, one column a seed, then mean and standard deviation.

    Args:
        scores: score of each arm and seed; every arm has the same seeds.
    """
    seeds = list(next(iter(scores.values())))
    head = ["decoder", *(f"seed {seed}" for seed in seeds), "mean", "std"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, by_seed in scores.items():
        values = [by_seed[seed] for seed in seeds]
        spread = f"{stdev(values):.2f}" if len(values) > 1 else "-"
        cells = [arm, *(f"{value:.2f}" for value in values), f"{mean(values):.2f}", spread]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(baseline: Mapping[int, float], treated: Mapping[int, float]) -> str:
    """One line: the paired differences over the seeds, and whether they speak for a gain.

    A gain is claimed only where every seed shows one; anything else is "no gain at this budget".
    """
    differences = [treated[seed] - baseline[seed] for seed in baseline]
    listed = ", ".join(f"{difference:+.2f}" for difference in differences)
    gain = "a gain with every seed" if min(differences) > 0 else "no gain at this budget"
    return f"DDeP minus random decoder: {mean(differences):+.2f} mIoU (by seed: {listed}): {gain}"


def write_report(study: Study, rows: list[Row], output: Path, *, title: str) -> str:
    """Writes `report.md` and `figure.png` from the rows of a study's arms.

    Args:
        study: the study; rows of other arms are left out.
        rows: its rows so far.
        output: folder to write to.
        title: what the scores were measured on.

    Returns:
        The report.

    Raises:
        ImportError: matplotlib is not installed; says how to install it.
    """
    names = [arm.name for arm in study.arms]
    points = curves(row for row in rows if row.arm in names)
    report = "\n".join([f"# {title}", "", *_means(study, points), "", *_differences(study, points), ""])
    atomic_write(output / "report.md", report)
    draw_figure(study, points, output / "figure.png", title=title)
    return report


def _means(study: Study, points: Curves) -> list[str]:
    labelled = {fraction: point.labelled for by in points.values() for fraction, point in by.items()}
    # All that have a row: a part of the study may have been asked for, and the differences count all.
    fractions = sorted(labelled, key=parse_fraction)
    head = ["mIoU in %, mean ± standard deviation (seeds)", *(f"{f} = {labelled[f]} images" for f in fractions)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm in study.arms:
        cells = [arm.name]
        for fraction in fractions:
            point = points.get(arm.name, {}).get(fraction)
            spread = "" if point is None or point.std is None else f" ± {point.std:.2f}"
            cells.append("" if point is None else f"{point.mean:.2f}{spread} ({len(point.scores)})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _rivals(study: Study, arm: Arm) -> list[str]:
    """Baselines that an arm is compared with: those of the same value of the axis, or that it does not concern."""
    return [other.name for other in study.arms if other.baseline and other.variant in ("", arm.variant)]


def _differences(study: Study, points: Curves) -> list[str]:
    head = ["arm", "labels", "best baseline", "difference, 95 % interval", "by seed", "labels the baseline needs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm in study.arms:
        if arm.baseline or arm.name not in points:
            continue
        rivals = _rivals(study, arm)
        for fraction, point in points[arm.name].items():
            rival = best_baseline(points, rivals, point, fraction)
            difference = paired_difference(point, points[rival][fraction]) if rival else None
            if rival is None or difference is None:
                continue
            interval = difference.interval
            shown = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
            by_seed = ", ".join(f"{value:+.2f}" for value in difference.by_seed.values())
            cells = [
                arm.name,
                f"{fraction} = {point.labelled}",
                rival,
                f"{difference.mean:+.2f}{shown}",
                by_seed,
                _needed(points, rivals, point),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _needed(points: Curves, rivals: list[str], treated: Point) -> str:
    """Labels that the thriftiest baseline needs for an arm's score, and their ratio to those that were used."""
    measured = {arm: points[arm] for arm in rivals if arm in points}
    needed = {arm: found for arm, curve in measured.items() if (found := labels_needed(curve, treated)) is not None}
    if needed:
        arm = min(needed, key=lambda arm: needed[arm].number)
        bound = "at most " if needed[arm].at_most else ""
        return f"{arm}: {bound}{needed[arm].number:.0f} ({needed[arm].number / treated.labelled:.1f}x)"
    most = {
        arm: max(
            (point.labelled for point in curve.values() if treated.scores.keys() & point.scores.keys()), default=0
        )
        for arm, curve in measured.items()
    }
    # One that was measured with fewer labels alone says nothing of its own.
    return ", ".join(f"{arm}: more than {number}" for arm, number in most.items() if number >= treated.labelled)


def draw_figure(study: Study, points: Curves, path: Path, *, title: str) -> None:
    """Draws mean and standard deviation of each arm over the number of labelled images.

    Raises:
        ImportError: matplotlib is not installed; says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "The figure of a study is drawn by matplotlib. Install it with `pip install ddep-hub[plots]`."
        ) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ticks: dict[int, str] = {}
    drawn = [arm for arm in study.arms if points.get(arm.name)]
    for place, arm in enumerate(drawn):
        by_fraction = points[arm.name]
        found = list(by_fraction.values())
        # Side by side: arms of about the same score would hide each other.
        aside = 1.04 ** (place - (len(drawn) - 1) / 2)
        axes.errorbar(
            [point.labelled * aside for point in found],
            [point.mean for point in found],
            yerr=[point.std or 0 for point in found],
            label=arm.name,
            marker="o",
            linestyle="--" if arm.baseline else "-",
            capsize=3,
        )
        for fraction, point in by_fraction.items():
            number, most = len(point.scores), max(len(by[fraction].scores) for by in points.values() if fraction in by)
            if number < most:  # its mean is not over the same images as the others'
                there = (point.labelled * aside, point.mean)
                axes.annotate(f" {number} of {most} seeds", there, fontsize="x-small")
        ticks |= {point.labelled: fraction for fraction, point in by_fraction.items()}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), [f"{number}\n({fraction})" for number, fraction in ticks.items()])
    axes.minorticks_off()
    axes.set(xlabel="labelled images (share)", ylabel="mIoU in %", title=title)
    axes.grid(alpha=0.3)
    if ticks:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    atomic_write(path, picture.getvalue())
