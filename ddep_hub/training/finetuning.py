"""Fine-tuning on few labels: the objective, the choice of labelled images, and the run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.label_splits import choose_labelled, read_split_file, write_split_file
from ddep_hub.data.loading import SegmentationFolder
from ddep_hub.data.transforms import AugmentedDataset, EvalTransform, SegmentationTrainTransform
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import evaluate_segmentation
from ddep_hub.evaluation.plots import segmentation_picture
from ddep_hub.publishing.card import finetuning_card
from ddep_hub.publishing.publish import publish_folder

from .arguments import FinetuneArguments, write_yaml
from .embedded import embedded_scenes, encoder_source
from .loop import Batch, train
from .pretraining import Normalize
from .run_folder import MetricsLog, whole_folder


class SegmentationObjective:
    """Cross-entropy over the pixels that are not ignored."""

    def __init__(self, encoder_name: str, ignore_index: int) -> None:
        self.normalize = Normalize(encoder_name)
        self.ignore_index = ignore_index

    def count(self, batch: Batch) -> int:
        """Pixels that are not ignored."""
        return int((batch["labels"] != self.ignore_index).sum())

    def loss_sum(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> torch.Tensor:
        """Cross-entropy summed over those pixels."""
        logits = model(pixel_values=self.normalize(batch["pixel_values"])).logits
        return F.cross_entropy(logits.float(), batch["labels"], ignore_index=self.ignore_index, reduction="sum")


def labelled_images(args: FinetuneArguments, data: Path) -> list[str]:
    """Stems of the labelled images that a run may use, as its arguments say; all of the split by default."""
    every = SegmentationFolder(data, args.train_split).stems
    if args.split_file is not None:
        return read_split_file(args.split_file)
    if args.label_fraction is None and args.num_labelled_images is None:
        return every
    return choose_labelled(every, fraction=args.label_fraction, number=args.num_labelled_images, seed=args.split_seed)


def build_model(
    args: FinetuneArguments, rows: SegmentationFolder, weights: Path | None
) -> DDePForSemanticSegmentation:
    """The model to fine-tune: DDeP-pretrained where one is named, else a random decoder on a pretrained encoder."""
    classes = rows.classes
    labels: dict[str, Any] = {
        "id2label": classes.id2label,
        "label2id": classes.label2id,
        "semantic_loss_ignore_index": classes.ignore_index,
    }
    if args.model_name_or_path is None:
        return DDePForSemanticSegmentation.from_pretrained_encoder(
            args.encoder_name,
            encoder_weights=weights,
            decoder_hidden_sizes=args.decoder_hidden_sizes,
            decoder_bottleneck_size=args.decoder_bottleneck_size,
            decoder_width=args.decoder_width,
            decoder_norm=args.decoder_norm,
            **labels,
        )
    stored, _ = DDePForSemanticSegmentation.config_class.get_config_dict(args.model_name_or_path)
    # A whole folder holds its encoder; only a decoder-only one takes it from elsewhere.
    encoder_weights = weights if stored.get("decoder_only") else None
    model: DDePForSemanticSegmentation = DDePForSemanticSegmentation.from_pretrained(
        args.model_name_or_path, encoder_weights=encoder_weights, **labels
    )
    return model


def finetune(args: FinetuneArguments) -> dict[str, Any]:
    """Fine-tunes a model on few labelled images and writes the run's folder.

    Args:
        args: the run's arguments.

    Returns:
        The figures of [`evaluate_segmentation`] on `eval_split`, `seconds`, `labelled`, the number of labelled
        images, and `final`, the folder with the model.
    """
    accelerator = Accelerator()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        data = Path(args.data) if args.data else embedded_scenes(output.parent)
        weights = encoder_source(args.encoder_name, args.encoder_weights, output.parent)
    stems = labelled_images(args, data)
    rows = SegmentationFolder(data, args.train_split, stems=stems)
    held_out = SegmentationFolder(data, args.eval_split)
    classes = rows.classes
    dataset = AugmentedDataset(
        rows,
        SegmentationTrainTransform(
            crop_size=args.crop_size,
            image_size=args.image_size,
            scale=(args.scale[0], args.scale[1]),
            photometric=args.photometric,
            ignore_index=classes.ignore_index,
        ),
        args.seed,
    )
    set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
    model = build_model(args, rows, weights)
    objective = SegmentationObjective(model.config.encoder_name, classes.ignore_index)
    if accelerator.is_main_process:
        write_yaml(args, output / "config.yaml")
        write_split_file(output / "labelled.txt", stems)
    log = MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        return evaluate_segmentation(
            model,
            held_out,
            EvalTransform(image_size=args.image_size),
            objective.normalize,
            batch_size=args.eval_batch_size,
            accelerator=accelerator,
        )

    results = train(
        accelerator=accelerator,
        model=model,
        dataset=dataset,
        objective=objective,
        args=args,
        log=log,
        evaluate=evaluate,
        eval_every=args.eval_every,
        encoder_lr_factor=args.encoder_lr_factor,
    )
    results["labelled"] = len(stems)
    accelerator.print(f"mIoU on {args.eval_split}: {100 * results['mean_iou']:.2f} ({len(stems)} labelled images)")
    final = output / "final"
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model).eval()
        model.name_or_path = str(final)
        with whole_folder(output / "pictures") as pictures:
            segmentation_picture(
                {"prediction": model}, held_out, EvalTransform(image_size=args.image_size), objective.normalize
            ).save(pictures / "segmentation.png")
        with whole_folder(final) as folder:
            model.save_pretrained(folder)
            mean, std = encoder_mean_std(model.config.encoder_name)
            # The geometry the model was measured with: the shorter side that was asked for, or the image as it is.
            size = {"size": {"shortest_edge": args.image_size}} if args.image_size else {"do_resize": False}
            DDePImageProcessor(image_mean=mean, image_std=std, **size).save_pretrained(folder)
            (folder / "README.md").write_text(
                finetuning_card(dataclasses.asdict(args), model.config, results, len(held_out))
            )
            (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        if args.push_to_hub:
            publish_folder(final, str(args.hub_model_id), private=args.hub_private)
    accelerator.wait_for_everyone()
    return {**results, "final": str(final)}
