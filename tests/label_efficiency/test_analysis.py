"""Means, paired differences and numbers of labels, on rows made by hand."""

import math

import pytest

from ddep_hub.label_efficiency.config import Method, Study
from ddep_hub.label_efficiency.report import (
    LabelsNeeded,
    Point,
    Row,
    add_row,
    best_baseline,
    build_curves,
    labels_needed,
    paired_difference,
    read_rows,
    student_quantile,
    write_report,
)


def row(method, fraction, seed, score, labelled=10):
    return Row(method, fraction, seed, labelled, score, 50.0, 80.0, None, 0, 5, 1.5, "abc")


def test_curves_are_in_the_order_of_the_fractions():
    rows = [row("a", "1", 0, 50, 300), row("a", "1/30", 1, 20), row("a", "1/30", 0, 10), row("a", "1/4", 0, 40, 75)]
    points = build_curves(rows)["a"]
    assert list(points) == ["1/30", "1/4", "1"]
    assert points["1/30"].scores == {0: 10, 1: 20} and points["1/30"].mean == 15
    assert points["1/30"].std == pytest.approx(math.sqrt(50)) and points["1"].std is None


def test_differences_are_paired_by_seed():
    treated, baseline = Point(10, {0: 12.0, 1: 23.0, 3: 90.0}), Point(10, {1: 20.0, 0: 10.0, 2: 0.0})
    difference = paired_difference(treated, baseline)
    assert difference.by_seed == {0: 2.0, 1: 3.0} and difference.mean == 2.5
    # The standard error is 0.5, and Student's quantile of one degree of freedom 12.706.
    assert difference.interval == pytest.approx((2.5 - 6.353, 2.5 + 6.353), abs=1e-3)
    assert paired_difference(treated, Point(10, {7: 1.0})) is None
    assert paired_difference(Point(10, {0: 2.0}), Point(10, {0: 1.0})).interval is None


def test_the_interval_holds_the_mean_and_narrows_with_seeds():
    few = paired_difference(Point(1, {s: float(s % 3) for s in range(3)}), Point(1, dict.fromkeys(range(3), 0.0)))
    many = paired_difference(Point(1, {s: float(s % 3) for s in range(60)}), Point(1, dict.fromkeys(range(60), 0.0)))
    for difference in (few, many):
        assert difference.interval[0] < difference.mean == 1.0 < difference.interval[1]
    # Standard error of 60 values of variance 2/3, times the quantile of 59 degrees of freedom on both sides.
    assert many.interval[1] - many.interval[0] == pytest.approx(2 * 2.001 * math.sqrt(2 / 3 / 59), rel=0.001)


def test_student_quantile():
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for freedom in range(1, 60):
        assert abs(student_quantile(freedom) - scipy.t.ppf(0.975, freedom)) < 0.01


def test_labels_needed_is_linear_in_the_logarithm():
    curve = {"1/16": Point(10, {0: 20.0}), "1/4": Point(40, {0: 30.0}), "1": Point(160, {0: 50.0})}

    def needed(score):
        return labels_needed(curve, Point(10, {0: score}))

    for score, number in ((25.0, 20), (40.0, 80), (30.0, 40)):
        assert needed(score).number == pytest.approx(number) and not needed(score).at_most
    assert needed(5.0) == LabelsNeeded(10, at_most=True)
    assert needed(51.0) is None


def test_labels_needed_are_counted_on_shared_seeds():
    # The baseline was run on the hard seed alone at first: its mean is lower, but not on that seed.
    curve = {"1/4": Point(10, {0: 12.0}), "1": Point(40, {0: 14.0, 1: 60.0})}
    treated = Point(10, {0: 11.0, 1: 55.0})
    assert labels_needed(curve, treated) == LabelsNeeded(10, at_most=True)
    assert labels_needed({"1/4": Point(10, {2: 90.0}), **curve}, treated) == LabelsNeeded(10, at_most=True)
    assert labels_needed({"1/2": Point(20, {7: 90.0})}, treated) is None


def test_the_best_baseline_is_chosen_at_each_fraction():
    points = build_curves(
        [row("a", "1/30", 0, 10), row("b", "1/30", 0, 20), row("a", "1", 0, 60), row("c", "1", 0, 90)]
    )
    treated = Point(10, {0: 30.0})
    assert best_baseline(points, ["a", "b"], treated, "1/30") == "b"
    assert best_baseline(points, ["a", "b"], treated, "1") == "a"
    assert best_baseline(points, ["a", "b"], treated, "1/2") is None
    assert best_baseline(points, ["a", "b"], Point(10, {7: 30.0}), "1/30") is None


def test_the_best_baseline_is_chosen_on_shared_seeds():
    # `long` was run on the hard seed alone, and is ahead there, though its mean is lower.
    points = build_curves([row("encoder", "1", 0, 20), row("encoder", "1", 1, 60), row("long", "1", 0, 25)])
    assert best_baseline(points, ["encoder", "long"], Point(10, {0: 22.0, 1: 61.0}), "1") == "long"


def test_rows_come_back_as_they_were(tmp_path):
    table = tmp_path / "results.csv"
    first = row("a, with a comma", "1/30", 0, 10.25)
    second = Row("b", "1", 1, 300, 50.5, 60.0, 90.0, 0.125, 700, 5, 1.5, "abc-def")
    assert read_rows(table) == []
    add_row(table, first)
    add_row(table, second)
    assert read_rows(table) == [first, second]
    again = row("a, with a comma", "1/30", 0, 11.0)
    add_row(table, again)
    assert read_rows(table) == [again, second]


def test_a_broken_table_is_named_and_left_alone(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, row("a", "1", 0, 10.0))
    broken = table.read_text() + "a,1,zero,1,1,1,1,,0,5,1.5,abc\n"
    table.write_text(broken)
    with pytest.raises(ValueError, match=r"results\.csv, line 3"):
        add_row(table, row("a", "1", 1, 10.0))
    assert table.read_text() == broken
    table.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        read_rows(table)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,1,1,1,303,1,1,,0,5,1.5,abc", "303 is not from 0 to 100"),
        ("a,1,1,1,nan,1,1,,0,5,1.5,abc", "nan is not from"),
        ("a,foo,1,1,1,1,1,,0,5,1.5,abc", "label fraction 'foo'"),
        ("a,1.0,0,1,1,1,1,,0,5,1.5,abc", "an earlier row has the same method"),
    ],
)
def test_rows_that_say_nothing_are_refused(tmp_path, line, message):
    table = tmp_path / "results.csv"
    add_row(table, row("a", "1", 0, 10.0))
    table.write_text(f"{table.read_text()}{line}\n")
    with pytest.raises(ValueError, match=rf"results\.csv, line 3 .*{message}"):
        read_rows(table)


def test_a_decimal_fraction_is_the_same_fraction(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, row("a", "1/4", 0, 10.0))
    table.write_text(table.read_text().replace("1/4", "0.25"))
    assert read_rows(table) == [row("a", "1/4", 0, 10.0)]


def test_report_and_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    methods = [Method("encoder", None, {}, True), Method("long", None, {}, True), Method("ddep", {}, {}, False)]
    rows = [
        *(row("encoder", "1/4", seed, 20.0 + seed) for seed in (0, 1)),
        *(row("encoder", "1", seed, 40.0 + seed, 40) for seed in (0, 1)),
        *(row("long", "1/4", seed, 22.0 + seed) for seed in (0, 1)),
        *(row("ddep", "1/4", seed, 30.0 + seed) for seed in (0, 1)),
        *(row("ddep", "1", seed, 45.0 + seed, 40) for seed in (0, 1)),
    ]
    report = write_report(Study(methods, {"1/4": 2, "1/2": 2, "1": 2}), rows, tmp_path, title="Title")
    assert "| encoder | 20.50 ± 0.71 (2) | 40.50 ± 0.71 (2) |" in report
    assert "| ddep | 1/4 = 10 | long | +8.00 [+8.00, +8.00] | +8.00, +8.00 | encoder: 20 (2.0x) |" in report
    assert "| ddep | 1 = 40 | encoder | +5.00 [+5.00, +5.00] | +5.00, +5.00 | encoder: more than 40 |" in report
    assert (tmp_path / "report.md").read_text() == report
    assert (tmp_path / "figure.png").stat().st_size > 5000
    # A part of the study that was asked for still shows, and is compared with, all of its rows.
    assert write_report(Study(methods, {"1/2": 2}), rows, tmp_path, title="Title") == report


def test_the_baseline_that_needs_the_fewest_labels_is_named(tmp_path):
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    methods = [Method("slow", None, {}, True), Method("encoder", None, {}, True), Method("ddep", {}, {}, False)]
    rows = [row("slow", "1/4", 0, 10), row("slow", "1", 0, 30, 40), row("ddep", "1/4", 0, 25)]
    rows += [row("encoder", "1/4", 0, 20), row("encoder", "1", 0, 30, 40)]
    report = write_report(Study(methods, {"1/4": 1, "1": 1}), rows, tmp_path, title="Title")
    assert "| ddep | 1/4 = 10 | encoder | +5.00 | +5.00 | encoder: 20 (2.0x) |" in report


def test_names_are_no_formulas_and_end_no_cell(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    methods = [Method("_a", None, {}, True), Method("b|$x_$", {}, {}, False)]
    rows = [row(method.name, "1/4", 0, 20) for method in methods]
    named = []

    def legend(figure, **options):
        named.extend(figure.axes[0].get_legend_handles_labels()[1])

    monkeypatch.setattr("matplotlib.figure.Figure.legend", legend)
    report = write_report(Study(methods, {"1/4": 1}), rows, tmp_path, title="cost_$5_$")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert len(named) == 2 and r"| b\|$x_$ | 20.00 (1) |" in report


def test_fractions_of_one_number_of_images(tmp_path):
    """Of six images, 1/7 and 1/6 are one."""
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    methods = [Method("encoder", None, {}, True), Method("ddep", {}, {}, False)]
    rows = [row(method.name, fraction, 0, 20, 1) for method in methods for fraction in ("1/7", "1/6")]
    report = write_report(Study(methods, {"1/7": 1, "1/6": 1}), rows, tmp_path, title="Title")
    assert "| 1/7 = 1 images | 1/6 = 1 images |" in report and (tmp_path / "figure.png").is_file()


def test_the_report_says_what_was_compared(tmp_path):
    """The labels of a baseline that was measured from 40 images up are a bound; fewer seeds say so in the figure."""
    pytest.importorskip("matplotlib", reason="extra `plots` is not installed")
    methods = [Method("encoder", None, {}, True), Method("long", None, {}, True), Method("ddep", {}, {}, False)]
    rows = [row("encoder", "1/4", 0, 20), row("encoder", "1/4", 1, 20), row("long", "1", 0, 33, 40)]
    rows += [row("ddep", "1/4", 0, 30), row("ddep", "1/4", 1, 31), row("ddep", "1", 0, 31, 40)]
    study = Study(methods, {"1/4": 2, "1": 1})
    report = write_report(study, rows, tmp_path, title="Title")
    needed = "long: at most 40 (4.0x)"
    assert f"| ddep | 1/4 = 10 | encoder | +10.50 [+4.15, +16.85] | +10.00, +11.00 | {needed} |" in report
    assert "| ddep | 1 = 40 | long | -2.00 | -2.00 | long: at most 40 (1.0x) |" in report
