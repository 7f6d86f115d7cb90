"""Arms side by side: a table of scores by seed, and what their paired differences say."""

from collections.abc import Mapping
from statistics import mean, stdev


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
