"""Pretrained decoders for semantic segmentation with few labels (DDeP, arXiv 2205.11423)."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto import modeling_auto

from .configuration_ddep import DDePConfig, __version__
from .image_processing_ddep import DDePImageProcessor
from .image_processing_pil_ddep import DDePImageProcessorPil
from .modeling_base_ddep import DDePPreTrainedModel
from .modeling_ddep import DDePForPreTraining, DDePForPreTrainingOutput, DDePForSemanticSegmentation, DDePModel


AutoConfig.register("ddep", DDePConfig)
AutoModel.register(DDePConfig, DDePModel)
AutoModelForPreTraining.register(DDePConfig, DDePForPreTraining)
AutoModelForSemanticSegmentation.register(DDePConfig, DDePForSemanticSegmentation)
AutoImageProcessor.register(
    DDePConfig, image_processor_classes={"torchvision": DDePImageProcessor, "pil": DDePImageProcessorPil}
)
# The segmentation pipeline checks a static table of transformers and prints an error for models outside of it. The
# table is private: without it there is only that message.
getattr(modeling_auto, "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES", {})["ddep"] = "DDePForSemanticSegmentation"

__all__ = [
    "DDePConfig",
    "DDePForPreTraining",
    "DDePForPreTrainingOutput",
    "DDePForSemanticSegmentation",
    "DDePImageProcessor",
    "DDePImageProcessorPil",
    "DDePModel",
    "DDePPreTrainedModel",
    "__version__",
]
