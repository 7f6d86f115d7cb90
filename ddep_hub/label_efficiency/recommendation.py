"""Recommends a method from the rows of a comparison on the user's own data."""

import shlex
from collections.abc import Iterable, Mapping
from statistics import mean
from types import MappingProxyType
from typing import Any

from ddep_hub.hub.licenses import find_restriction
from ddep_hub.shipped import resolve_name

from .config import DATA_FIELDS
from .own_data import (
    CONSISTENCY,
    CONSISTENCY_METHOD,
    CONTINUED_METHOD,
    CORRUPTIONS,
    MIN_RELIABLE_STEPS,
    RANDOM_DECODER,
    START,
)
from .report import Difference, Point, Row, build_curves, paired_difference


MIN_SEEDS = 3


def recommend(rows: list[Row], settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Recommends a decoder to start from, or consistency on unlabelled images.

    It is the method that gains most over a random decoder, on average over the numbers of labels, among those whose
    95% interval of this paired difference is above 0. Further sentences give the gain at each number of labels, the
    number of methods, as one of several may be better by chance, and a licence that restricts its use. The advice
    repeats `settings`, the arguments of fine-tuning from a random decoder, except for data and steps, because other
    settings were not measured. After fewer than 300 steps, there is none.
    """
    points = build_curves(rows)
    if RANDOM_DECODER not in points:
        return f"There is no row of `{RANDOM_DECODER}` to compare with yet."
    steps = min(row.finetuning_steps for row in rows)
    if steps < MIN_RELIABLE_STEPS:
        return (
            f"No recommendation: {steps} steps of fine-tuning are too few to predict longer runs; at least "
            f"{MIN_RELIABLE_STEPS} are needed. Allow more minutes, or compare fewer methods, labels or seeds, in "
            "another output_dir."
        )
    baselines = points.pop(RANDOM_DECODER)
    labels = " and ".join(str(point.labelled) for point in baselines.values())
    baseline, compared, missing = _average(baselines, baselines), {}, []
    for name, curve in points.items():
        difference = paired_difference(_average(curve, baselines), baseline)
        if difference is None or len(difference.by_seed) < MIN_SEEDS:
            missing.append(name)
        else:
            compared[name] = difference
    gains = {name: difference for name, difference in compared.items() if _is_gain(difference)}
    if gains:
        best = max(gains, key=lambda name: gains[name].mean)
        each = [paired_difference(points[best][fraction], baselines[fraction]) for fraction in baselines]
        sentences = [
            f"Use {best} (`{shlex.join(_finetune_flags(best, settings))}`): {gains[best].mean:+.1f} points of mIoU "
            f"over a random decoder with {labels} labels{', on average' * (len(baselines) > 1)} (95% interval "
            f"{_interval(gains[best])}), after {steps} steps of fine-tuning."
        ]
        if len(baselines) > 1:
            sentences += [
                f"With {baseline.labelled} labels: {difference.mean:+.1f} ({_interval(difference)})."
                for baseline, difference in zip(baselines.values(), each, strict=True)
                if difference is not None
            ]
        if len(compared) > 1:
            sentences.append(f"It is the best of {len(compared)}, so part of the gain may be chance.")
        if resolve_name(best) != best and (restriction := find_restriction(best)):
            sentences.append(f"Its licence, {restriction['license']}, restricts the use of models trained from it.")
        return " ".join(sentences)
    seeds = len(baseline.scores)
    if seeds < MIN_SEEDS:
        return (
            f"{seeds} seed{'s' * (seeds != 1)} cannot distinguish a gain from chance: use at least {MIN_SEEDS} "
            "(`--seeds 5`)."
        )
    if not compared:
        return f"No other method has {MIN_SEEDS} seeds with {labels} labels yet: run more to compare."
    if missing:
        return (
            f"No gain over a random decoder yet with {labels} labels ({', '.join(compared)}), but "
            f"{', '.join(missing)} have too few seeds: run more to compare."
        )
    flags = _finetune_flags(RANDOM_DECODER, settings)
    hint = f" (`{shlex.join(flags)}`)" if flags else ""
    return (
        f"Use a random decoder{hint}: with {labels} labels, no other method beats it by more than the spread of "
        f"{seeds} seeds."
    )


def _average(curve: Mapping[str, Point], fractions: Iterable[str]) -> Point:
    """Scores averaged over label fractions, of the seeds that have all of them."""
    points = [curve.get(fraction, Point(0, {})) for fraction in fractions]
    seeds = sorted(set.intersection(*({*point.scores} for point in points)))
    return Point(points[0].labelled, {seed: mean(point.scores[seed] for point in points) for seed in seeds})


def _is_gain(difference: Difference) -> bool:
    """Whether the 95% interval is above 0 as it is printed."""
    return difference.interval is not None and round(difference.interval[0], 1) > 0


def _interval(difference: Difference) -> str:
    return "" if difference.interval is None else "{:+.1f} to {:+.1f}".format(*difference.interval)


def _finetune_flags(method: str, settings: Mapping[str, Any]) -> list[str]:
    """The flags of `ddep-hub finetune` that run a method on the user's data."""
    model_fields = {name for name in settings if name.startswith("decoder_") or name == "encoder_name"}
    left_out = {*model_fields, *DATA_FIELDS, "max_steps", "image_mean", "image_std"}
    shared = _to_flags({name: value for name, value in settings.items() if name not in left_out})
    model = _to_flags({name: value for name, value in settings.items() if name in model_fields})
    if method == RANDOM_DECODER:
        return [*shared, *model]
    if method == CONSISTENCY_METHOD:
        return [*shared, "--unlabelled", "...", "--pretraining_steps", "0", *_to_flags(CONSISTENCY), *model]
    if method in CORRUPTIONS:
        start = ["--pretrained", START] if method == CONTINUED_METHOD else model
        return [*shared, "--unlabelled", "...", "--pretraining_corruption", CORRUPTIONS[method], *start]
    return [*shared, "--pretrained", method]


def _to_flags(values: Mapping[str, Any]) -> list[str]:
    """Arguments as on the command line."""
    items = [(name, value if isinstance(value, list) else [value]) for name, value in values.items()]
    return [word for name, words in items for word in (f"--{name}", *map(str, words))]
