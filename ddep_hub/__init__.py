"""Pretrained decoders for semantic segmentation with few labels (DDeP, arXiv 2205.11423)."""

import importlib
from typing import TYPE_CHECKING, Any

from .auto_classes import register_auto_classes


if TYPE_CHECKING:
    from .configuration_ddep import DDePConfig, __version__
    from .evaluation.evaluate import evaluate
    from .evaluation.predict import predict
    from .image_processing_ddep import DDePImageProcessor
    from .image_processing_pil_ddep import DDePImageProcessorPil
    from .label_efficiency.runner import compare
    from .modeling_base_ddep import DDePPreTrainedModel
    from .modeling_ddep import DDePForPreTraining, DDePForPreTrainingOutput, DDePForSemanticSegmentation, DDePModel
    from .preparation import prepare
    from .preparation.selection import select_images
    from .shipped import list_pretrained
    from .training.arguments import FinetuneArguments, PretrainArguments
    from .training.finetuning import finetune
    from .training.pretraining import pretrain

# Public names and their modules. Modules are imported lazily, on first use of a name.
_MODULES = {
    "DDePConfig": "configuration_ddep",
    "DDePForPreTraining": "modeling_ddep",
    "DDePForPreTrainingOutput": "modeling_ddep",
    "DDePForSemanticSegmentation": "modeling_ddep",
    "DDePImageProcessor": "image_processing_ddep",
    "DDePImageProcessorPil": "image_processing_pil_ddep",
    "DDePModel": "modeling_ddep",
    "DDePPreTrainedModel": "modeling_base_ddep",
    "FinetuneArguments": "training.arguments",
    "PretrainArguments": "training.arguments",
    "__version__": "configuration_ddep",
    "compare": "label_efficiency.runner",
    "evaluate": "evaluation.evaluate",
    "finetune": "training.finetuning",
    "list_pretrained": "shipped",
    "predict": "evaluation.predict",
    "prepare": "preparation",
    "pretrain": "training.pretraining",
    "select_images": "preparation.selection",
}
__all__ = [
    "DDePConfig",
    "DDePForPreTraining",
    "DDePForPreTrainingOutput",
    "DDePForSemanticSegmentation",
    "DDePImageProcessor",
    "DDePImageProcessorPil",
    "DDePModel",
    "DDePPreTrainedModel",
    "FinetuneArguments",
    "PretrainArguments",
    "__version__",
    "compare",
    "evaluate",
    "finetune",
    "list_pretrained",
    "predict",
    "prepare",
    "pretrain",
    "select_images",
]

register_auto_classes()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
