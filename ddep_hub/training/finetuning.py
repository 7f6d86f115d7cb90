"""Fine-tuning on few labels: the model and the run."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.augmented import AugmentedDataset
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.label_splits import write_split_file
from ddep_hub.data.rows import LabelledRows
from ddep_hub.data.transforms import EvalTransform, Normalize, SegmentationTrainTransform
from ddep_hub.decoder import restore_weight_norms
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import evaluate_segmentation
from ddep_hub.evaluation.plots import segmentation_picture

from .arguments import FinetuneArguments
from .feeds import DatasetFeed, identity_of
from .labelled_images import open_labelled_images, without_bad_files
from .optimization import encoder_rates
from .pretraining import new_model
from .run import begin, run, save_model
from .segmentation_loss import SegmentationObjective, median_frequency_weights
from .sources import encoder_file, encoder_source
from .task import Task
from .weights import set_encoder_mode


def build_model(args: FinetuneArguments, classes: ClassTable) -> tuple[DDePForSemanticSegmentation, str]:
    """The model to fine-tune, and where its encoder came from.

    A classifier is kept only where the model was fine-tuned for these very classes. A fresh one depends on the seed
    alone, so that models which differ in their decoder start with the same.
    """
    labels: dict[str, Any] = {
        "id2label": classes.id2label,
        "label2id": classes.label2id,
        "label_colors": [list(color) for color in classes.colors],
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
        source, weights = args.model_name_or_path, None
        if stored.get("decoder_only"):  # a whole folder holds its encoder
            source = encoder_source(stored["encoder_name"], args.encoder_weights)
            weights = encoder_file(source)
        model = DDePForSemanticSegmentation.from_pretrained(
            args.model_name_or_path, encoder_weights=weights, ignore_mismatched_sizes=True, **labels
        )
    if args.restore_decoder_norms and "DDePForPreTraining" in (stored.get("architectures") or ()):
        restore_weight_norms(model.ddep.decoder)
    if args.keep_decoder_blocks is not None:
        renew_blocks(model, args.keep_decoder_blocks)
    names = {int(label): name for label, name in (stored.get("id2label") or {}).items()}
    if "DDePForSemanticSegmentation" not in (stored.get("architectures") or ()) or names != classes.id2label:
        set_seed(args.seed)
        nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
        nn.init.zeros_(model.classifier.bias)
    return model, source


def renew_blocks(model: DDePForSemanticSegmentation, keep: int) -> None:
    """Starts the finest blocks of a decoder afresh.

    Args:
        model: a model with a pretrained decoder.
        keep: blocks to keep, from the coarsest on; the bottleneck is kept in any case.

    Raises:
        ValueError: the decoder has fewer blocks.
    """
    blocks = model.ddep.decoder.blocks
    if keep > len(blocks):
        raise ValueError(f"keep_decoder_blocks is {keep}, but the decoder has {len(blocks)} blocks.")
    fresh = type(model)(model.config).ddep.decoder.blocks
    for old, new in list(zip(blocks, fresh, strict=True))[keep:]:
        old.load_state_dict(new.state_dict())


def class_weights(args: FinetuneArguments, rows: LabelledRows, accelerator: Accelerator) -> torch.Tensor | None:
    """Weights of the classes in the loss, as the arguments say.

    Raises:
        ValueError: there are more or fewer numbers than classes.
    """
    if not args.class_weights:
        return None
    if args.class_weights == ["median_frequency"]:
        return median_frequency_weights(rows, accelerator, skip_bad_files=args.skip_bad_files)
    if len(args.class_weights) != rows.classes.num_classes:
        raise ValueError(
            f"class_weights has {len(args.class_weights)} numbers, but the data has {rows.classes.num_classes} "
            f"classes: {', '.join(rows.classes.names)}."
        )
    return torch.tensor([float(weight) for weight in args.class_weights])


def finetune(args: FinetuneArguments) -> dict[str, Any]:
    """Fine-tunes a model on few labelled images and writes the run's folder.

    Args:
        args: the run's arguments.

    Returns:
        The figures of [`evaluate_segmentation`] on `eval_split`, `seconds`, `labelled`, the number of labelled
        images, and `final`, the folder with the model.
    """
    accelerator = begin(args, unused_parameters=args.freeze_encoder_steps > 0)
    with accelerator.main_process_first():
        images = open_labelled_images(args)
        set_seed(args.seed)  # the decoder's initialisation depends on the seed alone
        model, source = build_model(args, images.training.classes)
    set_encoder_mode(model, frozen=args.freeze_encoder, frozen_norms=args.freeze_encoder_norms)
    rows, classes = images.training, images.training.classes
    held_out, broken = without_bad_files(args, images.held_out, accelerator)
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
        skip_bad_files=args.skip_bad_files,
    )
    normalize = Normalize(*encoder_mean_std(model.config.encoder_name))
    transform = EvalTransform(image_size=args.image_size)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        figures = evaluate_segmentation(
            model,
            held_out,
            transform,
            normalize,
            batch_size=args.eval_batch_size,
            num_workers=args.num_workers,
            accelerator=accelerator,
        )
        return {**figures, "labelled": len(rows)}

    task = Task(
        model=model,
        feed=DatasetFeed(dataset, identity_of(rows.contents, classes.names, classes.ignore_index)),
        objective=SegmentationObjective(
            normalize,
            classes.ignore_index,
            class_weights=class_weights(args, rows, accelerator),
            dice_weight=args.dice_weight,
        ),
        evaluate=evaluate,
        score=lambda results: results["mean_iou"],
        picture=lambda model: segmentation_picture({"prediction": model}, held_out, transform, normalize),
        save=functools.partial(save_model, image_size=args.image_size),
        set_mode=lambda step: set_encoder_mode(
            model,
            frozen=args.freeze_encoder or step < args.freeze_encoder_steps,
            frozen_norms=args.freeze_encoder_norms,
        ),
        encoder_factors=encoder_rates(model.ddep.encoder, args.encoder_lr_factor, args.encoder_layer_decay),
        record=lambda: write_split_file(Path(args.output_dir) / "labelled.txt", rows.stems),
        skipped=broken,
    )
    results = run(
        accelerator,
        task,
        args,
        "finetuning",
        {"encoder_source": source, "evaluated": len(held_out)},
    )
    accelerator.print(f"mIoU on {args.eval_split}: {100 * results['mean_iou']:.2f} ({len(rows)} labelled images)")
    return results
