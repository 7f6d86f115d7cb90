"""Prints the table of this kind of machine, marks what fell, and writes docs/performance.md with its figures.

    python benchmarks/speed/report.py

A line is marked where its ratio is more than 10% below that of the last commit on this kind of machine, or is no
number. Lines of the last commit that are no longer measured are listed as missing.
"""

import argparse
import csv
import io
import subprocess
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from measuring import RESULTS, results_dir
from text import CLOSING, NOTES, OPENING


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
ORDER = ("ddep_step", "finetuning_step", "pretraining_job", "prediction", "metrics", "loading", "start")
FALL = 0.9
Line = dict[str, str]
Key = tuple[str, str, str]


def key(row: Line) -> Key:
    return row["question"], row["setting"], row["peer"]


def committed(file: Path) -> dict[Key, float]:
    """Ratios of a file at the last commit, by question, setting and peer."""
    path = f"HEAD:{file.relative_to(ROOT).as_posix()}"
    shown = subprocess.run(["git", "-C", str(ROOT), "show", path], capture_output=True, text=True)
    rows = csv.DictReader(io.StringIO(shown.stdout)) if shown.returncode == 0 else []
    return {key(row): float(row["ratio"]) for row in rows}


def read(file: Path) -> list[Line]:
    """Rows of a file, with `before`, the committed ratio, where the present one is more than 10% below."""
    before = committed(file)
    with file.open(newline="") as lines:
        rows: list[Line] = list(csv.DictReader(lines))
    for row in rows:
        last = before.get(key(row))
        # Not "<", which is false for a ratio that is no number.
        row["before"] = f"{last:.2f}" if last is not None and not float(row["ratio"]) >= FALL * last else ""
    return rows


def missing(folder: Path) -> list[Key]:
    """Lines of the last commit that the files no longer have."""
    before = [line for name in ORDER for line in committed(folder / f"{name}.csv")]
    measured = {key(row) for row in read_rows(folder)}
    return [line for line in before if line not in measured]


def number(text: str) -> str:
    return f"{float(text):.2f}" if float(text) < 10 else f"{float(text):.0f}"


def reached(row: Line) -> str:
    if not row["goal"]:
        return ""
    return "yes" if float(row["ratio"]) >= float(row["goal"]) - 0.005 else "no"


def table(rows: list[Line]) -> str:
    lines = ["| what | against | ratio | quartiles | goal | reached |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = number(row["goal"]) if row["goal"] else ""
        spread = f"{number(row['low'])} to {number(row['high'])}" if row["low"] != row["high"] else ""
        cells = [f"{row['question']}, {row['setting']}", row["peer"], number(row["ratio"]), spread, goal, reached(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def missed(rows: list[Line]) -> str:
    """The lines below their goals, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if reached(row) == "no":
            what = f"{row['question']}, {row['setting']}, against {row['peer']}"
            reason = next((note for start, note in NOTES.items() if all(part in what for part in start)), "")
            by_reason.setdefault(reason, []).append(f"{what}: {number(row['ratio'])} of {number(row['goal'])}")
    lines = [f"- **{'; '.join(found)}.** {reason}" for reason, found in by_reason.items()]
    filled = [textwrap.fill(line, width=119, subsequent_indent="  ", break_long_words=False) for line in lines]
    return "\n".join(filled) or "Every line reached its goal."


def read_growth(folder: Path) -> list[Line]:
    with (folder / "growth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def growth(rows: list[Line]) -> str:
    lines = ["| axis | time grows with the power | memory | measured |", "|---|---|---|---|"]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [row for row in rows if row["axis"] == axis]
        shown = ", ".join(f"{row['value']}: {float(row['seconds']):.2f} s, {row['memory_mib']} MiB" for row in points)
        lines.append(f"| {axis} | {points[0]['time_exponent']} | {points[0]['memory_exponent']} | {shown} |")
    return "\n".join(lines)


def complete_folders() -> list[Path]:
    """Those of the kinds of machines on which all was measured."""
    names = [f"{name}.csv" for name in (*ORDER, "growth")]
    return sorted(folder for folder in RESULTS.iterdir() if all((folder / name).is_file() for name in names))


def figure_of(folder: Path) -> Path:
    return PAGE.with_name(f"performance-{folder.name}.png")


def page() -> str:
    """docs/performance.md: a section for each kind of machine."""
    parts = [OPENING]
    for folder in complete_folders():
        rows = read_rows(folder)
        about = rows[0]
        measured = (
            f"Measured on {about['device']}, Python {about['python']}, torch {about['torch']}, at commit "
            f"{about['commit']}."
        )
        title = f"CPU with {folder.name.upper()}"
        parts += [f"## {title}", textwrap.fill(measured, width=119, break_on_hyphens=False)]
        parts += [f"![Ratios with quartiles, and growth]({figure_of(folder).name})", table(rows)]
        parts += [f"### What is not reached, and why ({folder.name.upper()})", missed(rows)]
        parts += [f"### Growth ({folder.name.upper()})", growth(read_growth(folder))]
    return "\n\n".join([*parts, CLOSING]) + "\n"


def read_rows(folder: Path) -> list[Line]:
    return [row for name in ORDER for row in read(folder / f"{name}.csv")]


def draw(rows: list[Line], points: list[Line], file: Path) -> None:
    """Ratios with their quartiles and goals, and how time and memory grow."""
    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure = plt.figure(figsize=(11, 0.24 * len(rows) + 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[0.24 * len(rows), 5])
    plot = top.subplots()
    for place, row in enumerate(reversed(rows)):
        ratio, low, high = float(row["ratio"]), float(row["low"]), float(row["high"])
        plot.plot([low, high], [place, place], color="tab:blue", linewidth=3, alpha=0.5)
        plot.plot(ratio, place, "o", color="tab:blue")
        if row["goal"]:
            plot.plot(float(row["goal"]), place, "|", color="tab:red", markersize=11, markeredgewidth=2)
    labels = [f"{row['question']}, {row['setting']} / {row['peer']}" for row in reversed(rows)]
    plot.set_yticks(range(len(rows)), labels, fontsize=6)
    plot.set_ylim(-1, len(rows))
    plot.set_xscale("log")
    plot.axvline(1, color="grey", linewidth=0.8)
    plot.set_xlabel("times as good as the peer (bar: quartiles, red: goal)")
    plots = bottom.subplots(2, -(-len(axes) // 2)).flat
    for plot in plots[len(axes) :]:
        plot.remove()
    for plot, axis in zip(plots, axes, strict=False):
        chosen = [point for point in points if point["axis"] == axis]
        values = [float(point["value"]) for point in chosen]
        plot.plot(values, [float(point["seconds"]) for point in chosen], "o-", color="tab:blue")
        plot.set_title(axis, fontsize=7)
        plot.set_xlabel(chosen[0]["unit"], fontsize=7)
        other = plot.twinx()
        other.plot(values, [float(point["memory_mib"]) for point in chosen], "s--", color="tab:orange")
        for scale in (plot, other):
            scale.set_ylim(bottom=0)
            scale.tick_params(labelsize=6)
        plot.set_xlim(left=0)
    bottom.supylabel("seconds (blue), MiB (orange, dashed)", fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = results_dir()
    rows = read_rows(folder)
    for row in rows:
        mark = f"   FELL, {row['before']} before" if row["before"] else ""
        goal = f" (goal {number(row['goal'])}: {reached(row)})" if row["goal"] else ""
        print(f"{number(row['ratio']):>6}  {row['question']}, {row['setting']}, against {row['peer']}{goal}{mark}")
    lost = missing(folder)
    for question, setting, peer in lost:
        print(f"MISSING {question}, {setting}, against {peer}")
    PAGE.write_text(page())
    draw(rows, read_growth(folder), figure_of(folder))
    fallen = sum(bool(row["before"]) for row in rows)
    print(
        f"{PAGE} and {figure_of(folder).name} written; {fallen} of {len(rows)} lines fell by more than 10%, "
        f"{len(lost)} are missing"
    )


if __name__ == "__main__":
    main()
