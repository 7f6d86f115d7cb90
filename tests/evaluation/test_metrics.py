"""Metrics against a slow reference."""

import pytest
import torch

from ddep_hub.evaluation.comparison import comparison_table, verdict
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
    figures = matrix.figures(list("abcde"))
    expected = [slow_iou(prediction, labels, label, 255) for label in range(5)]
    assert expected[4] is None and expected[3] == 0
    assert list(figures["iou"].values()) == pytest.approx(expected)
    assert figures["mean_iou"] == pytest.approx(sum(expected[:4]) / 4)
    valid = labels != 255
    assert figures["overall_accuracy"] == pytest.approx((prediction == labels)[valid].double().mean().item())
    accuracies = [(prediction == labels)[labels == label].double().mean().item() for label in range(3)]
    assert figures["mean_accuracy"] == pytest.approx(sum(accuracies) / 3)


def test_nothing_but_ignored_pixels():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3, dtype=torch.long), torch.full((3,), 255))
    with pytest.raises(ValueError, match="ignore index"):
        matrix.figures()


def test_comparison():
    scores = {"random decoder": {0: 40.0, 1: 42.0}, "DDeP decoder": {0: 41.0, 1: 44.0}}
    assert "| DDeP decoder | 41.00 | 44.00 | 42.50 | 2.12 |" in comparison_table(scores)
    assert verdict(*scores.values()).endswith("+1.50 mIoU (by seed: +1.00, +2.00): a gain with every seed")
    assert verdict({0: 1.0, 1: 1.0}, {0: 0.5, 1: 9.0}).endswith("no gain at this budget")
