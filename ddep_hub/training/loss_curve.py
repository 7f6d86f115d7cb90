"""The picture of a run's loss."""

from importlib.util import find_spec
from pathlib import Path

from .run_folder import read_metrics


def draw_loss(metrics: Path, picture: Path) -> bool:
    """Draws the loss over the steps of a run, on a logarithmic axis.

    Args:
        metrics: its `metrics.jsonl`.
        picture: PNG file to write.

    Returns:
        Whether there is a picture: none without matplotlib (extra `plots`), nor of fewer than two rows with a loss.
    """
    rows = [row for row in read_metrics(metrics) if row.get("loss")]
    if len(rows) < 2 or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    # A loss falls by less than a decade or two: more ticks than the powers of ten, written as plain numbers.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.savefig(picture, dpi=110, format="png")
    return True
