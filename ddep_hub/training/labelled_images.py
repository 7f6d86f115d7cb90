"""The labelled images of a fine-tuning run: which of them it may use, and what it is measured on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object

from ddep_hub.data.augmented import bad_file
from ddep_hub.data.decoding import BadFileError
from ddep_hub.data.label_splits import choose_labelled, read_split_file
from ddep_hub.data.loading import SegmentationFolder
from ddep_hub.data.opening_labelled import open_labelled
from ddep_hub.data.rows import LabelledRows

from .arguments import FinetuneArguments
from .sources import data_folder, embedded_scenes


@dataclass
class LabelledImages:
    """The images of a run.

    Args:
        training: those that may be used, in order.
        held_out: those that are measured on.
    """

    training: LabelledRows
    held_out: LabelledRows


def open_labelled_images(args: FinetuneArguments) -> LabelledImages:
    """Opens the data of a run and chooses the labelled images, as its arguments say; all of the split by default.

    Raises:
        FileNotFoundError: something of the data set is missing.
        ValueError: the choice cannot be made.
    """
    every = open_split(args, args.train_split)
    stems = every.stems
    if args.split_file is not None:
        stems = read_split_file(args.split_file)
    elif args.label_fraction is not None or args.num_labelled_images is not None:
        stems = choose_labelled(
            stems, fraction=args.label_fraction, number=args.num_labelled_images, seed=args.split_seed
        )
    images = LabelledImages(open_split(args, args.train_split, stems), open_split(args, args.eval_split))
    if isinstance(images.training, SegmentationFolder) and isinstance(images.held_out, SegmentationFolder):
        shared = set(images.training.images) & set(images.held_out.images)
        if shared:
            raise ValueError(
                f"eval_split: {len(shared)} images of `{args.eval_split}` are in `{args.train_split}` too, such as "
                f"{min(shared)}. Measure on other images."
            )
    return images


class LabelledData(Protocol):
    """Arguments that name labelled data, such as [`FinetuneArguments`]."""

    data: str | None
    classes: str | None
    image_column: str
    mask_column: str


def open_split(args: LabelledData, split: str, stems: Iterable[str] | None = None) -> LabelledRows:
    """A split of labelled data: a folder, a data set of the Hub or one that `datasets` wrote.

    Args:
        args: where it is; the embedded scenes where they name none.
        split: its name.
        stems: the examples to use; all by default.
    """
    name = args.data or str(embedded_scenes())
    return open_labelled(
        name if "://" in name else data_folder(name),
        split,
        classes=args.classes,
        image_column=args.image_column,
        mask_column=args.mask_column,
        stems=stems,
    )


def without_bad_files(
    args: FinetuneArguments, rows: LabelledRows, accelerator: Accelerator
) -> tuple[LabelledRows, list[str]]:
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
            bad.append((rows.stems[index], bad_file(error)))
    bad = gather_object(bad)
    if not bad:
        return rows, []
    broken = {stem for stem, _ in bad}
    stems = [stem for stem in rows.stems if stem not in broken]
    if not stems:
        raise ValueError(f"eval_split: every file of `{args.eval_split}` is broken, such as {bad[0][1]}.")
    return open_split(args, args.eval_split, stems), [path for _, path in bad]
