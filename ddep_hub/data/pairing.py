"""Pairs images with masks: by name, by patient folder, or from `pairs.csv`."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddep_hub.utils.files import read_text

from .generated_files import exclude_generated
from .image_io import IMAGE_EXTENSIONS, is_array, iter_files, list_images, subfolders
from .name_matching import IMAGE_WORDS, MASK_EXTENSIONS, MASK_WORDS, basename, match_names, separate_masks


PAIRS = "pairs.csv"


@dataclass(frozen=True)
class Pairs:
    """Images and masks by sample id; an image may have no mask. `unmatched` names the masks without an image.

    `groups` maps samples to groups, such as a patient or a slide, if these are known.
    """

    images: dict[str, Path]
    masks: dict[str, Path]
    unmatched: list[str]
    groups: dict[str, str] = field(default_factory=dict)


def pair_files(image_folder: Path, mask_folder: Path, mask_suffix: str | None = None) -> Pairs:
    """Finds the mask of each image, which has the same name apart from words such as `_mask` or `gt_`.

    `mask_folder` may be the same as `image_folder`, see [`images_and_masks`] and [`has_patients`], or not exist.
    Without `mask_suffix`, such as `_mask`, the affix is detected. Files written by commands of this package are left
    out. A sample id is an image's path in its folder without suffix. Raises a ValueError if two images share one, or
    several masks match.
    """
    same_folder = mask_folder.is_dir() and image_folder.is_dir() and os.path.samefile(mask_folder, image_folder)
    names = [] if same_folder else list_images(image_folder)
    masks = [] if same_folder else sorted(iter_files(mask_folder, MASK_EXTENSIONS))
    # Beside image files, arrays are something else, such as probabilities.
    masks = [name for name in masks if not is_array(name)] or masks
    if same_folder:
        beside = images_and_masks(image_folder, mask_suffix)
        if beside is None and has_patients(image_folder, mask_suffix):
            return _pair_patients(image_folder, mask_suffix)
        names, masks = beside or (list_images(image_folder), [])
    return _pair(image_folder, exclude_generated(image_folder, names), mask_folder, masks, mask_suffix)


def _pair(
    image_folder: Path, names: Sequence[str], mask_folder: Path, masks: Sequence[str], mask_suffix: str | None
) -> Pairs:
    """The pairs of images and masks with these names below two folders."""
    images = by_sample_id(image_folder, names)
    files: dict[str, str] = {}
    for name in sorted(masks, key=lambda name: MASK_EXTENSIONS.index(os.path.splitext(name)[1].lower())):
        stem, extension = os.path.splitext(name)
        previous = files.setdefault(stem, name)
        # A JPEG beside a mask of the same name is only a rendering of it.
        if previous != name and extension.lower() not in (".jpg", ".jpeg"):
            raise ValueError(f"{mask_folder} holds both {previous} and {name}; keep one mask per image")
    # Each patient has a folder, in which images and masks may have subfolders.
    image_keys, mask_keys = ({_drop_role(name): name for name in found} for found in (images, files))
    if not (image_folder == mask_folder and len(image_keys) == len(images) and len(mask_keys) == len(files)):
        image_keys, mask_keys = ({name: name for name in found} for found in (images, files))
    found = match_names(list(image_keys), list(mask_keys), mask_suffix, str(mask_folder))
    matches = {image_keys[image]: mask_keys[mask] for image, mask in found.items()}
    matched_masks = set(matches.values())
    return Pairs(
        {sample: image_folder / name for sample, name in images.items()},
        {sample: mask_folder / files[mask] for sample, mask in matches.items()},
        [mask for mask in files if mask not in matched_masks],
    )


def by_sample_id(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Image names by sample id, the name without suffix; raises a ValueError if two are equal."""
    images: dict[str, str] = {}
    for name in names:
        previous = images.setdefault(os.path.splitext(name)[0], name)
        if previous != name:
            raise ValueError(f"{folder} holds both {previous} and {name}; keep one image per sample id")
    return images


def images_and_masks(folder: Path, mask_suffix: str | None = None) -> tuple[list[str], list[str]] | None:
    """Applies [`separate_masks`] to the files in a folder; arrays count if image files alone cannot be separated."""
    names = sorted(iter_files(folder, IMAGE_EXTENSIONS, recursive=False))
    pictures = [name for name in names if not is_array(name)]
    return separate_masks(pictures, mask_suffix) or separate_masks(names, mask_suffix)


def has_patients(folder: Path, mask_suffix: str | None = None) -> bool:
    """Whether there is a folder for each patient, slide or scene, with images and masks, and no image beside these.

    In each, masks are beside the images, `<patient>/a.png` and `<patient>/a_mask.png`, or both have subfolders,
    `<patient>/images/a.png` and `<patient>/masks/a.png`. A few folders are sampled, most of which must match.
    """
    names = subfolders(folder)
    if len(names) < 2 or any(iter_files(folder, IMAGE_EXTENSIONS, recursive=False)):
        return False
    sampled = names[:: -(-len(names) // 10)]
    return 2 * sum(_is_patient(folder / name, mask_suffix) for name in sampled) > len(sampled)


def _is_patient(folder: Path, mask_suffix: str | None) -> bool:
    images, masks = _list_patient(folder, mask_suffix)
    image_stems, mask_stems = ([os.path.splitext(basename(name))[0] for name in names] for names in (images, masks))
    try:
        return bool(masks and match_names(image_stems, mask_stems, mask_suffix))
    except ValueError:  # several masks match, which pairing reports
        return True


def _list_patient(folder: Path, mask_suffix: str | None) -> tuple[list[str], list[str]]:
    """Images and masks of a patient's folder; no masks if none are recognised, or one image has several."""
    if beside := images_and_masks(folder, mask_suffix):
        return beside
    inner = subfolders(folder)
    masks = [name for name in inner if name.lower() in MASK_WORDS]
    images = [name for name in inner if name.lower() in IMAGE_WORDS]
    if len(images) == len(masks) == 1:
        image_files = [f"{images[0]}/{name}" for name in sorted(iter_files(folder / images[0], IMAGE_EXTENSIONS))]
        mask_files = [f"{masks[0]}/{name}" for name in sorted(iter_files(folder / masks[0], MASK_EXTENSIONS))]
        return image_files, [] if len(image_files) == 1 < len(mask_files) else mask_files
    files = sorted(iter_files(folder, IMAGE_EXTENSIONS))
    return [name for name in files if not any(part.lower() in MASK_WORDS for part in name.split("/")[:-1])], []


def _pair_patients(folder: Path, mask_suffix: str | None) -> Pairs:
    images, masks = list[str](), list[str]()
    for patient in subfolders(folder):
        for names, found in zip((images, masks), _list_patient(folder / patient, mask_suffix), strict=True):
            names += [f"{patient}/{name}" for name in found]
    images, masks = ([name for name in names if not is_array(name)] or names for names in (images, masks))
    pairs = _pair(folder, exclude_generated(folder, images), folder, masks, mask_suffix)
    # Patient folders are numbered; others may be kinds of images, which need not stay in one split.
    patients = {name: name.split("/")[0] for name in pairs.images}
    groups = {name: patient if re.search(r"\d", patient) else name for name, patient in patients.items()}
    has_groups = any(group != name for name, group in groups.items()) and len({*groups.values()}) > 1
    return replace(pairs, groups=groups) if has_groups else pairs


def _drop_role(name: str) -> str:
    """Removes the second folder of a path, if it only distinguishes images from masks."""
    patient, *inner = name.split("/")
    if len(inner) > 1 and inner[0].lower() in IMAGE_WORDS | MASK_WORDS:
        inner = inner[1:]
    return "/".join([patient, *inner])


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
