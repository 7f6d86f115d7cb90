"""Card of a model that was pretrained by denoising."""

from huggingface_hub import ModelCardData

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
    shown,
    table,
)
from .card_text import PLACEHOLDER


def metadata(facts: Facts) -> ModelCardData:
    """The card's metadata. It has no `pipeline_tag`, as it segments nothing yet."""
    run = facts.run["arguments"]
    return ModelCardData(
        library_name="transformers",
        license=run["license"],
        base_model=base_model(None, facts.config.encoder_name, facts.run["encoder_source"]),
        datasets=hub_datasets(run["images"]),
        tags=["ddep", "decoder-pretraining", "semantic-segmentation"],
    )


def sections(facts: Facts) -> dict[str, str]:
    """The card's text by heading; what nothing is known of is left out."""
    run, config, results = facts.run["arguments"], facts.config, facts.results
    frozen = config.freeze_encoder
    seeks = "Gaussian noise in" if config.prediction_type == "epsilon" else "clean image behind"
    held_out = results.get("held_out", run["num_val_images"])
    made = table(
        {
            "Method": "DDeP: encoder frozen, decoder trained" if frozen else "encoder and decoder trained",
            "Encoder": encoder_row(facts),
            "Encoder in this repository": "no" if config.decoder_only else "yes",
            "Decoder": decoder_row(facts),
            "Denoising head": "also sees the noisy image, which the paper's does not" if config.image_skip else None,
            "Objective": f"{config.corruption} corruption, predicts {config.prediction_type}",
            "Sigma": f"{_levels(facts)}, in units of normalised pixels",
            "Images": f"{_sources(facts)} ({facts.run['images']}); {held_out} kept out of training",
            **made_rows(facts),
        }
    )
    measured = table(
        {
            "This model": f"{results['denoising_error']:.4f}",
            "Best linear 3x3 filter": f"{results['linear_filter']:.4f}",
            "Best Gaussian blur": f"{results['gaussian_blur']:.4f}",
            "Finding no noise": f"{results['predicting_zero']:.4f}",
        }
    )
    return {
        "": f"""# Decoder pretrained by denoising on {config.encoder_name}

The decoder of a segmentation U-Net, pretrained by denoising (DDeP, arXiv 2205.11423): it was trained to find the
{seeks} unlabelled images{"" if frozen else ", together with its encoder"}. It has no segmentation head: fine-tune it
on your labels.

{_snippet(facts)}{encoder_left_out(facts)}""",
        "How it was made": made,
        "Measured": f"Mean squared error of the found noise on {held_out} images kept out of training:\n\n{measured}",
        "Pictures": pictures(facts, "Image, noisy image, found noise, denoised image"),
        "Intended use and limits": f"""For fine-tuning on few labels: as it is, it segments nothing. It has seen the
images named above, in crops of {run["crop_size"]} pixels. Whether it helps on images of another kind is to be
measured: compare it with a random decoder on the same labels before you rely on it.""",
        "Licence and attribution": licence(facts, _terms(facts)),
        "Citation": CITATION,
    }


def _snippet(facts: Facts) -> str:
    plain = f"""```python
import ddep_hub

model = ddep_hub.DDePForSemanticSegmentation.from_pretrained("{PLACEHOLDER}", num_labels=19)
```"""
    if not facts.remote_code:
        return plain
    return f"""{plain}

Without `ddep_hub`, by the code in this repository:

```python
from transformers import AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("{PLACEHOLDER}", num_labels=19, trust_remote_code=True)
```"""


def _levels(facts: Facts) -> str:
    low, high = facts.config.sigma_range
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sources(facts: Facts) -> str:
    return ", ".join(f"`{shown(name)}`" for name in facts.run["arguments"]["images"]) or "embedded rendered scenes"


def _terms(facts: Facts) -> str:
    own = "The images it has seen were rendered by `ddep_hub` itself."
    return "" if facts.run["arguments"]["images"] else own
