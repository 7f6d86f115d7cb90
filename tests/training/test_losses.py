"""The loss of fine-tuning against torch's own losses and against a slow reference."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.training.losses import SegmentationLoss, dice_losses, median_frequency_weights


@pytest.fixture
def batch():
    labels = torch.randint(0, 3, (2, 5, 7))
    labels[0, :2] = 255
    return {"labels": labels}


def total(loss, logits, batch):
    sums = loss.sums(logits, batch["labels"])
    return sum(term / count for term, count in zip(sums, loss.counts(batch["labels"]), strict=True))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.1, 2.0, 0.5])])
def test_cross_entropy_is_torchs(batch, weights):
    logits = torch.randn(2, 3, 5, 7)
    loss = SegmentationLoss(255, class_weights=weights)
    expected = F.cross_entropy(logits, batch["labels"], weights, ignore_index=255)
    torch.testing.assert_close(total(loss, logits, batch), expected)


def slow_dice(logits, labels):
    losses = []
    for image, truth in zip(logits.softmax(1).numpy(), labels.numpy(), strict=True):
        scores = []
        for label in sorted(set(truth[truth != 255].tolist())):
            overlap = size = 0.0
            for row in range(truth.shape[0]):
                for column in range(truth.shape[1]):
                    if truth[row, column] != 255:
                        hit = truth[row, column] == label
                        overlap += 2 * image[label, row, column] * hit
                        size += image[label, row, column] + hit
            scores.append(overlap / size)
        losses.append(1 - np.mean(scores) if scores else 0.0)
    return torch.tensor(losses, dtype=torch.float32)


def test_dice(batch):
    logits = torch.randn(2, 3, 5, 7)
    batch["labels"][1][batch["labels"][1] == 2] = 0  # a class that is not in the second image
    torch.testing.assert_close(dice_losses(logits, batch["labels"], 255), slow_dice(logits, batch["labels"]))
    perfect = F.one_hot(batch["labels"].where(batch["labels"] != 255, 0), 3).movedim(-1, 1) * 100.0
    torch.testing.assert_close(dice_losses(perfect, batch["labels"], 255), torch.zeros(2))


@pytest.mark.parametrize("options", [{}, {"dice_weight": 0.5, "class_weights": torch.tensor([0.1, 2.0, 0.5])}])
def test_a_batch_without_labels_gives_zero(batch, options):
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    batch["labels"][:] = 255
    loss = SegmentationLoss(255, **options)
    assert [int(count) for count in loss.counts(batch["labels"])] == [0] * (2 if options else 1)
    value = sum(loss.sums(logits, batch["labels"]))
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_an_image_without_labels_adds_nothing(batch):
    logits = torch.randn(2, 3, 5, 7)
    batch["labels"][0] = 255
    loss = SegmentationLoss(255, dice_weight=0.5)
    assert loss.counts(batch["labels"]) == [35, 1]
    expected = F.cross_entropy(logits[1:], batch["labels"][1:]) + 0.5 * slow_dice(logits, batch["labels"])[1]
    torch.testing.assert_close(total(loss, logits, batch), expected)


def test_median_frequency():
    statistics = ClassStatistics(("a", "b", "c", "d"), 255)
    for mask in ([[0, 0, 0, 1]], [[0, 0, 255, 2]]):
        statistics.update(np.array(mask, dtype=np.uint8))
    # Frequencies in the images that hold them: a 5/7, b 1/4, c 1/3; their median is 1/3.
    expected = torch.tensor([(1 / 3) / (5 / 7), (1 / 3) / (1 / 4), 1.0, 0.0])
    torch.testing.assert_close(median_frequency_weights(statistics), expected)
