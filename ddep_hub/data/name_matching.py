"""Matches names of masks to names of images, and distinguishes masks from images by their names."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence


# In order of preference: a JPEG beside another file of the same name is not the mask.
MASK_EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".jpg", ".jpeg", ".npy")
IMAGE_WORDS = set("image images img imgs im photo photos picture pictures rgb raw input inputs jpegimages".split())
MASK_WORDS = set(
    "mask masks label labels labelids labeltrainids annotation annotations annot annots anno annos ann anns gt gts "
    "groundtruth ground truth seg segs segmentation segmentations target targets matte".split()
)
# Files next to masks that are not masks.
_OTHER_WORDS = set(
    "color colors colour colours rgb vis overlay overlays instance instances instanceids panoptic depth edges".split()
)
_IMAGE_PREFIX = re.compile(r"(images?|imgs?|im|rgb|photos?|raw|sat)[-_. ]?", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(
    r"[-_. ]?(images?|img|rgb|leftImg8bit|photo|raw|sat|training|test|0000|ome)$", re.IGNORECASE
)
NO_AFFIX = ("", "")


def separate_masks(names: list[str], mask_suffix: str | None = None) -> tuple[list[str], list[str]] | None:
    """Separates the images and masks in one folder by their names, or as JPEG and PNG; `None` if it cannot."""
    stems = {name: re.sub(r"\.ome$", "", os.path.splitext(name)[0], flags=re.IGNORECASE) for name in names}

    def find_masks(pattern: str, cores: set[str]) -> list[str]:
        matches = ((name, re.fullmatch(pattern, stem)) for name, stem in stems.items())
        return [
            name for name, match in matches if match and match["mask"].lower() in MASK_WORDS and match["core"] in cores
        ]

    if mask_suffix is not None:
        suffix = strip_extension(mask_suffix)
        masks = [name for name in names if stems[name].endswith(suffix)]
    else:
        all_stems = set(stems.values())
        suffixed = r"(?P<core>.+?)[-_. ](?P<mask>[A-Za-z]+)"
        masks = find_masks(suffixed, all_stems)
        if not masks:  # 1_mask beside 1_img
            masks = find_masks(suffixed, {_IMAGE_SUFFIX.sub("", stem) for stem in all_stems} - all_stems)
        if not masks:  # mask_1 beside 1 or image_1
            cores = all_stems | {_IMAGE_PREFIX.sub("", stem, count=1) for stem in all_stems}
            masks = find_masks(r"(?P<mask>[A-Za-z]+)[-_. ]?(?P<core>.+)", cores)
            masks = masks if len(masks) > 1 else []  # one may be a coincidence
        if not masks:
            jpegs = {stems[name] for name in names if name.lower().endswith((".jpg", ".jpeg"))}
            masks = [name for name in names if stems[name] in jpegs and name.lower().endswith(".png")]
    mask_stems, endings = {stems[name] for name in masks}, {os.path.splitext(name)[1] for name in masks}
    images = [name for name in names if name not in set(masks)]
    further_masks = {  # a_mask_1 beside a_mask
        name
        for name in images
        if os.path.splitext(name)[1] in endings and re.sub(r"[-_. ]?\d+$", "", stems[name]) in mask_stems
    }
    images = [name for name in images if name not in further_masks]
    return (images, [*masks, *sorted(further_masks)]) if masks and images else None


def match_names(
    images: Sequence[str], masks: Sequence[str], mask_suffix: str | None = None, location: str = "The folder"
) -> dict[str, str]:
    """Maps images to masks by their names without extension; all masks must have the same affix.

    Without `mask_suffix`, the affix that matches most images is used; raises a ValueError that names two affixes if
    they match equally many. `location` is the folder of the masks in messages.
    """
    # The same name may use composed or decomposed letters, because systems store them differently.
    composed = [{unicodedata.normalize("NFC", name): name for name in names} for names in (images, masks)]
    if len(composed[0]) == len(images) and len(composed[1]) == len(masks):
        matches = _match(list(composed[0]), list(composed[1]), mask_suffix, location)
        return {composed[0][image]: composed[1][mask] for image, mask in matches.items()}
    return _match(images, masks, mask_suffix, location)


def _match(images: Sequence[str], masks: Sequence[str], mask_suffix: str | None, location: str) -> dict[str, str]:
    mask_names = set(masks)
    if mask_suffix is None and all(name in mask_names for name in images):
        return {name: name for name in images}
    best_score: tuple[int, int] = (0, 0)
    candidates: dict[tuple[str, str], dict[str, str]] = {}
    # Masks may differ in subfolders, capitalisation and leading zeros, if the names remain unique without these.
    for folders, exact in itertools.product((True, False), (True, False)):
        if best_score[0] == len(images):
            break
        for image_affix in _image_affixes(images):
            image_cores = _strip_affix(images, image_affix, folders=folders, exact=exact)
            affixes = [("", strip_extension(mask_suffix))] if mask_suffix is not None else _affixes(image_cores, masks)
            for affix in affixes:
                mask_cores = _strip_affix(masks, affix, folders=folders, exact=exact)
                pairs = {image: mask_cores[core] for core, image in image_cores.items() if core in mask_cores}
                score = (len(pairs), -_affix_rank(affix))
                if score > best_score:
                    best_score, candidates = score, {}
                if pairs and score == best_score and pairs not in candidates.values():
                    candidates[affix] = pairs
    if len(candidates) > 1:
        first, second = (f"{prefix}<image>{suffix}" for prefix, suffix in list(candidates)[:2])
        raise ValueError(f"{location} has masks named both {first} and {second}. Choose with mask_suffix.")
    chosen, matches = next(iter(candidates.items()), (NO_AFFIX, dict[str, str]()))
    if mask_suffix is None:
        _check_second_masks(matches, sorted(mask_names - set(matches.values())), chosen, location)
    return matches


def _check_second_masks(
    matches: Mapping[str, str], unused: Sequence[str], chosen: tuple[str, str], location: str
) -> None:
    """Raises a ValueError if an unused mask belongs to an image that has a mask, for example one of another class."""
    for affix in _affixes(dict.fromkeys(matches, ""), unused):
        cores = _strip_affix(unused, affix, folders=True, exact=True)
        twice = next((image for image in matches if image in cores), None)
        if twice is not None and _affix_rank(affix) <= _affix_rank(chosen) and not _extends(affix, chosen):
            raise ValueError(
                f"{location} has two masks for {twice}, {matches[twice]} and {cores[twice]}. Merge them, or choose "
                "with mask_suffix."
            )


def _extends(affix: tuple[str, str], chosen: tuple[str, str]) -> bool:
    """Whether an affix extends the chosen one, as in the mask of a longer name, or in an older copy."""
    if chosen != NO_AFFIX and affix[0].startswith(chosen[0]) and affix[1].endswith(chosen[1]):
        return True  # the mask of `a_b`, whose image may be elsewhere
    if not (affix[0].endswith(chosen[0]) and affix[1].startswith(chosen[1])):
        return False
    return affix[0] != chosen[0] or re.match("[-_. ]+[A-Za-z]", affix[1][len(chosen[1]) :]) is not None


def basename(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def strip_extension(suffix: str) -> str:
    stem, extension = os.path.splitext(suffix)
    return stem if extension.lower() in MASK_EXTENSIONS else suffix


def _strip_affix(names: Iterable[str], affix: tuple[str, str], *, folders: bool, exact: bool) -> dict[str, str]:
    """Names by their remainder without an affix; names without it, or with equal remainders, are left out."""
    prefix, suffix = affix
    names_by_core: dict[str, list[str]] = {}
    for name in names:
        base = basename(name)
        if base.startswith(prefix) and base.endswith(suffix) and len(base) > len(prefix) + len(suffix):
            core = base[len(prefix) : len(base) - len(suffix)]
            parent = name[: len(name) - len(base)] if folders else ""
            core = parent + core
            key = core if exact else re.sub(r"(?<!\d)0+(?=\d)", "", core.casefold())
            names_by_core.setdefault(key, []).append(name)
    return {core: matching_names[0] for core, matching_names in names_by_core.items() if len(matching_names) == 1}


def _image_affixes(images: Sequence[str]) -> list[tuple[str, str]]:
    affixes = {NO_AFFIX: None}
    for base in map(basename, images[:: max(1, len(images) // 5)]):
        prefix, suffix = _IMAGE_PREFIX.match(base), _IMAGE_SUFFIX.search(base)
        affixes |= {(prefix[0] if prefix else "", ""): None, ("", suffix[0] if suffix else ""): None}
    return list(affixes)


def _affixes(cores: Mapping[str, str], masks: Sequence[str]) -> list[tuple[str, str]]:
    """Candidate affixes of mask names, found from a sample of the smaller of both groups."""
    names = list(cores)
    if len(masks) < len(names):  # few images are labelled: of few images none may be
        masks = masks[:: max(1, len(masks) // 5)]
    else:
        names = names[:: max(1, len(names) // 5)]
    affixes = {NO_AFFIX: None}
    for core in map(basename, names):
        for base in map(basename, masks):
            start = base.casefold().find(core.casefold())
            while start >= 0:
                prefix, suffix = base[:start], base[start + len(core) :]
                if _is_affix(prefix, is_prefix=True) and _is_affix(suffix, is_prefix=False):
                    affixes[prefix, suffix] = None
                start = base.casefold().find(core.casefold(), start + 1)
    return list(affixes)


def _is_affix(text: str, *, is_prefix: bool) -> bool:
    """Whether a text may be an affix: whole words, not part of a number or word."""
    if not text:
        return True
    words = re.findall("[A-Za-z]+", text)
    boundary = text[-1] if is_prefix else text[0]
    is_mask_word = bool(words) and words[-1 if is_prefix else 0].lower() in MASK_WORDS and boundary.isalpha()
    return bool(words) and (boundary in "-_. (" or is_mask_word)


def _affix_rank(affix: tuple[str, str]) -> int:
    """0 for no affix, 1 for words that mean masks, 2 for other words, 3 for those that mean something else."""
    words = {word.lower() for text in affix for word in re.findall("[A-Z]?[a-z]+|[A-Z]+|[A-Za-z]+", text)}
    words |= {word.lower() for text in affix for word in re.findall("[A-Za-z]+", text)}
    if not words:
        return 0
    return 3 if words & _OTHER_WORDS else 1 if words & MASK_WORDS else 2
