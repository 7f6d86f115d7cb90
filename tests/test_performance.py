"""benchmarks/speed: its arithmetic, what it marks, and that docs/performance.md is what its CSVs say."""

import csv
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def speed():
    sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))
    try:
        import measuring
        import report
    finally:
        sys.path.pop(0)
    return measuring, report


def test_ratios_are_those_of_each_round(speed):
    measuring, _ = speed
    peers = {"slower": ([4.0, 6.0, 9.0], 1.3), "faster": ([1.0, 1.5, 1.5], None)}
    slower, faster = measuring.compare("step", "small", [2.0, 2.0, 3.0], peers, "s")
    assert (slower.ratio, slower.low, slower.high, slower.ours, slower.theirs) == (3.0, 2.0, 3.0, 2.0, 6.0)
    assert faster.ratio == 0.5 and faster.goal is None


def test_ways_take_turns_in_processes_of_their_own(speed):
    measuring, _ = speed

    def way(name):
        def make():
            return lambda: calls.append(name)

        return make

    calls = []
    times = measuring.rounds_of({"a": way("a"), "b": way("b")}, rounds=3, warm_up=1)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3} and not calls
    assert measuring.value_of(lambda: lambda: 7.0) == 7.0
    with pytest.raises(SystemExit):
        measuring.value_of(lambda: 1 / 0)


def test_lines_that_fell_are_marked(speed, tmp_path, monkeypatch):
    _, report = speed
    rows = [
        {"question": "step", "setting": name, "peer": "smp", "ratio": ratio, "goal": "1.3", "low": "1", "high": "2"}
        for name, ratio in (("fell", "1.1"), ("kept", "1.45"), ("new", "0.5"), ("broken", "nan"))
    ]
    before = {
        ("step", name, "smp"): ratio for name, ratio in (("fell", 1.5), ("kept", 1.6), ("broken", 1), ("old", 1))
    }
    monkeypatch.setattr(report, "committed", lambda file: before)
    monkeypatch.setattr(report, "ORDER", ["step"])
    with (tmp_path / "step.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = report.read(tmp_path / "step.csv")
    assert [row["before"] for row in found] == ["1.50", "", "", "1.00"]
    assert [report.reached(row) for row in found] == ["no", "yes", "no", "no"]
    assert report.missing(tmp_path) == [("step", "old", "smp")]


def test_the_page_is_what_the_files_say(speed):
    _, report = speed
    assert report.PAGE.read_text() == report.page()
    folders = report.complete_folders()
    assert {"amx", "avx2", "avx512"} <= {folder.name for folder in folders}
    for folder in folders:
        reasons = report.missed(report.read_rows(folder)).split("\n- ")
        assert all(len(reason.split("**")[2].strip()) > 20 for reason in reasons), (
            "a line below its goal has no reason"
        )
        assert report.figure_of(folder).is_file()
