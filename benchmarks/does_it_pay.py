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
METHODS = {
    "random": "random decoder",
    "photographs": "DDeP on photographs",
    "own": "DDeP on images of the same kind",
}
COLORS = {"random": "0.45", "photographs": "tab:orange", "own": "tab:blue"}
PANELS = {("nuclei", 6): "Nuclei, 6 labels", ("em", 2): "Electron microscopy, 2 labels"}
TITLES = {"nuclei": "Nuclei", "em": "Electron microscopy"}
# How the microscope runs were fine-tuned, by file.
FLIPS, AUGMENTED = "600 steps, flips", "600 steps, augmentation and averaged weights"
RECIPES = {"gpu/h200_domain_finetuning.csv": FLIPS, "microscopy_shipped.csv": AUGMENTED}
LONG = "1800 steps, augmentation and averaged weights"
CHOSEN = f"{AUGMENTED}, chosen images"
CHOSEN_RECIPE = (
    "--preset few-labels --image_size 256 --augmentation microscopy --model_ema_decay 0.99 --max_steps 600 "
    "--mixed_precision bf16 "
)
CHOSEN_OPTIONS = {
    "--decoder_hidden_sizes 192 96 64 32 16 --decoder_bottleneck_size 192": "random",
    "--pretrained ddep-nuclei-lite0": "own",
}
STYLES = {
    FLIPS: ("0.6", "o"),
    AUGMENTED: ("tab:blue", "s"),
    LONG: ("tab:red", "D"),
    CHOSEN: ("tab:green", "^"),
}
# Other files call the methods otherwise.
NAMES = {
    "encoder": "random",
    "ddep": "photographs",
    "random decoder": "random",
    "ddep-efficientnet-lite0": "photographs",
    "own images": "own",
}
Seeds = dict[int, float]


def read(name: str) -> list[dict[str, str]]:
    """Rows of a file."""
    with open(RESULTS / name, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def camvid() -> dict[str, dict[int, Seeds]]:
    """mIoU in % on CamVid's `test` by method, number of labels and seed."""
    found: dict[str, dict[int, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for row in read("label_efficiency_camvid_dice.csv"):
        if row["method"] in ("encoder", "ddep"):
            found[NAMES[row["method"]]][int(row["labelled"])][int(row["seed"])] = float(row["mean_iou"])
    return found


def microscopy() -> dict[tuple[str, int, str], dict[str, Seeds]]:
    """mIoU in % on `val` by data, number of labels and recipe, then method and seed."""
    found: dict[tuple[str, int, str], dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for file, recipe in RECIPES.items():
        for row in read(file):
            method, key = NAMES.get(row["method"]), (row["data"], int(row["labels"]))
            if method is not None and key in PANELS and row["steps"] == "600" and row["sigma"] != "0.7":
                found[(*key, recipe)][method][int(row["seed"])] = 100 * float(row["mean_iou"])
    for row in read("label_selection.csv"):
        method = CHOSEN_OPTIONS.get(row["options"].removeprefix(CHOSEN_RECIPE))
        if row["data"] == "nuclei" and row["choice"] == "selected" and method is not None:
            found["nuclei", int(row["labels"]), CHOSEN][method][int(row["seed"])] = float(row["mean_iou"])
    for row in read("microscopy_learning_rates.csv"):
        rates = float(row["encoder_lr_factor"]), float(row["learning_rate"])
        if row["data"] == "em" and row["step"] == row["max_steps"] and rates == (0.1, 1e-3):
            method = "random" if row["decoder"] == "random" else "own"
            found["em", int(row["labels"]), LONG][method][int(row["seed"])] = float(row["mean_iou"])
    return found


def table_row(data: str, recipe: str, method: str, treated: Seeds, baseline: Seeds) -> str:
    """Means over the seeds that both methods have, and the difference with its 95 % t interval."""
    shared = sorted(treated.keys() & baseline.keys())
    paired = [treated[seed] - baseline[seed] for seed in shared]
    shown = ", ".join(f"{value:+.1f}" for value in paired)
    if len(paired) >= 3:
        half = student_quantile(len(paired) - 1) * stdev(paired) / len(paired) ** 0.5
        shown = f"{mean(paired):+.1f} ({mean(paired) - half:+.1f} to {mean(paired) + half:+.1f})"
    means = [mean(values[seed] for seed in shared) for values in (baseline, treated)]
    return f"| {data} | {recipe} | {METHODS[method]} | {len(shared)} | {means[0]:.1f} | {means[1]:.1f} | {shown} |"


def main() -> None:
    photographs, microscopes = camvid(), microscopy()
    print("| data | fine-tuning | decoder | seeds | random | decoder | difference |\n|---|---|---|---|---|---|---|")
    for labels, treated in sorted(photographs["photographs"].items()):
        baseline = photographs["random"][labels]
        print(table_row(f"CamVid, {labels} labels", "1800 steps", "photographs", treated, baseline))
    for (data, number, recipe), methods in microscopes.items():
        for method in ("photographs", "own"):
            if methods[method]:
                title = f"{TITLES[data]}, {number} labels"
                print(table_row(title, recipe, method, methods[method], methods["random"]))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9))
    for method in ("random", "photographs"):
        points = sorted(photographs[method].items())
        labels, values = zip(*((number, list(seeds.values())) for number, seeds in points), strict=True)
        centres, spreads = [mean(each) for each in values], [stdev(each) for each in values]
        axes[0].plot(labels, centres, marker="o", color=COLORS[method], label=METHODS[method])
        low, high = zip(*((m - s, m + s) for m, s in zip(centres, spreads, strict=True)), strict=True)
        axes[0].fill_between(labels, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
    axes[0].set(title="CamVid, test", xlabel="labelled images", ylabel="mIoU in %", xscale="log")
    axes[0].set_xticks(labels, [str(label) for label in labels])
    axes[0].minorticks_off()
    axes[0].legend(frameon=False)
    for axis, (panel, title) in zip(axes[1:], PANELS.items(), strict=True):
        for recipe, (color, marker) in STYLES.items():
            methods = microscopes[(*panel, recipe)]
            for seed in sorted(methods["random"]):
                line = [(place, methods[name].get(seed)) for place, name in enumerate(METHODS)]
                places, scores = zip(*((place, score) for place, score in line if score is not None), strict=True)
                axis.plot(places, scores, marker=marker, color=color, alpha=0.7, linewidth=1)
            axis.plot([], [], marker=marker, color=color, label=recipe)
        axis.set(title=f"{title}, val", xlim=(-0.3, 2.3))
        axis.set_xticks(range(3), ["random", "photographs", "same kind"])
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, names = axes[1].get_legend_handles_labels()
    legend = {"frameon": False, "ncols": 2, "title": "Microscopy, a line for each seed; fine-tuned with"}
    figure.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 0), **legend)
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
