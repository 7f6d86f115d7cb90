"""A confusion matrix as a table and as a picture."""

import csv
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


CELL = 22


def confusion_csv(counts: torch.Tensor, names: Sequence[str]) -> str:
    """The pixel counts as CSV: one row a true class, one column a predicted class.

    Args:
        counts: integer tensor `(classes, classes)`, of [`ConfusionMatrix`].
        names: names of the classes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true / predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()


def confusion_picture(counts: torch.Tensor, names: Sequence[str]) -> Image.Image:
    """Draws where the pixels of each true class (row) went: the darker, the more; per cent where they are 1 or more.

    Args:
        counts: integer tensor `(classes, classes)`, of [`ConfusionMatrix`].
        names: names of the classes.

    Returns:
        RGB picture; the rows of classes without a pixel are empty.
    """
    values = counts.double().cpu().numpy()
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=10)
    margin = 10 + round(max(font.getlength(name) for name in names))
    side = CELL * len(names)
    sheet = Image.new("RGB", (margin + side + 8, margin + side + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = margin + CELL * row
        draw.text((margin - 4, top + CELL // 2), name, fill="black", font=font, anchor="rm")
        for column, share in enumerate(shares[row]):
            left = margin + CELL * column
            # Square roots, so that rare confusions can be seen.
            shade = round(255 * (1 - share**0.5))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=(shade, shade, 255))
            if share >= 0.01:
                color = "white" if shade < 128 else "black"
                place = (left + CELL // 2 - 1, top + CELL // 2 - 1)
                draw.text(place, f"{100 * share:.0f}", fill=color, font=small, anchor="mm")
    # The names of the columns stand upright, as the rows' names turned.
    turned = Image.new("RGB", (margin, side), "white")
    pen = ImageDraw.Draw(turned)
    for column, name in enumerate(names):
        pen.text((margin - 4, side - CELL * column - CELL // 2), name, fill="black", font=font, anchor="rm")
    sheet.paste(turned.transpose(Image.Transpose.ROTATE_270), (margin, 0))
    return sheet
