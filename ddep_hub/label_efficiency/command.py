"""Arguments of `examples/label_efficiency.py`, and what it does."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ddep_hub.data.splits import parse_fraction
from ddep_hub.utils.arguments import arg

from .config import Study, arms_of, read_study, vary
from .report import write_report
from .runner import check_study, read_rows, run_study


@dataclass(kw_only=True)
class StudyArguments:
    """Arguments of `examples/label_efficiency.py`."""

    study: str = arg("examples/configs/label-efficiency-scenes.yaml", "YAML file with arms, fractions and seeds.")
    data: str | None = arg(None, "Labelled data in place of the file's, as for finetune.py.")
    images: list[str] = arg([], "Unlabelled images in place of the file's, as for pretrain.py.")
    output_dir: str = arg("runs/label-efficiency", "Folder of the rows, decoders, runs, report and figure.")
    arms: list[str] = arg([], "Arms to run; default: all of the file's.")
    fractions: list[str] = arg([], "Label fractions to run; default: all of the file's.")
    seeds: int | None = arg(None, "Number of seeds in place of the file's.")
    vary: list[str] = arg(
        [],
        "Another axis: `section.argument value value ...`, such as `pretraining.sigma 0.1 0.22 0.2,0.3`. Each arm "
        "that it concerns is run with each value.",
    )
    report_only: bool = arg(False, "Write report and figure from the rows that are there, and run nothing.")

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be positive, got {self.seeds}.")
        if len(self.vary) == 1:
            raise ValueError(f"vary needs values after `{self.vary[0]}`.")


def chosen_study(args: StudyArguments) -> Study:
    """The study of a file, as the other arguments change it.

    Raises:
        OSError, ValueError: see [`read_study`]; an arm or an axis that is not there.
    """
    study = read_study(args.study)
    if args.arms:
        study = dataclasses.replace(study, arms=arms_of(study, args.arms))
    if args.vary:
        study = vary(study, args.vary[0], args.vary[1:])
    wanted = [str(parse_fraction(fraction)) for fraction in args.fractions] or list(study.seeds)
    seeds = {fraction: args.seeds or study.seeds.get(fraction, max(study.seeds.values())) for fraction in wanted}
    return dataclasses.replace(
        study,
        seeds=dict(sorted(seeds.items(), key=lambda item: parse_fraction(item[0]))),
        data=args.data or study.data,
        images=args.images or study.images,
    )


def study(args: StudyArguments) -> None:
    """Runs what is missing of a study and writes its report.

    Raises:
        SystemExit: it was launched on several processes at once; or see [`chosen_study`].
        RunInterrupted: a signal came; a checkpoint was written.
    """
    if PartialState().num_processes > 1:
        raise SystemExit(
            "A study is many small runs: launch it on one process, and start it several times on one output_dir to "
            "share them."
        )
    try:
        chosen, output = chosen_study(args), Path(args.output_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(f"label_efficiency: {error}") from error
    if args.report_only:
        check_study(chosen, output / "results.csv")
        output.mkdir(parents=True, exist_ok=True)
    else:
        run_study(chosen, output)
    # Baselines that have rows are compared with, also where other arms alone were asked for.
    rows = read_rows(output / "results.csv")
    asked, there = {arm.name for arm in chosen.arms}, {row.arm for row in rows}
    every = chosen_study(dataclasses.replace(args, arms=[])).arms
    shown = [arm for arm in every if arm.name in asked or (arm.baseline and arm.name in there)]
    title = f"Label efficiency on {Path(chosen.data or 'the embedded scenes').name}"
    print(write_report(dataclasses.replace(chosen, arms=shown), rows, output, title=title))
    print(f"{output / 'report.md'}, {output / 'figure.png'}")
