"""Registers `ddep` with transformers' Auto classes and pipelines without importing a model.

`AutoModel.register` and its siblings take classes, so calling them in `ddep_hub/__init__.py` would import torch, timm
and most of transformers. Calling them as soon as transformers' Auto classes are imported is no better: transformers
imports these from the middle of its own modules, such as `modeling_layers`, from which a model cannot be imported at
that point. This module therefore registers names, as transformers does for its own models, and transformers imports a
class when a checkpoint needs it.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


AUTO_PACKAGE = "transformers.models.auto"
# The tables, by the module that defines them.
AUTO_MAPPINGS: dict[str, dict[str, str | dict[str, str]]] = {
    f"{AUTO_PACKAGE}.configuration_auto": {"CONFIG_MAPPING": "DDePConfig"},
    f"{AUTO_PACKAGE}.modeling_auto": {
        "MODEL_MAPPING": "DDePModel",
        "MODEL_FOR_PRETRAINING_MAPPING": "DDePForPreTraining",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING": "DDePForSemanticSegmentation",
    },
    f"{AUTO_PACKAGE}.image_processing_auto": {
        "IMAGE_PROCESSOR_MAPPING": {"torchvision": "DDePImageProcessor", "pil": "DDePImageProcessorPil"}
    },
}


def register_auto_classes() -> None:
    """Adds this package's classes to transformers' tables: now if they are imported already, else on import."""
    # Where transformers looks for the classes of the model type `ddep`; the package imports them lazily.
    sys.modules["transformers.models.ddep"] = sys.modules["ddep_hub"]
    for name in AUTO_MAPPINGS:
        if name in sys.modules:
            _add_names(sys.modules[name])
    sys.meta_path.insert(0, _RegisterAfterImport())


def _add_names(module: ModuleType) -> None:
    for name, classes in AUTO_MAPPINGS[module.__name__].items():
        getattr(module, f"{name}_NAMES")["ddep"] = classes
        if name != "CONFIG_MAPPING":  # the others look a config's class up in an index of their own
            getattr(module, name)._reverse_config_mapping["DDePConfig"] = "ddep"


class _RegisterAfterImport(MetaPathFinder):
    """Lets the usual finders find a module with a table, and adds the names once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in AUTO_MAPPINGS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            original_exec_module: Callable[[ModuleType], None] = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original_exec_module(module)
                _add_names(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
