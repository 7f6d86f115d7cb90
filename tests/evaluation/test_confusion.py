"""The confusion matrix as a table and as a picture."""

import csv

import numpy as np
import torch

from ddep_hub.evaluation.metrics import confusion_csv
from ddep_hub.evaluation.visualization import confusion_picture


COUNTS = torch.tensor([[90, 10, 0], [0, 50, 50], [0, 0, 0]])
NAMES = ["sky", "a rather long name", "road, dirt"]


def test_csv():
    table = list(csv.reader(confusion_csv(COUNTS, NAMES).splitlines()))
    assert table == [
        ["true / predicted", *NAMES],
        ["sky", "90", "10", "0"],
        ["a rather long name", "0", "50", "50"],
        ["road, dirt", "0", "0", "0"],
    ]


def test_picture_has_a_dark_cell_where_pixels_are():
    picture = np.asarray(confusion_picture(COUNTS, NAMES)).astype(int)
    margin = picture.shape[1] - 8 - 3 * 22
    cells = [[picture[margin + 22 * r + 2, margin + 22 * c + 2, 0] for c in range(3)] for r in range(3)]
    assert cells[0][0] < cells[0][1] < cells[0][2] == 255
    assert cells[1][1] == cells[1][2] < 255 and cells[2] == [255] * 3
    # The names of the columns stand over them, and end at them: the longer, the higher it begins.
    over = [picture[:margin, margin + 22 * c : margin + 22 * (c + 1)] < 128 for c in range(3)]
    dark = [np.flatnonzero(names.any((1, 2))) for names in over]
    assert dark[1][0] < dark[2][0] < dark[0][0] and all(margin - 8 < rows[-1] < margin for rows in dark)
