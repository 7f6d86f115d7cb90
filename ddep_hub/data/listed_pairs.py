"""Pairs of images and masks listed in `pairs.csv`."""

import csv
import io
import os
from pathlib import Path

from ddep_hub.utils.files import read_text

from .pairing import Pairs


PAIRS = "pairs.csv"


def read_pairs(root: Path) -> dict[str, Pairs]:
    """Reads `pairs.csv`: columns `image`, `mask` and optionally `split` and `group`; paths are relative to its folder.

    Returns the pairs by split. Raises a FileNotFoundError or ValueError that names the line.
    """
    path = root / PAIRS
    text = read_text(path)
    with io.StringIO(text, newline="") as file:
        first_line = text.split("\n")[0]
        reader = csv.DictReader(file, delimiter=next((mark for mark in ";\t" if mark in first_line), ","))
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        if missing := {"image", "mask"} - set(columns):
            raise ValueError(
                f"{path} has no column {' and '.join(sorted(missing))}. Its first line names the columns."
            )
        reader.fieldnames = columns
        pairs: dict[str, Pairs] = {}
        for row in reader:
            line = f"{path}, line {reader.line_num}"
            values = {name: (row.get(name) or "").strip().replace("\\", "/") for name in columns}
            for name in set(columns) & {"image", "mask", "split", "group"}:
                if not values[name]:
                    raise ValueError(f"{line}: `{name}` is empty. Fill it in, or remove the line.")
            for name in ("image", "mask"):
                if not (root / values[name]).is_file():
                    raise FileNotFoundError(f"{line}: {root / values[name]} does not exist. Correct the path.")
            split_pairs = pairs.setdefault(values.get("split", "train"), Pairs({}, {}, []))
            sample_id = os.path.splitext(values["image"])[0]
            earlier = next((listed.images[sample_id] for listed in pairs.values() if sample_id in listed.images), None)
            if earlier == root / values["image"]:
                raise ValueError(f"{line}: {values['image']} is listed twice. Remove one line.")
            if earlier is not None:
                raise ValueError(
                    f"{line}: {values['image']} and {earlier.name} have the same name without suffix. Rename one."
                )
            split_pairs.images[sample_id], split_pairs.masks[sample_id] = root / values["image"], root / values["mask"]
            if "group" in values:
                split_pairs.groups[sample_id] = values["group"]
    if not pairs:
        raise ValueError(f"{path} lists no image. Write one line per image.")
    return pairs
