"""Which images the rows and decoders of a study's folder were made with."""

import json
from pathlib import Path

from ddep_hub.data.image_sources import identity
from ddep_hub.training.feeds import identity_of
from ddep_hub.training.labelled_images import open_split
from ddep_hub.training.run_folder import locked, write_whole
from ddep_hub.training.training_images import open_sources

from .settings import Study


FILE = "data.json"


def check_data(study: Study, output: Path) -> None:
    """Compares a study's images with those that its folder was begun with, and notes them where it is new.

    The settings of a row do not say where the images lie, so that they may be moved; names and sizes tell other ones.

    Args:
        study: the study; images that an arm names itself are told by its settings.
        output: the study's folder, which holds `data.json`: short hashes of the labelled and the unlabelled images.

    Raises:
        OSError: images are missing.
        ValueError: they are others than those of the rows, or of the pretrained decoders.
    """
    path, now = output / FILE, _identities(study)
    with locked(path.with_name(f".{FILE}.lock"), wait=True):
        before: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, made in (("data", "results.csv has rows"), ("images", "pretrained/ has decoders")):
            if name in before and name in now and before[name] != now[name]:
                raise ValueError(
                    f"{output / made} of other images than those of `{name}` now: names or sizes of the files differ. "
                    "Choose another output_dir, or give the images that it was begun with."
                )
        if now.keys() - before.keys():
            write_whole(path, json.dumps(before | now, indent=2) + "\n")


def _identities(study: Study) -> dict[str, str]:
    finetuning = study.finetune_arguments(study.arms[0], "1", 0, Path(), None)
    splits = [open_split(finetuning, split) for split in (finetuning.train_split, finetuning.eval_split)]
    found = {"data": identity_of(*[(rows.contents, rows.classes.names, rows.classes.ignore_index) for rows in splits])}
    for arm in study.arms:
        if arm.pretraining is not None and "images" not in arm.pretraining:
            return found | {"images": identity(open_sources(study.pretrain_arguments(arm, Path())))}
    return found
