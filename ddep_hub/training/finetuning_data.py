"""The images of a fine-tuning run: labelled ones for training and validation, and unlabelled ones."""

from collections.abc import Iterable, Mapping, Sequence

from ddep_hub.data.classes import ClassTable
from ddep_hub.data.dataloading import bad_file_path
from ddep_hub.data.folders import match_split
from ddep_hub.data.image_datasets import ImageFolder, MapSource, ShardedImages, open_images
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.labelled_data import open_split
from ddep_hub.data.segmentation_datasets import SegmentationDataset, SegmentationFolder
from ddep_hub.data.splits import choose_labelled, choose_validation, extract_groups, find_copies, read_split_file
from ddep_hub.data.statistics import ClassStatistics, check_classes, warn_about_mixed_values
from ddep_hub.utils.files import resolve_data

from .arguments import FinetuneArguments
from .models import get_num_channels


def open_train_and_val(args: FinetuneArguments) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens the training and validation images: `train_split` and `eval_split`, or a `val_fraction` of `train_split`.

    Raises a ValueError if the data has an `eval_split` despite `val_fraction`, or the images cannot be split.
    """
    num_channels = get_num_channels(args)
    # With val_fraction, all images of the split take part in the choice of the validation images.
    split_file = args.split_file if args.val_fraction is None else None
    training = open_split(args, args.train_split, split_file, num_channels=num_channels)
    if args.val_fraction is None:
        return training, open_split(args, args.eval_split, num_channels=num_channels)
    groups: Mapping[str, str] = {}
    if isinstance(training, SegmentationFolder):
        groups = training.groups
        if match_split(dict.fromkeys(training.splits), args.eval_split):
            raise ValueError(
                f"val_fraction: {training.root} already has a split `{args.eval_split}`. Leave val_fraction out, or "
                "set another eval_split."
            )
    if args.group_pattern is not None:
        groups = extract_groups(training.sample_ids, args.group_pattern)
    validation_ids = choose_validation(training.sample_ids, args.val_fraction, groups)
    training_ids = set(training.sample_ids) - set(validation_ids)
    return training.select(name for name in training.sample_ids if name in training_ids), training.select(
        validation_ids
    )


def open_data(args: FinetuneArguments) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens the labelled images of a run, all of `train_split` by default, and its validation images."""
    training, validation = open_train_and_val(args)
    if args.split_file is not None and args.val_fraction is not None:
        listed = read_split_file(args.split_file, {*training.sample_ids, *validation.sample_ids})
        if held_out := set(listed) & set(validation.sample_ids):
            raise ValueError(
                f"split_file: val_fraction holds out {len(held_out)} of its {len(listed)} images, such as "
                f"{min(held_out)}. Take them off the list, or make a split for validation."
            )
        training = training.select(listed)
    elif args.label_fraction is not None or args.num_labelled_images is not None:
        labelled_ids = choose_labelled(
            training.sample_ids, fraction=args.label_fraction, number=args.num_labelled_images, seed=args.split_seed
        )
        training = training.select(labelled_ids)
    check_held_out(args, training, validation)
    return training, validation


def check_held_out(args: FinetuneArguments, training: SegmentationDataset, validation: SegmentationDataset) -> None:
    """Raises a ValueError if training and validation share image files."""
    if isinstance(training, SegmentationFolder) and isinstance(validation, SegmentationFolder):
        # Resolved, because one split may be a link to the other.
        shared = {path.resolve() for path in training.images} & {path.resolve() for path in validation.images}
        if shared:
            raise ValueError(
                f"eval_split: {len(shared)} images of `{args.eval_split}` are also in `{args.train_split}`, such as "
                f"{min(shared)}. Remove them from one of the two splits."
            )


def describe_leaks(
    args: FinetuneArguments, training: SegmentationDataset, validation: SegmentationDataset
) -> list[str]:
    """Describes leaks of validation images: copies among the training images, or among the unlabelled ones.

    Returns one warning for each kind of leak. Only folders are compared, not data sets of the Hub.
    """
    if not isinstance(validation, SegmentationFolder):
        return []
    notes = []
    if isinstance(training, SegmentationFolder) and (copies := find_copies(validation.images, training.images)):
        notes.append(
            f"eval_split: {len(copies)} images of `{args.eval_split}` have copies in `{args.train_split}`, such as "
            f"{min(copies)}, so the score says little about new images. Remove them from one of the two splits."
        )
    sources = unlabelled_sources(args.unlabelled) if args.unlabelled else []
    images = [source.root / name for source in sources if isinstance(source, ImageFolder) for name in source.names]
    if copies := find_copies(images, validation.images):
        notes.append(
            f"unlabelled: {len(copies)} of its images are validation images, such as {min(copies)}. A decoder "
            "that has seen them, even without labels, may score too high. Leave them out."
        )
    return notes


def check_labels(args: FinetuneArguments, training: SegmentationDataset, validation: SegmentationDataset) -> None:
    """Raises what [`FinetuneTrainer`] would raise of masks, their classes and validation images."""
    check_class_weights(args.class_weights, training.classes)
    for dataset in (training, validation):
        is_validation = dataset is validation
        statistics, bad_files = read_labels(
            dataset, range(len(dataset)), images=is_validation, skip_bad_files=args.skip_bad_files
        )
        if len(bad_files) == len(dataset):
            continue  # as it will be said of all files
        if is_validation:
            check_labelled(statistics, "eval_split", args.eval_split)
        else:
            check_train_labels(args, statistics)
            warn_about_mixed_values(statistics, training.classes)


def check_train_labels(args: FinetuneArguments, statistics: ClassStatistics) -> None:
    """Raises a ValueError if a class has no labelled pixel, or no pixel is labelled."""
    if not args.allow_empty_classes:
        check_classes(statistics)
    check_labelled(statistics, "train_split", args.train_split)


def read_labels(
    dataset: SegmentationDataset, indices: Iterable[int], *, images: bool = False, skip_bad_files: bool
) -> tuple[ClassStatistics, dict[str, str]]:
    """Reads some masks, with `images` their images too: statistics, and the broken files by sample id."""
    statistics, bad_files = ClassStatistics(dataset.classes.names, dataset.classes.ignore_index), dict[str, str]()
    for index in indices:
        try:
            statistics.update(dataset[index]["annotation"] if images else dataset.mask(index))
        except (BadFileError, OSError) as error:
            if not skip_bad_files:
                raise
            bad_files[dataset.sample_ids[index]] = bad_file_path(error)
    return statistics, bad_files


def check_labelled(statistics: ClassStatistics, argument: str, split: str) -> None:
    if not statistics.pixels.any():
        raise ValueError(f"{argument}: no pixel of `{split}` is labelled. Check the masks.")


def check_class_weights(weights: Sequence[str], classes: ClassTable) -> None:
    if weights and weights != ["median_frequency"] and len(weights) != len(classes.labels):
        raise ValueError(
            f"class_weights has {len(weights)} numbers, but the data has {len(classes.labels)} classes: "
            f"{', '.join(classes.labels)}."
        )


def unlabelled_sources(names: Sequence[str]) -> list[MapSource]:
    """Opens the unlabelled images of a fine-tuning run; raises a ValueError if they are streamed."""
    opened = open_images([resolve_data(name) for name in names])
    sources = [source for source in opened if not isinstance(source, ShardedImages)]
    if not sources:
        raise ValueError(f"unlabelled: {names[0]} is streamed. Unpack the shards into a folder of images.")
    return sources
