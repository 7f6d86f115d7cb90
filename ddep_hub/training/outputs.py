"""What a run leaves: its model, the best one so far, pictures, and the card with the files that it is made from."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor, DDePPreTrainedModel
from ddep_hub.hub.model_card import LOSS, PREDICTIONS, Kind, write_card, write_run_record
from ddep_hub.utils.files import atomic_dir, atomic_write, warn_on_write_error

from .logging import draw_loss
from .run_arguments import RunArguments


def save_model(model: DDePPreTrainedModel, processor: DDePImageProcessor, args: RunArguments, folder: Path) -> None:
    """Saves a model with its image processor."""
    # Training may have the tensors in another memory format.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Fine-tuning may have trained a denoising head beside the model.
    if isinstance(model, DDePForSemanticSegmentation):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("noise_head.")}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would break the run's own bar
    model.save_pretrained(folder, decoder_only=getattr(args, "decoder_only", False), state_dict=state)
    if shown:
        logging.enable_progress_bar()
    processor.save_pretrained(folder)


def save_best(
    model: DDePPreTrainedModel, processor: DDePImageProcessor, args: RunArguments, row: Mapping[str, Any]
) -> None:
    """Saves the best model so far to `best/`, with its metrics; only warns if the disk is full."""
    best = Path(args.output_dir) / "best"
    with warn_on_write_error(best), atomic_dir(best) as folder:
        save_model(model, processor, args, folder)
        atomic_write(folder / "results.json", json.dumps(row, indent=1) + "\n")


def save_final(model: DDePPreTrainedModel, processor: DDePImageProcessor, args: RunArguments, final: Path) -> None:
    """Saves the model of a run, and names it after its folder."""
    model.name_or_path = str(final)
    with atomic_dir(final) as folder:
        save_model(model, processor, args, folder)


def save_picture(picture: Image.Image, path: Path) -> bytes:
    """Saves a picture as PNG, and returns the file's content; only warns if the disk is full."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    with warn_on_write_error(path):
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, buffer.getvalue())
    return buffer.getvalue()


def describe(
    final: Path, kind: Kind, args: RunArguments, results: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Writes the record of a run, its results and its card; arguments of [`write_run_record`]."""
    write_run_record(final, kind, args, results, **facts)
    write_card(final)


def add_pictures(final: Path, args: RunArguments, predictions: bytes) -> None:
    """Adds the loss curve and, unless they show images of others, the predictions to the card of a run."""
    loss = Path(args.output_dir) / "pictures" / LOSS
    if draw_loss(Path(args.output_dir) / "metrics.jsonl", loss):
        atomic_write(final / LOSS, loss.read_bytes())
    # Images of others have their own license.
    others = getattr(args, "images", None) or getattr(args, "data", None)
    if args.card_pictures or (args.card_pictures is None and not others):
        atomic_write(final / PREDICTIONS, predictions)
    write_card(final)
