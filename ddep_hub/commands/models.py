"""Fine-tuned models and the geometry that they were measured with."""

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.training.sources import encoder_file, encoder_source

from .arguments import InferenceArguments


def load_model(name: str, encoder_weights: str | None) -> DDePForSemanticSegmentation:
    """The fine-tuned model, in eval mode.

    Args:
        name: folder or repository.
        encoder_weights: source of the encoder of a decoder-only folder, see [`encoder_source`].

    Raises:
        OSError: there is none at that place.
        ValueError: it is not fine-tuned, so that its classifier would be random.
    """
    stored, _ = DDePForSemanticSegmentation.config_class.get_config_dict(name)
    if "DDePForSemanticSegmentation" not in (stored.get("architectures") or ()):
        raise ValueError(f"model_name_or_path: {name} is not a fine-tuned segmentation model. Fine-tune it first.")
    weights = None
    if stored.get("decoder_only"):  # a whole folder holds its encoder
        weights = encoder_file(encoder_source(stored["encoder_name"], encoder_weights))
    return DDePForSemanticSegmentation.from_pretrained(name, encoder_weights=weights).eval()


def image_size(args: InferenceArguments) -> int | None:
    """The shorter side that images are resized to: the argument, or what the image processor beside the model says.

    `None` for images as they are, also where there is no image processor.
    """
    if args.image_size is not None:
        return args.image_size
    try:
        processor = DDePImageProcessor.from_pretrained(args.model_name_or_path)
    except OSError:
        return None
    side = processor.size.get("shortest_edge") if processor.do_resize else None
    return None if side is None else int(side)
