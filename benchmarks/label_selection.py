"""What the number and the choice of labelled images are worth: fine-tunes on images that `ddep-hub select` chose, on
random ones, and on a part of one image.

    python benchmarks/label_selection.py path/to/nuclei rows.csv --labels 3 6 12 --seeds 5 -- \
        --preset few-labels --image_size 256 --crop_size 128 --augmentation microscopy --model_ema_decay 0.99 \
        --decoder_hidden_sizes 192 96 64 32 16 --decoder_bottleneck_size 192
    python benchmarks/label_selection.py path/to/em rows.csv --labels 1/16 1/4 1 2 4 --choices random -- \
        --preset few-labels-microscopy --pretrained ddep-em-lite0-nc

What follows `--` are arguments of `ddep-hub finetune`. The choice itself is the same each time, so that each seed
chooses from another random half of the training images; the random images are those of `--split_seed`. Of one labelled
image `1/4` takes a random quarter: half of its height and of its width. Rows that the table has are not run again.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddep_hub.data.image_io import list_images
from ddep_hub.preparation.selection import greedy_medoids, image_features, standardize


COLUMNS = ["data", "labels", "choice", "seed", "options", "mean_iou", "seconds"]


@cache
def features_of(folder: Path) -> dict[Path, list[torch.Tensor]]:
    """Features of each image of a folder, as `ddep-hub select` computes them."""
    return image_features([folder / name for name in list_images(folder)], "ddep-efficientnet-lite0")


def selected(data: Path, number: int, seed: int) -> list[str]:
    """Names of the images that `ddep-hub select` chooses from a random half of `images/train`."""
    folder = data / "images" / "train"
    features = features_of(folder)
    files = list(features)
    half = np.sort(np.random.default_rng(seed).permutation(len(files))[: len(files) // 2])
    pool = [files[index] for index in half]
    chosen = greedy_medoids(standardize([features[path] for path in pool]), number, range(len(pool)))
    return [pool[index].relative_to(folder).as_posix() for index in chosen]


def cropped(data: Path, part: Fraction, seed: int, folder: Path) -> Path:
    """Writes a data set whose one labelled image is a random part of a random one of `data`."""
    random = np.random.default_rng(seed)
    names = list_images(data / "images" / "train")
    name = names[random.integers(len(names))]
    with Image.open(data / "images" / "train" / name) as image:
        width, height = (round(side * float(part) ** 0.5) for side in image.size)
        left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
    for kind, suffix in (("images", Path(name).suffix), ("annotations", ".png")):
        target = folder / kind / "train" / Path(name).with_suffix(".png").name
        target.parent.mkdir(parents=True)
        with Image.open((data / kind / "train" / name).with_suffix(suffix)) as whole:
            whole.crop((left, top, left + width, top + height)).save(target)
        (folder / kind / "val").symlink_to((data / kind / "val").resolve())
    (folder / "classes.json").write_bytes((data / "classes.json").read_bytes())
    return folder


def fine_tune(data: Path, labels: Fraction, choice: str, seed: int, given: list[str]) -> tuple[str, int]:
    """mIoU in % on the evaluated split, and the seconds of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        images = ["--num_labelled_images", str(labels), "--split_seed", str(seed)]
        if labels < 1:
            data = cropped(data, labels, seed, Path(scratch) / "data")
            images = ["--allow_empty_classes"]  # a small part may not show every class
        elif choice == "selected":
            (Path(scratch) / "selected.txt").write_text("\n".join(selected(data, int(labels), seed)))
            images = ["--split_file", f"{scratch}/selected.txt"]
        command = [sys.executable, "-m", "ddep_hub", "finetune", "--data", str(data), "--seed", str(seed)]
        subprocess.run([*command, *images, *given, "--save_steps", "0", "--output_dir", f"{scratch}/run"], check=True)
        results = json.loads((Path(scratch) / "run" / "final" / "results.json").read_text())
        rows = (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()
    return f"{100 * results['mean_iou']:.2f}", round(json.loads(rows[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/train")
    parser.add_argument("table", type=Path, help="CSV file that rows are added to")
    parser.add_argument("--labels", type=Fraction, nargs="+", default=[Fraction(6)])
    parser.add_argument("--choices", nargs="+", default=["random", "selected"], choices=["random", "selected"])
    parser.add_argument("--seeds", type=int, default=5)
    own = sys.argv[1:]
    own, given = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    args = parser.parse_args(own)
    done = set()
    if args.table.exists():
        with args.table.open(newline="") as file:
            done = {tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)}
    settings = [
        (labels, seed, choice)
        for labels in args.labels
        for seed in range(args.seeds)
        for choice in args.choices
        if labels >= 1 or choice == "random"  # nothing selects a part of an image
    ]
    for labels, seed, choice in settings:
        key = (args.data.name, str(labels), choice, str(seed), " ".join(given))
        if key in done:
            continue
        score, seconds = fine_tune(args.data, labels, choice, seed, given)
        new = not args.table.exists()
        with args.table.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            writer.writerow([*key, score, seconds])
        print(labels, choice, seed, score, flush=True)


if __name__ == "__main__":
    main()
