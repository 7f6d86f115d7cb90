# %% [markdown]
# # From a folder of photos and masks to a published model
#
#     python examples/your_own_data.py --photos photos --masks masks --classes background leaf --repository org/name
#
# Or open this file in an editor that runs cells. Without arguments it uses rendered scenes. A photo and its mask have
# the same name up to the suffix; a mask is a PNG whose pixel value is the class id, and 255 is ignored. Photos without
# a mask are pretrained on if `--pretrain_steps` is given.

# %%
import argparse
import json
import random
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np

import ddep_hub
from ddep_hub.cli import explain_mistakes
from ddep_hub.data.class_files import read_class_table
from ddep_hub.data.classes import colorize
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, decode_image
from ddep_hub.data.masks import decode_mask
from ddep_hub.data.synthetic import SCENE_CLASSES, write_scenes
from ddep_hub.evaluation.visualization import draw_panels
from ddep_hub.hub.publish import publish_folder


explain_mistakes("your_own_data")
parser = argparse.ArgumentParser()
parser.add_argument("--photos", type=Path, help="folder of photos; default: rendered scenes")
parser.add_argument("--masks", type=Path, help="folder of PNG masks, for some or all of them")
parser.add_argument("--classes", nargs="+", help="names of the classes, in the order of their ids")
parser.add_argument("--output_dir", type=Path, default=Path("runs/your-own-data"))
parser.add_argument("--val_fraction", type=float, default=0.25, help="share of the labelled photos to validate on")
parser.add_argument("--max_steps", type=int, default=600, help="steps of fine-tuning")
parser.add_argument("--pretrain_steps", type=int, default=0, help="steps of pretraining on the photos without a mask")
parser.add_argument("--repository", help="org/name to publish to; default: nothing is published")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
output: Path = options.output_dir

if options.photos is None:
    scenes = write_scenes(output / "scenes", splits={"all": 48})
    options.photos, options.masks = scenes / "images" / "all", scenes / "annotations" / "all"
    options.classes = list(SCENE_CLASSES.names)
if options.masks is None or options.classes is None:
    parser.error("--photos needs --masks and --classes.")


def new_folder(name: str) -> Path:
    """Makes a folder below the output; replaces that of an earlier run, and nothing else."""
    folder = output / name
    mark = folder / ".your_own_data"
    if folder.exists() and not mark.is_file():
        parser.error(f"--output_dir: {folder} exists and is not from an earlier run. Choose another output_dir.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()
    return folder


# %% [markdown]
# ## 1. Split
#
# This split is random. If neighbouring photos look alike, split by place or day instead: the score is meaningful only
# on photos unlike those in training.

# %%
masks = {path.stem: path for path in sorted(options.masks.iterdir()) if path.suffix.lower() == ".png"}
files = [path for path in sorted(options.photos.iterdir()) if path.suffix.lower() in IMAGE_EXTENSIONS]
files = [path for path in files if path not in masks.values()]  # both may be in one folder
photos = {path.stem: path for path in files}
if len(photos) < len(files):
    parser.error(f"{options.photos}: some photos differ only in their suffix. Rename or remove one of each pair.")
unmatched = sorted(masks.keys() - photos.keys())
if unmatched and options.photos != options.masks:  # in one folder, not every PNG is a mask
    parser.error(f"{options.masks}: {len(unmatched)} masks have no photo of their name, such as {unmatched[0]}.png.")
labelled = sorted(set(photos) & set(masks))
if len(labelled) < 2:
    parser.error(f"{options.photos} and {options.masks} have {len(labelled)} names in common. Two or more are needed.")
random.Random(0).shuffle(labelled)
num_val = min(len(labelled) - 1, max(1, round(options.val_fraction * len(labelled))))

data = new_folder("data")
for split, names in (("val", labelled[:num_val]), ("train", labelled[num_val:])):
    for kind, files in (("images", photos), ("annotations", masks)):
        (data / kind / split).mkdir(parents=True)
        for name in names:
            shutil.copy(files[name], data / kind / split)
unlabelled = [photos[name] for name in photos if name not in masks]
classes = [{"id": index, "name": name} for index, name in enumerate(options.classes)]
(data / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}), encoding="utf-8")
print(f"{len(labelled) - num_val} photos to train on, {num_val} to validate on, {len(unlabelled)} without a mask")

# %% [markdown]
# ## 2. Look at the labels
#
# A wrong class id or a shifted mask shows up here, before any time is spent on training.

# %%
table = read_class_table(data / "classes.json")
shown = sorted((data / "images" / "val").iterdir())[:4]
ids = {"num_classes": table.num_classes, "ignore_index": table.ignore_index}
truth = [decode_mask(data / "annotations" / "val" / f"{path.stem}.png", **ids) for path in shown]


def draw(name: str, **columns: list[np.ndarray]) -> None:
    """Writes a figure: the photos, and beside them one column of masks for each title."""
    rows = []
    for index, path in enumerate(shown):
        photo = np.asarray(decode_image(path))  # as in training: upright, and of any depth
        rows.append([photo, *(colorize(column[index], table) for column in columns.values())])
    draw_panels(rows, ["photo", *(title.replace("_", " ") for title in columns)]).save(output / name)
    print(f"Look at {output / name}")


draw("1-labels.png", labels=truth)

# %% [markdown]
# ## 3. Fine-tune, and compare with a random decoder
#
# The pretrained decoder is the shipped one; with `--pretrain_steps`, it is first pretrained further on the photos that
# have no mask.

# %%
start = {"pretrained": "ddep-photos-lite0"}
if options.pretrain_steps and unlabelled:
    pool = new_folder("unlabelled")
    for path in unlabelled:
        shutil.copy(path, pool)
    start |= {"unlabelled": str(pool), "pretraining_steps": options.pretrain_steps}
random_decoder = {"decoder_hidden_sizes": [192, 96, 64, 32, 16], "decoder_bottleneck_size": 192}
settings = {"data": str(data), "preset": "few-labels", "max_steps": options.max_steps, "overwrite": True}
ddep = ddep_hub.finetune(output_dir=str(output / "ddep"), **start, **settings)
baseline = ddep_hub.finetune(output_dir=str(output / "random"), **random_decoder, **settings)
print(f"mIoU in %: pretrained decoder {100 * ddep['mean_iou']:.1f}, random decoder {100 * baseline['mean_iou']:.1f}")
print("One seed is a single sample: docs/studies.md explains how to compare methods properly.")

# %% [markdown]
# ## 4. Look at the result

# %%
files = [str(path) for path in shown]
draw(
    "2-predictions.png",
    labels=truth,
    pretrained_decoder=ddep_hub.predict(ddep["final"], files),
    random_decoder=ddep_hub.predict(baseline["final"], files),
)
results = ddep_hub.evaluate(ddep["final"], data, split="val", output_dir=output / "evaluation")
for name, iou in results["iou"].items():
    print(f"  {name:<16}" + ("not in these photos" if iou is None else f"{100 * iou:5.1f}"))

# %% [markdown]
# ## 5. Publish
#
# `final/README.md` is the model card; add what your readers should know. Log in with `hf auth login` first.

# %%
if options.repository:
    print("Published:", publish_folder(ddep["final"], options.repository))
else:
    print(f"Ready to publish: ddep-hub publish {shlex.quote(ddep['final'])} org/name")
