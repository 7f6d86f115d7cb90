"""transformers' own tests of image processors, on both backends."""

import unittest
from typing import Any

from common_release import import_common

from ddep_hub import DDePImageProcessor
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil


common = import_common("test_image_processing_common")


class DDePImageProcessingTester(common.ImageProcessingTester):
    """Says how to construct the processors and what to expect of them."""

    num_labels = 5

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        kwargs.setdefault("size", {"height": 20, "width": 30})
        kwargs.setdefault("image_mean", [0.4, 0.5, 0.6])
        kwargs.setdefault("do_reduce_labels", True)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        # The original looks them up in transformers' table by the name of the folder.
        return {"torchvision": DDePImageProcessor, "pil": DDePImageProcessorPil}


class ImageProcessingTest(
    common.PostProcessSemanticSegmentationTestMixin, common.ImageProcessingTestMixin, unittest.TestCase
):
    image_processor_tester_class = DDePImageProcessingTester
    # Not None: the test of casting to other types is empty otherwise.
    test_cast_dtype = True

    def test_backends_equivalence_with_segmentation_maps(self) -> None:
        images, maps = self.image_processor_tester.prepare_semantic_segmentation_inputs_ade20k(batched=True)
        first, second = (
            processor(**self.image_processor_dict)(images, maps, return_tensors="pt")
            for processor in self.image_processing_classes.values()
        )
        self.assertEqual(first["labels"].shape, (2, 20, 30))
        self._assert_encodings_equivalence(first, second, "torchvision", "pil")
