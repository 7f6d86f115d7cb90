"""Counting a confusion matrix: against torchmetrics and, where it is installed, evaluate.

    python benchmarks/speed/metrics.py

Masks of 1024x2048 pixels with a tenth of them ignored and a fifth of the predictions wrong.
"""

import torch
from measuring import Round, compare, rounds_of, set_up, value_of, write_rows
from torch.nn import functional as F

from ddep_hub.evaluation.metrics import ConfusionMatrix


HEIGHT, WIDTH = 1024, 2048
GOALS = {19: 2.0, 150: 5.0}


def masks(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and labels of smooth areas, int64 (1, HEIGHT, WIDTH)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, num_classes, 16, 32, generator=generator)
    labels = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").argmax(1)
    wrong = torch.rand(labels.shape, generator=generator) < 0.2
    prediction = torch.where(wrong, torch.randint(num_classes, labels.shape, generator=generator), labels)
    labels[:, : HEIGHT // 10] = 255
    return prediction, labels


@set_up
def ours(num_classes: int) -> Round:
    prediction, labels = masks(num_classes)
    matrix = ConfusionMatrix(num_classes)
    return lambda: matrix.update(prediction, labels)


@set_up
def torchmetrics(num_classes: int) -> Round:
    from torchmetrics.classification import MulticlassConfusionMatrix

    prediction, labels = masks(num_classes)
    # Without its checks of every value, which take as long again.
    matrix = MulticlassConfusionMatrix(num_classes, ignore_index=255, validate_args=False)
    return lambda: matrix.update(prediction, labels)


@set_up
def evaluate(num_classes: int) -> Round:
    """The counting of evaluate's `mean_iou`, without its loading of a script from the Hub."""
    import numpy as np

    prediction, labels = (mask.numpy()[0] for mask in masks(num_classes))

    def histograms() -> None:
        kept = labels != 255
        found, true = prediction[kept], labels[kept]
        for ids in (found[found == true], found, true):
            np.histogram(ids, bins=num_classes, range=(0, num_classes - 1))

    return histograms


@set_up
def differs(num_classes: int) -> Round:
    """Whether the counts of the two differ."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    prediction, labels = masks(num_classes)
    found, wanted = ConfusionMatrix(num_classes), MulticlassConfusionMatrix(num_classes, ignore_index=255)
    found.update(prediction, labels)
    wanted.update(prediction, labels)
    return lambda: float(not torch.equal(found.counts, wanted.confmat))


def main() -> None:
    rows = []
    for num_classes, goal in GOALS.items():
        if value_of(differs(num_classes)):
            raise SystemExit("The counts differ.")
        ways = {way.__name__: way(num_classes) for way in (ours, torchmetrics, evaluate)}
        times = rounds_of(ways, rounds=5, warm_up=1)
        setting = f"{num_classes} classes, {HEIGHT}x{WIDTH} pixels"
        peers = {name: (times[name], goal) for name in times if name != "ours"}
        rows += compare("confusion matrix", setting, times["ours"], peers, "s")
    write_rows("metrics", rows)


if __name__ == "__main__":
    main()
