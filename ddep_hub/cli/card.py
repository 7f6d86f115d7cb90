"""The card of a folder: written anew from its files, or checked."""

import json
from dataclasses import dataclass
from pathlib import Path

from ddep_hub.hub.card_check import problems
from ddep_hub.hub.card_facts import BASELINE, CONFUSION, EVALUATION, baseline_of, evaluation_of
from ddep_hub.hub.model_card import CARD, card_of
from ddep_hub.hub.staging import model_class
from ddep_hub.utils.arguments import arg, parse_command
from ddep_hub.utils.files import atomic_write


PLACES = {"folder": {"help": "Folder of a model, such as runs/finetune/final."}}


@dataclass(kw_only=True)
class CardArguments:
    """Arguments of `ddep-hub card`. What a person wrote into the card is kept."""

    repository: str | None = arg(None, "Repository that the card's snippets load, org/name; default: as it is.")
    baseline: str | None = arg(
        None, "final/ of a run from a random decoder on the same labels, whose figures stand beside this model's."
    )
    evaluation: str | None = arg(
        None,
        "Folder of `ddep-hub evaluate` on this model: its figures replace those of the run, and its confusion "
        "matrix is shown.",
    )
    check: bool = arg(False, "Write nothing: list what is wrong with the card. Exit code 1 where something is.")

    def __post_init__(self) -> None:
        if self.check and (self.repository or self.baseline or self.evaluation):
            raise ValueError("check writes nothing. Leave it out, or repository, baseline and evaluation.")


def main(argv: list[str]) -> None:
    """`ddep-hub card`."""
    args, given = parse_command(CardArguments, argv, command="ddep-hub card", positionals=PLACES)
    folder = Path(given["folder"])
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json. Name a folder that a training script wrote.")
    model_class(folder)
    if args.check:
        found = problems(folder)
        if found:
            raise ValueError("\n".join([f"{folder / CARD}:", *(f"- {problem}" for problem in found)]))
        print(f"{folder / CARD}: nothing wrong")
        return
    # The evaluation first: whether the baseline was measured alike depends on it.
    for name, source, read in (
        (EVALUATION, args.evaluation, evaluation_of),
        (BASELINE, args.baseline, baseline_of),
    ):
        if source is not None:
            atomic_write(folder / name, json.dumps(read(folder, Path(source)), indent=1) + "\n")
    if args.evaluation is not None and (Path(args.evaluation) / CONFUSION).is_file():
        atomic_write(folder / CONFUSION, (Path(args.evaluation) / CONFUSION).read_bytes())
    card = card_of(folder, args.repository)
    if card is None:
        raise FileNotFoundError(
            f"{folder} has neither {CARD} nor run.json and results.json, from which it is made. Name the folder "
            "final/ of a run."
        )
    atomic_write(folder / CARD, card.text())
    by_hand = [part for part, digest in card.digests().items() if digest != card.generated.get(part)]
    kept = f"; kept as written by hand: {', '.join(by_hand)}" if by_hand else ""
    print(f"{folder / CARD} written{kept}")
