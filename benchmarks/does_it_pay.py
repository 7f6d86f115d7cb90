"""Draws docs/does-it-pay.png and prints its table, from the CSV files of the studies.

python benchmarks/does_it_pay.py
"""

import csv
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ddep_hub.label_efficiency.report import Point, paired_difference


RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "does-it-pay.png"
METHODS = {
    "random": "random decoder",
    "photographs": "DDeP on photographs",
    "own": "DDeP on images of the same kind",
    "masked": "masked patches of images of the same kind",
    "masked_longer": "masked patches, twice the steps",
    "features": "features of images of the same kind",
    "features_photographs": "features of photographs",
    "features_both": "features of photographs, then of images of the same kind",
}
COLORS = {
    "random": "0.45",
    "photographs": "tab:orange",
    "own": "tab:blue",
    "masked": "tab:green",
    "masked_longer": "tab:olive",
    "features": "tab:purple",
    "features_photographs": "tab:pink",
    "features_both": "tab:red",
}
TITLES = {
    "camvid": "CamVid",
    "camvid-tuning": "CamVid, unseen drive",
    "camvid-360": "CamVid, unseen drive",
    "nuclei": "Nuclei",
    "em": "Electron microscopy",
}
RECIPES = {"camvid": "", "camvid-tuning": ", `few-labels` at 180 pixels", "camvid-360": ", `few-labels`"}
PANELS = {
    ("camvid", 1800): "CamVid, random labels",
    ("camvid-360", 600): "CamVid, unseen drive, random labels",
    ("nuclei", 600): "Nuclei, selected labels (random below 3)",
    ("em", 600): "Electron microscopy, random labels",
}
# Other files call the methods otherwise.
NAMES = {
    "encoder": "random",
    "ddep": "photographs",
    "random decoder": "random",
    "ddep-efficientnet-lite0": "photographs",
    "own images": "own",
}
PRETRAINED = {
    "--pretrained ddep-efficientnet-lite0": "photographs",
    "--pretrained ddep-nuclei-lite0": "own",
    "--pretrained ddep-em-lite0-nc": "own",
    "--pretrained runs/masked_blocks/final": "masked",
    "--pretrained runs/masked_nuclei/final": "masked",
    "--pretrained runs/ddep-em-lite0-masked-nc/final": "masked_longer",
    "--pretrained runs/features_camvid/final": "features",
    "--pretrained runs/features_camvid_360/final": "features",
    "--pretrained runs/features_caltech/final": "features_photographs",
    "--pretrained runs/features_both/final": "features_both",
    "--pretrained ddep-photos-lite0": "features_photographs",
    "--pretrained ddep-street-lite0-nc": "features_both",
    "--pretrained runs/noise_camvid/final": "own",
}
SHIPPED_SIZE = "--decoder_hidden_sizes 192 96 64 32 16 --decoder_bottleneck_size 192"
# Pretexts of a length of their own, which only docs/results.md compares.
OTHER_PRETEXTS = tuple(
    f"runs/{name}/final"
    for name in (
        *("gaussian", "shared_noise", "poisson_gaussian", "encoder_too", "patches_32", "masked_12000"),
        *("patches_8", "ratio_75", "features_camvid_2", "features_camvid_long", "features_bsds"),
    )
)
HEADER = "| data | fine-tuning | decoder | seeds | random | decoder | difference |\n|---|---|---|---|---|---|---|"
Scores = dict[str, dict[int, float]]  # mIoU in % by method and seed


def read(name: str) -> list[dict[str, str]]:
    """Rows of a file."""
    with open(RESULTS / name, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def curves() -> dict[tuple[str, int], dict[Fraction, Scores]]:
    """Scores by data and steps of fine-tuning, and number of labels."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in read("label_efficiency_camvid_dice.csv"):
        if row["method"] in NAMES:
            scores = found["camvid", 1800][Fraction(row["labelled"])][NAMES[row["method"]]]
            scores[int(row["seed"])] = float(row["mean_iou"])
    features = [row for row in read("features.csv") if row["data"] == "camvid-tuning"]
    sizes = [
        row | {"data": "camvid-360"}
        for row in read("image_size.csv")
        if row["data"] == "camvid-tuning"
        and re.search(r"--image_size (?!360)", row["options"]) is None  # 360 is that of the preset
        and ("--pretrained" in row["options"] or SHIPPED_SIZE in row["options"])
    ]
    for row in [*read("label_curves.csv"), *read("pretexts.csv"), *features, *sizes]:
        if any(f"--pretrained {pretext}" in row["options"] for pretext in OTHER_PRETEXTS):
            continue
        given = re.search(r"--max_steps (\d+)", row["options"])
        steps = int(given[1]) if given else 1800  # of the preset few-labels-microscopy
        default = None if "--pretrained" in row["options"] else "random"
        method = next((method for option, method in PRETRAINED.items() if option in row["options"]), default)
        if method is None:
            raise ValueError(f"{row['options']}: name its decoder in PRETRAINED or OTHER_PRETEXTS.")
        scores = found[row["data"], steps][Fraction(row["labels"])][method]
        scores[int(row["seed"])] = float(row["mean_iou"])
    return found


def flips() -> dict[tuple[str, Fraction], Scores]:
    """Scores on `val` after a fine-tuning with horizontal flips alone, by data and number of labels."""
    found: dict[tuple[str, Fraction], Scores] = defaultdict(lambda: defaultdict(dict))
    for row in read("gpu/h200_domain_finetuning.csv"):
        method = NAMES.get(row["method"])
        if method is not None and row["steps"] == "600" and row["sigma"] != "0.7":
            found[row["data"], Fraction(row["labels"])][method][int(row["seed"])] = 100 * float(row["mean_iou"])
    return found


def table_row(title: str, recipe: str, method: str, treated: dict[int, float], baseline: dict[int, float]) -> str:
    """Means over the seeds that both methods have, and the difference with its 95% t interval."""
    difference = paired_difference(Point(0, treated), Point(0, baseline))
    assert difference is not None, f"{title}: no seed of both methods"
    seeds = difference.by_seed
    shown = ", ".join(f"{value:+.1f}" for value in seeds.values())
    if len(seeds) >= 3 and difference.interval:
        shown = f"{difference.mean:+.1f} ({difference.interval[0]:+.1f} to {difference.interval[1]:+.1f})"
    means = [mean(values[seed] for seed in seeds) for values in (baseline, treated)]
    return f"| {title} | {recipe} | {METHODS[method]} | {len(seeds)} | {means[0]:.1f} | {means[1]:.1f} | {shown} |"


def table_rows() -> Iterator[str]:
    """A row for each data set, number of labels and pretrained decoder."""
    settings: list[tuple[str, str, dict[Fraction, Scores]]] = [
        (data, f"{steps} steps{RECIPES.get(data, ', `few-labels-microscopy`')}", points)
        for (data, steps), points in curves().items()
    ]
    settings += [(data, "600 steps, flips alone", {labels: scores}) for (data, labels), scores in flips().items()]
    for data, recipe, points in settings:
        for labels, scores in sorted(points.items()):
            for method in METHODS:
                if method != "random" and scores[method]:
                    number = f"{labels} label{'s' * (labels > 1)}" if labels >= 1 else f"{labels} of an image"
                    yield table_row(f"{TITLES[data]}, {number}", recipe, method, scores[method], scores["random"])


def label_factors(points: dict[Fraction, Scores], *methods: str) -> dict[Fraction, list[float]]:
    """How many times the labels would bring a random decoder what pretraining brings, by number of labels.

    Interpolated between the numbers of labels on a logarithmic scale, as in the figure: for the mean gain, and for the
    ends of its 95% t interval; infinite if a random decoder gains less from the largest number of labels.

    Args:
        points: Scores by number of labels.
        *methods: Pretrained decoders, whose gains over the random one are pooled.
    """
    random = {labels: mean(scores["random"].values()) for labels, scores in sorted(points.items())}
    factors = {}
    for labels in list(random)[:-1]:
        scores = points[labels]
        gains = [value - scores["random"][seed] for method in methods for seed, value in scores[method].items()]
        if gains:
            difference = paired_difference(
                Point(0, dict(enumerate(gains))), Point(0, dict.fromkeys(range(len(gains)), 0.0))
            )
            assert difference is not None and difference.interval is not None
            more = {number: score for number, score in random.items() if number >= labels}
            factors[labels] = [
                _labels_with(more, random[labels] + gain) / float(labels)
                for gain in (difference.mean, *difference.interval)
            ]
    return factors


def _labels_with(curve: dict[Fraction, float], score: float) -> float:
    """With how many labels a curve reaches a score; below its first point, its first line goes on."""
    for (labels, low), (more, high) in itertools.pairwise(curve.items()):
        if score <= high:
            return float(labels) * float(more / labels) ** ((score - low) / (high - low))
    return math.inf


def draw(axis: plt.Axes, points: dict[Fraction, Scores]) -> None:
    """Draws mean and standard deviation over the number of labels, a line for each method."""
    for method, title in METHODS.items():
        values = {labels: list(scores[method].values()) for labels, scores in sorted(points.items()) if scores[method]}
        if not values:
            continue
        places, centres = [float(labels) for labels in values], [mean(each) for each in values.values()]
        spreads = [stdev(each) if len(each) > 1 else 0.0 for each in values.values()]
        axis.plot(places, centres, marker="o", color=COLORS[method], label=title)
        low, high = zip(*((m - s, m + s) for m, s in zip(centres, spreads, strict=True)), strict=True)
        axis.fill_between(places, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
    axis.set(xlabel="labelled images", xscale="log")
    axis.set_xticks([float(labels) for labels in points], [str(labels) for labels in points])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def main() -> None:
    found = curves()
    print(HEADER, *table_rows(), sep="\n")
    for labels, (factor, low, high) in label_factors(found["em", 600], "masked", "masked_longer").items():
        print(f"Masked patches, {labels} of a section: as {factor:.2f} times the labels ({low:.2f} to {high:.2f})")
    for labels, (factor, low, high) in label_factors(found["camvid-tuning", 600], "features").items():
        print(f"Features, {labels} labels of CamVid: as {factor:.2f} times the labels ({low:.2f} to {high:.2f})")
    for method in ("features", "features_photographs", "features_both"):
        for labels, (factor, low, high) in label_factors(found["camvid-360", 600], method).items():
            title = f"At 360 pixels, {METHODS[method]}, {labels} labels"
            print(f"{title}: as {factor:.2f} times the labels ({low:.2f} to {high:.2f})")
    figure, axes = plt.subplots(1, 4, figsize=(15.5, 3.9))
    for axis, ((data, steps), title) in zip(axes, PANELS.items(), strict=True):
        draw(axis, found[data, steps])
        axis.set(title=title)
    axes[0].set(ylabel="mIoU in %")
    lines = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
