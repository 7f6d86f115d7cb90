"""The numbers in the documentation are those of the CSV files in benchmarks/results."""

import csv
import math
import re
import statistics
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from ddep_hub.label_efficiency.report import student_quantile


ROOT = Path(__file__).parent.parent


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def rows_of(name: str) -> dict[tuple[str, str], list[float]]:
    with (ROOT / "benchmarks" / "results" / name).open() as file:
        result: dict[tuple[str, str], list[float]] = {}
        for row in csv.DictReader(file):
            result.setdefault((next(iter(row.values())), row["fraction"]), []).append(float(row["mean_iou"]))
    return result


def words(path: str) -> str:
    """A page without its line breaks."""
    return " ".join(read(ROOT / path).split())


def scores_by_flag(name: str, flag: str, *, seeds: str) -> tuple[list[str], list[str]]:
    """Scores of the runs without and with a flag, by seed."""
    with (ROOT / "benchmarks" / "results" / name).open() as file:
        rows = list(csv.DictReader(file))
    without = {row["seed"]: row["mean_iou"] for row in rows if flag not in row["options"]}
    given = {row["seed"]: row["mean_iou"] for row in rows if flag in row["options"]}
    return [without[seed] for seed in seeds], [given[seed] for seed in seeds]


def interval(gains: list[float]) -> tuple[float, float]:
    """Mean of differences, and half of its 95% t interval."""
    return statistics.mean(gains), student_quantile(len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5


def gain_text(gains: Iterable[float]) -> str:
    """Mean of differences and its 95% t interval, as the pages write them."""
    mean, half = interval(list(gains))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def test_the_scores_of_camvid_are_those_of_the_csv():
    tables = read(ROOT / "docs" / "results.md").split("**cross-entropy alone**")
    fractions = ["1/30", "1/15", "1/8", "1/4", "1"]
    for text, name in zip(tables, ("label_efficiency_camvid_dice.csv", "label_efficiency_camvid.csv"), strict=True):
        scores = rows_of(name)
        shown = {}
        for variant, cells in re.findall(r"^\| `([\w-]+)`[^|]*\|(.*)\|$", text, re.MULTILINE):
            for fraction, cell in zip(fractions, cells.split("|"), strict=True):
                if cell.strip():
                    shown[variant, fraction] = cell.strip()
        assert shown == {
            key: f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"
            for key, values in scores.items()
        }


def test_the_readme_names_the_measured_gain():
    scores = rows_of("label_efficiency_camvid_dice.csv")
    gains = {
        f: statistics.mean(v) - statistics.mean(scores["encoder", f]) for (m, f), v in scores.items() if m == "ddep"
    }
    for method in ("ddep", "encoder"):
        assert f"{statistics.mean(scores[method, '1/30']):.2f}" in read(ROOT / "README.md")
    more = [gain for fraction, gain in gains.items() if fraction != "1/30"]
    results = words("docs/results.md")
    assert len(more) == 4 and all(f"{gain:+.2f} at " in results for gain in more)


def test_the_scores_of_the_quickstart_are_those_of_the_csv():
    text = read(ROOT / "docs" / "results.md")
    with (ROOT / "benchmarks" / "quickstart.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "(" not in row["command"]]
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        scores.setdefault((row["command"], row["decoder"]), []).append(float(row["mean_iou_percent"]))
    gains = []
    for (command, decoder), values in scores.items():
        assert f"`{command}`" in text
        assert f"| {values[0]:.2f} | {values[1]:.2f} | " in text
        assert f"{statistics.mean(values) + 1e-9:.2f}" in text
        if decoder.startswith("DDeP"):
            gains.append(statistics.mean(values) - statistics.mean(scores[command, "random decoder"]))
    assert all(f"{gain + 1e-9:+.2f}" in text for gain in gains)


def test_the_scores_of_pretexts_are_those_of_the_csv():
    text = words("docs/results.md")
    scores: dict[tuple[str, str], list[str]] = {}
    with (ROOT / "benchmarks" / "results" / "pretexts.csv").open() as file:
        for row in sorted(csv.DictReader(file), key=lambda row: int(row["seed"])):
            scores.setdefault((row["labels"], row["options"]), []).append(row["mean_iou"])
    assert len(scores) >= 5
    for values in scores.values():
        assert ", ".join(values) in text.replace(" and ", ", ")


def test_the_gain_of_larger_patches_is_that_of_the_csv():
    scores: dict[str, dict[str, float]] = {}
    with (ROOT / "benchmarks" / "results" / "pretexts.csv").open() as file:
        for row in csv.DictReader(file):
            if row["labels"] == "1/16" and row["seed"] in "56789":
                name = row["options"].rsplit("--pretrained ")[-1] if "--pretrained" in row["options"] else "random"
                scores.setdefault(name, {})[row["seed"]] = float(row["mean_iou"])
    larger = scores["runs/patches_32/final"]
    text = words("docs/results.md")
    mean, half = interval([larger[seed] - scores["random"][seed] for seed in "56789"])
    assert f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) over the random decoder, ahead with each" in text
    others = scores["runs/ddep-em-lite0-masked-nc/final"]
    mean, half = interval([others[seed] - larger[seed] for seed in "56789"])
    assert f"{mean:.1f} ({mean - half:+.1f} to {mean + half:+.1f}) behind `ddep-em-lite0-masked-nc`" in text


def test_the_gains_of_other_masks_are_those_of_the_csv():
    scores: dict[str, list[float]] = {}
    for name in ("features.csv", "pretexts.csv"):
        with (ROOT / "benchmarks" / "results" / name).open() as file:
            for row in csv.DictReader(file):
                if row["data"] == "em" and row["labels"] == "1/16" and row["seed"] in "01234":
                    kind = row["options"].rsplit("--pretrained ")[-1] if "--pretrained" in row["options"] else "random"
                    scores.setdefault(kind, []).append(float(row["mean_iou"]))
    text = words("docs/results.md").replace(" and ", ", ")
    page = words("docs/does-it-pay.md")
    for kind in ("runs/patches_8/final", "runs/ratio_75/final"):
        gains = [one - other for one, other in zip(scores[kind], scores["random"], strict=True)]
        shown = ", ".join(f"{score:.2f}" for score in scores[kind])
        assert f"reaches {shown}: {gain_text(gains)}." in text
        assert gain_text(gains) in page
        assert min(gains) > 0


def test_the_scores_of_masked_patches_on_camvid_are_those_of_the_csv():
    random, masked = scores_by_flag("camvid_masked.csv", "--pretrained", seeds="01234")
    gains = [float(after) - float(before) for before, after in zip(random, masked, strict=True)]
    mean, half = interval(gains)
    text = words("docs/results.md").replace(" and ", ", ")
    for values in (random, masked):
        assert ", ".join(values) in text
    assert max(gains) < 0 and f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}), behind with each" in text
    page = words("docs/does-it-pay.md")
    assert f"({mean:+.1f}, {mean - half:+.1f} to {mean + half:+.1f})" in page


def test_the_scores_of_features_are_those_of_the_csv():
    scores: dict[tuple[str, str, bool, str], dict[str, float]] = {}
    with (ROOT / "benchmarks" / "results" / "features.csv").open() as file:
        for row in csv.DictReader(file):
            start = re.search(r"--pretrained (?:runs/)?([^/\s]+)", row["options"])
            key = (row["data"], row["labels"], "--max_steps 600" in row["options"], start[1] if start else "random")
            scores.setdefault(key, {})[row["seed"]] = float(row["mean_iou"])
    results, page = (words(path) for path in ("docs/results.md", "docs/does-it-pay.md"))
    text = results.replace(" and ", ", ")

    gains = {}
    for (*setting, name), values in scores.items():
        assert ", ".join(f"{value:.2f}" for value in values.values()) in text
        if name != "random":
            random = scores[*setting, "random"]
            gains[*setting, name] = [value - random[seed] for seed, value in values.items()]
            assert gain_text(gains[*setting, name]) in results
    camvid = ("camvid-tuning", "12")
    mean, half = interval(gains[*camvid, True, "ddep-efficientnet-lite0"])
    card = words("model_cards/ddep-efficientnet-lite0/README.md")
    assert f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}), ahead with each of five seeds" in card
    assert f"{mean:+.1f} after 600 ({mean - half:+.1f} to {mean + half:+.1f}," in card
    own, again = (gains[*camvid, True, name] for name in ("features_camvid", "features_camvid_2"))
    assert min(own + again) > 0 and len(own) == len(again) == 5  # "ahead with each seed, in both runs of pretraining"
    averaged = [(one + other) / 2 for one, other in zip(own, again, strict=True)]  # both share the random decoder's
    denoising = gains[*camvid, True, "noise_camvid"]
    gain = gain_text(gain - other for gain, other in zip(averaged, denoising, strict=True))
    assert f"denoising of the same images, it gains {gain}" in results
    fewer = gains["camvid-tuning", "3", True, "features_camvid"]
    assert min(fewer) > 0 and len(fewer) == 6  # "ahead with each of six"
    every = [gain for labels in ("3", "6", "12") for gain in gains["camvid-tuning", labels, True, "features_camvid"]]
    assert (sum(gain > 0 for gain in every), len(every)) == (16, 18)
    assert sum(gain > 0 for gain in gains["nuclei", "3", True, "features_nuclei"]) == 7
    for values in (averaged, fewer):
        assert gain_text(values) in results and gain_text(values) in page
    short, longer = (scores["camvid-tuning", "3", *which] for which in ((True, "features_camvid"), (False, "random")))
    gain = gain_text(short[seed] - value for seed, value in longer.items())
    assert f"over the random one after 1800, {gain}" in results
    for values in (fewer, gains[*camvid, False, "features_camvid"]):
        assert gain_text(values) in page


def test_the_scores_of_image_sizes_are_those_of_the_csv(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import does_it_pay

    results, page, readme = (words(path) for path in ("docs/results.md", "docs/does-it-pay.md", "README.md"))
    with (ROOT / "benchmarks" / "results" / "image_size.csv").open() as file:
        scores: dict[tuple[str, str], list[str]] = {}
        for row in csv.DictReader(file):
            scores.setdefault((row["labels"], row["options"]), []).append(row["mean_iou"])
    assert len(scores) == 31
    for values in scores.values():
        assert ", ".join(f"{float(value):.2f}" for value in values) in results

    def shown(one: dict[int, float], other: dict[int, float]) -> str:
        return gain_text(value - other[seed] for seed, value in one.items())

    curves = does_it_pay.curves()
    small, longer, full = curves["camvid-tuning", 600], curves["camvid-tuning", 1800], curves["camvid-360", 600]
    gains = {labels: shown(full[labels]["features"], full[labels]["random"]) for labels in (3, 6, 12)}
    assert all(gain in results for gain in gains.values())
    assert all(gains[labels] in page for labels in (3, 6))
    for labels in (3, 6):  # "ahead with each"
        assert all(value > full[labels]["random"][seed] for seed, value in full[labels]["features"].items())
    assert shown(full[12]["photographs"], full[12]["random"]) in results
    for labels, other in ((12, small), (12, longer), (3, small)):
        assert shown(full[labels]["random"], other[labels]["random"]) in results
    for method in ("features_photographs", "features_both"):
        for labels in (3, 6, 12, 24):
            gain = shown(full[labels][method], full[labels]["random"])
            assert gain in results and gain in page and gain in readme
    # "After three times the steps, it is still ahead with each of three seeds"
    after_longer = curves["camvid-360", 1800][12]
    seeds = after_longer["features_photographs"].keys()
    short = {method: {seed: full[12][method][seed] for seed in seeds} for method in after_longer}
    for scores_of in (after_longer, short):
        gain = shown(scores_of["features_photographs"], scores_of["random"])
        assert gain in results and (scores_of is short or gain in page)
        assert all(value > scores_of["random"][seed] for seed, value in scores_of["features_photographs"].items())
    means = statistics.mean(short["features_photographs"].values()), statistics.mean(after_longer["random"].values())
    assert "scores {:.1f} on average after 600 steps, the random decoder {:.1f} after 1800".format(*means) in results
    paired = [
        [value - points["random"][seed] for points in full.values() for seed, value in points[method].items()]
        for method in ("features_photographs", "features_both")
    ]
    assert min(paired[0]) > 0 and f"ahead in all {len(paired[0])} runs" in results
    assert f"ahead in {sum(gain > 0 for gain in paired[1])} of {len(paired[1])} runs" in results
    factors = {
        method: does_it_pay.label_factors(full, method)
        for method in ("features", "features_photographs", "features_both")
    }
    for by_labels in factors.values():
        factor, low, high = by_labels[Fraction(3)]
        assert f"{factor:.2f} ({low:.2f} to {high:.2f})" in results
    # "With 6 and 12 labels, both score higher than a random one with 24", the largest number
    for method in ("features_photographs", "features_both"):
        assert factors[method][Fraction(6)][0] == factors[method][Fraction(12)][0] == math.inf
    assert f"at least {factors['features_photographs'][Fraction(6)][1]:.2f} times with 6" in results


def test_the_gains_of_averaged_weights_are_those_of_the_csv(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import does_it_pay

    plain = does_it_pay.curves()["camvid-360", 600][12]["features_photographs"]
    with (ROOT / "benchmarks" / "results" / "camvid_averaged_weights.csv").open() as file:
        averaged = {int(row["seed"]): float(row["mean_iou"]) for row in csv.DictReader(file)}
    gains = [f"{value - plain[seed]:+.2f}" for seed, value in averaged.items()]
    text = words("docs/results.md")
    assert f"by {gains[0]} and {gains[1]} ({averaged[0]:.2f} and {averaged[1]:.2f}, seeds 0 and 1" in text


def test_the_scores_of_longer_pretraining_with_whole_sections_are_those_of_the_csv():
    text = words("docs/results.md").replace(" and ", ", ")
    for labels in ("1", "2"):
        scores: dict[bool, list[str]] = {True: [], False: []}
        with (ROOT / "benchmarks" / "results" / "masked_whole_sections.csv").open() as file:
            for row in csv.DictReader(file):
                if row["labels"] == labels:
                    scores["--pretrained" in row["options"]].append(row["mean_iou"])
        gains = [float(after) - float(before) for after, before in zip(*scores.values(), strict=True)]
        assert all(", ".join(values) in text for values in scores.values())
        assert gain_text(gains) in text


def test_the_scores_of_consistency_on_camvid_are_those_of_the_csv():
    alone, consistent = scores_by_flag("camvid_consistency.csv", "--consistency_weight 1", seeds="012")
    gains = [float(after) - float(before) for before, after in zip(alone, consistent, strict=True)]
    text = words("docs/results.md").replace(" and ", ", ")
    for values in (alone, consistent):
        assert ", ".join(values) in text
    assert f"That is {gain_text(gains)}" in text


def test_the_scores_of_joint_denoising_are_those_of_the_csv():
    seeds = "56789"
    with (ROOT / "benchmarks" / "results" / "joint_denoising.csv").open() as file:
        rows = list(csv.DictReader(file))
    joint = {row["seed"]: row["mean_iou"] for row in rows if "--pretrained" not in row["options"]}
    pretrained = {row["seed"]: row["mean_iou"] for row in rows if "--pretrained" in row["options"]}
    with (ROOT / "benchmarks" / "results" / "pretexts.csv").open() as file:
        alone = [row for row in csv.DictReader(file) if row["labels"] == "1/16" and row["seed"] in seeds]
    random = {row["seed"]: row["mean_iou"] for row in alone if "--pretrained" not in row["options"]}
    masked = {row["seed"]: row["mean_iou"] for row in alone if "ddep-em-lite0-masked-nc" in row["options"]}
    gains = [float(joint[seed]) - float(random[seed]) for seed in seeds]
    text = words("docs/results.md").replace(" and ", ", ")
    for scores in (joint, random):
        assert ", ".join(scores[seed] for seed in seeds) in text
    for scores in (pretrained, masked):
        assert ", ".join(scores[seed] for seed in "567") in text
    assert statistics.mean(float(pretrained[seed]) - float(masked[seed]) for seed in "567") < 0
    assert f"{gain_text(gains)}. It is ahead with four of five" in text
    assert sum(gain > 0 for gain in gains) == 4


def test_what_pretraining_is_worth_in_labels_is_that_of_the_csv(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import does_it_pay

    factors = does_it_pay.label_factors(does_it_pay.curves()["em", 600], "masked", "masked_longer")
    shown = " and ".join(f"{factor:.2f} ({low:.2f} to {high:.2f})" for factor, low, high in factors.values())
    page = words("docs/does-it-pay.md")
    assert f"gains as much from {shown} times the labels" in page
    # "A fifth to a quarter fewer labels"
    assert all(0.19 < 1 - 1 / factor < 0.26 for factor, _, _ in factors.values())
    factor, low, high = does_it_pay.label_factors(does_it_pay.curves()["camvid-tuning", 600], "features")[Fraction(3)]
    assert f"{factor:.2f} ({low:.2f} to {high:.2f}) times the labels would gain as much" in page


def test_the_table_of_all_comparisons_is_that_of_the_csv(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import does_it_pay

    assert "\n".join([does_it_pay.HEADER, *does_it_pay.table_rows()]) + "\n\n" in read(ROOT / "docs" / "results.md")


def test_where_whole_images_are_labelled_no_gain_but_the_named_one_exceeds_chance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import does_it_pay

    from ddep_hub.label_efficiency.report import Point, paired_difference

    sure = set()
    for (data, steps), points in does_it_pay.curves().items():
        for labels, scores in points.items():
            for method in scores.keys() - {"random"} if not data.startswith("camvid") and labels >= 1 else ():
                difference = paired_difference(Point(0, scores[method]), Point(0, scores["random"]))
                if difference.interval and not difference.interval[0] <= 0 <= difference.interval[1]:
                    sure.add((data, steps, int(labels), len(difference.by_seed)))
    assert sure == {("nuclei", 600, 48, 2)}
    for page in ("does-it-pay.md", "results.md"):
        assert "0.5 and +0.4 with the two seeds" in words(f"docs/{page}")


def test_the_scores_of_selected_images_are_those_of_the_csv():
    with (ROOT / "benchmarks" / "results" / "label_selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["data"] == "nuclei" and row["labels"] == "6" and row["options"].endswith("bottleneck_size 192"):
            if "--model_ema_decay 0.99 --max_steps 600" in row["options"]:
                scores.setdefault((row["data"], row["choice"]), []).append(float(row["mean_iou"]))
        elif row["data"] == "camvid":
            scores.setdefault((row["data"], row["choice"]), []).append(float(row["mean_iou"]))
    results, readme = read(ROOT / "docs" / "results.md"), read(ROOT / "README.md")
    assert len(scores) == 4
    for (data, _), values in scores.items():
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        assert f"{mean:.2f} ± {deviation:.2f} ({len(values)})" in results
        assert data != "nuclei" or f"{mean:.1f} ± {deviation:.1f}" in readme
