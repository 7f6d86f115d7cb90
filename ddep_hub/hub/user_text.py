"""The user's part of a model card: the text between two marks, and metadata that is not generated."""

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard

from .staging import CARD


# The user's own text is between these two marks.
BEGIN, END = "<!-- your text: kept when the card is rewritten -->", "<!-- end of your text -->"


def extract_user_text(card: str, name: str = CARD) -> str:
    """The user's part of a card. Without marks, this is the whole card except for the metadata.

    `name` is the card's name in the error. Raises a ValueError if only one of the marks is present, because the text
    then has no known end.
    """
    card = card.replace("\r\n", "\n")
    if (BEGIN in card) != (END in card):
        lost, other = (END, BEGIN) if BEGIN in card else (BEGIN, END)
        raise ValueError(f"{name} has the line `{other}`, but not `{lost}`. Put it back, so that your text is kept.")
    if BEGIN in card:
        return card.partition(BEGIN)[2].partition(END)[0].strip()
    text = re.sub(r"\A---\n.*?^---\s*$", "", card, flags=re.DOTALL | re.MULTILINE).strip()
    return "" if "[More Information Needed]" in text else text  # transformers' placeholder card


def parse_card(card: str, *, ignore_errors: bool = False) -> ModelCard:
    """A card with its metadata, the part between the lines `---`; raises a ValueError if that is not valid.

    `ignore_errors` drops results in the metadata that are not valid.
    """
    try:
        return ModelCard(card, ignore_metadata_errors=ignore_errors)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{CARD}: the metadata between the lines `---` is not valid: {error}") from error


def parse_metadata(card: str) -> dict[str, Any]:
    """The metadata of a card as a dictionary, which is empty if it has none."""
    return dict(parse_card(card, ignore_errors=True).data.to_dict()) if card.startswith("---") else {}


def merge_metadata(card: str, other_card: str) -> str:
    """Adds another card's further metadata to a card, such as a licence; generated metadata is kept."""
    other_metadata = parse_metadata(other_card)
    if not other_metadata:
        return card
    merged = parse_card(card)
    for name, value in other_metadata.items():
        if name in ("tags", "datasets") and isinstance(value, list):
            value = list(dict.fromkeys([*(merged.data.get(name) or []), *value]))
            merged.data[name] = value or None
        elif merged.data.get(name) is None and name not in ("model-index", "pipeline_tag", "metrics", "base_model"):
            merged.data[name] = value
    return str(merged)
