"""The whole of DDeP on a CPU in minutes: pretrain a decoder by denoising, fine-tune it on a few labels, compare.

    make quickstart                    on rendered scenes
    make quickstart DATA=my/dataset    on your images/<split>, annotations/<split>, classes.json

The encoder is EfficientNet-Lite0 with its ImageNet weights. Both arms get the same labelled images, steps, learning
rate and seeds; they differ in where the decoder starts. Which arm wins is measured, not arranged.
"""

import argparse
import json
import time
from pathlib import Path

from PIL import Image

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.loading import SegmentationFolder, available_splits
from ddep_hub.data.transforms import EvalTransform
from ddep_hub.evaluation.comparison import comparison_table, verdict
from ddep_hub.evaluation.plots import segmentation_picture, stack
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.embedded import embedded_scenes
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.pretraining import Normalize, pretrain


# A decoder that two cores can train: TransUNet's has five times as many channels.
DECODER = {"decoder_hidden_sizes": [128, 64, 32, 16, 16], "decoder_bottleneck_size": 128}
IMAGE_SIZE = 160


def unlabelled_images(data: Path) -> Path:
    """Images to pretrain on: a folder `unlabelled` in or beside the data set, else its own training images."""
    candidates = [data / "unlabelled", data.parent / "unlabelled", data / "images" / "train"]
    return next((folder for folder in candidates if folder.is_dir()), data / "images")


def main() -> None:
    """Runs both trainings of both arms, and writes table, picture and folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set to use instead of the rendered scenes")
    parser.add_argument(
        "--images", type=Path, help="unlabelled images; default: a folder `unlabelled` in or beside it"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--num_labelled_images", type=int, default=12)
    parser.add_argument("--pretrain_steps", type=int, default=800)
    parser.add_argument("--finetune_steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()

    started = time.perf_counter()
    output: Path = options.output_dir
    data: Path = options.data or embedded_scenes(output)
    splits = available_splits(data)
    eval_split = next((split for split in ("test", "val") if split in splits), splits[-1])

    print("\n=== 1. Pretraining the decoder by denoising, on images without labels")
    denoising = pretrain(
        PretrainArguments(
            output_dir=str(output / "pretrain"),
            images=[str(options.images or unlabelled_images(data))],
            max_steps=options.pretrain_steps,
            crop_size=64,
            learning_rate=3e-3,  # batches of small crops, a short run
            # EfficientNet-Lite0's finest features, 16 channels at stride 2, do not carry the noise.
            image_skip=True,
            eval_every=max(1, options.pretrain_steps // 4),
            **DECODER,
        )
    )

    print(f"\n=== 2. Fine-tuning on {options.num_labelled_images} labelled images")
    scores: dict[str, dict[int, float]] = {"random decoder": {}, "DDeP decoder": {}}
    finals: dict[str, str] = {}
    for seed in options.seeds:
        for arm, start in (("random decoder", None), ("DDeP decoder", denoising["final"])):
            result = finetune(
                FinetuneArguments(
                    output_dir=str(output / f"{arm.split()[0].lower()}-{seed}"),
                    data=str(data),
                    eval_split=eval_split,
                    model_name_or_path=start,
                    num_labelled_images=options.num_labelled_images,
                    max_steps=options.finetune_steps,
                    batch_size=8,
                    image_size=IMAGE_SIZE,
                    crop_size=128,
                    seed=seed,
                    split_seed=seed,
                    **DECODER,
                )
            )
            scores[arm][seed] = 100 * result["mean_iou"]
            finals.setdefault(arm, result["final"])

    rows = SegmentationFolder(data, eval_split)
    models = {arm: DDePForSemanticSegmentation.from_pretrained(folder) for arm, folder in finals.items()}
    normalize = Normalize(next(iter(models.values())).config.encoder_name)
    segmentation = segmentation_picture(models, rows, EvalTransform(image_size=IMAGE_SIZE), normalize, number=3)
    with Image.open(output / "pretrain" / "pictures" / "denoising.png") as picture:
        stack([picture, segmentation]).save(output / "quickstart.png")
    summary = {"denoising": denoising, "mean_iou": scores, "eval_split": eval_split, "images": len(rows)}
    (output / "quickstart.json").write_text(json.dumps(summary, indent=1) + "\n")

    print("\n=== 3. Result")
    print(f"mIoU in % on `{eval_split}` ({len(rows)} images), {options.num_labelled_images} labelled images:\n")
    print(comparison_table(scores))
    print(
        f"\nError of the found noise on held-out images: {denoising['denoising_error']:.3f} "
        f"(predicting zero {denoising['predicting_zero']:.3f}, best Gaussian blur {denoising['gaussian_blur']:.3f})"
    )
    print(f"picture          {output / 'quickstart.png'}")
    print(f"ready to publish {denoising['final']} (decoder), {finals['DDeP decoder']} (fine-tuned)")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if denoising["denoising_error"] >= min(denoising["predicting_zero"], denoising["gaussian_blur"]):
        raise SystemExit("The decoder has not learned to denoise better than a Gaussian blur. Pretrain it for longer.")
    print(verdict(scores["random decoder"], scores["DDeP decoder"]))


if __name__ == "__main__":
    main()
