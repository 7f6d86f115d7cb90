"""Draws the loss of a run from its metrics.

python benchmarks/loss_curve.py runs/ddep/metrics.jsonl loss.png
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from ddep_hub.training.run_folder import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    rows = read_metrics(args.metrics)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
