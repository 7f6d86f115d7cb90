# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Images and segmentation maps for DDeP models, on torchvision."""

from transformers import SegformerImageProcessor

# The options are imported by name: transformers looks them up in the processor's module.
from .image_processing_pil_ddep import DDePImageProcessorKwargs, DDePImageProcessorMixin


class DDePImageProcessor(DDePImageProcessorMixin, SegformerImageProcessor):
    """Processes images and segmentation maps for DDeP models with torchvision, on a GPU too (`device="cuda"`).

    Resizes to 512x512 by default, so that any images can be batched. For native resolution (the model takes any size)
    use `do_resize=False`; to keep the aspect ratio, `size={"shortest_edge": 512}`. `preprocessor_config.json` files
    load into either backend.

    Example:
        >>> import torch
        >>> images = [torch.zeros(3, 300, 400, dtype=torch.uint8), torch.zeros(3, 500, 200, dtype=torch.uint8)]
        >>> DDePImageProcessor()(images, return_tensors="pt")["pixel_values"].shape
        torch.Size([2, 3, 512, 512])
    """


__all__ = ["DDePImageProcessor", "DDePImageProcessorKwargs"]
