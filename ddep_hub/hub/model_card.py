"""The model card of a folder: made from its files, and made again without losing what a person wrote into it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ddep_hub.hub import card_finetuning, card_pretraining
from ddep_hub.utils.files import atomic_write

from .card_facts import CONFUSION, LOSS, PREDICTIONS, RESULTS, RUN, Facts, Kind, read_facts, run_facts
from .card_text import Card, merged


__all__ = ["CARD", "CONFUSION", "LOSS", "PREDICTIONS", "RESULTS", "RUN", "write_card", "write_run_record"]


CARD = "README.md"
logger = logging.get_logger(__name__)


def write_run_record(folder: str | Path, kind: Kind, arguments: Any, results: Mapping[str, Any], **facts: Any) -> None:
    """Writes `run.json` and `results.json`, from which [`write_card`] makes the card.

    Args:
        folder: folder of the trained model.
        kind: `"pretraining"` or `"finetuning"`.
        arguments: the run's arguments, a dataclass. Paths of this machine are not written, see `arg(path=True)`.
        results: the metrics, and `seconds` of training.
        **facts: `encoder_source`; `images` in pretraining, their number in words; `evaluated` in fine-tuning, the
            number of validation images.
    """
    run = run_facts(kind, arguments, **facts)
    for name, content in ((RESULTS, results), (RUN, run)):
        atomic_write(Path(folder) / name, json.dumps(content, indent=1) + "\n")


def write_card(folder: str | Path, repository: str | None = None) -> None:
    """Writes the model card `README.md` from the files in a folder; the user's own text in it is kept.

    Args:
        folder: folder of a trained model, such as `runs/finetune/final`.
        repository: `org/name` for the snippets; default: what the card says, or a placeholder.

    Raises:
        FileNotFoundError: the folder has neither a card nor the files to make one from.
        ValueError: a file is damaged; names it.
    """
    folder = Path(folder)
    card = card_of(folder, repository)
    if card is None:
        raise FileNotFoundError(
            f"{folder} has neither {CARD} nor {RUN} and {RESULTS}, from which it is made. Name the folder final/ of "
            "a run."
        )
    atomic_write(folder / CARD, card.text())


def new_card(facts: Facts, repository: str | None = None) -> Card:
    """The card of a model. A part that nothing is known of is left out.

    Args:
        facts: see [`read_facts`].
        repository: `org/name` to load it by; without one, the snippets say `path/to/this/folder`.
    """
    of_kind = card_pretraining if facts.run["kind"] == "pretraining" else card_finetuning
    sections = {heading: body for heading, body in of_kind.sections(facts).items() if body}
    card = Card.new(of_kind.metadata(facts).to_dict(), sections, None)
    return card.named(repository) if repository else card


def card_of(folder: str | Path, repository: str | None = None) -> Card | None:
    """The card of a folder as its files have it now, with what a person wrote into its README.md.

    Args:
        folder: a model's folder, such as `runs/finetune/final`.
        repository: `org/name` for its snippets; by default what README.md says.

    Returns:
        The card; `None` where there is no README.md, and no run wrote down what it was.

    Raises:
        ValueError: a file is damaged; names it.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    old = Card.parse((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else None
    facts = read_facts(folder)
    if facts is None:
        return old.named(repository) if old and repository else old
    if old is None:
        return new_card(facts, repository)
    name = repository or old.repository
    return merged(new_card(facts, name), old.named(name), "generated")


def published_card(card: Card, on_hub: str | None) -> Card:
    """The card to publish: what was changed on the Hub since the last time is kept.

    Args:
        card: the folder's, see [`card_of`].
        on_hub: text of the card that is there, if there is one.

    Raises:
        ValueError: the metadata of the one on the Hub are no YAML.
    """
    if on_hub is None:
        return dataclasses.replace(card, published=card.digests())
    old = Card.parse(on_hub).named(card.repository)
    result = merged(card, old, "published")
    ours, final = card.digests(), result.digests()
    by_hand = [part for part, digest in ours.items() if digest != card.generated.get(part)]
    lost = [part for part in by_hand if final.get(part) != ours[part]]
    if lost:
        logger.warning(
            f"Both the card on the Hub and README.md were changed by hand in {', '.join(lost)}; the Hub's was kept."
        )
    return result.sent()
