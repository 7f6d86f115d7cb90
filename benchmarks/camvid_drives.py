"""A CamVid folder with other splits, to tune settings on a drive that is neither trained on nor tested on.

    python benchmarks/camvid_drives.py path/to/camvid runs/camvid-tuning

The splits of CamVid cut its drives: `val` and `test` continue drives that are in `train` too. In the folder that is
written, `train` lacks drive 0006R0 and `val` is that drive; nothing of `test` is in it. Files are linked, not copied.
"""

import argparse
import shutil
from pathlib import Path


VALIDATION_DRIVE = "0006R0"


def write_tuning_folder(source: Path, target: Path) -> dict[str, int]:
    """Links the images and masks of `train` into two splits, by their drive.

    Args:
        source: CamVid with `images/<split>`, `annotations/<split>` and `classes.json`.
        target: folder to write, which must not exist.

    Returns:
        Number of images of each new split.

    Raises:
        FileExistsError: `target` exists.
        SystemExit: `source` has no image of the drive.
    """
    numbers = {"train": 0, "val": 0}
    if not any(source.glob(f"images/train/{VALIDATION_DRIVE}*")):
        raise SystemExit(f"{source / 'images' / 'train'} has no image of drive {VALIDATION_DRIVE}.")
    target.mkdir(parents=True)
    for kind in ("images", "annotations"):
        for split in numbers:
            (target / kind / split).mkdir(parents=True)
        for file in sorted((source / kind / "train").iterdir()):
            split = "val" if file.name.startswith(VALIDATION_DRIVE) else "train"
            (target / kind / split / file.name).symlink_to(file.resolve())
            numbers[split] += kind == "images"
    shutil.copyfile(source / "classes.json", target / "classes.json")
    return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    print(write_tuning_folder(options.source, options.target))
