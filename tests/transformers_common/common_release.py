"""Imports the common tests of the installed transformers release from where fetch.py put them.

They were written to live in transformers' repository, and import parts of it that its source distribution lacks.
Each such part is replaced here before the import, by as little as will do; why is said beside it.
"""

import atexit
import importlib
import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import transformers
from fetch import destination
from PIL import Image


# Not `tests`: the pytest run has a folder of that name.
PACKAGE = "transformers_release_tests"
SCRATCH = Path(tempfile.mkdtemp(prefix="transformers-common-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

# Folder of tiny models, in the layout the pipeline tests want: reports/tiny_model_summary.json, <model type>/<class>.
TINY_MODELS = SCRATCH / "tiny_models"
TINY_MODEL_CLASSES = ("DDePModel", "DDePForSemanticSegmentation")
IMAGE_PROCESSORS = ("DDePImageProcessor", "DDePImageProcessorPil")

# `config_common_kwargs` of transformers' tests/utils: the base configuration's fields, each with another value than
# its default. A configuration must take and keep them.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def import_common(name: str) -> types.ModuleType:
    """Imports one of the common test files, or skips the calling test module.

    Args:
        name: Such as `test_modeling_common`.
    """
    folder = destination()
    if not folder.is_dir():
        fetch = Path(__file__).with_name("fetch.py")
        pytest.skip(f"transformers' common tests are not in {folder}: run {fetch.name}", allow_module_level=True)
    # The one package they import that nothing else here needs.
    pytest.importorskip("parameterized")
    _put_stand_ins(folder)
    tiny_models = {"TRANSFORMERS_TINY_MODEL_PATH": str(TINY_MODELS)}
    # They import a second transformers from the repository's sources, to look classes up by name.
    ours = mock.patch("transformers.utils.direct_transformers_import", return_value=_Namespace())
    with mock.patch.dict(os.environ, tiny_models), ours:
        return importlib.import_module(f"{PACKAGE}.{name}")


def local_image(url: str) -> str:
    """Path of a generated image that stands for a fixture of the Hub; the same for the same URL.

    Args:
        url: Of a photograph, or (`.png`) of a map of class ids 0 to 150.
    """
    path = SCRATCH / "images" / Path(url).name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        rows, columns = np.mgrid[0:480, 0:640]
        if path.suffix == ".png":
            image = Image.fromarray(((rows // 40 + 13 * (columns // 40)) % 151).astype(np.uint8))
        else:
            # Smooth as photographs are: on pixel noise the backends' resizing would differ by more than on any photo.
            waves = [np.sin(rows / (17 + 9 * k)) + np.cos(columns / (23 - 5 * k)) for k in range(3)]
            image = Image.fromarray((127.5 + 63 * np.stack(waves, -1)).astype(np.uint8))
        image.save(path)
    return str(path)


class _Namespace:
    """transformers, with our image processors among its names."""

    def __getattr__(self, name: str) -> object:
        import ddep_hub

        return getattr(ddep_hub if name in IMAGE_PROCESSORS else transformers, name)


def _put_stand_ins(folder: Path) -> None:
    if PACKAGE in sys.modules:
        return
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder / "tests")]
    sys.modules[PACKAGE] = package

    def stand_in(name: str, **contents: object) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module

    # Export to other runtimes, and text generation: the tests of both are elsewhere, the mixins only mark classes.
    stand_in(f"{PACKAGE}.exporters")
    stand_in(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in(f"{PACKAGE}.generation")
    stand_in(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stand_in(f"{PACKAGE}.utils")
    stand_in(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    # Maps a fixture's URL to a file.
    stand_in("fetch_hub_objects_for_ci", url_to_local_path=local_image)
    # Says which tokenizers and processors belong to a tiny model.
    summary = {
        name: {"tokenizer_classes": [], "processor_classes": list(IMAGE_PROCESSORS)} for name in TINY_MODEL_CLASSES
    }
    (TINY_MODELS / "reports").mkdir(parents=True, exist_ok=True)
    (TINY_MODELS / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
