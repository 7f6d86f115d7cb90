"""What the choice of labelled images is worth: fine-tunes on images that `ddep-hub select` chose, and on random ones.

    python benchmarks/label_selection.py path/to/nuclei rows.csv --number 6 --seeds 5 -- \
        --preset few-labels --image_size 256 --augmentation microscopy --model_ema_decay 0.99 --max_steps 600 \
        --decoder_hidden_sizes 192 96 64 32 16 --decoder_bottleneck_size 192

What follows `--` are arguments of `ddep-hub finetune`. The choice itself is the same each time, so that each seed
chooses from another random half of the training images; the random images are those of `--split_seed`. Rows that the
table has are not run again.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ddep_hub.data.image_io import images_below
from ddep_hub.preparation.selection import greedy_medoids, image_features, standardized


COLUMNS = ["data", "labels", "choice", "seed", "options", "mean_iou", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/train")
    parser.add_argument("table", type=Path, help="CSV file that rows are added to")
    parser.add_argument("--number", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    own = sys.argv[1:]
    own, given = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    args, options = parser.parse_args(own), " ".join(given)
    done = set()
    if args.table.exists():
        with args.table.open(newline="") as file:
            done = {tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)}
    folder = args.data / "images" / "train"
    files = [folder / name for name in images_below(folder)]
    features = image_features(files, "ddep-efficientnet-lite0", None, 224)
    for seed in range(args.seeds):
        half = np.sort(np.random.default_rng(seed).permutation(len(files))[: len(files) // 2])
        pool = [files[index] for index in half]
        chosen = greedy_medoids(standardized([features[path] for path in pool]), args.number, range(len(pool)))
        names = [pool[index].relative_to(folder).as_posix() for index in chosen]
        for choice in ("random", "selected"):
            key = (args.data.name, str(args.number), choice, str(seed), options)
            if key in done:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / "selected.txt").write_text("".join(f"{name}\n" for name in names))
                images = ["--num_labelled_images", str(args.number), "--split_seed", str(seed)]
                if choice == "selected":
                    images = ["--split_file", f"{scratch}/selected.txt"]
                command = [sys.executable, "-m", "ddep_hub", "finetune", "--data", str(args.data), "--seed", str(seed)]
                command += [*images, *given, "--save_steps", "0", "--output_dir", f"{scratch}/run"]
                subprocess.run(command, check=True)
                results = json.loads((Path(scratch) / "run" / "final" / "results.json").read_text())
                rows = (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()
            new = not args.table.exists()
            with args.table.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(COLUMNS)
                score = f"{100 * results['mean_iou']:.2f}"
                writer.writerow([*key, score, round(json.loads(rows[-1])["seconds"])])
            print(choice, seed, score, flush=True)


if __name__ == "__main__":
    main()
