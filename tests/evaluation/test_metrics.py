"""Metrics against a slow reference."""

import pytest
import torch

from ddep_hub.evaluation.metrics import ConfusionMatrix


def slow_iou(prediction, labels, label, ignore_index):
    hit = union = 0
    for found, true in zip(prediction.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if true != ignore_index:
            hit += found == label == true
            union += label in (found, true)
    return hit / union if union else None


def test_against_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (4, 9, 7), generator=generator)
    prediction = torch.randint(0, 5, (4, 9, 7), generator=generator)
    labels[labels == 3] = 255  # class 3 is predicted but never true
    prediction[prediction == 4] = 0
    labels[labels == 4] = 1  # class 4 is in neither
    matrix = ConfusionMatrix(5)
    for part in range(4):
        matrix.update(prediction[part], labels[part])
    metrics = matrix.compute(list("abcde"))
    expected = [slow_iou(prediction, labels, label, 255) for label in range(5)]
    assert expected[4] is None and expected[3] == 0
    assert list(metrics["iou"].values()) == pytest.approx(expected)
    assert metrics["mean_iou"] == pytest.approx(sum(expected[:4]) / 4)
    valid = labels != 255
    assert metrics["overall_accuracy"] == pytest.approx((prediction == labels)[valid].double().mean().item())
    accuracies = [(prediction == labels)[labels == label].double().mean().item() for label in range(3)]
    assert metrics["mean_accuracy"] == pytest.approx(sum(accuracies) / 3)


@pytest.mark.parametrize("ignore_index", [-100, 0, 1, 200, 255, 256, 70000])
def test_any_number_may_say_that_a_pixel_is_ignored(ignore_index):
    labels, prediction = torch.randint(0, 3, (2, 9, 7)), torch.randint(0, 3, (2, 9, 7))
    labels[0, :4] = ignore_index
    matrix = ConfusionMatrix(3, ignore_index)
    matrix.update(prediction, labels)
    counted = [(labels == true) & (labels != ignore_index) for true in range(3)]
    assert matrix.counts.tolist() == [[int((prediction[true] == p).sum()) for p in range(3)] for true in counted]


def test_nothing_but_ignored_pixels():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3, dtype=torch.long), torch.full((3,), 255))
    with pytest.raises(ValueError, match="ignore index"):
        matrix.compute()


def test_against_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (3, 16, 16), generator=generator)
    prediction = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, labels.roll(5, -1))
    labels[0][torch.rand(16, 16, generator=generator) < 0.2] = 255
    labels[labels == 5] = 2
    prediction[prediction == 5] = 1  # class 5 is in neither
    labels[labels == 6] = 255  # class 6 is predicted, never true
    matrix = ConfusionMatrix(7)
    for part in range(3):
        matrix.update(prediction[part], labels[part])
    metrics = matrix.compute()

    def reference(name, **options):
        metric = getattr(classification, name)(num_classes=7, ignore_index=255, **options)
        return metric(prediction, labels)

    assert torch.equal(matrix.counts, reference("MulticlassConfusionMatrix"))
    assert metrics["mean_iou"] == pytest.approx(reference("MulticlassJaccardIndex", average="macro").item())
    weighted = reference("MulticlassJaccardIndex", average="weighted").item()
    assert metrics["frequency_weighted_iou"] == pytest.approx(weighted)
    assert metrics["overall_accuracy"] == pytest.approx(reference("MulticlassAccuracy", average="micro").item())
    accuracies = reference("MulticlassAccuracy", average="none").tolist()
    assert list(metrics["accuracy"].values())[:5] == pytest.approx(accuracies[:5])
    # Class 6 has no pixel to find: left out here, 0 there.
    assert metrics["accuracy"]["5"] is metrics["accuracy"]["6"] is None and accuracies[6] == 0
    assert metrics["mean_accuracy"] == pytest.approx(sum(accuracies[:5]) / 5)
