"""The images of a pretraining run: what it trains on, and what is kept out to measure it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from ddep_hub.data.augmented import AugmentedDataset
from ddep_hub.data.hub_datasets import ShardedImages
from ddep_hub.data.image_sources import identity, open_images
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
        held_out: crops of the held-out images, uint8 `(n, 3, H, W)`, the same in every run.
        examples: crops of a few training images, uint8 `(m, 3, H, W)`.
    """

    feed: Feed
    held_out: torch.Tensor
    examples: torch.Tensor


def open_training_images(args: PretrainArguments, transform: PretrainTransform) -> TrainingImages:
    """Opens the sources of a run, and keeps some images out.

    Args:
        args: the run's arguments.
        transform: makes crops.

    Raises:
        ValueError: there are no more images than `num_held_out`, or a source cannot be used.
    """
    names = [name if "://" in name else str(data_folder(name)) for name in args.images]
    names = names or [str(embedded_scenes() / "unlabelled")]
    sources = open_images(names, column=args.image_column, streaming=args.streaming)
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
        held_out, training = list(range(number)), list(range(number, len(rows)))
        feed: Feed = StreamFeed(make, data, f"a stream of {sum(source.num_shards for source in streams)} shards")
    else:
        joined = ConcatDataset(sources)
        rows = joined
        # One choice for all seeds of a run, so that their errors can be compared.
        order = epoch_order(len(joined), 0, 0)
        held_out, training = order[:number].tolist(), sorted(order[number:].tolist())
        sizes = np.diff(np.searchsorted(training, [0, *joined.cumulative_sizes])).tolist()
        subset: Any = Subset(joined, training)
        dataset = AugmentedDataset(subset, transform, args.seed, skip_bad_files=args.skip_bad_files)
        feed = DatasetFeed(dataset, data, sizes, args.image_weights)
    if not training:
        raise ValueError(f"num_held_out is {number}, but {names} hold {len(rows)} images in all. Keep fewer out.")
    fixed = AugmentedDataset(rows, transform, 0, skip_bad_files=args.skip_bad_files)

    def crops(indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([fixed[(0, index)]["pixel_values"] for index in indices])

    return TrainingImages(feed, crops(held_out), crops(training[:REFERENCE_IMAGES]))
