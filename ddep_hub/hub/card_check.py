"""What is wrong with the card of a folder."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ddep_hub import DDePForSemanticSegmentation

from .card_text import Card
from .model_card import CARD, card_of
from .staging import model_class


# Markdown's ![](...) and [](...), and HTML's src="..." and href="...".
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|(?:src|href)\s*=\s*[\"']([^\"']+)")
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def problems(folder: str | Path) -> list[str]:
    """What is wrong with a card: parts that are not what the files say, metadata that the Hub does not take, pictures
    and files that are not there. What a person wrote is not compared with the files.

    Args:
        folder: a model's folder.

    Returns:
        A line for each, with its mend; empty for a good card.

    Raises:
        OSError, ValueError: the folder holds no model of this package, or a file of it is damaged.
    """
    folder = Path(folder)
    segments = model_class(folder) is DDePForSemanticSegmentation
    if not (folder / CARD).is_file():
        return [f"{CARD} is missing: write it by `ddep-hub card {folder}`."]
    text = (folder / CARD).read_text(encoding="utf-8")
    try:
        there = Card.parse(text)
    except ValueError as error:
        return [str(error)]
    now = card_of(folder)
    assert now is not None  # there is a README.md
    old, new = there.digests(), now.digests()
    stale = [part for part in {**old, **new} if old.get(part) != new.get(part)]
    found = [f"{part} is not what the files say: write it anew by `ddep-hub card {folder}`." for part in stale]
    found += _of_metadata(text, there.metadata, segments=segments)
    if "More Information Needed" in text:
        found.append("the text has a placeholder, `More Information Needed`: fill it in, or delete it.")
    for match in _LINK.finditer(_CODE.sub("", text)):
        link = (match[1] or match[2]).split("#")[0].split("?")[0]
        if not link or re.match(r"[a-z]+:|/", link):
            continue
        if not (folder / link).exists():
            found.append(f"{link} is not there: add the file, or take its link out.")
        elif not (folder / link).resolve().is_relative_to(folder.resolve()):
            found.append(f"{link} is outside of the folder, and leads nowhere on the Hub: name it without a link.")
    return found


def _of_metadata(text: str, metadata: dict[str, Any], *, segments: bool) -> list[str]:
    found = []
    try:
        ModelCard(text, ignore_metadata_errors=False)  # it reads model-index
    except (ValueError, TypeError, KeyError) as error:
        found.append(f"metadata.model-index cannot be read by the Hub: {error}")
    if not metadata.get("license"):
        found.append("metadata.license is missing: name the licence of the weights, such as apache-2.0.")
    if metadata.get("library_name") != "transformers":
        found.append("metadata.library_name must be transformers.")
    task = metadata.get("pipeline_tag")
    if segments and task != "image-segmentation":
        found.append(f"metadata.pipeline_tag is {task}: a fine-tuned model has image-segmentation.")
    if not segments and task is not None:
        found.append(f"metadata.pipeline_tag is {task}: this model segments nothing yet. Take it out.")
    for name in ("base_model", "datasets"):
        values = metadata.get(name) or []
        for value in values if isinstance(values, list) else [values]:
            try:
                validate_repo_id(str(value))
            except HFValidationError as error:
                found.append(f"metadata.{name}: {value} is no name of a repository: {error}")
    return found
