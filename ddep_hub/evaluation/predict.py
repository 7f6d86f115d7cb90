"""Segments images given as files, folders, patterns, URLs, PIL images or arrays."""

import contextlib
import io
import itertools
import logging
import os
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor, PretrainedConfig

from ddep_hub.data.classes import ClassTable, class_colors, ordered_names
from ddep_hub.data.dataset_registry import find_dataset_by_classes
from ddep_hub.data.generated_files import is_prediction
from ddep_hub.data.image_io import BadFileError, lift_size_limit
from ddep_hub.data.preprocessing import AnyImage, Normalize, resize_with_processor, warn_about_scale, warn_about_units
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.folding import example_images, fold_batch_norms
from ddep_hub.image_conversion import ChannelImage, channels_first, extract_channels, to_rgb
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.modeling_ddep import DDePForSemanticSegmentation
from ddep_hub.orientation import apply_orientation
from ddep_hub.pretrained import load_model, load_processor, processor_for_encoder, with_image_size
from ddep_hub.utils.arguments import build_arguments
from ddep_hub.utils.files import check_not_file, format_list
from ddep_hub.utils.hardware import choose_device
from ddep_hub.utils.processes import keep_freed_memory

from .arguments import InferenceArguments, PredictArguments
from .georeferencing import read_georeference
from .inference import eval_mode, input_device, predict_ids
from .prediction_files import MaskWriter, find_images, is_http, read_image


logger = logging.getLogger(__name__)

# Threads that read images and write masks, and the number of images that they may be ahead or behind.
NUM_THREADS, MAX_PENDING = 2, 4


Images = str | Path | Image.Image | np.ndarray


def predict(
    model: str | Path | DDePForSemanticSegmentation,
    images: Images | Sequence[Images],
    *,
    return_type: Literal["array", "pil"] = "array",
    processor: DDePImageProcessor | None = None,
    **kwargs: Any,
) -> Any:
    """Segments images at their own size.

    Args:
        model: A fine-tuned model, a folder or a Hub id. A model object keeps its device and its mode.
        images: An image or a list of images: paths, http(s) URLs, PIL images or arrays. Arrays are uint8 (H, W, 3),
            (H, W, 1) or (H, W); for models with other numbers of channels, see [`channels_first`]. A folder or a
            pattern such as `photos/*.jpg` counts as a list.
        return_type: `"array"` for class ids (with a single class, 0 is background and 1 the class), or `"pil"` for
            images with the classes' colours as palette.
        processor: The image processor; by default the one saved with the model, at the revision and in the subfolder
            it was loaded from.
        **kwargs: Fields of [`InferenceArguments`], such as `window=(512, 512)` or `flip=True`.

    Returns:
        One mask (H, W) for one image, else a list of masks. Arrays are uint8, or uint16 for more than 256 classes.
        Masks of a folder or pattern are in the order of the sorted path strings, without skipped files: pass a list of
        paths to know which mask belongs to which image.

    Raises:
        OSError: The model or an image cannot be read.
        TypeError: The model, an image or the processor has the wrong type.
        ValueError: The model is not fine-tuned, an image is damaged, an array has the wrong shape, or an argument is
            out of range.
    """
    if return_type not in ("array", "pil"):
        raise ValueError(f"return_type must be `array` or `pil`, got {return_type!r}.")
    arguments = build_arguments(InferenceArguments, {"model": get_model_name(model), **kwargs})
    network = load_for_prediction(str(arguments.model), arguments) if isinstance(model, str | Path) else model
    with eval_mode(network), lift_size_limit(arguments.options().window is not None):
        predictor = Predictor(network, arguments, processor)

        def segment(image: Any) -> Any:
            names = [image] if isinstance(image, str) else []
            mask = predictor(_to_image(image, network.config.num_channels), *names)
            return mask if return_type == "array" else _apply_palette(mask, predictor.classes)

        if isinstance(images, str | Path):
            name = os.path.expanduser(images)
            sources = list(find_images([name]).values())
            return segment(sources[0]) if sources == [name] else [segment(source) for source in sources]
        is_single = isinstance(images, Image.Image | np.ndarray | torch.Tensor | bytes | Mapping | io.IOBase)
        if is_single or not isinstance(images, Iterable):
            return segment(images)
        inputs: list[Any] = []
        for image in images:
            inputs += find_images([os.path.expanduser(image)]).values() if isinstance(image, str | Path) else [image]
        return [segment(image) for image in inputs]


class Predictor:
    """A fine-tuned model with its image processor: PIL images in, class ids out.

    `model` is put into eval mode; `processor` replaces the one saved with it.
    """

    def __init__(
        self, model: DDePForSemanticSegmentation, args: InferenceArguments, processor: DDePImageProcessor | None = None
    ) -> None:
        processor = override_image_size(processor or get_processor(model), args)
        self.model, self.classes, self.options = model.eval(), get_class_table(model.config), args.options()
        self.channel_order = getattr(processor, "channel_order", None)  # missing in transformers' processors
        self.processor = processor
        self.normalize = Normalize.from_processor(processor)

    def __call__(self, image: AnyImage, name: str = "An image to predict") -> np.ndarray:
        """Returns the class ids (H, W) of an image; `name` is what warnings call it."""
        size = image.height, image.width
        warn_about_scale(self.processor, self.model.config.image_scale_range, *size, name)
        pixels = resize_with_processor(self.processor, image)
        pixel_values = self.normalize(pixels[None].to(input_device(self.model)))
        warn_about_units(pixel_values, name)
        ids = predict_ids(self.model, pixel_values, size, self.options)[0].cpu().numpy()
        return ids.astype(np.uint8 if self.classes.num_classes <= 256 else np.uint16)


def load_for_prediction(name: str | Path, args: InferenceArguments) -> DDePForSemanticSegmentation:
    """Loads a model for inference on its device, in channels_last format and with folded BatchNorms."""
    model = load_model(name, args.encoder_weights)
    device = choose_device()
    model.to(device, memory_format=torch.channels_last)
    images = example_images(model.config.num_channels, device)
    folded = fold_batch_norms(model, lambda network: [network(pixel_values=images).logits])
    return cast(DDePForSemanticSegmentation, folded)


def get_model_name(model: str | Path | DDePForSemanticSegmentation) -> str:
    """A model's name: the given one, the location that the object was loaded from, or its class.

    Raises a TypeError if it is not a model, and a ValueError if it is not fine-tuned.
    """
    if isinstance(model, str | Path):
        return str(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}. Pass a fine-tuned model, a folder or a Hub id.")
    config = getattr(model, "config", None)
    name: str = getattr(config, "name_or_path", None) or type(model).__name__
    # Not `isinstance`, because remote code has copies of the classes.
    if getattr(config, "model_type", None) != "ddep":
        hint = "Pass the model inside, `.module`." if hasattr(model, "module") else "Pass one, a folder or a Hub id."
        raise ValueError(f"model: {name} is not a DDePForSemanticSegmentation. {hint}")
    if not hasattr(model, "classifier"):
        raise ValueError(f"model: {name} is not a fine-tuned segmentation model. Fine-tune it first.")
    return name


def get_processor(model: DDePPreTrainedModel) -> DDePImageProcessor:
    """The image processor saved with a model, or its encoder's default if the model was built in memory."""
    if not model.config.name_or_path:
        logger.warning(
            "The model was not loaded from a folder or the Hub, so images get timm's mean and std for %s and are not "
            "resized. Pass `processor` if it was trained with another one.",
            model.config.encoder_name,
        )
        return processor_for_encoder(model.config.encoder_name, num_channels=model.config.num_channels)
    return load_processor(model._loaded_from or model.config.name_or_path, model.config, **model._hub_arguments)


def override_image_size(processor: DDePImageProcessor, args: InferenceArguments) -> DDePImageProcessor:
    """The processor with `args.image_size`; warns if its own size makes a sliding window useless."""
    if not isinstance(processor, BaseImageProcessor):
        raise TypeError(
            f"processor: got {type(processor).__name__}. Pass an image processor, such as "
            "DDePImageProcessor.from_pretrained(...)."
        )
    if args.image_size is not None:
        return with_image_size(processor, args.image_size)
    side = processor.size.get("shortest_edge") if processor.do_resize else None
    window = args.options().window
    if side is not None and window is not None and side <= min(window):
        warnings.warn(
            f"The model's image processor resizes images to a shorter side of {side} pixels, so a window of "
            f"{window[0]}x{window[1]} covers the whole of that side. Set image_size to predict at a larger size.",
            stacklevel=2,
        )
    return processor


def _to_image(image: Any, channels: int) -> AnyImage:
    if isinstance(image, str):
        return read_image(image, channels)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"images: an image has no pixels: its size is {image.width}x{image.height}.")
        name = str(getattr(image, "filename", "") or "images: an image")
        return (
            to_rgb(apply_orientation(image), name)
            if channels == 3
            else ChannelImage(extract_channels(image, channels, name))
        )
    if not isinstance(image, np.ndarray):
        column = ' For a data set, pass its image column, such as data["image"].' * isinstance(image, Mapping)
        raise TypeError(f"images: got {type(image).__name__}. Pass paths, URLs, PIL images or NumPy arrays.{column}")
    shape = image.shape
    if image.ndim not in (2, 3) or 0 in shape or (channels == 3 and image.ndim == 3 and shape[2] not in (1, 3)):
        colour = f"(height, width, {channels})" + " or (height, width, 1)" * (channels == 3)
        raise ValueError(
            f"images: an array has shape {shape}. Pass (height, width) or {colour}, and a batch as a list."
        )
    if channels != 3:
        axis = -1 if image.ndim == 3 and shape[-1] == channels else None
        return ChannelImage(channels_first(image, channels, "images: an array", axis))
    if image.dtype != np.uint8:
        raise ValueError(f"images: arrays must be uint8 (height, width, 3) or (height, width), got {image.dtype}.")
    return to_rgb(Image.fromarray(image[..., 0] if shape[2:] == (1,) else image))


def _apply_palette(mask: np.ndarray, classes: ClassTable) -> Image.Image:
    if mask.dtype != np.uint8:
        raise ValueError(f"return_type: a palette holds 256 classes, not {classes.num_classes}. Use `array`.")
    picture = Image.fromarray(mask)
    picture.putpalette([value for color in classes.colors for value in color])
    return picture


def predict_images(names: Sequence[str], args: PredictArguments) -> list[str]:
    """Predicts images at their own size and writes `<kind>/<name>.png` for each, and `legend.png`.

    `names` are files, folders, patterns and URLs, see [`find_images`]. Returns the names of the results. Broken images
    are skipped; a BadFileError that names them is raised once all others are done.
    """
    keep_freed_memory()
    output = Path(args.output_dir)
    check_not_file(output)
    images = {
        name: source for name, source in find_images(names).items() if not _is_earlier_prediction(source, output)
    }
    if not images:
        raise ValueError(f"images: {' '.join(names)} holds only earlier predictions. Choose another output_dir.")
    predictor = Predictor(load_for_prediction(str(args.model), args), args)
    writer = MaskWriter(output, predictor.classes, args.predictions, predictor.channel_order)
    writer.check(images, legend=True)
    channels = predictor.model.config.num_channels
    predicted: list[str] = []
    has_windows = predictor.options.window is not None
    ahead = 1 if has_windows else MAX_PENDING  # few large rasters at a time
    with contextlib.ExitStack() as stack:
        stack.enter_context(lift_size_limit(has_windows))
        # While the model runs, threads read the next images and write the last masks.
        readers, writers = (stack.enter_context(ThreadPoolExecutor(NUM_THREADS)) for _ in range(2))
        sources = iter(images.items())
        pending_reads = deque(
            (name, readers.submit(read_image, source, channels)) for name, source in itertools.islice(sources, ahead)
        )
        pending_writes: deque[Future[None]] = deque()
        while pending_reads:
            name, future = pending_reads.popleft()
            for next_name, source in itertools.islice(sources, 1):
                pending_reads.append((next_name, readers.submit(read_image, source, channels)))
            try:
                image = future.result()
            except (BadFileError, OSError) as error:
                if len(images) == 1:
                    raise
                logger.warning("%s; skipping it", error)
                continue
            mask = predictor(image, images[name])
            if not predicted:  # only now, to leave nothing behind if no image can be read
                writer.write_legend()
            predicted.append(name)
            pending_writes.append(writers.submit(writer.write, name, mask, image, read_georeference(images[name])))
            if len(pending_writes) > ahead:
                pending_writes.popleft().result()
        for write in pending_writes:
            write.result()
    bad_files = [images[name] for name in images.keys() - set(predicted)]
    if bad_files:
        others = f"; the results of the others are in {output}" if predicted else ""
        raise BadFileError(
            f"{len(bad_files)} of {len(images)} images could not be read and were skipped{others}: "
            f"{format_list(sorted(bad_files), 20)}. Replace or remove them.",
            bad_files[0],
        )
    return predicted


def _is_earlier_prediction(source: str, output: Path) -> bool:
    """Whether an image in the output folder is the result of an earlier call."""
    path = Path(source)
    return not is_http(source) and output.resolve() in path.resolve().parents and is_prediction(path)


def get_class_table(config: PretrainedConfig) -> ClassTable:
    """A model's classes, in the colours it was fine-tuned with.

    If it has none, the colours are those of the known data set with exactly these class names (including the rendered
    scenes), or arbitrary distinct ones.
    """
    names = ordered_names(config.id2label)
    info = find_dataset_by_classes(names)
    if config.label_colors and len(config.label_colors) == len(names):
        colors = tuple((red, green, blue) for red, green, blue in config.label_colors)
    elif names == SCENE_CLASSES.names:
        return SCENE_CLASSES
    elif info is not None:
        return info.classes
    else:
        colors = class_colors(len(names))
    # A prediction has no ignored pixels, so any value that no mask holds will do.
    return ClassTable(names=names, colors=colors, ignore_index=-1)
