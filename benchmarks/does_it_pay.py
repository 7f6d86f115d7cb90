"""Draws docs/does-it-pay.png and prints its table, from the CSV files of the studies.

python benchmarks/does_it_pay.py
"""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ddep_hub.label_efficiency.own_data import student_quantile


RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "does-it-pay.png"
TITLES = {
    "camvid": "CamVid (photographs), test",
    "nuclei": "Nuclei (microscopy), val",
    "em": "Electron microscopy, val",
}
METHODS = {
    "random": "random decoder",
    "photographs": "DDeP on photographs",
    "own": "DDeP on images of the same kind",
}
COLORS = {"random": "0.45", "photographs": "tab:orange", "own": "tab:blue"}
# Scores by number of labels and seed, of each data set and method.
Scores = dict[str, dict[str, dict[int, dict[int, float]]]]


def scores() -> Scores:
    """mIoU in % of every run."""
    found: Scores = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with open(RESULTS / "label_efficiency_camvid_dice.csv", newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            method = {"encoder": "random", "ddep": "photographs"}.get(row["method"])
            if method is not None:
                found["camvid"][method][int(row["labelled"])][int(row["seed"])] = float(row["mean_iou"])
    with open(RESULTS / "microscopy_shipped.csv", newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            found[row["data"]][row["method"]][int(row["labels"])][int(row["seed"])] = float(row["mean_iou_val"])
    return found


def difference(treated: dict[int, float], baseline: dict[int, float]) -> str:
    """Mean difference over the seeds that both have, with its 95 % t interval from three seeds on."""
    paired = [treated[seed] - baseline[seed] for seed in sorted(treated.keys() & baseline.keys())]
    if len(paired) < 3:
        return ", ".join(f"{value:+.2f}" for value in paired) + (" (by seed)" if paired else "-")
    half = student_quantile(len(paired) - 1) * stdev(paired) / len(paired) ** 0.5
    return f"{mean(paired):+.2f} ({mean(paired) - half:+.2f} to {mean(paired) + half:+.2f})"


def main() -> None:
    found = scores()
    print("| data | labels | seeds | random decoder | decoder | mIoU | difference |\n|---|---|---|---|---|---|---|")
    for data, methods in found.items():
        for method in ("photographs", "own"):
            for labels, treated in sorted(methods[method].items()):
                baseline = methods["random"][labels]
                shared = sorted(treated.keys() & baseline.keys())
                if shared:
                    means = [mean(values[seed] for seed in shared) for values in (baseline, treated)]
                    print(
                        f"| {data} | {labels} | {len(shared)} | {means[0]:.2f} | {METHODS[method]} | {means[1]:.2f} | "
                        f"{difference(treated, baseline)} |"
                    )
    figure, axes = plt.subplots(1, len(TITLES), figsize=(12, 3.8))
    for axis, (data, title) in zip(axes, TITLES.items(), strict=True):
        for method, label in METHODS.items():
            points = sorted(found[data][method].items())
            if not points:
                continue
            labels, values = zip(*((number, list(by_seed.values())) for number, by_seed in points), strict=True)
            centres = [mean(each) for each in values]
            spreads = [stdev(each) if len(each) > 1 else 0.0 for each in values]
            axis.plot(labels, centres, marker="o", color=COLORS[method], label=label)
            low, high = zip(*((m - s, m + s) for m, s in zip(centres, spreads, strict=True)), strict=True)
            axis.fill_between(labels, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="labelled images", xscale="log")
        ticks = sorted({labels for method in found[data].values() for labels in method})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU in %")
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(METHODS), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
