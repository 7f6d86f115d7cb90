"""DDeP end to end, in minutes on a CPU: pretrain a decoder by denoising, fine-tune it on a few labels, compare.

    make quickstart                    on rendered scenes
    make quickstart DATA=my/dataset    on your images/<split>, annotations/<split>, classes.json
    make quickstart PRETRAINED=1       with the shipped decoder, instead of pretraining one

The encoder is EfficientNet-Lite0 with its ImageNet weights. Both decoders get the same labelled images, steps,
learning rate, seeds and newly initialised classifier; they differ only in their initial weights.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ddep_hub import DDePConfig, DDePForSemanticSegmentation, FinetuneArguments, PretrainArguments, finetune, pretrain
from ddep_hub.cli import explain_mistakes
from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits
from ddep_hub.data.synthetic import rendered_scenes
from ddep_hub.evaluation.visualization import segmentation_picture, stack
from ddep_hub.label_efficiency.report import Point, paired_difference
from ddep_hub.pretrained import load_processor
from ddep_hub.training.pretraining import has_learned
from ddep_hub.utils.arguments import list_field_names
from ddep_hub.utils.files import resolve_data


# A decoder small enough for two cores: TransUNet's has more than twice as many channels.
DECODER = {"decoder_hidden_sizes": [128, 64, 32, 16, 16], "decoder_bottleneck_size": 128}
IMAGE_SIZE = 160


def unlabelled_images(data: Path) -> Path:
    """Images to pretrain on: a folder `unlabelled` in or beside the data set, else its own training images."""
    candidates = [data / "unlabelled", data.parent / "unlabelled"]
    return next((folder for folder in candidates if folder.is_dir()), data / "images" / "train")


def evaluation_split(data: Path) -> str:
    """The split to compare on: `test`, or `val` if there is none.

    Raises:
        SystemExit: The data set has neither, or nothing to train on.
    """
    splits = available_splits(data)
    if "train" not in splits or not {"test", "val"} & set(splits):
        raise SystemExit(f"{data / 'images'} needs a folder `train`, and `test` or `val`; it has {splits}.")
    return "test" if "test" in splits else "val"


def decoder_of(name: str) -> dict[str, Any]:
    """Architecture of a pretrained decoder and of its encoder, for the random one to compare with."""
    config, names = DDePConfig.from_pretrained(name), list_field_names(FinetuneArguments, "architecture")
    fields = {name: getattr(config, name) for name in (*names, "num_channels") if hasattr(config, name)}
    return fields | {"encoder_img_size": (config.encoder_kwargs or {}).get("img_size")}


def main() -> None:
    """Pretrains, fine-tunes both decoders, and writes table, picture and folders."""
    explain_mistakes("quickstart")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=resolve_data, help="data set to use instead of the rendered scenes")
    parser.add_argument("--images", type=resolve_data, help="unlabelled images; default: `unlabelled` in or beside it")
    parser.add_argument(
        "--pretrained", help="decoder to start from: shipped name, folder or Hub id; default: pretrain"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--num_labelled_images", type=int, default=12)
    parser.add_argument("--pretrain_steps", type=int, default=800)
    parser.add_argument("--finetune_steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()

    started = time.perf_counter()
    output: Path = options.output_dir
    data = Path(options.data or rendered_scenes())
    eval_split = evaluation_split(data)
    channels = DDePConfig.from_pretrained(options.pretrained).num_channels if options.pretrained else 3
    validation = SegmentationFolder(data, eval_split, num_channels=channels)
    labelled = min(options.num_labelled_images, len(SegmentationFolder(data, "train")))

    denoising: dict[str, Any] | None = None
    if options.pretrained:
        print(f"\n=== 1. The decoder of {options.pretrained}, pretrained by denoising")
        start, decoder = options.pretrained, decoder_of(options.pretrained)
    else:
        images = options.images or unlabelled_images(data)
        pool = len(ImageFolder(images))
        print(f"\n=== 1. Pretraining the decoder by denoising, on the images of {images}, without labels")
        denoising = pretrain(
            PretrainArguments(
                output_dir=str(output / "pretrain"),
                overwrite=True,
                images=[str(images)],
                num_val_images=max(1, min(32, pool // 5)),
                max_steps=options.pretrain_steps,
                crop_size=64,
                learning_rate=3e-3,
                **DECODER,
            )
        )
        start, decoder = denoising["final"], DECODER

    print(f"\n=== 2. Fine-tuning on {labelled} labelled images")
    scores: dict[str, dict[int, float]] = {"random decoder": {}, "DDeP decoder": {}}
    finals: dict[str, str] = {}
    for seed in options.seeds:
        for method, fields in (("random decoder", decoder), ("DDeP decoder", {"pretrained": start})):
            result = finetune(
                FinetuneArguments(
                    output_dir=str(output / f"{method.split()[0].lower()}-{seed}"),
                    overwrite=True,
                    data=str(data),
                    eval_split=eval_split,
                    num_labelled_images=labelled,
                    allow_empty_classes=True,
                    max_steps=options.finetune_steps,
                    head_lr_factor=10.0,  # a new classifier hardly moves in so few steps at the base learning rate
                    batch_size=8,
                    image_size=IMAGE_SIZE,
                    crop_size=128,
                    seed=seed,
                    split_seed=seed,
                    **fields,
                )
            )
            scores[method][seed] = 100 * result["mean_iou"]
            finals.setdefault(method, result["final"])

    models = {method: DDePForSemanticSegmentation.from_pretrained(folder) for method, folder in finals.items()}
    processor = load_processor(finals["DDeP decoder"], models["DDeP decoder"].config)
    transform, normalize = EvalTransform(processor), Normalize.from_processor(processor)
    segmentation = segmentation_picture(models, validation, transform, normalize, number=3)
    pictures = [segmentation]
    if denoising:
        pictures.insert(0, Image.open(output / "pretrain" / "pictures" / "predictions.png"))
    stack(pictures).save(output / "quickstart.png")
    summary = {"denoising": denoising, "mean_iou": scores, "eval_split": eval_split, "images": len(validation)}
    (output / "quickstart.json").write_text(json.dumps(summary, indent=1) + "\n")

    print("\n=== 3. Result")
    print(f"mIoU in % on `{eval_split}` ({len(validation)} images), {labelled} labelled images:\n")
    print("| decoder |" + "".join(f" seed {seed} |" for seed in options.seeds) + " mean |")
    print("|" + "---|" * (len(options.seeds) + 2))
    points = {name: Point(labelled, by_seed) for name, by_seed in scores.items()}
    for name, point in points.items():
        print(f"| {name} |" + "".join(f" {value:.2f} |" for value in [*point.scores.values(), point.mean]))
    if denoising:
        print("\nMean squared error of the predicted noise, on held-out images:\n")
        print("| decoder | predicting zero | best Gaussian blur | best linear filter |\n|---|---|---|---|")
        errors = ("denoising_error", "predicting_zero", "gaussian_blur", "linear_filter")
        print("| " + " | ".join(f"{denoising[name]:.3f}" for name in errors) + " |\n")
    print(f"picture          {output / 'quickstart.png'}")
    print(f"ready to publish {start} (decoder), {finals['DDeP decoder']} (fine-tuned)")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if denoising and not has_learned(denoising):
        raise SystemExit("The decoder does not denoise better than these baselines yet. Pretrain it for longer.")
    difference = paired_difference(points["DDeP decoder"], points["random decoder"])
    assert difference is not None, "both decoders have the same seeds"
    by_seed = ", ".join(f"{value:+.2f}" for value in difference.by_seed.values())
    gain = "a gain for every seed" if min(difference.by_seed.values()) > 0 else "no gain at this budget"
    print(f"DDeP minus random decoder: {difference.mean:+.2f} mIoU (by seed: {by_seed}): {gain}")


if __name__ == "__main__":
    main()
