"""What the rows of a study say: means, paired differences, and how many labels a difference is worth."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from ddep_hub.data.label_splits import parse_fraction

from .results import Row


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
