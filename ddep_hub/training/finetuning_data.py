"""The images of a fine-tuning run: labelled ones for training and validation, and unlabelled ones."""

import logging
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ddep_hub.data.dataloading import bad_file_path, compute_fingerprint
from ddep_hub.data.folders import match_split
from ddep_hub.data.image_datasets import ImageFolder, MapSource, ShardedImages, open_images
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.labelled_data import dataset_summary, open_split
from ddep_hub.data.segmentation_datasets import SegmentationDataset, SegmentationFolder
from ddep_hub.data.splits import choose_labelled, choose_validation, extract_groups, find_copies, read_split_file
from ddep_hub.data.statistics import ClassStatistics, check_classes, warn_about_mixed_values
from ddep_hub.evaluation.metrics import absent_message
from ddep_hub.utils.files import resolve_data
from ddep_hub.utils.processes import sum_over_processes

from .arguments import FinetuneArguments
from .losses import median_frequency_weights
from .models import get_num_channels


logger = logging.getLogger(__name__)


def open_train_and_val(args: FinetuneArguments) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens the training and validation images: `train_split` and `eval_split`, or a `val_fraction` of `train_split`.

    Raises a ValueError if the data has an `eval_split` despite `val_fraction`, or the images cannot be split.
    """
    num_channels = get_num_channels(args)
    # With val_fraction, the validation images are drawn from all images of the split.
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
                f"{min(held_out)}. Remove them from the list, or create a validation split."
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

    Returns one warning for each kind of leak. Only folders are compared, not data sets on the Hub.
    """
    if not isinstance(validation, SegmentationFolder):
        return []
    notes = []
    if isinstance(training, SegmentationFolder) and (copies := find_copies(validation.images, training.images)):
        notes.append(
            f"eval_split: {len(copies)} images of `{args.eval_split}` have copies in `{args.train_split}`, such as "
            f"{min(copies)}, so the score may be too high. Remove them from one of the two splits."
        )
    sources = unlabelled_sources(args.unlabelled)
    images = [source.root / name for source in sources if isinstance(source, ImageFolder) for name in source.names]
    if copies := find_copies(images, validation.images):
        notes.append(
            f"unlabelled: {len(copies)} of its images are validation images, such as {min(copies)}. Training on "
            "them, even without labels, may make the score too high. Leave them out."
        )
    return notes


def unlabelled_sources(names: Sequence[str]) -> list[MapSource]:
    """Opens the unlabelled images of a fine-tuning run; raises a ValueError if they are streamed."""
    if not names:
        return []
    opened = open_images([resolve_data(name) for name in names])
    sources = [source for source in opened if not isinstance(source, ShardedImages)]
    if not sources:
        raise ValueError(f"unlabelled: {names[0]} is streamed. Unpack the shards into a folder of images.")
    return sources


class FinetuneData:
    """The labelled images of a fine-tuning run, used by both of its stages.

    Attributes:
        labelled: The training images. Broken ones are skipped when they are drawn, so that a run stopped by one of
            them can be resumed with `skip_bad_files`.
        validation: The validation images; after `read`, without broken ones, so that evaluation does not fail.
        usable: The training images that are not broken.
        statistics: How often each class occurs in the usable ones.
        class_weights: Weights of the classes in the loss, float32 `(num_labels,)`, or `None`.
        validation_fingerprint: Hash of the validation images and their masks.
        bad_files: Paths of broken files.
    """

    usable: SegmentationDataset
    statistics: ClassStatistics
    class_weights: torch.Tensor | None
    validation_fingerprint: str

    def __init__(self, args: FinetuneArguments) -> None:
        self.args = args
        self.labelled, self.validation = open_data(args)
        self.bad_files: list[str] = []

    def read(self, accelerator: Accelerator) -> None:
        """Reads all masks and validation images and sets the attributes derived from them; called in every process.

        Prints how often each class occurs, and warns about suspicious masks. Raises a BadFileError or OSError for a
        broken file, unless they are skipped, and a ValueError if a split or class has no labels, or `class_weights`
        does not match the classes.
        """
        args, classes, is_main = self.args, self.labelled.classes, accelerator.is_main_process
        if is_main:
            for note in describe_leaks(args, self.labelled, self.validation):
                logger.warning(note)
        accelerator.print(dataset_summary(self.labelled))
        self.usable, self.statistics = self._read_split(
            accelerator, self.labelled, "train_split", images=args.skip_bad_files
        )
        if not args.allow_empty_classes:
            check_classes(self.statistics)
        _check_labelled(self.statistics, "train_split", args.train_split)
        self.class_weights = self.weigh_classes()
        if is_main:
            warn_about_mixed_values(self.statistics, classes)
        self.validation, statistics = self._read_split(accelerator, self.validation, "eval_split", images=True)
        _check_labelled(statistics, "eval_split", args.eval_split)
        counts = statistics.counts[:3].tolist()
        self.validation_fingerprint = compute_fingerprint(args.eval_split, self.validation.fingerprint, counts)
        if statistics.absent_classes and is_main:
            logger.warning(absent_message(statistics.absent_classes, len(statistics.names), args.eval_split))

    def _read_split(
        self, accelerator: Accelerator, dataset: SegmentationDataset, argument: str, *, images: bool
    ) -> tuple[SegmentationDataset, ClassStatistics]:
        """Reads the masks and, with `images`, the images, divided among all processes.

        Returns the dataset without broken samples, and its statistics.
        """
        split, bad_files = getattr(self.args, argument), dict[str, str]()
        statistics = ClassStatistics(dataset.classes.names, dataset.classes.ignore_index)
        failures: list[Exception] = []
        for index in range(accelerator.process_index, len(dataset), accelerator.num_processes):
            try:
                statistics.update(dataset[index]["annotation"] if images else dataset.mask(index))
            except (BadFileError, OSError) as error:
                if not self.args.skip_bad_files:
                    failures.append(error)
                    break
                bad_files[dataset.sample_ids[index]] = bad_file_path(error)
        messages = gather_object([str(error) for error in failures])  # so that all processes fail together
        if messages:
            raise failures[0] if failures else BadFileError(messages[0])
        statistics.counts = sum_over_processes(accelerator, statistics.counts)
        bad_files = dict(gather_object(list(bad_files.items())))
        accelerator.print(f"Classes in the {len(dataset) - len(bad_files)} images of `{split}`:\n{statistics.table()}")
        if not bad_files:
            return dataset, statistics
        self.bad_files += bad_files.values()
        usable = [sample_id for sample_id in dataset.sample_ids if sample_id not in bad_files]
        if not usable:
            raise ValueError(f"{argument}: every file of `{split}` is broken, such as {self.bad_files[-1]}.")
        return dataset.select(usable), statistics

    def weigh_classes(self) -> torch.Tensor | None:
        """The `class_weights`; raises a ValueError if their number is wrong."""
        weights, classes = self.args.class_weights, self.labelled.classes
        if not weights:
            return None
        if weights == ["median_frequency"]:
            class_weights = median_frequency_weights(self.statistics)
            # A single class has one weight, relative to the background's.
            return (
                class_weights[1:] / class_weights[0]
                if classes.single and class_weights.all()
                else class_weights[-len(classes.labels) :]
            )
        if len(weights) != len(classes.labels):
            raise ValueError(
                f"class_weights has {len(weights)} numbers, but the data has {len(classes.labels)} classes: "
                f"{', '.join(classes.labels)}."
            )
        return torch.tensor([float(weight) for weight in weights])


def _check_labelled(statistics: ClassStatistics, argument: str, split: str) -> None:
    if not statistics.pixels.any():
        raise ValueError(f"{argument}: no pixel of `{split}` is labelled. Check the masks.")
