"""`ddep-hub card`: writes the card of a model's folder."""

from dataclasses import dataclass
from pathlib import Path

from ddep_hub.hub.model_card import CARD, add_baseline, add_evaluation, write_card
from ddep_hub.hub.staging import model_class
from ddep_hub.utils.arguments import arg, parse_command


POSITIONALS = {"folder": {"help": "Folder of a model, such as runs/finetune/final."}}


@dataclass(kw_only=True)
class CardArguments:
    """Writes a model's card from its files. Your own text between the marks in README.md is kept."""

    repository: str | None = arg(None, "Repository that the card's snippets load, org/name; default: as it is.")
    baseline: str | None = arg(
        None, "Folder final/ of a run from a random decoder on the same labels, to show its metrics for comparison."
    )
    evaluation: str | None = arg(
        None, "Folder of `ddep-hub evaluate` on this model, whose metrics replace those of the run."
    )


def main(argv: list[str]) -> None:
    """Runs `ddep-hub card`."""
    args, given = parse_command(CardArguments, argv, command="ddep-hub card", positionals=POSITIONALS)
    folder = Path(given["folder"])
    model_class(folder)
    # The evaluation first: a baseline must have been evaluated in the same way.
    if args.evaluation is not None:
        add_evaluation(folder, Path(args.evaluation))
    if args.baseline is not None:
        add_baseline(folder, Path(args.baseline))
    write_card(folder, args.repository)
    print(f"{folder / CARD} written")
