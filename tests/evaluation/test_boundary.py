"""Boundary IoU against a slow reference."""

import math

import numpy as np
import pytest
import torch

from ddep_hub.evaluation.metrics import BoundaryIoU, boundary_mask


def eroded(inside: np.ndarray, outside: np.ndarray, distance: int) -> np.ndarray:
    """`distance` erosions by 3x3, as the paper's code has it: what is beyond the edge of the image is outside."""
    for _ in range(distance):
        wide = np.pad(outside, 1, constant_values=True)
        squares = [wide[y : y + len(outside), x : x + outside.shape[1]] for y in range(3) for x in range(3)]
        outside = np.any(squares, axis=0)
    return inside & ~outside


def slow_boundary_iou(predictions, truths, number, ratio, ignore_index=255):
    """One class at a time: its mask, less its eroded mask, intersected and united over all images."""
    result = []
    for label in range(number):
        both = union = 0
        for prediction, truth in zip(predictions, truths, strict=True):
            distance = max(1, round(ratio * math.hypot(*truth.shape)))
            counted = truth != ignore_index
            rims = []
            for ids in (prediction, truth):
                inside = counted & (ids == label)
                # Square windows and 3x3 steps agree for any mask: unlabelled pixels are not outside, yet passed over.
                outside = counted & (ids != label)
                rims.append(inside & ~eroded(inside, outside, distance))
            both += (rims[0] & rims[1]).sum()
            union += (rims[0] | rims[1]).sum()
        result.append(both / union if union else None)
    return result


def blobs(generator, number, size, classes):
    """Masks of a few smooth areas."""
    coarse = torch.rand(number, classes, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").argmax(1)


@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_against_a_slow_reference(ratio, monkeypatch):
    monkeypatch.setattr("ddep_hub.evaluation.metrics.BOUNDARY_RATIO", ratio)
    generator = torch.Generator().manual_seed(0)
    counts = BoundaryIoU(6)
    predictions, truths = [], []
    for size in [(40, 56), (33, 20)]:
        truth, prediction = blobs(generator, 3, size, 4), blobs(generator, 3, size, 4)
        prediction[:, : size[0] // 2] = truth[:, : size[0] // 2]
        prediction[0, 3:9, 4:11] = 4  # predicted, but never true; class 5 is in neither
        truth[1, 10:17, 5:9] = 255
        truth[2][torch.rand(size, generator=generator) < 0.1] = 255
        counts.update(prediction, truth)
        predictions += list(prediction.numpy())
        truths += list(truth.numpy())
    expected = slow_boundary_iou(predictions, truths, 6, ratio)
    metrics = counts.compute(list("abcdef"))
    assert expected[4] == 0 and expected[5] is None and min(expected[:4]) > 0
    assert list(metrics["boundary_iou"].values()) == pytest.approx(expected)
    assert metrics["mean_boundary_iou"] == pytest.approx(sum(expected[:5]) / 5)


def test_a_perfect_prediction_and_one_that_is_a_pixel_off():
    truth = torch.zeros(1, 100, 100, dtype=torch.long)
    truth[:, 30:70, 30:70] = 1
    perfect, shifted = BoundaryIoU(2), BoundaryIoU(2)
    perfect.update(truth, truth)
    assert set(perfect.compute()["boundary_iou"].values()) == {1.0}
    shifted.update(truth.roll(1, -1), truth)
    # A frame 3 pixels wide of a square of 40, moved by one pixel.
    frame = 40**2 - 34**2
    lost = 40 + 34  # the outer and the inner side that have moved off it
    assert shifted.compute()["boundary_iou"]["1"] == pytest.approx((frame - lost) / (frame + lost))


def test_the_rim_of_an_unlabelled_area_is_no_outline():
    truth = torch.zeros(1, 60, 60, dtype=torch.long)
    edge = BoundaryIoU(1)
    edge.update(truth, truth)
    truth[:, 20:40, 20:40] = 255
    counts = BoundaryIoU(1)
    counts.update(torch.zeros_like(truth), truth)
    assert torch.equal(counts.counts, edge.counts)


def test_labels_without_an_outline_have_no_score():
    """One class inside unlabelled pixels; and nothing labelled at all."""
    island = torch.full((1, 16, 16), 255)
    island[:, 6:10, 6:10] = 1
    for labels in (island, torch.full((1, 8, 8), 255)):
        counts = BoundaryIoU(2)
        counts.update(torch.zeros_like(labels), labels)
        assert counts.compute()["mean_boundary_iou"] is None


@pytest.mark.parametrize(("height", "width", "distance"), [(7, 11, 1), (40, 30, 3), (33, 64, 8), (9, 5, 20)])
def test_windows_of_windows_are_windows(height, width, distance):
    """Against one pooling with the whole window, whose time grows with it."""
    ids = torch.randint(0, 3, (2, height, width)).repeat_interleave(4, 1)[:, :height]
    valid = torch.rand(ids.shape) < 0.9
    signed = torch.stack([ids, -ids], 1).float().masked_fill(~valid[:, None], -math.inf)
    largest = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(signed, [distance] * 4, value=-math.inf), 2 * distance + 1, stride=1
    )
    expected = (largest[:, 0] != ids) | (largest[:, 1] != -ids)
    inner = torch.zeros_like(valid)
    inner[:, distance : height - distance, distance : width - distance] = True
    found = boundary_mask(ids, valid, distance)
    assert torch.equal(found[valid & inner], expected[valid & inner]) and found[~inner].all()
