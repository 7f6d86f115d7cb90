"""What several processes change about a run: nothing."""

import json
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.samplers import epoch_order
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.counting import count_pixels
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.checkpointing import CheckpointError
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.interruption import RunInterrupted
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import pretrain
from ddep_hub.utils.arguments import parse_arguments


sys.path.insert(0, str(Path(__file__).parent))
from launching import TINY, on_processes, torchrun


# Its weights are in the Hub's cache, see conftest.py.
ENCODER = ["--encoder_name", "test_efficientnet"]
pytestmark = pytest.mark.usefixtures("small_encoder")
# Frozen norms in the encoder and GroupNorm: nothing depends on how a batch is shared out. A global batch of 5 gives
# two processes 2 and 3 images, and the scenes are 10 and 7: no number is even.
SAME = "--decoder_norm group --batch_size 5 --warmup_steps 1 --logging_steps 1 --learning_rate 1e-3".split()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, splits={"train": 7, "val": 5}, unlabelled=12, size=(64, 64))


def arguments(script, scenes, output, *more):
    source = ["--images", str(scenes / "unlabelled"), "--num_val_images", "2"]
    if script == "finetune.py":
        source = ["--data", str(scenes), "--freeze_encoder_norms", "True", "--encoder_lr_factor", "0.1"]
    return [*source, *TINY, *ENCODER, *SAME, "--output_dir", str(output), *more]


def here(script, *arguments):
    """The run in this process."""
    if script == "pretrain.py":
        return pretrain(parse_arguments(PretrainArguments, list(arguments)))
    return finetune(parse_arguments(FinetuneArguments, list(arguments)))


def losses(output):
    return [row["loss"] for row in read_metrics(output / "metrics.jsonl")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_that_accelerate_does_not_join_are_refused(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE is 2, but accelerate found no GPU"):
        here("pretrain.py", *arguments("pretrain.py", scenes, tmp_path / "run", "--max_steps", "2"))


VARIABLES = """
import json, os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ.get("RANK", "none")).write_text(json.dumps(dict(os.environ)))
"""


def test_torchrun_sets_what_is_set_here(tmp_path):
    """A script under torchrun finds the variables that `on_processes` sets: the ports alone are others."""
    (tmp_path / "script.py").write_text(VARIABLES)
    for start, folder in ((torchrun, tmp_path / "torchrun"), (on_processes, tmp_path / "here")):
        folder.mkdir()
        result = start(2, tmp_path / "script.py", str(folder))
        assert result.returncode == 0, result.stderr
    for rank in "01":
        under, here = (json.loads((tmp_path / name / rank).read_text()) for name in ("torchrun", "here"))
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
            assert under[name] == here[name], name
        assert {"MASTER_ADDR", "MASTER_PORT"} <= under.keys() & here.keys()


@pytest.mark.parametrize("script", ["pretrain.py", "finetune.py"])
def test_two_processes_are_the_same_run_as_one(script, scenes, tmp_path):
    here(script, *arguments(script, scenes, tmp_path / "1", "--max_steps", "12"))
    result = on_processes(2, script, *arguments(script, scenes, tmp_path / "2", "--max_steps", "12"))
    assert result.returncode == 0, result.stderr
    assert "on 2 process(es)" in result.stdout
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 12
    assert two == pytest.approx(one, rel=1e-5)


def test_unlabelled_images_on_two_processes(scenes, tmp_path):
    """Both stages and joint denoising are the same run; the boxes of consistency come from neighbours in a process."""
    command = arguments("finetune.py", scenes, "", "--unlabelled", str(scenes / "unlabelled"), "--max_steps", "4")
    command += ["--pretraining_steps", "3", "--pretraining_batch_size", "5", "--denoising_weight", "0.5"]
    here("finetune.py", *command, "--output_dir", str(tmp_path / "1"))
    result = on_processes(2, "finetune.py", *command, "--output_dir", str(tmp_path / "2"))
    assert result.returncode == 0, result.stderr
    for folder in (Path("pretraining"), Path()):
        one, two = losses(tmp_path / "1" / folder), losses(tmp_path / "2" / folder)
        assert len(one) == len(two) > 2 and two == pytest.approx(one, rel=1e-5)
    more = ["--consistency_weight", "1", "--model_ema_decay", "0.9", "--pretraining_minutes", "0.001"]
    result = on_processes(2, "finetune.py", *command, *more, "--output_dir", str(tmp_path / "3"))
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "3" / ".timing").exists() and (tmp_path / "3" / "final" / "results.json").exists()


def test_uneven_micro_batches(scenes, tmp_path):
    """Nine images in five micro-batches: every process must make as many, as they wait for each other in each."""
    fields = ["--max_steps", "3", "--batch_size", "9", "--gradient_accumulation_steps", "5"]
    here("pretrain.py", *arguments("pretrain.py", scenes, tmp_path / "1", *fields))
    result = on_processes(2, "pretrain.py", *arguments("pretrain.py", scenes, tmp_path / "2", *fields))
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(scenes, tmp_path):
    """Stopped by the time limit on one process, and gone on with on two: the same losses, row by row."""
    steps = ["--max_steps", "12"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    here("pretrain.py", *arguments("pretrain.py", scenes, whole, *steps))
    command = arguments("pretrain.py", scenes, moved, *steps)
    with pytest.raises(RunInterrupted, match="Stopped by max_time"):
        here("pretrain.py", *command, "--max_time", "0.001")
    resumed = on_processes(2, "pretrain.py", *command, "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert "processes (1 then, 2 now)" in resumed.stderr
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-5)


def test_a_stream_goes_on_with_as_many_processes_alone(scenes, tmp_path):
    images = sorted((scenes / "unlabelled").iterdir())
    for shard in range(4):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for path in images[shard::4]:
                tar.add(path, path.name)
    shards = str(tmp_path / "*.tar")
    common = [
        "--images",
        shards,
        "--num_val_images",
        "2",
        *TINY,
        *ENCODER,
        *SAME,
        "--max_steps",
        "8",
        "--dataloader_num_workers",
        "2",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert on_processes(2, "pretrain.py", *common, "--output_dir", str(whole)).returncode == 0
    command = [*common, "--output_dir", str(stopped)]
    assert "Stopped by max_time" in on_processes(2, "pretrain.py", *command, "--max_time", "0.001").stdout
    resume = [*command, "--resume_from_checkpoint", "latest"]
    with pytest.raises(CheckpointError, match="with the same number of processes"):
        here("pretrain.py", *resume)
    resumed = on_processes(2, "pretrain.py", *resume)
    assert resumed.returncode == 0, resumed.stderr
    one, two = (load_file(path / "final" / "model.safetensors") for path in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


COMMAND = """
import sys
from ddep_hub.cli import main
print("exit code", main(sys.argv[1:]))  # and ends with 0: `on_processes` waits for the other one
"""


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_an_image_that_one_process_cannot_read_ends_both(command, scenes, tmp_path):
    """Its own process names it; the other one, which waits for it, says that it is gone."""
    data = shutil.copytree(scenes, tmp_path / "scenes")
    options = [*arguments("finetune.py", data, tmp_path / "run", "--max_steps", "6")]
    first = epoch_order(7, FinetuneArguments().seed, 0)[0]  # of the first batch, of which each process has a part
    path = data / "images" / "train" / f"{first:05}.jpg"
    if command == "evaluate":
        here("finetune.py", *options[:-1], "1")
        path = data / "images" / "val" / "00001.jpg"
        options = ["--model", str(tmp_path / "run" / "final"), "--data", str(data)]
    path.write_bytes(path.read_bytes()[:500])
    (tmp_path / "command.py").write_text(COMMAND)
    start = time.monotonic()
    result = on_processes(2, tmp_path / "command.py", command, *options)
    assert result.stdout.count("exit code 1") == 2 and time.monotonic() - start < 60
    assert result.stderr.count(f"ddep-hub {command}: {path} is damaged or cut off") == 1
    assert result.stderr.count(f"ddep-hub {command}: Another process of this run has ended. Look for its error") == 1


COUNT = """
import sys
import torch
from accelerate import Accelerator
from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.counting import count_pixels

checkpoint, data, output = sys.argv[1:]
accelerator = Accelerator()
model = DDePForSemanticSegmentation.from_pretrained(checkpoint)
rows, normalize = SegmentationFolder(data, "val"), Normalize(*encoder_mean_std(model.config.encoder_name))
transform = EvalTransform(DDePImageProcessor(do_resize=False))
counts = count_pixels(model, rows, transform, normalize, batch_size=2, accelerator=accelerator).counts
if accelerator.is_main_process:
    torch.save(counts, output)
accelerator.end_training()  # ends the process group: its threads may outlive the interpreter, which aborts
"""


def test_what_is_measured_on_two_processes(scenes, tmp_path):
    """A run on two processes measures the model it saves (BatchNorm's statistics differ between them after a step),
    and one checkpoint has the same confusion counts on one and on two."""
    command = ["--data", str(scenes), "--output_dir", str(tmp_path), "--max_steps", "3", *TINY, *ENCODER]
    command += ["--eval_steps", "1"]
    result = on_processes(2, "finetune.py", *command)
    assert result.returncode == 0, result.stderr
    measured = read_metrics(tmp_path / "metrics.jsonl")[-1]["mean_iou"]
    (tmp_path / "count.py").write_text(COUNT)
    result = on_processes(2, tmp_path / "count.py", str(tmp_path / "final"), str(scenes), str(tmp_path / "counts.pt"))
    assert result.returncode == 0, result.stderr
    model = DDePForSemanticSegmentation.from_pretrained(tmp_path / "final")
    rows, normalize = SegmentationFolder(scenes, "val"), Normalize(*encoder_mean_std(model.config.encoder_name))
    transform = EvalTransform(DDePImageProcessor(do_resize=False))
    matrix = count_pixels(model, rows, transform, normalize, batch_size=2)
    assert matrix.counts.sum() == 5 * 64 * 64
    assert torch.equal(torch.load(tmp_path / "counts.pt"), matrix.counts)
    assert measured == pytest.approx(matrix.compute()["mean_iou"], abs=1e-9)


SHARDED = """
import copy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.optim import Weights

accelerator = Accelerator()
Accelerator.is_fsdp2 = True  # on GPUs it says so itself
sizes = {"decoder_hidden_sizes": [16, 8], "decoder_bottleneck_size": 16}
def make(seed):
    torch.manual_seed(seed)
    model = DDePForPreTraining(DDePConfig(encoder_name="test_efficientnet", **sizes))
    weights = Weights(accelerator, model, PretrainArguments())
    assert weights.sharded
    mesh = init_device_mesh("cpu", (2,))
    for block in model.ddep.decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model.train(), weights, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

def step(model, optimizer):
    generator = torch.Generator().manual_seed(accelerator.process_index)
    model(torch.randn(2, 3, 64, 64, generator=generator), generator=generator).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model, weights, optimizer = make(0)
step(model, optimizer)
stored = weights.gather(optimizer)
other, other_weights, other_optimizer = make(1)
other_weights.load_state_dict(other_optimizer, *copy.deepcopy(broadcast_object_list([stored])[0]))
step(model, optimizer)
step(other, other_optimizer)
one, two = weights.get_eval_model().state_dict(), other_weights.get_eval_model().state_dict()
assert [name for name in one if not torch.equal(one[name], two[name])] == []
if accelerator.is_main_process:
    assert any(not torch.equal(tensor, stored[0][name]) for name, tensor in one.items())
print("the same", flush=True)
accelerator.wait_for_everyone()
accelerator.end_training()  # as above
"""


def test_sharded_weights_are_gathered_and_put_back(tmp_path):
    """What FSDP makes of a model: its parameters in pieces. Accelerate itself shards on GPUs alone."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    result = on_processes(2, tmp_path / "sharded.py")
    assert result.returncode == 0 and result.stdout.count("the same") == 2, result.stderr
