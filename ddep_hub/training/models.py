"""The model and the image processor that a run starts from."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate.utils import set_seed
from torch import nn

from ddep_hub.configuration_ddep import PREDICTED, DDePConfig
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.preprocessing import AnyImage, to_tensor
from ddep_hub.data.segmentation_datasets import SizedDataset
from ddep_hub.data.statistics import Statistics, channel_statistics
from ddep_hub.decoder import restore_weight_norms
from ddep_hub.encoder_weights import encoder_source, is_lite0
from ddep_hub.encoders import extract_features, fixed_image_size
from ddep_hub.evaluation.inference import eval_mode
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.modeling_ddep import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.pretrained import load_processor, processor_for_encoder, stored_config, with_channel_order
from ddep_hub.utils.files import format_list

from .arguments import FinetuneArguments, PretrainArguments
from .run_arguments import RunArguments


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=DDePPreTrainedModel)


def get_num_channels(args: RunArguments) -> int:
    """Number of channels of a run's images."""
    if args.num_channels is not None:
        return args.num_channels
    return 3 if args.pretrained is None else int(stored_config(args.pretrained).get("num_channels", 3))


def build_processor(
    args: RunArguments, checkpoint: str | None, config: DDePConfig, images: Iterable[torch.Tensor]
) -> DDePImageProcessor:
    """Builds the image processor of a run: that of `checkpoint`, the model to start from, or a new one.

    Mean, std and channel order in `args` override those of the processor. `images`, `(C, H, W)` in 0..255, are read
    only if mean and std have to be measured.
    """
    num_channels, processor = config.num_channels, None
    if checkpoint is not None and stored_config(checkpoint).get("num_channels", 3) == num_channels:
        processor = load_processor(checkpoint, config)
    mean_std: Statistics | None = None
    if args.image_mean:
        if len(args.image_mean) != num_channels:
            raise ValueError(
                f"image_mean has {len(args.image_mean)} numbers, but images have {num_channels} channels."
            )
        mean_std = args.image_mean, args.image_std
    elif processor is None and num_channels != 3:  # for RGB, they come with the encoder's weights
        mean_std = channel_statistics(images)
    if processor is None:
        return processor_for_encoder(
            config.encoder_name, num_channels=num_channels, mean_std=mean_std, channel_order=args.channel_order
        )
    if args.channel_order:
        processor = with_channel_order(processor, args.channel_order, num_channels)
    if mean_std is None:
        return processor
    fields = {"do_normalize": True, "image_mean": mean_std[0], "image_std": mean_std[1]}
    return type(processor).from_dict({**processor.to_dict(), **fields})


def iter_pixels(samples: SizedDataset, num_channels: int, *, skip_bad_files: bool) -> Iterator[torch.Tensor]:
    """Yields the pixels of whole images, `(C, H, W)` in 0..255; `skip_bad_files` skips those that cannot be read."""
    for index in range(len(samples)):
        try:
            image = samples[index]["image"]
            yield to_tensor(image if isinstance(image, AnyImage) else decode_image(image, num_channels))
        except (BadFileError, OSError):
            if not skip_bad_files:
                raise


def find_encoder(args: RunArguments, checkpoint: str | None) -> str:
    """The source of a run's encoder: `checkpoint`, if it includes its encoder, otherwise see [`encoder_source`]."""
    stored = {} if checkpoint is None else stored_config(checkpoint)
    if checkpoint is not None and not stored.get("decoder_only"):
        # The other values may come from presets and pretraining stages.
        if checkpoint == args.pretrained and args.encoder_weights not in (None, "hub", "pypi", "none"):
            raise ValueError(f"encoder_weights: {checkpoint} includes its encoder. Leave encoder_weights out.")
        return checkpoint
    return encoder_source(
        stored.get("encoder_name", args.encoder_name),
        args.encoder_weights,
        # Weights adapted to other channels have a different hash than their source.
        stored.get("encoder_weights_hash") if stored.get("num_channels", 3) == 3 else None,
        get_num_channels(args),
    )


def new_model(cls: type[Model], args: Any, source: str, **fields: Any) -> Model:
    """A model with a random decoder and the encoder weights of `source`, see [`encoder_source`].

    `args` has `encoder_name` and the `decoder_*` fields of [`DDePConfig`]; `fields` are further fields of it.
    """
    names = {field.name for field in dataclasses.fields(args) if field.name.startswith("decoder_")}
    fields |= {name: getattr(args, name) for name in names - {"decoder_only"}}
    fields |= {"encoder_out_indices": args.encoder_out_indices}
    if args.encoder_img_size is not None:
        fields["encoder_kwargs"] = {"img_size": args.encoder_img_size}
    fields.setdefault("num_channels", get_num_channels(args))
    if source == "none":
        model = cls(DDePConfig(encoder_name=args.encoder_name, **fields))
    else:
        model = cls.from_pretrained_encoder(args.encoder_name, encoder_weights=source, **fields)
    if args.encoder_img_size is not None:
        _check_image_size(model, args.encoder_img_size)
    return model


def _check_image_size(model: DDePPreTrainedModel, size: int) -> None:
    """Raises a ValueError for an encoder of an image size that it cannot take, which timm builds all the same."""
    config, encoder = model.config, model.ddep.encoder
    try:
        with torch.no_grad(), eval_mode(encoder):
            extract_features(encoder, torch.zeros(1, config.num_channels, 64, 64))
    except (RuntimeError, AssertionError) as error:
        own_size = fixed_image_size(DDePConfig(encoder_name=config.encoder_name))
        hint = f": its own size is {own_size[0]}x{own_size[1]}" if own_size else ""
        raise ValueError(
            f"encoder_img_size: {config.encoder_name} cannot take images of {size}x{size} pixels. "
            f"Leave encoder_img_size out{hint}."
        ) from error


def needs_image_skip(encoder_name: str) -> bool:
    """Whether the denoising head should get the noisy image because the encoder loses the noise.

    EfficientNet-Lite0 does, with only 16 channels in its finest features, at stride 2: see
    `benchmarks/encoder_noise.py`.
    """
    return is_lite0(encoder_name)


def pretraining_model(args: PretrainArguments, source: str, stored: Mapping[str, Any]) -> DDePForPreTraining:
    """Builds the model to pretrain.

    `source` comes from [`find_encoder`]; `stored` is the configuration of `args.pretrained`, empty if that is `None`.
    """
    image_skip = args.image_skip
    prediction_type = PREDICTED.get(args.corruption, args.prediction_type)
    if args.corruption in PREDICTED:
        image_skip = False
    elif image_skip is None and "image_skip" in stored and stored.get("corruption") not in PREDICTED:
        image_skip = stored["image_skip"]
    elif image_skip is None:
        image_skip = needs_image_skip(stored.get("encoder_name", args.encoder_name))
    fields: dict[str, Any] = {
        "freeze_encoder": args.freeze_encoder,
        "corruption": args.corruption,
        "mask_ratio": args.mask_ratio,
        "mask_patch_size": args.mask_patch_size,
        "prediction_type": prediction_type,
        "sigma": args.sigma[0] if len(args.sigma) == 1 else args.sigma,
        "image_skip": image_skip,
        "num_channels": get_num_channels(args),
    }
    if args.pretrained is None:
        return new_model(DDePForPreTraining, args, source, **fields)
    weights = None if source == args.pretrained else source
    model = _load_float32(DDePForPreTraining, args.pretrained, stored, encoder_weights=weights, **fields)
    if stored.get("prediction_type", "epsilon") != prediction_type:  # a head for another target
        _reinit_head(model.noise_head, model.config, args.seed)
    return model


def finetuning_model(
    args: FinetuneArguments, classes: ClassTable, decoder: str | None = None
) -> tuple[DDePForSemanticSegmentation, str]:
    """Builds the model to fine-tune; returns it with the source of its encoder, see [`find_encoder`].

    A classifier is kept only if the model was fine-tuned for exactly these classes. A new one depends only on the
    seed, so that models with different decoders start with the same classifier. `decoder` is the folder of a decoder
    to start from, instead of `args.pretrained`.
    """
    cls = DDePForSemanticSegmentation
    labels: dict[str, Any] = {
        "id2label": classes.id2label,
        "label_colors": [list(color) for color in classes.colors[-len(classes.labels) :]],
        "semantic_loss_ignore_index": classes.ignore_index,
    }
    stored: dict[str, Any] = {}
    checkpoint = decoder or args.pretrained
    source = find_encoder(args, checkpoint)
    if checkpoint is None:
        model = new_model(cls, args, source, **labels)
    else:
        stored, weights = stored_config(checkpoint), None if source == checkpoint else source
        if args.num_channels is not None:
            labels["num_channels"] = args.num_channels
        model = _load_float32(cls, checkpoint, stored, encoder_weights=weights, **labels)
    if args.restore_decoder_norms and "DDePForPreTraining" in (stored.get("architectures") or ()):
        restore_weight_norms(model.ddep.decoder)
    if args.keep_decoder_blocks is not None:
        reinit_blocks(model, args.keep_decoder_blocks)
    names = {int(label): name for label, name in (stored.get("id2label") or {}).items()}
    is_finetuned = cls.__name__ in (stored.get("architectures") or ())
    if not is_finetuned or names != classes.id2label:
        _reinit_head(model.classifier, model.config, args.seed)
    if is_finetuned and names != classes.id2label:
        old_names = format_list([*names.values()])
        logger.warning(
            "%s was fine-tuned for other classes (%s), so its classifier is newly initialised.", checkpoint, old_names
        )
    return model, source


def _load_float32(cls: type[Model], checkpoint: str, stored: Mapping[str, Any], **fields: Any) -> Model:
    """Loads a model to train in float32: in half precision, small optimizer steps would be lost to rounding."""
    if stored.get("dtype") not in (None, "float32"):
        logger.warning("%s is stored in %s; it is trained and saved in float32", checkpoint, stored["dtype"])
    model: Model = cls.from_pretrained(checkpoint, ignore_mismatched_sizes=True, dtype=torch.float32, **fields)
    return model


def _reinit_head(head: nn.Conv2d, config: DDePConfig, seed: int) -> None:
    """Reinitialises a classifier or denoising head; the new weights depend only on the seed."""
    set_seed(seed)
    nn.init.normal_(head.weight, std=config.initializer_range)
    nn.init.zeros_(head.bias)


def reinit_blocks(model: DDePForSemanticSegmentation, num_kept: int) -> None:
    """Reinitialises a decoder's blocks except the coarsest `num_kept`; the bottleneck is kept in any case."""
    blocks = model.ddep.decoder.blocks
    if num_kept > len(blocks):
        raise ValueError(f"keep_decoder_blocks is {num_kept}, but the decoder has {len(blocks)} blocks.")
    new_blocks = type(model)(model.config).ddep.decoder.blocks
    for old_block, new_block in list(zip(blocks, new_blocks, strict=True))[num_kept:]:
        old_block.load_state_dict(new_block.state_dict())


def check_single_images(model: Model, side: int, set_mode: Callable[[Model], None]) -> None:
    """Checks that a model can be trained on batches of one image: a BatchNorm after global pooling cannot.

    `side` is the images' side in pixels; `set_mode` puts the model into training mode.
    """
    model = copy.deepcopy(model).to("meta")
    set_mode(model)
    try:
        model(torch.zeros(1, model.config.num_channels, side, side, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch_size: with one image at a time, a BatchNorm of {model.config.encoder_name} has one value per "
            "channel. Use at least 2 images per process and micro-batch, or freeze the encoder."
        ) from error
