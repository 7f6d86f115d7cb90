"""Selects the labelled images: nested random subsets, and published lists."""

import contextlib
import filecmp
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np

from ddep_hub.utils.files import atomic_write

from .dataset_registry import get_dataset_info, list_datasets
from .folders import canonical_split
from .image_io import IMAGE_EXTENSIONS


_EXTENSION = "(?:" + "|".join(re.escape(extension) for extension in IMAGE_EXTENSIONS) + ")"
_IMAGE_AND_MASK = re.compile(rf"(.+?{_EXTENSION})\s+.+{_EXTENSION}", re.IGNORECASE)
_LAYOUTS = [get_dataset_info(name).layout for name in list_datasets()]
# In the known data sets, whose published lists name images with them: folders that hold <split>/<sample_id>, folders
# that hold the images of all splits, and endings of image names.
_IMAGE_FOLDERS = {Path(split.images).parts[0] for layout in _LAYOUTS for split in layout.splits if "/" in split.images}
_SHARED_FOLDERS = {split.images for layout in _LAYOUTS for split in layout.splits if split.list}
_IMAGE_SUFFIXES = [layout.image_suffix for layout in _LAYOUTS]


def parse_fraction(value: str | float | Fraction, name: str = "label fraction") -> Fraction:
    """Parses a fraction in (0, 1], a quotient such as `"1/30"` or a decimal number, exactly: 0.1 is 1/10.

    `name` is its name in errors.
    """
    try:
        fraction = Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name} {value!r} is not a number; write it like 1/30 or 0.1") from None
    if not 0 < fraction <= 1:
        raise ValueError(f"{name} {value!r} is not in (0, 1]; write it like 1/30 or 0.1")
    return fraction


def evenly_spaced(total: int, number: int) -> list[int]:
    """Indices of at most `number` of `total` samples, evenly spaced, because files may be sorted by content."""
    return np.linspace(0, total - 1, min(number, total)).round().astype(int).tolist()


def find_copies(files: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Finds those of `files` that have a copy among `others`, under any name; skips unreadable files."""
    file_sizes, other_sizes = _sizes(files), _sizes(others)
    shared = {*file_sizes.values()} & {*other_sizes.values()}
    candidates = {path: size for path, size in file_sizes.items() if size in shared}
    by_sample: dict[tuple[int, bytes], list[Path]] = {}
    for path, size in other_sizes.items():
        if size in shared and (sample := _read_sample(path, size)):
            by_sample.setdefault((size, sample), []).append(path)
    copies = []
    for path, size in candidates.items():
        # Uncompressed images may all have the same size: a few bytes rule most of them out.
        matches = by_sample.get((size, _read_sample(path, size)), [])
        if any(filecmp.cmp(path, match, shallow=False) for match in matches):
            copies.append(path)
    return copies


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    sizes = {}
    for path in paths:
        with contextlib.suppress(OSError):  # reported when the image is read
            sizes[path] = path.stat().st_size
    return sizes


def _read_sample(path: Path, size: int) -> bytes:
    parts, length = [], 2**12
    with contextlib.suppress(OSError), path.open("rb") as file:
        for start in (0, size // 2, max(0, size - length)):
            file.seek(start)
            parts.append(file.read(length))
    return b"".join(parts)


def choose_labelled(
    sample_ids: Iterable[str], *, fraction: str | float | Fraction | None = None, number: int | None = None, seed: int
) -> list[str]:
    """Chooses the labelled images of a split at random: either a `fraction` of them, at least one, or a `number`.

    Sample ids are ordered by a hash of seed and id, and the first ones are returned: the choice depends neither on the
    order of the input nor on platform or library versions, and with the same seed a smaller choice is a prefix of a
    larger one.
    """
    pool = sorted(sample_ids)
    if len(set(pool)) != len(pool):
        repeated = next(sample_id for sample_id, next_id in itertools.pairwise(pool) if sample_id == next_id)
        raise ValueError(f"sample id {repeated!r} occurs more than once; list every image once")
    if (fraction is None) == (number is None):
        raise ValueError(f"set either fraction or number, not fraction={fraction!r} and number={number!r}")
    if fraction is not None:
        number = max(1, round(parse_fraction(fraction) * len(pool)))
    assert number is not None
    if not 1 <= number <= len(pool):
        raise ValueError(f"number of labelled images is {number}, but there are {len(pool)}; choose 1..{len(pool)}")

    def order(sample_id: str) -> bytes:  # names of files need not be UTF-8
        return hashlib.sha256(f"{seed}:{sample_id}".encode(errors="surrogateescape")).digest()

    return sorted(pool, key=order)[:number]


def choose_validation(
    sample_ids: Iterable[str], fraction: str | float | Fraction, groups: Mapping[str, str] | None = None
) -> list[str]:
    """Chooses the images to keep for validation: the same for every seed, so that runs can be compared.

    Returns sorted sample ids, at least one and not all. `groups` gives the group of each image, such as its slide or
    video, which is kept as a whole. Raises a ValueError for fewer than two images, or groups.
    """
    pool = sorted(sample_ids)
    members: dict[str, list[str]] = {}
    for sample_id in pool:
        members.setdefault(groups[sample_id] if groups else sample_id, []).append(sample_id)
    if len(members) < 2:
        available = f"one group, {next(iter(members))!r}" if groups and len(pool) > 1 else f"{len(pool)} image"
        raise ValueError(
            f"val_fraction: there is only {available}; training and validation need one each. Label another, or cut "
            "it into tiles with `ddep-hub prepare --tile`"
        )
    target_size, validation_ids = parse_fraction(fraction, "val_fraction") * len(pool), list[str]()
    order = choose_labelled(members, number=len(members), seed=0)
    num_chosen = 0
    for group in order:
        # A group that is too large stays in training, whatever comes after it.
        if num_chosen < len(members) - 1 and len(validation_ids) + len(members[group]) / 2 <= target_size:
            validation_ids += members[group]
            num_chosen += 1
    return sorted(validation_ids or members[min(order, key=lambda group: len(members[group]))])


def extract_groups(sample_ids: Iterable[str], pattern: str) -> dict[str, str]:
    """The group of each sample id: the first group of the regular expression or, without one, the whole match.

    Raises a ValueError if `pattern` is not a regular expression or does not match a sample id.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern {pattern!r} is not a regular expression: {error}") from None
    groups = {}
    for sample_id in sample_ids:
        match = regex.search(sample_id)
        if match is None:
            raise ValueError(f"group_pattern {pattern!r} does not match {sample_id!r}; correct it")
        groups[sample_id] = match[1] if regex.groups and match[1] is not None else match[0]
    return groups


def read_split_file(path: str | Path, known_ids: Collection[str] = (), split: str | None = None) -> list[str]:
    """Reads a list of images; returns their sample ids in the file's order.

    Each line has an image's path, optionally followed by white space and its mask's path, which is not used. Empty
    lines and lines that start with # are skipped. A sample id is the image's path without suffix and without a leading
    `images/<split>/`, or `JPEGImages/` as in VOC's lists; from Cityscapes' names, `leftImg8bit/<split>/` and the
    ending `_leftImg8bit` are removed too, so that the sample id names the frame. A line that is one of `known_ids`,
    with or without a suffix, means that id. Raises a ValueError that names the line if an image is listed twice, or is
    in the folder of a split other than `split`.
    """
    first_line: dict[str, int] = {}
    text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")  # names of files need not be UTF-8
    for number, line in enumerate(text.split("\n"), start=1):
        sample_id = line if line in known_ids else re.sub(f"{_EXTENSION}$", "", line, flags=re.IGNORECASE)
        if sample_id not in known_ids:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            sample_id = _sample_id(line.strip(), known_ids)
            folder = re.match(rf"/?(?:{'|'.join(_IMAGE_FOLDERS)})/([^/]+)/.", line.strip())
            named = canonical_split(folder[1]) if folder and sample_id != line.strip() else None
            if split is not None and named and canonical_split(split) not in (None, named):
                raise ValueError(f"{path}, line {number}: {line.strip()} is not an image of the split {split!r}")
        if sample_id in first_line:
            raise ValueError(
                f"{path}, line {number}: {sample_id} is already in line {first_line[sample_id]}; remove one of them"
            )
        first_line[sample_id] = number
    if not first_line:
        raise ValueError(f"{path} lists no image; write one image path per line")
    return list(first_line)


def write_split_file(path: str | Path, sample_ids: Iterable[str]) -> None:
    """Writes sample ids, one per line, so that `read_split_file` returns them again."""
    atomic_write(Path(path), "".join(f"{sample_id}\n" for sample_id in sample_ids))


def _sample_id(line: str, known_ids: Collection[str]) -> str:
    pair = _IMAGE_AND_MASK.fullmatch(line)
    image = PurePosixPath((pair.group(1) if pair else line).replace("\\", "/"))
    if image.suffix.lower() in IMAGE_EXTENSIONS:
        image = image.with_suffix("")
    if str(image) in known_ids:  # of pairs.csv, where it is the whole path
        return str(image)
    parts = image.parts[image.is_absolute() :]
    if len(parts) > 2 and parts[0] in _IMAGE_FOLDERS:
        parts = parts[2:]
    elif shared := _SHARED_FOLDERS.intersection(parts[:-1]):
        parts = parts[min(map(parts.index, shared)) + 1 :]
    sample_id = "/".join(parts)
    for suffix in _IMAGE_SUFFIXES:
        sample_id = sample_id.removesuffix(suffix)
    return sample_id
