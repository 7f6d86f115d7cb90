"""What a run trains: the model, its examples, what is minimised, and how it is measured and shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from ddep_hub import DDePPreTrainedModel

from .feeds import Feed


Batch = dict[str, Any]


class Objective(Protocol):
    """What is minimised: the sum of some terms, each a sum over elements (pixels, images) divided by their number."""

    def counts(self, batch: Batch) -> Sequence[torch.Tensor]:
        """What the sum of each term is divided by, once added up over the global batch; on the batch's device."""
        ...

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> Sequence[torch.Tensor]:
        """The sum of each term; `positions` are the examples' places in the global batch."""
        ...


@dataclass(kw_only=True)
class Task:
    """What a run trains, and how it is measured and shown.

    Args:
        model: the model to train, in place.
        feed: the training examples.
        objective: what is minimised.
        evaluate: measures a model; called in every process.
        score: the figure by which the best model is chosen, more is better.
        picture: draws what a model does.
        save: writes a model into a folder, so that `from_pretrained` loads it.
        set_mode: puts the model into training mode for a step counted from 0.
        encoder_factors: factors on the learning rate of the encoder's parameters.
        record: writes what else belongs to the run, beside its arguments.
        skipped: broken files that were passed over already.
    """

    model: DDePPreTrainedModel
    feed: Feed
    objective: Objective
    evaluate: Callable[[nn.Module], dict[str, Any]]
    score: Callable[[Mapping[str, Any]], float]
    picture: Callable[[nn.Module], Image.Image]
    save: Callable[[DDePPreTrainedModel, Path], None]
    set_mode: Callable[[int], Any]
    encoder_factors: Mapping[str, float] | None = None
    record: Callable[[], None] = lambda: None
    skipped: Sequence[str] = ()
