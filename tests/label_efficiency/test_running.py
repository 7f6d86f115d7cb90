"""The study as a user starts it: rows, shared work, interruption, a part of the methods."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from ddep_hub.data.synthetic import write_scenes
from ddep_hub.label_efficiency.report import read_rows


sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import ROOT, Fork, run_fork


pytest.importorskip("matplotlib", reason="extra `plots` is not installed")

SCRIPT = str(ROOT / "examples" / "label_efficiency.py")


@pytest.fixture(scope="module")
def study(tmp_path_factory, small_encoder):
    folder = tmp_path_factory.mktemp("study")
    scenes = write_scenes(folder / "scenes", splits={"train": 6, "val": 3}, unlabelled=12, size=(64, 64))
    content = {
        "data": str(scenes),
        "images": [str(scenes / "unlabelled")],
        "fractions": {"1/2": 2, "1": 1},
        "model": {
            "encoder_name": small_encoder,
            "decoder_hidden_sizes": [8, 8, 8, 8, 8],
            "decoder_bottleneck_size": 8,
        },
        "pretraining": {"max_steps": 2, "batch_size": 4, "crop_size": 32, "num_val_images": 2},
        "finetuning": {"max_steps": 2, "batch_size": 4, "crop_size": 32},
        "methods": {"encoder": {}, "ddep": {"pretraining": {}}},
        "baselines": ["encoder"],
        "evaluation": {"flip": True},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def command(study, output, *more):
    return [SCRIPT, "--study", str(study), "--output_dir", str(output), *more]


def test_two_processes_share_a_study_and_a_lost_row_is_made_again(study, tmp_path):
    output = tmp_path / "out"
    processes = [Fork(*command(study, output)) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    rows = {row.key: row for row in read_rows(output / "results.csv")}
    wanted = {(method, f, seed) for method in ("encoder", "ddep") for f, seed in (("1/2", 0), ("1/2", 1), ("1", 0))}
    assert set(rows) == wanted
    text = "".join(stdout for stdout, _ in outputs)
    assert text.count("=== pretraining") == 1 and text.count("of the labels, seed") == 6  # each once
    assert {row.labelled for row in rows.values() if row.fraction == "1/2"} == {3}
    for row in rows.values():
        assert (row.pretraining_steps == 2 and row.denoising_error > 0) is (row.method == "ddep")
        assert 0 < row.mean_iou < 100 and row.finetuning_steps == 2
        results = json.loads(
            (
                output
                / "runs"
                / f"{row.method}-{row.fraction.replace('/', '_')}-{row.seed}"
                / "evaluation"
                / "results.json"
            ).read_text()
        )
        assert results["inference"]["flip"] and row.mean_iou == round(100 * results["mean_iou"], 3)
    # The same images for every method.
    lists = [(output / "runs" / f"{method}-1_2-1" / "labelled.txt").read_text() for method in ("encoder", "ddep")]
    assert lists[0] == lists[1] and len(lists[0].split()) == 3
    assert not list(output.rglob("runs/*/final")) and (output / "figure.png").exists()

    lost = ("ddep", "1/2", 1)
    lines = (output / "results.csv").read_text().splitlines(keepends=True)
    (output / "results.csv").write_text("".join(line for line in lines if not line.startswith("ddep,1/2,1,")))
    again = run_fork(*command(study, output))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("of the labels, seed") == 1 and "=== pretraining" not in again.stdout
    remade = {row.key: row for row in read_rows(output / "results.csv")}
    assert set(remade) == wanted and remade[lost].mean_iou == rows[lost].mean_iou  # bit for bit

    moved = tmp_path / "moved"
    shutil.copytree(study.parent / "scenes", moved)
    assert run_fork(*command(study, output, "--data", str(moved))).returncode == 0
    next((moved / "annotations" / "val").iterdir()).write_bytes(b"another size")
    next((moved / "unlabelled").iterdir()).rename(moved / "unlabelled" / "another.jpg")
    for flag, folder, made in (("--data", moved, "results.csv"), ("--unlabelled", moved / "unlabelled", "decoders")):
        refused = run_fork(*command(study, output, flag, str(folder), "--seeds", "3"))
        assert refused.returncode != 0 and made in refused.stderr and "from other images" in refused.stderr

    other = tmp_path / "other.yaml"
    other.write_text(study.read_text().replace("pretraining:\n  max_steps: 2", "pretraining:\n  max_steps: 3"))
    refused = run_fork(*command(other, output))
    assert refused.returncode != 0 and "other settings" in refused.stderr and "ddep" in refused.stderr


def test_an_interrupted_study_goes_on(study, tmp_path):
    output = tmp_path / "out"
    longer = tmp_path / "study.yaml"
    longer.write_text(study.read_text().replace("finetuning:\n  max_steps: 2", "finetuning:\n  max_steps: 60"))
    chosen = ("--methods", "encoder", "--fractions", "1/2", "--seeds", "1")
    process = Fork(*command(longer, output, *chosen))
    metrics = output / "runs" / "encoder-1_2-0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stdout + stderr
    assert "Repeat the same command to resume." in stdout and "--resume_from_checkpoint" not in stdout + stderr
    assert read_rows(output / "results.csv") == []
    assert list((metrics.parent / "checkpoints").glob("step-*"))
    again = run_fork(*command(longer, output, *chosen))
    assert again.returncode == 0, again.stderr
    (row,) = read_rows(output / "results.csv")
    assert row.key == ("encoder", "1/2", 0)


def test_a_part_of_the_methods(study, tmp_path):
    output = tmp_path / "out"
    part = ("--fractions", "1/2", "--seeds", "1")
    done = run_fork(*command(study, output, *part))
    assert done.returncode == 0, done.stderr
    assert {row.method for row in read_rows(output / "results.csv")} == {"encoder", "ddep"}
    assert "=== pretraining" in done.stdout and len(list((output / "pretrained").glob("[!.]*"))) == 1
    report = (output / "report.md").read_text()
    assert report.count("| 1/2 = 3 | encoder |") == 1
    # Asked for one method, the report still has the others that have rows.
    for method in ("ddep", "encoder"):
        one = run_fork(*command(study, output, "--report_only", "--methods", method, *part))
        assert one.returncode == 0 and (output / "report.md").read_text() == report, one.stderr


def test_a_run_that_diverges_costs_no_other_one(study, tmp_path):
    wild = tmp_path / "study.yaml"
    content = yaml.safe_load(study.read_text())
    content["methods"] = {
        "wild": {"finetuning": {"learning_rate": 1e30}},
        "lost": {"pretraining": {"learning_rate": 1e30}},
        "encoder": {},
    }
    content |= {"fractions": {"1/2": 1, "1": 1}}
    wild.write_text(yaml.safe_dump(content, sort_keys=False))
    result = run_fork(*command(wild, tmp_path / "out"))
    assert result.returncode != 0 and "wild, 1/2, seed 0: The loss" in result.stderr, result.stderr
    assert "4 runs have no row" in result.stderr and "lost, 1, seed 0: pretraining: The loss" in result.stderr
    assert result.stdout.count("=== pretraining") == 1  # it would diverge for the other run too
    assert [row.method for row in read_rows(tmp_path / "out" / "results.csv")] == ["encoder", "encoder"]
    assert "| encoder |" in (tmp_path / "out" / "report.md").read_text()
