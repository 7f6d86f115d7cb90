"""A study's tables and its figure: mIoU over the label fraction, one line an arm."""

import io
from pathlib import Path

from ddep_hub.data.label_splits import parse_fraction
from ddep_hub.training.run_folder import write_whole

from .analysis import Curves, Point, best_baseline, curves, labels_needed, paired_difference
from .results import Row
from .settings import Arm, Study


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
    write_whole(output / "report.md", report)
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
    write_whole(path, picture.getvalue())
