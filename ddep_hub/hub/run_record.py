"""The record and results of a run, saved beside the model, from which its card is generated."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import accelerate
import timm
import torch
import transformers

from ddep_hub.configuration_ddep import __version__
from ddep_hub.utils.arguments import list_field_names
from ddep_hub.utils.files import atomic_write, is_url, write_json
from ddep_hub.utils.hardware import describe_hardware

from .staging import RUN, read_json_object


RESULTS, BASELINE, EVALUATION, CONFUSION = "results.json", "baseline.json", "evaluation.json", "confusion.png"
# Name of the default data in model cards.
EMBEDDED = "rendered scenes"
# Fields that may be paths.
PATH_FIELDS = ("encoder_source", "inherited_license", "more_images")
# How to get comparable evaluations of a model and its baseline.
TOGETHER = (
    "Evaluate both with the same options: add the baseline's evaluation to its own card, then give this model's card "
    "--evaluation and --baseline together."
)
Kind = Literal["pretraining", "finetuning"]


def write_run_record(folder: str | Path, kind: Kind, arguments: Any, results: Mapping[str, Any], **info: Any) -> None:
    """Writes `run.json` and `results.json`, from which `write_card` makes the card.

    Args:
        folder: Folder of the trained model.
        kind: Kind of the run.
        arguments: Its arguments, a dataclass. Paths are shortened to their last part, see `arg(path=True)`.
        results: The metrics, `seconds` of training, and `step`, after which the model was saved, if not at the end.
        **info: `encoder_source`; `inherited_license`, from [`find_restriction`]; in pretraining `images`, a
            description of their number, `more_images`, the names of data sets besides those in the arguments,
            `data_fingerprint`, a hash of them, and `method`, a description of a custom objective; in fine-tuning
            `evaluated`, the number of validation images, `labelled_ids`, a hash of the labelled images' names,
            `untrained_classes`, the names of classes without a label, and `pretraining`, the record and results of a
            pretraining stage.
    """
    values, paths = dataclasses.asdict(arguments), list_field_names(type(arguments), "path")
    defaults = dataclasses.asdict(type(arguments)())
    groups = {field.name: field.metadata.get("group") for field in dataclasses.fields(arguments)}
    modules = (torch, timm, transformers, accelerate)
    record = {
        "kind": kind,
        "arguments": {name: _strip_path(value) if name in paths else value for name, value in values.items()},
        "non_default": [
            name
            for name, value in values.items()
            if value != defaults[name] and name not in paths and groups[name] in ("data", "model", "optimisation")
        ],
        **{name: _strip_path(value) if name in PATH_FIELDS else value for name, value in info.items()},
        "hardware": describe_hardware(),
        "versions": {"ddep_hub": __version__, **{module.__name__: module.__version__ for module in modules}},
    }
    for name, content in ((RUN, record), (RESULTS, results)):  # the results mark the run as finished
        write_json(Path(folder) / name, content)


def add_results(folder: Path, evaluation: Path | None = None, baseline: Path | None = None) -> None:
    """Adds results to a fine-tuned model's folder, for its card; writes nothing if any of them cannot be used.

    Args:
        folder: The model's folder.
        evaluation: Output of `ddep-hub evaluate`, whose metrics replace those of the run.
        baseline: The folder `final/` of a run from a random decoder, to compare with.

    Raises:
        ValueError: The evaluation is damaged or of another model; or the baseline, including one added earlier, is not
            a run from a random decoder on the same data and labels, or was evaluated differently.
    """
    results = None if evaluation is None else _read_evaluation(folder, evaluation)
    theirs = None
    if baseline is not None:
        theirs = _read_baseline(folder, baseline)
    elif results is not None and (folder / BASELINE).is_file():
        theirs = read_json_object(folder / BASELINE)
    if theirs is not None:
        ours = {**read_json_object(folder / RUN), **read_results(folder), **(results or {})}
        _compare_settings(ours, theirs, folder, baseline or folder / BASELINE)
    if evaluation is not None:
        write_json(folder / EVALUATION, results)
        if (evaluation / CONFUSION).is_file():
            atomic_write(folder / CONFUSION, (evaluation / CONFUSION).read_bytes())
    if baseline is not None:
        write_json(folder / BASELINE, theirs)


def _read_baseline(folder: Path, baseline: Path) -> dict[str, Any]:
    """The record and metrics of the baseline run; raises a ValueError if it is not a baseline of this model."""
    for run_folder in (folder, baseline):
        if not ((run_folder / RUN).is_file() and (run_folder / RESULTS).is_file()):
            raise ValueError(f"baseline: {run_folder} has no {RUN} and {RESULTS} of a run.")
    ours, theirs = read_json_object(folder / RUN), {**read_json_object(baseline / RUN), **read_results(baseline)}
    if not ours["kind"] == theirs["kind"] == "finetuning":
        raise ValueError("baseline: both models must be fine-tuned.")
    if theirs["arguments"]["pretrained"] is not None or theirs.get("pretraining"):
        raise ValueError(f"baseline: {baseline} did not start from a random decoder. Pass a run without `pretrained`.")
    if ours["arguments"]["pretrained"] is None and not ours.get("pretraining"):
        raise ValueError(f"baseline: {folder} itself started from a random decoder, and needs no baseline.")
    theirs["decoder_hidden_sizes"] = read_json_object(baseline / "config.json").get("decoder_hidden_sizes")
    return theirs


def _compare_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path, other: Path) -> None:
    """Raises a ValueError if a run and its baseline differ in data, labels or evaluation settings."""
    evaluated = ["inference" in run for run in (ours, theirs)]
    if evaluated[0] != evaluated[1]:
        raise ValueError(
            f"baseline: of {folder} and {other}, only one was evaluated with `ddep-hub evaluate`. {TOGETHER}"
        )
    fields = (
        *("data", "train_split", "eval_split", "val_fraction", "group_pattern", "image_size", "labelled_ids"),
        *("labelled", "split", "images", "inference", "evaluated_data", "classes"),
    )
    for name in fields:
        value, other_value = (
            {**run["arguments"], **run, "classes": list(run["iou"])}.get(name) for run in (ours, theirs)
        )
        if value != other_value:
            raise ValueError(
                f"baseline: {name} differs: {other_value} in {other}, {value} in {folder}. Compare runs on the same "
                f"data and labels. {TOGETHER}"
            )


def _read_evaluation(folder: Path, evaluation: Path) -> dict[str, Any]:
    """The results of `ddep-hub evaluate`; raises a ValueError if they are damaged or of another model."""
    results = read_json_object(evaluation / RESULTS)
    arguments = results.pop("arguments", None) or {}
    model = arguments.get("model")
    if model is None or "inference" not in results or "eval_split" not in arguments:
        raise ValueError(f"evaluation: {evaluation / RESULTS} was not written by `ddep-hub evaluate`.")
    if Path(model).resolve() != folder.resolve():
        raise ValueError(f"evaluation: {evaluation} measured {model}, not {folder}. Evaluate this model.")
    split, split_file = arguments["eval_split"], arguments.get("split_file")
    results["split"] = f"{split} ({Path(split_file).name})" if split and split_file else split
    results["evaluated_data"] = _strip_path(arguments.get("data")) or EMBEDDED
    return dict(results)


def read_results(folder: Path) -> dict[str, Any]:
    """Metrics of the run, or of an evaluation that replaces them."""
    evaluation = read_json_object(folder / EVALUATION) if (folder / EVALUATION).is_file() else {}
    return {**read_json_object(folder / RESULTS), **evaluation}


def _strip_path(value: Any) -> Any:
    """Shortens paths to their last part. Names of repositories and data sets on the Hub are unchanged."""
    if isinstance(value, list):
        return [_strip_path(item) for item in value]
    if isinstance(value, dict):
        return {name: _strip_path(item) for name, item in value.items()}
    if not isinstance(value, str) or is_url(value):
        return value
    path = (
        Path(os.path.abspath(value)) if os.path.exists(value) else Path(value)
    )  # so that `.` becomes the folder's name
    # `org/name` is a repository, unless there is such a folder.
    if not path.exists() and not path.is_absolute() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        return value
    return (path.parent.name if path.name in ("final", "best") else path.name) or value
