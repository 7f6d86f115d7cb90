"""transformers' own tests of pipelines, on saved tiny models."""

import unittest
from unittest import mock

from common_release import IMAGE_PROCESSORS, TINY_MODELS, import_common, local_image
from tiny_models import DDePModelTester
from transformers import pipeline

import ddep_hub
from ddep_hub import DDePForSemanticSegmentation, DDePModel


common = import_common("test_pipeline_mixin")

MODELS = {"image-feature-extraction": DDePModel, "image-segmentation": DDePForSemanticSegmentation}
TESTS = {task: test["test"].rsplit(".", 1)[-1] for task, test in common.pipeline_test_mapping.items()}


class PipelineTest(common.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = MODELS

    @classmethod
    def setUpClass(cls) -> None:
        for model_class in MODELS.values():
            folder = TINY_MODELS / "ddep" / model_class.__name__
            if not folder.exists():
                model_class(DDePModelTester().get_config()).save_pretrained(folder)
                ddep_hub.DDePImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)

    def setUp(self) -> None:
        ours = {task: {"test": f"pipeline_checks.{TESTS[task]}"} for task in MODELS}
        patch = mock.patch.dict(common.pipeline_test_mapping, ours)
        patch.start()
        self.addCleanup(patch.stop)

    def test_pipelines_load_from_a_folder(self) -> None:
        for task, model_class in MODELS.items():
            with self.subTest(task):
                loaded = pipeline(task, model=str(TINY_MODELS / "ddep" / model_class.__name__))
                self.assertIsInstance(loaded.model, model_class)
                self.assertIn(type(loaded.image_processor).__name__, IMAGE_PROCESSORS)
                self.assertTrue(loaded(local_image("photo.jpg")))


# The other tasks' tests would only say that the task is not ours.
for name in dir(common.PipelineTesterMixin):
    task = name.removeprefix("test_pipeline_").removesuffix("_fp16").replace("_", "-")
    if name.startswith("test_pipeline_") and task not in MODELS:
        setattr(PipelineTest, name, None)
