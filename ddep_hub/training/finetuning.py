"""Fine-tuning on few labels: the model and the run."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.dataloading import AugmentedDataset, bad_file
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.segmentation_datasets import SegmentationDataset, SegmentationFolder, open_split
from ddep_hub.data.splits import choose_labelled, read_split_file, write_split_file
from ddep_hub.data.transforms import EvalTransform, Normalize, SegmentationTrainTransform
from ddep_hub.decoder import restore_weight_norms
from ddep_hub.encoder_weights import encoder_file, encoder_source
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.inference import evaluate_segmentation
from ddep_hub.evaluation.visualization import segmentation_picture

from .arguments import FinetuneArguments
from .feeds import DatasetFeed, fingerprint_of
from .losses import SegmentationObjective, median_frequency_weights
from .optim import encoder_rates, set_encoder_mode
from .pretraining import new_model
from .run import begin, run, save_model
from .trainer import Task


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
    if args.pretrained is None:
        source = encoder_source(args.encoder_name, args.encoder_weights)
        fields = {name: value for name, value in dataclasses.asdict(args).items() if name.startswith("decoder_")}
        model = new_model(
            DDePForSemanticSegmentation, args.encoder_name, source, encoder_file(source), **fields, **labels
        )
    else:
        stored, _ = DDePForSemanticSegmentation.config_class.get_config_dict(args.pretrained)
        source, weights = args.pretrained, None
        if stored.get("decoder_only"):  # a whole folder holds its encoder
            source = encoder_source(stored["encoder_name"], args.encoder_weights)
            weights = encoder_file(source)
        model = DDePForSemanticSegmentation.from_pretrained(
            args.pretrained, encoder_weights=weights, ignore_mismatched_sizes=True, **labels
        )
    if args.restore_decoder_norms and "DDePForPreTraining" in (stored.get("architectures") or ()):
        restore_weight_norms(model.ddep.decoder)
    if args.keep_decoder_blocks is not None:
        reinit_blocks(model, args.keep_decoder_blocks)
    names = {int(label): name for label, name in (stored.get("id2label") or {}).items()}
    if "DDePForSemanticSegmentation" not in (stored.get("architectures") or ()) or names != classes.id2label:
        set_seed(args.seed)
        nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
        nn.init.zeros_(model.classifier.bias)
    return model, source


def reinit_blocks(model: DDePForSemanticSegmentation, keep: int) -> None:
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


def class_weights(args: FinetuneArguments, rows: SegmentationDataset, accelerator: Accelerator) -> torch.Tensor | None:
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
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            accelerator=accelerator,
        )
        return {**figures, "labelled": len(rows)}

    task = Task(
        model=model,
        feed=DatasetFeed(dataset, fingerprint_of(rows.fingerprint, classes.names, classes.ignore_index)),
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
        record=lambda: write_split_file(Path(args.output_dir) / "labelled.txt", rows.sample_ids),
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


@dataclass
class LabelledImages:
    """The images of a run.

    Args:
        training: those that may be used, in order.
        held_out: those that are measured on.
    """

    training: SegmentationDataset
    held_out: SegmentationDataset


def open_labelled_images(args: FinetuneArguments) -> LabelledImages:
    """Opens the data of a run and chooses the labelled images, as its arguments say; all of the split by default.

    Raises:
        FileNotFoundError: something of the data set is missing.
        ValueError: the choice cannot be made.
    """
    every = open_split(args, args.train_split)
    sample_ids = every.sample_ids
    if args.split_file is not None:
        sample_ids = read_split_file(args.split_file)
    elif args.label_fraction is not None or args.num_labelled_images is not None:
        sample_ids = choose_labelled(
            sample_ids, fraction=args.label_fraction, number=args.num_labelled_images, seed=args.split_seed
        )
    images = LabelledImages(open_split(args, args.train_split, sample_ids), open_split(args, args.eval_split))
    if isinstance(images.training, SegmentationFolder) and isinstance(images.held_out, SegmentationFolder):
        shared = set(images.training.images) & set(images.held_out.images)
        if shared:
            raise ValueError(
                f"eval_split: {len(shared)} images of `{args.eval_split}` are in `{args.train_split}` too, such as "
                f"{min(shared)}. Measure on other images."
            )
    return images


def without_bad_files(
    args: FinetuneArguments, rows: SegmentationDataset, accelerator: Accelerator
) -> tuple[SegmentationDataset, list[str]]:
    """Reads every image and mask once, shared out over the processes, so that a broken one is found before training.

    Args:
        args: the run's arguments.
        rows: of `eval_split`.
        accelerator: the process's accelerator.

    Returns:
        The rows, with `skip_bad_files` without the broken ones, and the broken files.

    Raises:
        BadFileError: a file is broken, and `skip_bad_files` is off.
        ValueError: all of them are.
    """
    bad: list[tuple[str, str]] = []
    for index in range(accelerator.process_index, len(rows), accelerator.num_processes):
        try:
            rows[index]
        except (BadFileError, OSError) as error:
            if not args.skip_bad_files:
                raise
            bad.append((rows.sample_ids[index], bad_file(error)))
    bad = gather_object(bad)
    if not bad:
        return rows, []
    broken = {stem for stem, _ in bad}
    sample_ids = [stem for stem in rows.sample_ids if stem not in broken]
    if not sample_ids:
        raise ValueError(f"eval_split: every file of `{args.eval_split}` is broken, such as {bad[0][1]}.")
    return open_split(args, args.eval_split, sample_ids), [path for _, path in bad]
