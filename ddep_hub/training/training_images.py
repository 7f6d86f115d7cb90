"""The images of a pretraining run: what it trains on, and what is kept out to measure it."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from ddep_hub.data.augmented import AugmentedDataset, bad_file
from ddep_hub.data.decoding import BadFileError
from ddep_hub.data.hub_datasets import ShardedImages
from ddep_hub.data.image_sources import MapSource, identity, open_images
from ddep_hub.data.rows import Rows
from ddep_hub.data.sampling import epoch_order
from ddep_hub.data.streaming import ImageStream
from ddep_hub.data.transforms import PretrainTransform

from .arguments import PretrainArguments
from .feeds import DatasetFeed, Feed, StreamFeed
from .sources import data_folder, embedded_scenes


# Training images that the linear filter among the references is fitted on.
REFERENCE_IMAGES = 32


@dataclass
class TrainingImages:
    """Images of a run.

    Args:
        feed: the training examples.
        held_out: crops of the held-out images that are not broken, uint8 `(n, 3, H, W)`, the same in every run.
        examples: crops of a few training images, uint8 `(m, 3, H, W)`.
        skipped: broken files among them, with `skip_bad_files`.
    """

    feed: Feed
    held_out: torch.Tensor
    examples: torch.Tensor
    skipped: list[str]


def open_sources(args: PretrainArguments) -> list[MapSource] | list[ShardedImages]:
    """Opens the sources of a run; the embedded scenes where its arguments name none.

    Raises:
        FileNotFoundError, ValueError: a source cannot be used.
    """
    return open_images(source_names(args), column=args.image_column, streaming=args.streaming)


def source_names(args: PretrainArguments) -> list[str]:
    """The sources of a run by folder or name, in the order of [`open_sources`]."""
    names = [name if "://" in name else str(data_folder(name)) for name in args.images]
    return names or [str(embedded_scenes() / "unlabelled")]


def open_training_images(args: PretrainArguments, transform: PretrainTransform) -> TrainingImages:
    """Opens the sources of a run, and keeps some images out.

    Args:
        args: the run's arguments.
        transform: makes crops.

    Raises:
        ValueError: there are no more images than `num_held_out`, or a source cannot be used.
    """
    names, sources = source_names(args), open_sources(args)
    streams = [source for source in sources if isinstance(source, ShardedImages)]
    data = identity(sources)
    number = args.num_held_out
    if streams:
        make = functools.partial(
            ImageStream,
            streams,
            transform,
            seed=args.seed,
            weights=args.image_weights or None,
            window=args.shuffle_window,
            skip_bad_files=args.skip_bad_files,
            held_out=number,
        )
        rows: Rows = make(global_batch_size=1, start_step=0, end_step=0).head(number + REFERENCE_IMAGES)
        held_out, training = np.split(np.arange(len(rows)), [number])
        feed: Feed = StreamFeed(make, data, f"a stream of {sum(source.num_shards for source in streams)} shards")
    else:
        joined = ConcatDataset(sources)
        rows = joined
        # One choice for all seeds of a run, so that their errors can be compared.
        held_out, training = np.split(epoch_order(len(joined), 0, 0), [number])
        training.sort()
        sizes = np.diff(np.searchsorted(training, [0, *joined.cumulative_sizes])).tolist()
        if args.image_weights and min(sizes) == 0:
            raise ValueError(f"num_held_out: all images of {names[sizes.index(0)]} would be kept out. Keep fewer out.")
        subset: Any = Subset(joined, training)
        dataset = AugmentedDataset(subset, transform, args.seed, skip_bad_files=args.skip_bad_files)
        feed = DatasetFeed(dataset, data, sizes, args.image_weights)
    if not len(training):
        raise ValueError(f"num_held_out is {number}, but {names} hold {len(rows)} images in all. Keep fewer out.")
    fixed, skipped = AugmentedDataset(rows, transform, 0), list[str]()

    def crops(indices: np.ndarray, what: str) -> torch.Tensor:
        found = []
        for index in indices:
            try:
                found.append(fixed[(0, int(index))]["pixel_values"])
            except (BadFileError, OSError) as error:
                if not args.skip_bad_files:
                    raise
                skipped.append(bad_file(error))
        if not found:
            raise BadFileError(f"All {len(indices)} {what} images are broken, such as {skipped[0]}; look at the files")
        return torch.stack(found)

    return TrainingImages(
        feed, crops(held_out, "held-out"), crops(training[:REFERENCE_IMAGES], "of the first training"), skipped
    )
