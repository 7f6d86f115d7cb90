"""`ddep_hub.evaluate`, and what it shares with `ddep_hub.predict`: what they take, leave as it was and warn of."""

import re
import warnings

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

import ddep_hub
from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor, image_conversion
from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.evaluation import inference


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_images_that_need_much_memory_are_warned_of_once(action, folder, scenes, monkeypatch):
    def run():
        ddep_hub.predict(folder, images) if action == "predict" else ddep_hub.evaluate(folder, scenes)

    images = sorted((scenes / "images" / "val").iterdir())[:2]
    monkeypatch.setattr(inference, "MEMORY_WARNING_GB", 1e-3)
    with pytest.warns(UserWarning) as caught:
        run()
    (said,) = [str(warning.message) for warning in caught if "GB of memory" in str(warning.message)]
    assert "64x64 pixels" in said and "`window=1024`" in said and "`image_size=1024`" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddep_hub.predict(folder, images, window=32)
        monkeypatch.undo()
        run()


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_images_of_another_scale_than_those_of_training(action, folder, scenes, monkeypatch):
    """Fine-tuned on tiles of 64 pixels as they are, a scene of 640 must not be scaled down to 64."""
    model = DDePForSemanticSegmentation.from_pretrained(folder)
    processor = DDePImageProcessor(size={"shortest_edge": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3)

    def run(**options):
        if action == "predict":
            image = next((scenes / "images" / "val").iterdir())  # 64x64
            return ddep_hub.predict(model, image, processor=processor, **options)
        return ddep_hub.evaluate(model, scenes, processor=processor, **options)

    model.config.image_scale_range = [0.9, 1.1]
    monkeypatch.setattr(image_conversion, "_warned", set())
    said = r"64x64 .* by a factor of 0\.25, training images by 0\.90 to 1\.10"
    with pytest.warns(UserWarning, match=said) as caught:
        run()
    assert "set image_size=64, and `window`" in str(caught[0].message)
    monkeypatch.setattr(image_conversion, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(image_size=64)
        run(image_size=40)
        model.config.image_scale_range = None  # of a model that was not fine-tuned here
        run()


@pytest.mark.parametrize("action", ["predict", "evaluate"])
def test_wrapped_models_are_taken_or_named(action, folder, scenes):
    def run(model):
        if action == "predict":
            return ddep_hub.predict(model, scenes / "images" / "val")
        return ddep_hub.evaluate(model, scenes)

    model = DDePForSemanticSegmentation.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"DataParallel is not a DDePForSemanticSegmentation\. .*`\.module`"):
        run(torch.nn.DataParallel(model))
    with pytest.raises(ValueError, match="Linear is not a DDePForSemanticSegmentation"):
        run(torch.nn.Linear(2, 2))
    expected, found = run(model), run(torch.compile(model, backend="eager"))
    if action == "predict":
        assert all(map(np.array_equal, found, expected))
    else:
        assert found["mean_iou"] == expected["mean_iou"]


def test_evaluate_leaves_the_accelerator_around_it(folder, scenes):
    AcceleratorState._reset_state()
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    ddep_hub.evaluate(folder, scenes)
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    ddep_hub.evaluate(folder, scenes)
    assert not AcceleratorState._shared_state  # as before: a program may still choose its own


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_object_is_left_as_it_was(folder, scenes, monkeypatch, precision):
    model = DDePForSemanticSegmentation.from_pretrained(folder).train()
    model.ddep.encoder.eval()
    before, modes = set(vars(model)), [module.training for module in model.modules()]
    ddep_hub.predict(model, Image.new("RGB", (64, 64)))
    assert [module.training for module in model.modules()] == modes
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state()
    try:
        results = [ddep_hub.evaluate(model, scenes) for _ in range(2)]
        assert [result["mixed_precision"] for result in results] == [precision] * 2
        assert results[0]["iou"] == results[1]["iou"]
    finally:
        AcceleratorState._reset_state()
    assert [module.training for module in model.modules()] == modes and set(vars(model)) == before
    with pytest.raises(ValueError, match="no pixels"):
        ddep_hub.predict(model, Image.new("RGB", (64, 0)))
    assert [module.training for module in model.modules()] == modes


def test_evaluate_takes_names_and_objects_and_writes_only_where_it_is_told(folder, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = ddep_hub.evaluate(folder, scenes, split="val")
    model = DDePForSemanticSegmentation.from_pretrained(folder)
    same = ddep_hub.evaluate(model, SegmentationFolder(scenes, "val"), batch_size=3)
    assert results["mean_iou"] == same["mean_iou"] and results["images"] == 3
    assert list(tmp_path.iterdir()) == []
    ddep_hub.evaluate(model, scenes, output_dir=tmp_path / "out", predictions=["ids"])
    assert (tmp_path / "out" / "results.json").is_file() and (tmp_path / "out" / "masks" / "ids").is_dir()
    dataset = SegmentationFolder(scenes, "train")
    (tmp_path / "two.txt").write_text("\n".join(dataset.sample_ids[:2]))
    results = ddep_hub.evaluate(model, dataset, split_file=str(tmp_path / "two.txt"))
    assert results["images"] == 2 and results["arguments"]["eval_split"] is None
    samples = type("Pairs", (list,), {"classes": dataset.classes, "sample_ids": dataset.sample_ids})(dataset)
    with pytest.raises(TypeError, match="split_file: Pairs has no method `select`"):
        ddep_hub.evaluate(model, samples, split_file=str(tmp_path / "two.txt"))
    assert results["arguments"]["data"] == str(scenes)


@pytest.mark.parametrize(
    ("annotation", "error", "message"),
    [
        (np.full((96, 128), 77), ValueError, r"of a holds 77: class ids are 0 to \d, and 255 is ignored"),
        (np.full((96, 128), -1), ValueError, "of a holds -1: class ids"),
        (np.zeros((48, 64), int), ValueError, r"of a has shape \(48, 64\), but its image 96x128"),
        (torch.zeros(96, 128), TypeError, r"of a must be an array \(height, width\), got Tensor"),
    ],
)
def test_samples_of_a_dataset_object_are_checked(annotation, error, message, folder):
    class Own:
        classes, sample_ids = SCENE_CLASSES, ["a"]

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": Image.new("RGB", (128, 96)), "annotation": annotation}

    with pytest.raises(error, match=f"^data: `annotation` {message}"):
        ddep_hub.evaluate(folder, Own())
    Own.classes = ["sky"]
    with pytest.raises(TypeError, match=r"data: `classes` is a list\. Pass a ddep_hub\.data\.classes\.ClassTable"):
        ddep_hub.evaluate(folder, Own())


class Own(list):
    """A data set object: a list of samples."""

    def __init__(self, samples, sample_ids):
        super().__init__(samples)
        self.classes, self.sample_ids = ClassTable(tuple("xyz"), class_colors(3)), sample_ids


MASK = np.zeros((48, 64), np.uint8)
SAMPLE = {"image": Image.new("RGB", (64, 48)), "annotation": MASK}


@pytest.mark.parametrize(
    ("samples", "sample_ids", "error", "message"),
    [
        (
            [{**SAMPLE, "image": np.zeros((48, 64, 3))}],
            ["a"],
            TypeError,
            "`image` of a must be a PIL image, got ndarray.",
        ),
        ([(SAMPLE["image"], MASK)], ["a"], TypeError, "the item of a is a tuple. It must be a dictionary with"),
        ([{"image": SAMPLE["image"]}], ["a"], TypeError, "the item of a has the keys image. It must be a dictionary"),
        ([SAMPLE] * 2, ["a"], ValueError, "2 items have 1 sample_ids. Pass one sample id per item."),
        ([SAMPLE] * 2, ["a", "a"], ValueError, "sample_ids must be unique, but 2 are 'a'."),
        ([SAMPLE] * 2, [1, 2], TypeError, "sample_ids must be strings, got 1."),
    ],
)
def test_items_of_a_dataset_object_are_pictures_with_a_name_each(samples, sample_ids, error, message, model_of):
    with pytest.raises(error, match=f"^data: {re.escape(message)}"):
        ddep_hub.evaluate(model_of(3), Own(samples, sample_ids), processor=DDePImageProcessor(do_resize=False))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_a_dataset_object_has_pictures_of_any_mode(mode, model_of, tmp_path):
    data = Own([{**SAMPLE, "image": SAMPLE["image"].convert(mode)}] * 2, ["a", "b"])
    options = {"processor": DDePImageProcessor(do_resize=False), "output_dir": tmp_path, "predictions": ["overlays"]}
    assert ddep_hub.evaluate(model_of(3), data, **options)["images"] == 2
    assert {path.stem for path in (tmp_path / "masks" / "overlays").iterdir()} == {"a", "b"}


def test_evaluate_runs_where_predict_does(folder, scenes, monkeypatch):
    """And not on a Mac's GPU, as accelerate would have it."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args, **kwargs: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # which accelerate sets
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert ddep_hub.evaluate(folder, scenes)["images"] == 3
        assert PartialState().device.type == "mps"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "data",
    [[], {}, datasets.Dataset.from_dict({"image": [1]}), datasets.DatasetDict()],
    ids=["list", "dict", "Dataset", "DatasetDict"],
)
def test_what_is_no_labelled_data_is_named(data, folder):
    with pytest.raises(TypeError, match=rf"^data: got {type(data).__name__}\. Pass a folder.*docs/extending\.md"):
        ddep_hub.evaluate(folder, data)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_dataset_object_is_one_line_that_names_the_sample(workers, model_of):
    class Broken(Own):
        def __getitem__(self, index):
            return super().__getitem__(index) if index != 1 else SAMPLE["mask"]

    options = {"processor": DDePImageProcessor(do_resize=False), "dataloader_num_workers": workers}
    with pytest.raises(ValueError, match=r"^data: the item of b cannot be read \(KeyError: 'mask'\)\.$") as caught:
        ddep_hub.evaluate(model_of(3), Broken([SAMPLE] * 3, list("abc")), **options)
    assert isinstance(caught.value.__cause__, ValueError if workers else KeyError)  # torch's, with the traceback
    samples = [SAMPLE, {**SAMPLE, "image": None}]
    with pytest.raises(TypeError, match=r"^data: `image` of b must be a PIL image, got NoneType\.$"):
        ddep_hub.evaluate(model_of(3), Own(samples, ["a", "b"]), **options)
