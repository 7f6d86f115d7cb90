"""Fine-tuning on few labels: the objective, the choice of labelled images, and the run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.label_splits import choose_labelled, read_split_file, write_split_file
from ddep_hub.data.loading import SegmentationFolder
from ddep_hub.data.transforms import AugmentedDataset, EvalTransform, Normalize, SegmentationTrainTransform
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import evaluate_segmentation
from ddep_hub.evaluation.plots import segmentation_picture
from ddep_hub.publishing.card import finetuning_card

from .arguments import FinetuneArguments
from .loop import Batch
from .pretraining import new_model
from .run import run
from .run_folder import start_run
from .sources import data_folder, embedded_scenes, encoder_file, encoder_source


class SegmentationObjective:
    """Cross-entropy over the pixels that are not ignored."""

    def __init__(self, encoder_name: str, ignore_index: int) -> None:
        self.normalize = Normalize(*encoder_mean_std(encoder_name))
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


def build_model(args: FinetuneArguments, classes: ClassTable) -> tuple[DDePForSemanticSegmentation, str]:
    """The model to fine-tune, and where its encoder came from.

    A classifier is kept only where the model was fine-tuned for these very classes. A fresh one depends on the seed
    alone, so that models which differ in their decoder start with the same.
    """
    labels: dict[str, Any] = {
        "id2label": classes.id2label,
        "label2id": classes.label2id,
        "semantic_loss_ignore_index": classes.ignore_index,
    }
    stored: dict[str, Any] = {}
    if args.model_name_or_path is None:
        source = encoder_source(args.encoder_name, args.encoder_weights)
        fields = {name: value for name, value in dataclasses.asdict(args).items() if name.startswith("decoder_")}
        model = new_model(
            DDePForSemanticSegmentation, args.encoder_name, source, encoder_file(source), **fields, **labels
        )
    else:
        stored, _ = DDePForSemanticSegmentation.config_class.get_config_dict(args.model_name_or_path)
        source, weights = f"`{args.model_name_or_path}`", None
        if stored.get("decoder_only"):  # a whole folder holds its encoder
            source = encoder_source(stored["encoder_name"], args.encoder_weights)
            weights = encoder_file(source)
        model = DDePForSemanticSegmentation.from_pretrained(
            args.model_name_or_path, encoder_weights=weights, ignore_mismatched_sizes=True, **labels
        )
    names = {int(label): name for label, name in (stored.get("id2label") or {}).items()}
    if "DDePForSemanticSegmentation" not in (stored.get("architectures") or ()) or names != classes.id2label:
        set_seed(args.seed)
        nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
        nn.init.zeros_(model.classifier.bias)
    return model, source


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
    start_run(output, overwrite=args.overwrite or not accelerator.is_main_process)
    with accelerator.main_process_first():
        data = data_folder(args.data) if args.data else embedded_scenes()
        set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
        stems = labelled_images(args, data)
        rows = SegmentationFolder(data, args.train_split, stems=stems)
        held_out = SegmentationFolder(data, args.eval_split)
        model, source = build_model(args, rows.classes)
    for index in range(accelerator.process_index, len(held_out), accelerator.num_processes):
        held_out[index]  # a broken image or mask is found now, and not after training
    dataset = AugmentedDataset(
        rows,
        SegmentationTrainTransform(
            crop_size=args.crop_size,
            image_size=args.image_size,
            scale=(args.scale[0], args.scale[1]),
            photometric=args.photometric,
            ignore_index=rows.classes.ignore_index,
        ),
        args.seed,
    )
    objective = SegmentationObjective(model.config.encoder_name, rows.classes.ignore_index)
    transform = EvalTransform(image_size=args.image_size)
    if accelerator.is_main_process:
        write_split_file(output / "labelled.txt", stems)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        figures = evaluate_segmentation(
            model, held_out, transform, objective.normalize, batch_size=args.eval_batch_size, accelerator=accelerator
        )
        return {**figures, "labelled": len(stems)}

    results = run(
        accelerator=accelerator,
        model=model,
        dataset=dataset,
        objective=objective,
        args=args,
        evaluate=evaluate,
        card=lambda results: finetuning_card(dataclasses.asdict(args), source, model.config, results, len(held_out)),
        picture=lambda: segmentation_picture({"prediction": model}, held_out, transform, objective.normalize),
        encoder_lr_factor=args.encoder_lr_factor,
        image_size=args.image_size,
    )
    accelerator.print(f"mIoU on {args.eval_split}: {100 * results['mean_iou']:.2f} ({len(stems)} labelled images)")
    return results
