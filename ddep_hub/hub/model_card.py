"""Model cards: `README.md`, written from a template and the files of a model's folder.

The text of the cards is in `model_card_template.md`. One marked part of a card belongs to the user and is kept.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import accelerate
import jinja2
import timm
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ddep_hub.configuration_ddep import PREDICTED, DDePConfig, __version__
from ddep_hub.data.dataset_registry import find_dataset_by_classes
from ddep_hub.data.hub_loading import HUB_PREFIX, parse_hub_name
from ddep_hub.encoder_weights import encoder_license, encoder_repository
from ddep_hub.evaluation.denoising import REFERENCES
from ddep_hub.evaluation.metrics import METRICS
from ddep_hub.utils.arguments import list_field_names
from ddep_hub.utils.files import atomic_write, is_url, read_text
from ddep_hub.utils.processes import describe_hardware

from .licenses import OPEN_LICENSES, recorded_restriction
from .staging import CARD, RUN, read_json
from .user_text import BEGIN, END, extract_user_text, merge_metadata, parse_metadata


# Files beside the model that a card is made from, and pictures that it shows.
RESULTS, BASELINE, EVALUATION = "results.json", "baseline.json", "evaluation.json"
PREDICTIONS, LOSS, CONFUSION = "predictions.png", "loss.png", "confusion.png"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Used in the snippets of a card until it is published, or `ddep-hub card --repository` names a repository.
PLACEHOLDER = "path/to/this/folder"
# Tag of cards of pretraining.
PRETRAINING_TAG = "decoder-pretraining"
# What a card calls the built-in data.
EMBEDDED = "embedded rendered scenes"
# Facts of a run that may be paths.
PATH_FACTS = ("encoder_source", "inherited_license", "more_images")
Kind = Literal["pretraining", "finetuning"]
logger = logging.get_logger(__name__)


def write_run_record(folder: str | Path, kind: Kind, arguments: Any, results: Mapping[str, Any], **facts: Any) -> None:
    """Writes `run.json` and `results.json`, from which [`write_card`] makes the card.

    Args:
        folder: Folder of the trained model.
        kind: What the run was.
        arguments: Its arguments, a dataclass. Paths are shortened to their last part, see `arg(path=True)`.
        results: The metrics, `seconds` of training, and `step`, after which the model was saved, if not at the end.
        **facts: `encoder_source`; `inherited_license`, of [`find_restriction`]; in pretraining `images`, their number
            in words, `more_images`, the names of data sets besides those of the arguments, `data_fingerprint`, a hash
            of them, and `method`, the objective in words if it is not denoising; in fine-tuning `evaluated`, the
            number of validation images, `labelled_ids`, a hash of the names of the labelled ones, `untrained_classes`,
            the names of those that no label shows, and `pretraining`, the record and results of a first stage.
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
        **{name: _strip_path(value) if name in PATH_FACTS else value for name, value in facts.items()},
        "hardware": describe_hardware(),
        "versions": {"ddep_hub": __version__, **{module.__name__: module.__version__ for module in modules}},
    }
    for name, content in ((RUN, record), (RESULTS, results)):  # the results say that the run is finished
        atomic_write(Path(folder) / name, json.dumps(content, indent=1) + "\n")


def write_card(folder: str | Path, repository: str | None = None) -> None:
    """Writes `README.md` from the files in the folder of a trained model, and keeps the user's part of it.

    `repository` is the `org/name` for the snippets, by default what they say already. Raises a FileNotFoundError if
    there is neither a card nor the files to make one from, and a ValueError that names a damaged file.
    """
    folder = Path(folder)
    card = render_card(folder, repository)
    if card is None:
        raise FileNotFoundError(f"{folder} has neither {CARD} nor {RUN}. Name the folder final/ of a run.")
    atomic_write(folder / CARD, card)


def render_card(folder: Path, repository: str | None = None) -> str | None:
    """The card of a model folder: from the template if there is a record of a run, else the folder's own card.

    `repository` is the `org/name` in its snippets. Returns `None` if there is neither.
    """
    old_card = read_text(folder / CARD) if (folder / CARD).is_file() else ""
    if not all((folder / name).is_file() for name in ("config.json", RUN, RESULTS)):
        return (old_card.replace(PLACEHOLDER, repository) if repository else old_card) or None
    match = re.search(r'(?:from_pretrained\(|model=|predict\()"([^"]+)"', old_card)
    try:
        values = _template_values(folder)
        values |= {
            "repository": repository or (match[1] if match else PLACEHOLDER),
            "summary": " ".join(str(parse_metadata(old_card).get("summary", "")).split()),
            "user_part": BEGIN,
            "metadata": _build_metadata(values).to_yaml(),
        }
        text = _load_template().render(values)
    except (jinja2.UndefinedError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: {RUN} and {RESULTS} are incomplete ({error}). Copy them from the run again; "
            "`ddep-hub card --evaluation` adds the results of `ddep-hub evaluate`."
        ) from error
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    # Last, as it is kept to the byte.
    return merge_metadata(text.replace(BEGIN, f"{BEGIN}\n{extract_user_text(old_card)}\n{END}", 1), old_card)


@functools.cache
def _load_template() -> jinja2.Template:
    """The compiled template; a run writes more than one card, and compiling takes longer than all the rest."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = lambda value: str(value).replace("|", r"\|")  # which would end a table's cell
    environment.filters["plain"] = _escape_markdown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _escape_markdown(value: Any) -> str:
    """A name as plain text: what Markdown would take for markup is escaped. Underscores inside words are none."""
    return re.sub(r"[\\<&\[\]*`|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", str(value))


def build_published_card(folder: Path, repository: str, hub_card: str | None = None) -> str | None:
    """The card to publish: the folder's, with what only `hub_card` has in its user's part and metadata.

    `repository` is `org/name`; `hub_card` is the card that is on the Hub now, if any.
    """
    card = render_card(folder, repository)
    if card is None and hub_card is not None and BEGIN in hub_card:
        # It tells of the weights that are replaced: only the user's text and metadata stay.
        text = extract_user_text(hub_card, f"The card of {repository} on the Hub")
        card = f"---\nlibrary_name: transformers\n---\n\n{BEGIN}\n{text}\n{END}\n"
        merged = ModelCard(merge_metadata(card, hub_card))
        merged.data.datasets = None
        merged.data.tags = [tag for tag in merged.data.tags or [] if tag != PRETRAINING_TAG] or None
        return str(merged)
    if card is None or hub_card is None or (BEGIN not in card and BEGIN not in hub_card):
        return card
    ours = extract_user_text(card) if BEGIN in card else ""
    theirs = extract_user_text(hub_card, f"The card of {repository} on the Hub")
    if theirs not in ours:
        difference = f"differs from that in {CARD}" if ours else f"is not in {CARD}"
        logger.warning(
            f"The text of the card on the Hub {difference}, and is kept. To change it, edit it there; to add to it, "
            f"copy it to {CARD} first."
        )
        head, _, tail = card.partition(BEGIN)
        card = f"{head.rstrip()}\n\n{BEGIN}\n{theirs}\n{END}\n{tail.partition(END)[2]}"
    return merge_metadata(card, hub_card)


def add_results(folder: Path, evaluation: Path | None = None, baseline: Path | None = None) -> None:
    """Adds results to those that the card of a fine-tuned model is made from; writes nothing if some cannot be used.

    Args:
        folder: The model's folder.
        evaluation: Output of `ddep-hub evaluate`, whose metrics replace those of the run.
        baseline: The folder `final/` of a run from a random decoder, to compare with.

    Raises:
        ValueError: The evaluation is damaged or of another model; or the baseline, also one that was added earlier, is
            no run from a random decoder on the same data and labels, or was evaluated differently.
    """
    results = None if evaluation is None else _read_evaluation(folder, evaluation)
    theirs = None
    if baseline is not None:
        theirs = _read_baseline(folder, baseline)
    elif results is not None and (folder / BASELINE).is_file():
        theirs = read_json(folder / BASELINE)
    if theirs is not None:
        ours = {**read_json(folder / RUN), **_read_metrics(folder), **(results or {})}
        _compare_settings(ours, theirs, folder, baseline or folder / BASELINE)
    if evaluation is not None:
        atomic_write(folder / EVALUATION, json.dumps(results, indent=1) + "\n")
        if (evaluation / CONFUSION).is_file():
            atomic_write(folder / CONFUSION, (evaluation / CONFUSION).read_bytes())
    if baseline is not None:
        atomic_write(folder / BASELINE, json.dumps(theirs, indent=1) + "\n")


def _read_baseline(folder: Path, baseline: Path) -> dict[str, Any]:
    """The record and metrics of the run to compare with; raises a ValueError if it is no baseline of this model."""
    for run_folder in (folder, baseline):
        if not ((run_folder / RUN).is_file() and (run_folder / RESULTS).is_file()):
            raise ValueError(f"baseline: {run_folder} has no {RUN} and {RESULTS} of a run.")
    ours, theirs = read_json(folder / RUN), {**read_json(baseline / RUN), **_read_metrics(baseline)}
    if not ours["kind"] == theirs["kind"] == "finetuning":
        raise ValueError("baseline: both models must be fine-tuned.")
    if theirs["arguments"]["pretrained"] is not None or theirs.get("pretraining"):
        raise ValueError(f"baseline: {baseline} did not start from a random decoder. Name a run without `pretrained`.")
    if ours["arguments"]["pretrained"] is None and not ours.get("pretraining"):
        raise ValueError(f"baseline: {folder} itself started from a random decoder, and needs no baseline.")
    theirs["decoder_hidden_sizes"] = read_json(baseline / "config.json").get("decoder_hidden_sizes")
    return theirs


def _compare_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path, other: Path) -> None:
    """Raises a ValueError if the record and metrics of a run and its baseline are of other data or evaluations."""
    evaluated = ["inference" in run for run in (ours, theirs)]
    if evaluated[0] != evaluated[1]:
        missing = f"the run of {other}" if evaluated[0] else str(folder)
        raise ValueError(
            f"baseline: only one of the two was evaluated with `ddep-hub evaluate`. Evaluate {missing} with the same "
            "options, and add that with `ddep-hub card --evaluation` first."
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
                "data and labels, with evaluations (`ddep-hub card --evaluation`) that use the same options."
            )


def _read_evaluation(folder: Path, evaluation: Path) -> dict[str, Any]:
    """The results of `ddep-hub evaluate`; raises a ValueError if they are damaged or of another model."""
    results = read_json(evaluation / RESULTS)
    arguments = results.pop("arguments", {})
    model = arguments.get("model")
    if model is None or "inference" not in results:
        raise ValueError(f"evaluation: {evaluation / RESULTS} was not written by `ddep-hub evaluate`.")
    if Path(model).resolve() != folder.resolve():
        raise ValueError(f"evaluation: {evaluation} measured {model}, not {folder}. Evaluate this model.")
    split, split_file = arguments["eval_split"], arguments.get("split_file")
    results["split"] = f"{split} ({Path(split_file).name})" if split and split_file else split
    results["evaluated_data"] = _strip_path(arguments.get("data")) or EMBEDDED
    return dict(results)


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Metrics of the run, replaced by those of an evaluation."""
    evaluation = read_json(folder / EVALUATION) if (folder / EVALUATION).is_file() else {}
    return {**read_json(folder / RESULTS), **evaluation}


def _template_values(folder: Path) -> dict[str, Any]:
    """What the template is filled with, except for the user's part and the metadata."""
    config, record, results = DDePConfig.from_pretrained(folder), read_json(folder / RUN), _read_metrics(folder)
    run, is_finetuning = record["arguments"], record["kind"] == "finetuning"
    encoder, pretrained, data = encoder_repository(config.encoder_name), run.get("pretrained"), run.get("data")
    encoder_source = record.get("pretraining", record)["encoder_source"]  # a second stage has that of the first
    base_model = encoder if encoder_source == "hub" else None
    if pretrained is not None:  # a folder's name alone is not a repository
        base_model = pretrained if re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained) else None
    license = None if encoder_source == "none" else encoder_license(config.encoder_name)
    names = [*(run.get("images") or [data or ""]), *run.get("unlabelled", [])]
    sources = [name for name in names if name.startswith(HUB_PREFIX)]
    image_names = [*run.get("images", []), *record.get("more_images", [])]
    inference = {"window": None, "scales": [1.0], "flip": False, **results.get("inference", {})}
    if inference["window"] and not inference["stride"]:
        inference["stride"] = [side // 2 for side in inference["window"]]
    split = run.get("eval_split")
    if run.get("val_fraction"):
        split = f"{run['val_fraction']} of {run['train_split']}"
    baseline = read_json(folder / BASELINE) if (folder / BASELINE).is_file() else None
    classes = [config.id2label[label] for label in sorted(config.id2label)]
    return {
        "kind": record["kind"],
        "method": record.get("method"),
        "config": config,
        "has_noise": config.corruption not in PREDICTED,
        "is_masked": config.corruption == "masked",
        "reference_names": REFERENCES,
        "record": record,
        "run": run,
        "results": results,
        "baseline": baseline,
        "metrics": _metric_rows(results, baseline) if is_finetuning else [],
        "inference": inference,
        "split": results.get("split", split),
        "image_size": results.get("image_size", record.get("image_size", run.get("image_size"))),
        "base_model": base_model,
        "encoder_source": encoder_source,
        "encoder_repository": encoder,
        "encoder_license": license,
        "restricted_encoder": license is not None and license not in OPEN_LICENSES,
        # Of a file nobody knows whether it holds timm's weights.
        "encoder_from_file": encoder_source not in ("hub", "pypi", "none", pretrained),
        "inherited_license": _inherited_license(record),
        "hub_datasets": list(dict.fromkeys(parse_hub_name(name)[0] for name in sources)) or None,
        "name": Path(run["output_dir"]).name,
        "classes": classes,
        "embedded": EMBEDDED,
        "dataset": data or EMBEDDED,
        "evaluated_data": results.get("evaluated_data", data or EMBEDDED),
        "known_dataset": find_dataset_by_classes(classes) if is_finetuning else None,
        "image_names": image_names,
        "rendered": not (data or run.get("unlabelled") or {*image_names} - {EMBEDDED}),
        "remote_code": "auto_map" in read_json(folder / "config.json"),
        "files": {path.name for path in folder.iterdir()},
    }


def _inherited_license(record: Mapping[str, Any]) -> dict[str, str] | None:
    """The model that the weights of a run are from, and its licence, where it is not the run's own."""
    inherited = recorded_restriction(record)
    return inherited if inherited and inherited["license"] != record["arguments"].get("license") else None


def _metric_rows(results: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[list[str]]:
    """Name of each metric and its values in per cent, of the model and of the baseline."""
    columns = [results] if baseline is None else [results, baseline]
    rows: list[list[Any]] = [
        [title, *(column.get(name) for column in columns)] for name, title in METRICS.items() if name in results
    ]
    rows += [[f"IoU {name}", *(column["iou"].get(name) for column in columns)] for name in results["iou"]]
    return [[title, *("-" if value is None else f"{100 * value:.2f}" for value in values)] for title, *values in rows]


def _build_metadata(values: Mapping[str, Any]) -> ModelCardData:
    """The metadata of a card. A pretrained decoder has no `pipeline_tag`, as it segments nothing yet."""
    common_fields: dict[str, Any] = {
        "library_name": "transformers",
        "license": values["run"]["license"],
        "base_model": values["base_model"],
        "datasets": values["hub_datasets"],
    }
    if values["kind"] == "pretraining":
        return ModelCardData(**common_fields, tags=["ddep", PRETRAINING_TAG, "semantic-segmentation"])
    results, dataset = values["results"], values["evaluated_data"]
    repository = parse_hub_name(dataset)[0] if dataset.startswith(HUB_PREFIX) else None
    return ModelCardData(
        **common_fields,
        model_name=values["name"],
        pipeline_tag="image-segmentation",
        metrics=["mean_iou"],
        tags=["ddep", "semantic-segmentation"],
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=repository or dataset.lower().replace(" ", "-"),
                dataset_name=dataset,
                dataset_split=values["split"],
                metric_type=name,
                metric_name=METRICS[name],
                metric_value=round(results[name], 4),
            )
            for name in ("mean_iou", "mean_accuracy", "overall_accuracy")
        ],
    )


def _strip_path(value: Any) -> Any:
    """The last part of each path. Names of repositories and data sets on the Hub stay as they are."""
    if isinstance(value, list):
        return [_strip_path(item) for item in value]
    if isinstance(value, dict):
        return {name: _strip_path(item) for name, item in value.items()}
    if not isinstance(value, str) or is_url(value):
        return value
    path = Path(os.path.abspath(value)) if os.path.exists(value) else Path(value)  # the current folder has a name
    # `org/name` is a repository, unless there is such a folder.
    if not path.exists() and not path.is_absolute() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        return value
    return (path.parent.name if path.name in ("final", "best") else path.name) or value
