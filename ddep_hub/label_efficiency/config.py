"""What a study compares: a YAML file of shared arguments and of arms, and the arguments of every run that follow."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ddep_hub.data.splits import parse_fraction
from ddep_hub.evaluation.arguments import EvaluateArguments
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments, RunArguments
from ddep_hub.utils.arguments import as_flags, did_you_mean, names_with, parse_arguments


SECTIONS = ("model", "pretraining", "finetuning")
_PART = dict | None
_FORMS: list[tuple[str, Any, str]] = [
    *((name, dict, "`name: value` lines") for name in (*SECTIONS, "arms", "fractions", "evaluation")),
    *((name, str | list, "a list of names") for name in ("baselines", "images")),
    ("data", str, "a path or a name"),
]
# What no result depends on; what a row says in columns of its own; and what follows from the arm.
_RESUMABLE = {*names_with(PretrainArguments, "resumable"), *names_with(FinetuneArguments, "resumable")}
_NO_SETTING = (_RESUMABLE - {"eval_split"}) | set(
    "output_dir seed split_seed label_fraction pretrained overwrite".split()
)


@dataclass(frozen=True)
class Arm:
    """One way to train, compared with the others.

    Attributes:
        name: its name in the table; of an axis `"ddep sigma=0.3"`.
        pretraining: arguments of `examples/pretrain.py`, or `None` where no decoder is pretrained.
        finetuning: arguments of `examples/finetune.py`.
        baseline: whether the others are compared with it.
        variant: value of the axis that it stands for, `""` where the axis does not concern it.
        own: arguments that make it the arm it is, as `section.argument`; an axis leaves them alone.
    """

    name: str
    pretraining: dict[str, Any] | None
    finetuning: dict[str, Any]
    baseline: bool
    variant: str = ""
    own: frozenset[str] = frozenset()


@dataclass
class Study:
    """A study as its file says it.

    Attributes:
        arms: the arms, in the file's order.
        seeds: number of seeds of each label fraction; seeds count from 0 and are the same in every arm.
        data: labelled data, as `--data` of `examples/finetune.py`; `None` for the embedded scenes.
        images: unlabelled images, as `--images` of `examples/pretrain.py`.
        evaluation: arguments of `examples/evaluate.py` for the scores; `None` takes those of fine-tuning.
    """

    arms: list[Arm]
    seeds: dict[str, int]
    data: str | None = None
    images: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None

    def pretrain_arguments(self, arm: Arm, folder: Path) -> PretrainArguments:
        """Arguments of an arm's pretraining, which takes place below `folder`; equal ones share it."""
        values: dict[str, Any] = {"images": self.images, **(arm.pretraining or {})}
        values.setdefault("decoder_only", values.get("freeze_encoder", True))
        args = _parse(PretrainArguments, values, f"arm `{arm.name}`, pretraining")
        args.output_dir = str(folder / self._pretraining_digest(arm, args))
        args.resume_from_checkpoint = "latest"
        return args

    def _pretraining_digest(self, arm: Arm, args: PretrainArguments) -> str:
        """Digest of an arm's pretraining; where the study's images lie says nothing, an arm's own images do."""
        own = arm.pretraining is not None and "images" in arm.pretraining
        return _digest(args, images=args.images) if own else _digest(args)

    def finetune_arguments(
        self, arm: Arm, fraction: str, seed: int, folder: Path, decoder: str | None
    ) -> FinetuneArguments:
        """Arguments of one fine-tuning run.

        Args:
            arm: the arm.
            fraction: share of the labelled images.
            seed: seed of the choice of images and of the run.
            folder: the run's folder is below it.
            decoder: folder of the arm's pretrained decoder, if it has one.
        """
        values = {"data": self.data, **arm.finetuning, "label_fraction": fraction, "seed": seed, "split_seed": seed}
        values |= {"pretrained": decoder} if decoder else {}
        args = _parse(FinetuneArguments, values, f"arm `{arm.name}`, finetuning")
        name = f"{arm.name}-{fraction}-{seed}".replace("/", "_").replace(" ", "-")
        args.output_dir = str(folder / name)
        args.resume_from_checkpoint = "latest"
        return args

    def evaluate_arguments(self, finetuning: FinetuneArguments) -> EvaluateArguments | None:
        """Arguments of the evaluation of a fine-tuned model, if it is measured otherwise than fine-tuning does."""
        if self.evaluation is None:
            return None
        values = {"data": self.data, "eval_split": finetuning.eval_split, **self.evaluation}
        values |= {"model": f"{finetuning.output_dir}/final"}
        return _parse(EvaluateArguments, {**values, "output_dir": f"{finetuning.output_dir}/evaluation"}, "evaluation")

    def settings(self, arm: Arm) -> str:
        """Digest of all that an arm's results depend on, but for data, fraction and seed."""
        decoder = None if arm.pretraining is None else "its own"
        finetuning = self.finetune_arguments(arm, "1", 0, Path(), decoder)
        parts = [_digest(finetuning)]
        if arm.pretraining is not None:
            parts.append(self._pretraining_digest(arm, self.pretrain_arguments(arm, Path())))
        if (evaluation := self.evaluate_arguments(finetuning)) is not None:
            parts.append(_digest(evaluation))
        return "-".join(parts)


def read_study(path: str | Path) -> Study:
    """Reads a study file.

    `model`, `pretraining` and `finetuning` hold arguments that all arms share, by the names of the scripts; `model`
    goes to the pretraining of an arm that has one, and else to its fine-tuning. `config` in one of the latter two is
    a file of the script's arguments beside the study file. Each entry of `arms` may override them. `evaluation` holds
    arguments of `examples/evaluate.py`; without it, images are predicted whole, as in fine-tuning. `baselines` names
    the arms that the others are compared with, `fractions` gives the number of seeds of each label fraction.

    Raises:
        OSError: it cannot be read.
        ValueError: it lacks a part, or has one or an argument that is not known; names it.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error
    known = [*SECTIONS, "arms", "baselines", "fractions", "data", "images", "evaluation"]
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines with {', '.join(known)}.")
    for name in content:
        if name not in known:
            raise ValueError(f"{path} has an unknown entry {did_you_mean(str(name), known)}")
    for name, kinds, form in _FORMS:
        if content.get(name) is not None and not isinstance(content[name], kinds):
            raise ValueError(f"{path}: `{name}` must be {form}, not {content[name]!r}.")
    for name in ("arms", "baselines", "fractions"):
        if not content.get(name):
            raise ValueError(f"{path} lacks `{name}`.")
    images, baselines = (_listed(content.get(name)) for name in ("images", "baselines"))
    shared = {section: dict(content.get(section) or {}) for section in SECTIONS}
    for section in shared.values():
        if "config" in section:
            section["config"] = str(Path(path).parent / section["config"])
    arms = []
    for name, entry in content["arms"].items():
        own = entry or {}
        wrong = [own] if not isinstance(own, dict) else [part for part in own.values() if not isinstance(part, _PART)]
        if wrong:
            raise ValueError(f"{path}, arm `{name}`: {wrong[0]!r} must be `name: value` lines.")
        unknown = set(own) - set(SECTIONS)
        if unknown:
            raise ValueError(f"{path}, arm `{name}`: unknown {sorted(unknown)}; there are {', '.join(SECTIONS)}.")
        merged = {section: {**shared[section], **(own.get(section) or {})} for section in SECTIONS}
        pretrained = "pretraining" in own
        model = merged["model"]
        # A decoder-only checkpoint meets its encoder again in fine-tuning.
        encoder = {name: value for name, value in model.items() if name == "encoder_weights"}
        arms.append(
            Arm(
                name=str(name),
                pretraining={**model, **merged["pretraining"]} if pretrained else None,
                finetuning={**(encoder if pretrained else model), **merged["finetuning"]},
                baseline=str(name) in baselines,
                own=frozenset(f"{section}.{argument}" for section, part in own.items() for argument in part or {}),
            )
        )
    missing = set(baselines) - {arm.name for arm in arms}
    if missing:
        raise ValueError(f"{path}: baselines names {sorted(missing)}, which are no arms.")
    seeds = {}
    for fraction, number in content["fractions"].items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{path}, fractions: {fraction} needs a positive number of seeds, got {number!r}.")
        try:
            seeds[str(parse_fraction(fraction))] = number
        except ValueError as error:
            raise ValueError(f"{path}, fractions: {error}") from error
    return Study(arms, seeds, content.get("data"), images, content.get("evaluation"))


def _listed(value: str | list[str] | None) -> list[str]:
    """The names of an entry that may be one name alone."""
    return [value] if isinstance(value, str) else [str(name) for name in value or []]


def arms_of(study: Study, names: list[str]) -> list[Arm]:
    """Arms of these names, in the study's order.

    Raises:
        ValueError: there is no such arm.
    """
    known = [arm.name for arm in study.arms]
    for name in names:
        if name not in known:
            raise ValueError(f"arms: there is no arm `{name}`; the study has {', '.join(known)}.")
    return [arm for arm in study.arms if arm.name in names]


def vary(study: Study, axis: str, values: list[str]) -> Study:
    """A study along another axis: each arm that the axis concerns, once for each value.

    It does not concern an arm that sets the argument itself, nor, where it is one of pretraining or of what is kept of
    a pretrained decoder, one that has none.

    Args:
        study: the study.
        axis: `section.argument`, such as `pretraining.sigma`, `model.decoder_width` or `finetuning.max_steps`.
        values: values of the argument; commas part the numbers of one that takes several: `0.2,0.3`.

    Raises:
        ValueError: no such section or argument.
    """
    section, _, argument = axis.partition(".")
    if section not in SECTIONS or not argument:
        raise ValueError(f"vary: `{axis}` must be `section.argument`, with a section of {', '.join(SECTIONS)}.")
    kind = PretrainArguments if section == "pretraining" else FinetuneArguments
    names = [known.name for known in dataclasses.fields(kind)]
    if argument not in names:
        raise ValueError(f"vary: unknown argument {did_you_mean(argument, names)}")
    arms = []
    for arm in study.arms:
        to_pretraining = section != "finetuning" and arm.pretraining is not None
        of_decoder = section == "pretraining" or axis == "finetuning.keep_decoder_blocks"
        if axis in arm.own or (of_decoder and arm.pretraining is None):
            arms.append(arm)
            continue
        for text in values:
            change = {argument: text.split(",") if "," in text else text}
            variant = f"{argument}={text}"
            arms.append(
                dataclasses.replace(
                    arm,
                    name=f"{arm.name} {variant}",
                    variant=variant,
                    pretraining={**(arm.pretraining or {}), **change} if to_pretraining else arm.pretraining,
                    finetuning=arm.finetuning if to_pretraining else {**arm.finetuning, **change},
                )
            )
    return dataclasses.replace(study, arms=arms)


def _parse(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Arguments through the scripts' own parser, which checks types, ranges and names."""
    names = [known.name for known in dataclasses.fields(cls)]
    for name in values:
        if name not in names and name != "config":
            raise ValueError(f"{where}: unknown argument {did_you_mean(name, names)}")
    try:
        return parse_arguments(cls, as_flags(dict(values)))
    except SystemExit as error:
        raise ValueError(f"{where}: these arguments do not go together; the message above says why.") from error


def _digest(args: RunArguments | EvaluateArguments, **more: Any) -> str:
    """Short hash of the arguments that a result depends on, and of `more`.

    Defaults count, as they may change from one release to the next. What is off does not, so that an option which a
    later release adds leaves the rows of earlier ones valid.
    """
    chosen = dict(more)
    for known in dataclasses.fields(args):
        value = getattr(args, known.name)
        if known.name not in _NO_SETTING and value is not None and value is not False:
            chosen[known.name] = value
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
