"""What each pipeline has to return; stands for transformers' tests/pipelines, which its source distribution lacks.

The common pipeline tests make an instance and call `get_test_pipeline`, then `run_pipeline_test`.
"""

import unittest
from typing import Any

import numpy as np
import torch
from common_release import local_image
from huggingface_hub import ImageSegmentationOutputElement
from PIL import Image
from transformers import ImageFeatureExtractionPipeline, ImageSegmentationPipeline
from transformers.testing_utils import compare_pipeline_output_to_hub_spec


# A path, and images of other sizes and modes.
PHOTO = "photo.jpg"
MODES = ("RGB", "RGBA", "LA", "L", "P")


def images() -> list[Image.Image]:
    photo = Image.open(local_image(PHOTO))
    return [photo.resize((90 + 7 * k, 60)).convert(mode) for k, mode in enumerate(MODES)]


class ImageSegmentationPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model: Any, tokenizer: Any = None, dtype: str = "float32", **processors: Any) -> Any:
        # The tests hand over a float32 model whatever the type they are named after.
        model = model.to(getattr(torch, dtype))
        segmenter = ImageSegmentationPipeline(model=model, tokenizer=tokenizer, dtype=dtype, **processors)
        return segmenter, [local_image(PHOTO), local_image("other.jpg")]

    def run_pipeline_test(self, segmenter: Any, examples: list[str]) -> None:
        for image in [examples[0], *images()]:
            self._check(segmenter(image), Image.open(image).size if isinstance(image, str) else image.size, segmenter)
        # Images of different sizes in one batch.
        results = segmenter(images(), batch_size=2)
        self.assertEqual(len(results), len(MODES))
        for image, result in zip(images(), results, strict=True):
            self._check(result, image.size, segmenter)
        with self.assertRaisesRegex(ValueError, "Subtask instance is not supported"):
            segmenter(examples[0], subtask="instance")

    def _check(self, result: list[dict[str, Any]], size: tuple[int, int], segmenter: Any) -> None:
        self.assertGreaterEqual(len(result), 1)
        for element in result:
            compare_pipeline_output_to_hub_spec(element, ImageSegmentationOutputElement)
            self.assertIn(element["label"], segmenter.model.config.id2label.values())
            self.assertIsNone(element["score"])
            self.assertEqual((element["mask"].mode, element["mask"].size), ("L", size))
        # Each pixel belongs to one class.
        total = sum(np.asarray(element["mask"]).astype(int) for element in result)
        self.assertTrue((total == 255).all())


class ImageFeatureExtractionPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model: Any, tokenizer: Any = None, dtype: str = "float32", **processors: Any) -> Any:
        model = model.to(getattr(torch, dtype))
        extractor = ImageFeatureExtractionPipeline(model=model, tokenizer=tokenizer, dtype=dtype, **processors)
        return extractor, [local_image(PHOTO), local_image("other.jpg")]

    def run_pipeline_test(self, extractor: Any, examples: list[str]) -> None:
        features = extractor(examples[0])
        self.assertEqual(np.shape(features)[:1], (1,))
        self.assertEqual(np.ndim(features), 4)
        self.assertTrue(np.isfinite(features).all())
        self.assertEqual(np.shape(extractor(examples)), (2, *np.shape(features)))
