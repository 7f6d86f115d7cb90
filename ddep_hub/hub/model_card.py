"""Model cards: `README.md`, written from a template and the files of a model's folder.

The text of the cards is in `model_card_template.md`. One marked part of a card belongs to the user and is kept.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ddep_hub.configuration_ddep import PREDICTED, DDePConfig
from ddep_hub.data.dataset_registry import find_dataset_by_classes
from ddep_hub.data.hf_datasets import HUB_PREFIX, parse_hub_name
from ddep_hub.encoder_weights import encoder_repository
from ddep_hub.evaluation.denoising import REFERENCES
from ddep_hub.evaluation.metrics import METRICS
from ddep_hub.utils.files import atomic_write, read_text

from .licenses import OPEN_LICENSES, encoder_license, recorded_restriction
from .run_record import BASELINE, EMBEDDED, RESULTS, read_results
from .staging import CARD, RUN, read_json_object


# Figures shown in a card, besides the confusion matrix.
PREDICTIONS, LOSS = "predictions.png", "loss.png"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Placeholder in a card's snippets until it is published, or `ddep-hub card --repository` sets a repository.
PLACEHOLDER = "path/to/this/folder"
# Tag of cards of pretraining.
PRETRAINING_TAG = "decoder-pretraining"
# The user's own text is between these two marks.
BEGIN, END = "<!-- your text: kept when the card is rewritten -->", "<!-- end of your text -->"
logger = logging.get_logger(__name__)


def write_card(folder: str | Path, repository: str | None = None) -> None:
    """Writes `README.md` from the files in the folder of a trained model, and keeps the user's part of it.

    `repository` is the `org/name` for the snippets; by default they are unchanged. Raises a FileNotFoundError if there
    is neither a card nor the files to generate one, and a ValueError that names a damaged file.
    """
    folder = Path(folder)
    card = render_card(folder, repository)
    if card is None:
        raise FileNotFoundError(f"{folder} has neither {CARD} nor {RUN}. Pass the final/ folder of a run.")
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
    # Last, because it is kept byte for byte.
    return merge_metadata(text.replace(BEGIN, f"{BEGIN}\n{extract_user_text(old_card)}\n{END}", 1), old_card)


@functools.cache
def _load_template() -> jinja2.Template:
    """The compiled template, cached because compiling takes longer than rendering."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = lambda value: str(value).replace("|", r"\|")  # would end a table cell
    environment.filters["plain"] = _escape_markdown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _escape_markdown(value: Any) -> str:
    """Escapes Markdown in a name; underscores inside words are not markup."""
    return re.sub(r"[\\<&\[\]*`|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", str(value))


def build_published_card(folder: Path, repository: str, hub_card: str | None = None) -> str | None:
    """The card to publish: the folder's, merged with the user's part and metadata that only `hub_card` has.

    `repository` is `org/name`; `hub_card` is the card that is on the Hub now, if any.
    """
    card = render_card(folder, repository)
    if card is None and hub_card is not None and BEGIN in hub_card:
        # It describes the weights that are replaced, so only the user's text and metadata are kept.
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
            f"The text of the card on the Hub {difference}, and is kept. Edit it there, or copy it to {CARD} and "
            "change it before you publish."
        )
        head, _, tail = card.partition(BEGIN)
        card = f"{head.rstrip()}\n\n{BEGIN}\n{theirs}\n{END}\n{tail.partition(END)[2]}"
    return merge_metadata(card, hub_card)


def _template_values(folder: Path) -> dict[str, Any]:
    """The values for the template, except for the user's part and the metadata."""
    config, record, results = DDePConfig.from_pretrained(folder), read_json_object(folder / RUN), read_results(folder)
    run, is_finetuning = record["arguments"], record["kind"] == "finetuning"
    encoder, pretrained, data = encoder_repository(config.encoder_name), run.get("pretrained"), run.get("data")
    encoder_source = record.get("pretraining", record)["encoder_source"]  # that of the pretraining stage, if any
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
    baseline = read_json_object(folder / BASELINE) if (folder / BASELINE).is_file() else None
    classes = [config.id2label[label] for label in sorted(config.id2label)]
    return {
        "kind": record["kind"],
        "method": record.get("method"),
        "config": config,
        "has_noise": config.corruption not in PREDICTED,
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
        # A local file may not hold timm's weights.
        "encoder_from_file": encoder_source not in ("hub", "pypi", "none", pretrained),
        "inherited_license": _inherited_license(record),
        "hub_datasets": list(dict.fromkeys(parse_hub_name(name)[0] for name in sources)) or None,
        "name": Path(run["output_dir"]).name,
        "classes": classes,
        "rendered_scenes": EMBEDDED,
        "dataset": data or EMBEDDED,
        "evaluated_data": results.get("evaluated_data", data or EMBEDDED),
        "known_dataset": find_dataset_by_classes(classes) if is_finetuning else None,
        "image_names": image_names,
        "rendered": not (data or run.get("unlabelled") or {*image_names} - {EMBEDDED}),
        "remote_code": "auto_map" in read_json_object(folder / "config.json"),
        "files": {path.name for path in folder.iterdir()},
    }


def _inherited_license(record: Mapping[str, Any]) -> dict[str, str] | None:
    """The model that a run's weights come from, and its licence if it differs from the run's own."""
    inherited = recorded_restriction(record)
    return inherited if inherited and inherited["license"] != record["arguments"].get("license") else None


def _metric_rows(results: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[list[str]]:
    """Name of each metric and its values in percent, for the model and the baseline."""
    columns = [results] if baseline is None else [results, baseline]
    rows: list[list[Any]] = [
        [title, *(column.get(name) for column in columns)] for name, title in METRICS.items() if name in results
    ]
    rows += [[f"IoU {name}", *(column["iou"].get(name) for column in columns)] for name in results["iou"]]
    return [[title, *("-" if value is None else f"{100 * value:.2f}" for value in values)] for title, *values in rows]


def _build_metadata(values: Mapping[str, Any]) -> ModelCardData:
    """The metadata of a card. A pretrained decoder has no `pipeline_tag`, because it cannot segment yet."""
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
