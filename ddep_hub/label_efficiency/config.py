"""Configuration of a study: methods, label fractions and seeds from a YAML file, and the arguments of each run."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.data.splits import parse_fraction
from ddep_hub.evaluation.arguments import EvaluateArguments
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.utils.arguments import (
    arg,
    build_arguments,
    convert_yaml_values,
    data_arg,
    list_field_names,
    load_yaml,
    model_arg,
    read_yaml,
)
from ddep_hub.utils.values import convert, convert_fields, did_you_mean


SECTIONS = ("model", "pretraining", "finetuning")
# Entries of a study file: their type, and its description in errors.
ENTRIES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys((*SECTIONS, "methods", "fractions", "evaluation"), (dict, "`name: value` lines")),
    **dict.fromkeys(("baselines", "images"), (str | list, "a list of names")),
    "data": (str, "a path or a name"),
}
# Arguments that have their own columns in a row, or follow from its method.
_ROW_ARGUMENTS = {"seed", "split_seed", "label_fraction", "pretrained"}
# Fine-tuning arguments of a comparison, in addition to the location of the data.
OVERRIDES = (
    *("encoder_name", "encoder_weights", "eval_split", "val_fraction", "group_pattern"),
    *("image_size", "crop_size", "augmentation", "num_channels"),
)
DATA_FIELDS = [field.name for field in dataclasses.fields(LabelledDataArguments)]
SCENES = "examples/configs/label-efficiency-scenes.yaml"


@dataclass(kw_only=True)
class StudyArguments(LabelledDataArguments):
    """Compare fine-tuning with and without pretrained decoders, on your own data or as a study file says."""

    unlabelled: list[str] = data_arg(
        [],
        "Unlabelled images, as for `ddep-hub pretrain`, in addition to the training images.",
        path=True,
        common=True,
    )
    labels: list[int] = arg([], "Numbers of labelled images. Default: 6 and 12.", common=True)
    seeds: int | None = arg(
        None, "Number of seeds per number of labels. Default: 3, or the study file's.", common=True
    )
    minutes: float | None = arg(
        None,
        "Time budget for all runs in minutes; runs are shortened to fit. Default: the steps of the preset.",
        common=True,
    )
    output_dir: str = arg(
        "runs/label-efficiency", "Output folder: results.csv, decoders, runs and report.", path=True, common=True
    )
    eval_split: str | None = data_arg(None, "Split to evaluate on. Default: val.")
    val_fraction: str | None = data_arg(None, "Fraction of the images to evaluate on, if there are no splits.")
    group_pattern: str | None = data_arg(
        None,
        "Regular expression whose first group, or whole match, in an image's name identifies images that val_fraction "
        "keeps together.",
    )
    image_size: int | None = data_arg(None, "Resize images to this shorter side.", common=True)
    crop_size: int | None = data_arg(None, "Side of the random crops in pixels.", common=True)
    augmentation: str | None = data_arg(
        None, "Augmentation for a kind of image: photo, overhead or microscopy.", common=True
    )
    encoder_name: str | None = model_arg(None, "timm name of the encoder.")
    encoder_weights: str | None = model_arg(None, "Weights of the encoder, as for `ddep-hub finetune`.", path=True)
    num_channels: int | None = model_arg(None, "Number of image channels, if they are not RGB.")
    study: str | None = arg(
        None, f"YAML file with methods, fractions and seeds. Default: {SCENES}, without data.", path=True, common=True
    )
    methods: list[str] = arg(
        [],
        "Methods to run. Default: all of the study file; on your own data, a random decoder, DDeP, the shipped "
        "decoders for such images, and the objective that gained most on them.",
    )
    fractions: list[str] = arg([], "Label fractions to run. Default: all of the study file.")
    report_only: bool = arg(False, "Write the report and figure from the existing rows without running anything.")

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be positive, got {self.seeds}.")
        if any(number < 1 for number in self.labels):
            raise ValueError(f"labels must be positive, got {self.labels}.")
        if self.labels and self.fractions:
            raise ValueError("labels and fractions both set the number of labelled images. Pass only one of them.")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}.")
        own_data_options = [name for name in ("labels", "minutes", *OVERRIDES) if getattr(self, name)]
        own_data_options += [
            name for name in DATA_FIELDS if name != "data" and getattr(self, name) != getattr(StudyArguments, name)
        ]
        if own_data_options and not self.uses_own_data:
            raise ValueError(f"{own_data_options[0]} is for comparisons on your own data: pass data, without study.")

    @property
    def uses_own_data(self) -> bool:
        """Whether to run the fixed methods on the user's data instead of a study file."""
        return self.study is None and self.data is not None


@dataclass(frozen=True)
class Method:
    """A training method to compare.

    Attributes:
        name: Its name in the table.
        pretraining: Arguments of `ddep-hub pretrain`, or `None` if no decoder is pretrained.
        finetuning: Arguments of `ddep-hub finetune`.
        baseline: Whether the other methods are compared with it.
        optional: Whether it runs only if `methods` names it.
    """

    name: str
    pretraining: dict[str, Any] | None
    finetuning: dict[str, Any]
    baseline: bool
    optional: bool = False

    @property
    def folder_name(self) -> str:
        """Prefix of the folders of its runs."""
        return self.name.replace("/", "_").replace(" ", "-")

    @property
    def has_unlabelled_loss(self) -> bool:
        """Whether fine-tuning has a loss on unlabelled images, from the study or of its own."""
        return bool(self.finetuning.get("denoising_weight") or self.finetuning.get("consistency_weight"))


@dataclass
class Study:
    """The content of a study file.

    Attributes:
        seeds: Number of seeds of each label fraction; seeds count from 0 and are the same for every method.
        data: Labelled data, as `--data` of `ddep-hub finetune`; `None` for the rendered scenes.
        images: Unlabelled images, as `--images` of `ddep-hub pretrain`.
        evaluation: Arguments of `ddep-hub evaluate` for the scores; `None` uses the scores of fine-tuning.
        own_data: Whether decoders are pretrained on the training images too, and a model of each method is kept.
    """

    methods: list[Method]
    seeds: dict[str, int]
    data: str | None = None
    images: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    own_data: bool = False

    def pretrain_arguments(self, method: Method, folder: Path) -> PretrainArguments:
        """Arguments of a method's pretraining in a subfolder of `folder`; methods with equal arguments share it."""
        values: dict[str, Any] = {"images": self.images, **(method.pretraining or {})}
        is_random_encoder = values.get("encoder_weights") == "none"  # not available elsewhere
        values.setdefault("decoder_only", values.get("freeze_encoder", True) and not is_random_encoder)
        args: PretrainArguments = _parse(PretrainArguments, values, f"method `{method.name}`, pretraining")
        args.output_dir = str(folder / self._pretraining_digest(method, args))
        args.resume_from_checkpoint = "latest"
        return args

    def _pretraining_digest(self, method: Method, args: PretrainArguments) -> str:
        # The study's images may move; a method's own images are part of its settings.
        has_own_images = method.pretraining is not None and "images" in method.pretraining
        return _digest(args, images=args.images) if has_own_images else _digest(args)

    def finetune_arguments(
        self, method: Method, fraction: str, seed: int, folder: Path, decoder: str | None
    ) -> FinetuneArguments:
        """Arguments of one fine-tuning run, in a subfolder of `folder`.

        `seed` also seeds the choice of labelled images. `decoder` is the folder of the method's pretrained decoder, if
        it has one.
        """
        # A few labelled images may lack a class; that is part of the measurement.
        values = {"data": self.data, "allow_empty_classes": True, **method.finetuning}
        values |= {"label_fraction": fraction, "seed": seed, "split_seed": seed}
        values |= {"pretrained": decoder} if decoder else {}
        if method.has_unlabelled_loss:
            steps = {} if values.get("pretraining_minutes") else {"pretraining_steps": 0}
            values = {"unlabelled": self.images, **steps, **values}
        args: FinetuneArguments = _parse(FinetuneArguments, values, f"method `{method.name}`, finetuning")
        args.output_dir = str(folder / f"{method.folder_name}-{fraction.replace('/', '_')}-{seed}")
        args.resume_from_checkpoint = "latest"
        return args

    @property
    def data_arguments(self) -> FinetuneArguments:
        """Arguments of fine-tuning for the location of the data, the same for all methods."""
        return self.finetune_arguments(self.methods[0], "1", 0, Path(), None)

    def evaluate_arguments(self, finetuning: FinetuneArguments) -> EvaluateArguments | None:
        """Arguments of the evaluation of a fine-tuned model; `None` if the scores of fine-tuning are used."""
        if self.evaluation is None:
            return None
        data_values = {name: getattr(finetuning, name) for name in (*DATA_FIELDS, "eval_split")}
        if finetuning.val_fraction is not None:
            data_values["eval_split"] = finetuning.train_split
            data_values["split_file"] = f"{finetuning.output_dir}/validation.txt"
        values = {**data_values, **self.evaluation, "model": f"{finetuning.output_dir}/final"}
        args: EvaluateArguments = _parse(EvaluateArguments, values, "evaluation")
        args.output_dir = f"{finetuning.output_dir}/evaluation"
        return args

    def settings(self, method: Method) -> str:
        """Digest of everything that a method's results depend on, except data, fraction and seed."""
        finetuning = self.finetune_arguments(method, "1", 0, Path(), None if method.pretraining is None else "its own")
        parts = [_digest(finetuning)]
        if method.pretraining is None and finetuning.pretrained is not None:
            parts.append(_model_digest(finetuning.pretrained))
        if method.pretraining is not None:
            parts.append(self._pretraining_digest(method, self.pretrain_arguments(method, Path())))
        if (evaluation := self.evaluate_arguments(finetuning)) is not None:
            inference = dataclasses.asdict(evaluation.options())
            parts.append(_hash({**inference, "size": evaluation.image_size, "split": evaluation.eval_split}))
        return "-".join(parts)


def read_study(path: str | Path) -> Study:
    """Reads a study file.

    `model`, `pretraining` and `finetuning` have arguments shared by all methods; `model` applies to a method's
    pretraining, if it has one, otherwise to its fine-tuning, and is ignored if `pretrained` names a model. In the
    other two, `preset` names a shipped preset, and `config` a file of arguments beside the study file. Each entry of
    `methods` may override them. Losses on unlabelled images use those of the study. `evaluation` has arguments of
    `ddep-hub evaluate`; without it, images are predicted whole, as in fine-tuning. `baselines` names the methods that
    the others are compared with, and `fractions` has the number of seeds of each label fraction.

    Raises:
        OSError: The file cannot be read.
        ValueError: An entry is missing, unknown or of the wrong type; names it.
    """
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must have `name: value` lines with {', '.join(ENTRIES)}.")
    for name, value in content.items():
        if name not in ENTRIES:
            raise ValueError(f"{path} has an unknown entry {did_you_mean(str(name), list(ENTRIES))}")
        if value is not None and not isinstance(value, ENTRIES[name][0]):
            raise ValueError(f"{path}: `{name}` must be {ENTRIES[name][1]}, not {value!r}.")
    for name in ("methods", "baselines", "fractions"):
        if not content.get(name):
            raise ValueError(f"{path} lacks `{name}`.")
    images, baselines = (
        [value] if isinstance(value := content.get(key) or [], str) else value for key in ("images", "baselines")
    )
    shared = {section: _resolve_config(path, content.get(section), f"{path}, {section}") for section in SECTIONS}
    methods = []
    for name, entry in content["methods"].items():
        sections = {} if entry is None else entry
        for part in (sections, *(sections.values() if isinstance(sections, dict) else ())):
            if not isinstance(part, dict | None):
                raise ValueError(f"{path}, method `{name}`: {part!r} must be `name: value` lines.")
        if unknown := set(sections) - set(SECTIONS):
            raise ValueError(f"{path}, method `{name}`: unknown {sorted(unknown)}. Use {', '.join(SECTIONS)}.")
        model, pretraining, finetuning = (
            {**shared[section], **_resolve_config(path, sections.get(section), f"{path}, method `{name}`, {section}")}
            for section in SECTIONS
        )
        encoder = {key: value for key, value in model.items() if key == "encoder_weights"}
        if finetuning.get("pretrained"):
            parts: tuple[Any, Any] = None, {**encoder, **finetuning}
        elif "pretraining" in sections:
            # Fine-tuning loads the encoder of a decoder-only checkpoint again.
            shape = encoder if pretraining.get("pretrained") else model
            parts = {**shape, **pretraining}, {**encoder, **finetuning}
        else:
            parts = None, {**model, **finetuning}
        methods.append(Method(str(name), *parts, baseline=name in baselines))
    if len({method.folder_name for method in methods}) < len(methods):
        raise ValueError(f"{path}: the names of two methods differ only in `/`, `_`, `-` and spaces. Rename one.")
    if missing := set(baselines) - {method.name for method in methods}:
        raise ValueError(f"{path}: baselines names {sorted(missing)}, which are not methods.")
    seeds = {}
    for fraction, number in content["fractions"].items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{path}, fractions: {fraction} needs a positive number of seeds, got {number!r}.")
        try:
            seeds[str(parse_fraction(fraction))] = number
        except ValueError as error:
            raise ValueError(f"{path}, fractions: {error}") from error
    return Study(methods, seeds, content.get("data"), images, content.get("evaluation"))


def _resolve_config(study: str | Path, section: Mapping[str, Any] | None, context: str) -> dict[str, Any]:
    """The values of a section, whose `config` is a file beside the study."""
    values = dict(section or {})
    if config := convert(f"{context}: config", values.get("config"), str | None):
        values["config"] = str(Path(study).parent / config)
    return values


def _parse(cls: type[Any], values: Mapping[str, Any], context: str) -> Any:
    """Arguments from values of a study, which override those of `config` and `preset`; null overrides nothing."""
    names = [argument.name for argument in dataclasses.fields(cls)]
    for name in values:
        if name not in (*names, "config", "preset"):
            raise ValueError(f"{context}: unknown argument {did_you_mean(name, names)}")
    given = {name: value for name, value in values.items() if value not in (None, [])}
    config = convert(f"{context}: config", given.pop("config", None), str | None)
    preset = convert(f"{context}: preset", given.pop("preset", None), str | None)
    given = convert_yaml_values(cls, given, context)
    try:
        return build_arguments(cls, {"preset": preset, **(read_yaml(config, cls) if config else {}), **given})
    except (OSError, ValueError) as error:
        raise ValueError(f"{context}: {error}") from error


def _digest(args: PretrainArguments | FinetuneArguments, **extra: Any) -> str:
    """Short hash of the arguments that a result depends on, with defaults, which may change between releases."""
    # In pretraining, the decoder to start from and the seed are part of the settings.
    ignored = _ROW_ARGUMENTS if isinstance(args, FinetuneArguments) else _ROW_ARGUMENTS - {"pretrained", "seed"}
    ignored = (ignored | {*list_field_names(type(args), "resumable")}) - {"eval_split"}
    values, unlabelled = dataclasses.asdict(args), getattr(args, "unlabelled", [])
    # Without a pretraining stage, its arguments do not matter; the location of unlabelled images may change.
    kept = {name for name in values.keys() - ignored if unlabelled or not name.startswith("pretraining_")}
    # Disabled options do not count, so that rows stay valid if a release adds an option that is off by default.
    is_on = {name: values[name] for name in kept if values[name] not in (None, []) and values[name] is not False}
    weights = Path(is_on.get("encoder_weights", ""))
    if weights.is_file():  # may change, or move
        is_on["encoder_weights"] = _file_digest(weights, weights.stat().st_mtime_ns)
    return _hash({**is_on, "unlabelled": bool(unlabelled), **extra})


def _model_digest(name: str) -> str:
    """Short hash of the weights in a folder, wherever it is, or of the name of a shipped or Hub model."""
    files = sorted(Path(name).glob("*.safetensors"))
    return _hash({"weights": [_file_digest(path, path.stat().st_mtime_ns) for path in files] or name})


@functools.cache
def _file_digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
