"""The labelled images of a fine-tuning run, and its validation images."""

from collections.abc import Mapping

from ddep_hub.data.folders import place_of
from ddep_hub.data.opening import open_split
from ddep_hub.data.segmentation_datasets import SegmentationDataset, SegmentationFolder
from ddep_hub.data.splits import choose_labelled, choose_validation, groups_of, read_split_file

from .arguments import FinetuneArguments
from .models import channels_of_run


def open_train_and_val(args: FinetuneArguments) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens `train_split` and `eval_split`, or divides the former by `val_fraction`.

    Raises:
        FileNotFoundError: Something of the data set is missing.
        ValueError: There is an `eval_split` besides `val_fraction`, or the images cannot be divided.
    """
    channels = channels_of_run(args)
    training = open_split(args, args.train_split, num_channels=channels)
    if args.val_fraction is None:
        return training, open_split(args, args.eval_split, num_channels=channels)
    groups: Mapping[str, str] = {}
    if isinstance(training, SegmentationFolder):
        groups = training.groups
        if place_of(dict.fromkeys(training.splits), args.eval_split):
            raise ValueError(
                f"val_fraction: {training.root} has a split `{args.eval_split}`. Leave val_fraction out, or "
                "set another eval_split."
            )
    if args.group_pattern is not None:
        groups = groups_of(training.sample_ids, args.group_pattern)
    chosen = choose_validation(training.sample_ids, args.val_fraction, groups)
    others = set(training.sample_ids) - set(chosen)
    return training.select(name for name in training.sample_ids if name in others), training.select(chosen)


def open_data(args: FinetuneArguments) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens the labelled images of a run, all of `train_split` by default, and its validation images.

    Raises:
        FileNotFoundError: Something of the data set is missing.
        ValueError: The labelled images cannot be chosen, or are also validation images.
    """
    training, validation = open_train_and_val(args)
    if args.split_file is not None:
        training = training.select(read_split_file(args.split_file, set(training.sample_ids)))
    elif args.label_fraction is not None or args.num_labelled_images is not None:
        chosen = choose_labelled(
            training.sample_ids, fraction=args.label_fraction, number=args.num_labelled_images, seed=args.split_seed
        )
        training = training.select(chosen)
    if isinstance(training, SegmentationFolder) and isinstance(validation, SegmentationFolder):
        # Resolved, as one split may be a link to the other.
        shared = {path.resolve() for path in training.images} & {path.resolve() for path in validation.images}
        if shared:
            raise ValueError(
                f"eval_split: {len(shared)} images of `{args.eval_split}` are in `{args.train_split}` too, such as "
                f"{min(shared)}. Use other images."
            )
    return training, validation
