"""Time of a confusion matrix of this package and of torchmetrics: `python benchmarks/confusion_matrix.py`.

Masks of 1024x2048 pixels with a tenth of them ignored and a fifth of the predictions wrong, on one thread, the two in
turns. Writes confusion_matrix.csv beside this file.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
import torchmetrics
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from ddep_hub.evaluation.metrics import ConfusionMatrix


HEIGHT, WIDTH = 1024, 2048


def masks(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and labels of smooth areas, int64 (1, HEIGHT, WIDTH)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, num_classes, 16, 32, generator=generator)
    labels = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").argmax(1)
    wrong = torch.rand(labels.shape, generator=generator) < 0.2
    prediction = torch.where(wrong, torch.randint(num_classes, labels.shape, generator=generator), labels)
    labels[:, : HEIGHT // 10] = 255
    return prediction, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for num_classes in (19, 150):
        prediction, labels = masks(num_classes)
        ours = ConfusionMatrix(num_classes)
        # Without its checks of every value, which take as long again.
        theirs = MulticlassConfusionMatrix(num_classes, ignore_index=255, validate_args=False)
        times: dict[str, list[float]] = {"ddep_hub": [], "torchmetrics": []}
        for _ in range(args.rounds):
            for name, metric in (("ddep_hub", ours), ("torchmetrics", theirs)):
                started = time.perf_counter()
                metric.update(prediction, labels)
                times[name].append(1000 * (time.perf_counter() - started))
        if not torch.equal(ours.counts, theirs.confmat):
            raise SystemExit("The counts differ.")
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "num_classes": num_classes,
                "megapixels": round(HEIGHT * WIDTH / 1e6, 1),
                **{f"{name}_ms": f"{median:.1f}" for name, median in medians.items()},
                "speed_up": f"{medians['torchmetrics'] / medians['ddep_hub']:.1f}",
                "torch": torch.__version__,
                "torchmetrics": torchmetrics.__version__,
            }
        )
        print(rows[-1])
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
