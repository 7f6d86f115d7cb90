"""The images that a user names: files, folders, patterns and URLs."""

import http.client
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from glob import glob
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from transformers import PretrainedConfig

from ddep_hub.data.classes import ClassTable, class_colors, names_in_order
from ddep_hub.data.dataset_registry import find_dataset_by_classes
from ddep_hub.data.image_io import decode_image, images_below
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.data.transforms import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.pretrained import image_size, load_model

from .arguments import PredictArguments
from .inference import predict
from .visualization import MaskWriter, legend


SECONDS = 60


def find_images(names: Sequence[str]) -> dict[str, str]:
    """The images behind names, by what their results are called.

    Args:
        names: image files, folders (searched recursively), patterns such as `photos/*.jpg` (`**` for any depth), and
            http(s) URLs of images.

    Returns:
        Path or URL by a relative path without suffix: that of the file's name, or below the folder, or below the
        folder that all matches of a pattern share.

    Raises:
        FileNotFoundError: there is no such file, or a pattern matches none.
        ValueError: a folder holds no image, or two images would have results of one name.
    """
    found: dict[str, str] = {}
    for name in names:
        for key, place in _behind(name):
            if found.get(key, place) != place:
                raise ValueError(f"{found[key]} and {place} would both be written as {key}.png. Predict them apart.")
            found[key] = place
    return found


def read_image(place: str) -> Image.Image:
    """Reads an image from a path or an http(s) URL, as RGB.

    Raises:
        OSError: it cannot be read or fetched.
        BadFileError: it is no image, or damaged.
    """
    if not _is_url(place):
        return decode_image(place)
    try:
        with urllib.request.urlopen(place, timeout=SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # the second: cut short, or no address
        raise OSError(f"{place} could not be fetched ({error}). Check the address.") from error
    return decode_image({"path": place, "bytes": content})


def _behind(name: str) -> list[tuple[str, str]]:
    path = Path(name)
    if _is_url(name):
        file = PurePosixPath(urllib.parse.unquote(urllib.parse.urlparse(name).path)).name
        return [(PurePosixPath(file).stem or "image", name)]
    if path.is_dir():
        return [(_without_suffix(image), str(path / image)) for image in images_below(path)]
    if path.is_file():
        return [(path.stem, name)]
    matches = sorted(match for match in glob(name, recursive=True) if os.path.isfile(match))
    if not matches:
        raise FileNotFoundError(f"{name} is no file, folder or URL, and matches none. Check the path.")
    shared = os.path.commonpath([os.path.dirname(match) for match in matches])
    return [(_without_suffix(os.path.relpath(match, shared or ".")), match) for match in matches]


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(Path(path).as_posix()).with_suffix(""))


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def predict_images(names: Sequence[str], args: PredictArguments) -> list[str]:
    """Predicts images at their own size and writes `<kind>/<name>.png` for each, and `legend.png`.

    Args:
        names: files, folders, patterns and URLs, see [`find_images`].
        args: the arguments.

    Returns:
        The names of the results.

    Raises:
        OSError: an image or the model cannot be read.
        ValueError: an image is damaged, or an argument does not fit the model.
    """
    images = find_images(names)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(str(args.model_name_or_path), args.encoder_weights).to(device)
    classes = classes_of(model.config)
    output = Path(args.output_dir)
    writer = MaskWriter(output, classes, args.predictions)
    output.mkdir(parents=True, exist_ok=True)
    legend(classes).save(output / "legend.png")
    transform, options = EvalTransform(image_size=image_size(args)), args.options()
    normalize = Normalize(*encoder_mean_std(model.config.encoder_name))
    for name, place in images.items():
        image = read_image(place)
        size = image.height, image.width
        example = transform({"image": image, "annotation": np.zeros(size, dtype=np.uint8)})
        found = predict(model, normalize(example["pixel_values"][None].to(device)), size, options)
        writer.write(name, found[0].cpu().numpy(), image)
    return list(images)


def classes_of(config: PretrainedConfig) -> ClassTable:
    """A model's classes, in the colours that it was fine-tuned with.

    A model that says none has those of the known data set with these very names, or some that differ from each other.
    The embedded scenes count as known.
    """
    names = names_in_order(config.id2label)
    known = find_dataset_by_classes(names)
    if config.label_colors and len(config.label_colors) == len(names):
        colors = tuple((red, green, blue) for red, green, blue in config.label_colors)
    elif names == SCENE_CLASSES.names:
        return SCENE_CLASSES
    elif known is not None:
        return known.classes
    else:
        colors = class_colors(len(names))
    # A prediction ignores no pixel, so the value can be one that no mask holds.
    return ClassTable(names=names, colors=colors, ignore_index=-1)
