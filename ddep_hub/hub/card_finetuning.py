"""Card of a model that was fine-tuned for segmentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ddep_hub.data.classes import names_in_order
from ddep_hub.data.dataset_registry import find_dataset_by_classes

from .card_facts import Facts
from .card_parts import (
    CITATION,
    base_model,
    decoder_row,
    encoder_left_out,
    encoder_row,
    hub_datasets,
    licence,
    made_rows,
    pictures,
    schedule,
    shown,
    table,
)
from .card_text import PLACEHOLDER


FIGURES = {
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "overall_accuracy": "overall accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_boundary_iou": "boundary IoU",
}


def metadata(facts: Facts) -> ModelCardData:
    """The card's metadata."""
    run, measured = facts.run["arguments"], _measured(facts)
    data = _dataset(facts)
    hub = hub_datasets([run["data"] or ""])
    return ModelCardData(
        model_name=_name(facts),
        library_name="transformers",
        license=run["license"],
        pipeline_tag="image-segmentation",
        base_model=base_model(run["pretrained"], facts.config.encoder_name, facts.run["encoder_source"]),
        datasets=hub,
        metrics=["mean_iou"],
        tags=["ddep", "semantic-segmentation"],
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=hub[0] if hub else data.lower().replace(" ", "-"),
                dataset_name=data,
                dataset_split=_split(facts),
                metric_type=name,
                metric_name=FIGURES[name],
                metric_value=round(measured[name], 4),
            )
            for name in ("mean_iou", "mean_accuracy", "overall_accuracy")
        ],
    )


def sections(facts: Facts) -> dict[str, str]:
    """The card's text by heading; what nothing is known of is left out."""
    run, config = facts.run["arguments"], facts.config
    share = f" ({run['label_fraction']} of them, choice {run['split_seed']})" if run["label_fraction"] else ""
    start = f"`{run['pretrained']}`" if run["pretrained"] else "a random decoder"
    labelled = facts.results["labelled"]
    made = table(
        {
            "Start": start,
            "Encoder": encoder_row(facts),
            "Encoder in this repository": "no" if config.decoder_only else None,
            "Decoder": decoder_row(facts),
            "Labels": f"{labelled} images of `{_dataset(facts)}`, split `{run['train_split']}`{share}",
            **made_rows(facts),
        }
    )
    return {
        "": f"""# {_name(facts)}: semantic segmentation with {config.num_labels} classes

{_snippet(facts)}{encoder_left_out(facts)}""",
        "How it was made": made,
        "Measured": _measured_text(facts),
        "Pictures": pictures(facts, f"Image, truth and prediction, split `{run['eval_split']}`"),
        "Intended use and limits": f"""It gives every pixel one of its {config.num_labels} classes, also where none
fits. It has learned them from {labelled} labelled images and was measured on the images named above alone: on images
of another kind measure it anew. It has not been examined for uses in which a wrong mask does harm.""",
        "Licence and attribution": licence(facts, _terms(facts)),
        "Citation": CITATION,
    }


def _snippet(facts: Facts) -> str:
    plain = f"""```python
import ddep_hub
from transformers import pipeline

segment = pipeline("image-segmentation", model="{PLACEHOLDER}")
masks = segment("image.jpg")
```"""
    if not facts.remote_code:
        return plain
    return f"""{plain}

Without `ddep_hub`, by the code in this repository:

```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{PLACEHOLDER}", trust_remote_code=True)
masks = segment("image.jpg")
```"""


def _measured(facts: Facts) -> Mapping[str, Any]:
    """The figures: of an evaluation, or else of the run."""
    return facts.evaluation or facts.results


def _split(facts: Facts) -> str:
    return str({**facts.run["arguments"], **facts.evaluation.get("arguments", {})}["eval_split"])


def _measured_text(facts: Facts) -> str:
    ours, theirs = _measured(facts), facts.baseline
    heads = ["", "this model", "random decoder"][: 3 if theirs else 2]

    def line(name: str, *values: float | None) -> str:
        cells = ["-" if value is None else f"{100 * value:.2f}" for value in values[: len(heads) - 1]]
        return f"| {' | '.join([name, *cells])} |"

    rows = [line(title, ours[name], theirs.get(name)) for name, title in FIGURES.items() if name in ours]
    rows += [line(f"IoU {name}", iou, theirs.get("iou", {}).get(name)) for name, iou in ours["iou"].items()]
    text = "\n".join([_protocol(facts), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])
    seed = f"One run, seed {facts.run['arguments']['seed']}: other seeds and other labels give other figures."
    if theirs:
        other = theirs["run"]["arguments"]
        seed = (
            f"One run each, seeds {facts.run['arguments']['seed']} and {other['seed']}, on the same labelled images: "
            f"a difference of single runs may be chance. The one from a random decoder: {schedule(other)}."
        )
    return f"{text}\n\n{seed}"


def _protocol(facts: Facts) -> str:
    images = facts.evaluation.get("images", facts.run.get("evaluated"))
    inference = facts.evaluation.get("inference", {})
    size = facts.evaluation.get("image_size", facts.run["arguments"]["image_size"])
    parts = [f"Split `{_split(facts)}` of `{_dataset(facts)}`, {images} images"]
    parts.append(f"shorter side resized to {size} pixels, scored at the masks' size" if size else "at their own size")
    window = inference.get("window")
    if window:
        stride = inference.get("stride") or [side // 2 for side in window]
        parts.append(
            f"window {window[0]}x{window[1]}, stride {stride[0]}x{stride[1]}, {inference['blending']} blending"
        )
    else:
        parts.append("each whole")
    scales = inference.get("scales", [1.0])
    parts.append("one scale" if list(scales) == [1.0] else f"scales {', '.join(f'{scale:g}' for scale in scales)}")
    parts.append("with the mirrored image" if inference.get("flip") else "no flips")
    return ", ".join(parts) + ". In %; classes that no mask has are left out of the means."


def _name(facts: Facts) -> str:
    return Path(facts.run["arguments"]["output_dir"]).name


def _dataset(facts: Facts) -> str:
    data = facts.run["arguments"]["data"]
    return shown(data) if data else "embedded rendered scenes"


def _terms(facts: Facts) -> str:
    known = find_dataset_by_classes(names_in_order(facts.config.id2label))
    if known is None:
        own = "The scenes it has seen were rendered by `ddep_hub` itself."
        return "" if facts.run["arguments"]["data"] else own
    return f"It has the classes of {known.title} ({known.home_page}), whose terms are: {known.terms}."
