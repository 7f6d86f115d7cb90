"""`import ddep_hub` registers the Auto classes, in any order of imports and without importing a model."""

import sys
from pathlib import Path

import pytest

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor


sys.path.insert(0, str(Path(__file__).parent))
from launching import run, run_fork, start


# Loads everything that has a table in transformers; `folder` is a fine-tuned model.
USE = """
import sys
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining,
                          AutoModelForSemanticSegmentation, pipeline)
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
print(type(config).__name__, type(AutoModel.from_config(config)).__name__)
print(type(AutoModelForPreTraining.from_config(config)).__name__)
print(type(AutoModelForSemanticSegmentation.from_pretrained(folder)).__name__)
print(type(AutoImageProcessor.from_pretrained(folder)).__name__)
print(type(AutoImageProcessor.from_pretrained(folder, backend="pil")).__name__)
print(type(pipeline("image-segmentation", model=folder).model).__name__)
"""
FOUND = """
DDePConfig DDePModel
DDePForPreTraining
DDePForSemanticSegmentation
DDePImageProcessor
DDePImageProcessorPil
DDePForSemanticSegmentation
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hybrid_config):
    path = tmp_path_factory.mktemp("model")
    DDePForSemanticSegmentation(hybrid_config()).save_pretrained(path)
    DDePImageProcessor().save_pretrained(path)
    return path


IMPORTS = [
    "import ddep_hub, transformers",
    "import transformers, ddep_hub",
    "from transformers import AutoConfig; import ddep_hub",
    "from transformers import AutoImageProcessor, pipeline; import ddep_hub",
    "import ddep_hub.decoder",  # imports transformers' tables in the middle of the model
    "from ddep_hub import DDePImageProcessor",
    "from ddep_hub import *; import ddep_hub; assert set(ddep_hub.__all__) <= set(globals()) & set(dir(ddep_hub))",
]
# Runs each of these in a child of its own. What takes long and imports neither us nor transformers is loaded once.
FORKS = """
import os, sys, timm
assert not {"transformers", "ddep_hub"} & sys.modules.keys()
use, *imports = sys.argv[2:]
for statement in imports:
    print("===", flush=True)
    if os.fork() == 0:
        exec(f"import sys; {statement}\\n{use}")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def found(folder):
    """What each order of imports prints."""
    result = run("-c", FORKS, str(folder), USE, *IMPORTS)
    assert result.returncode == 0, result.stderr
    assert "is not supported for" not in result.stderr  # what a pipeline prints for models outside of its table
    return dict(zip(IMPORTS, result.stdout.split("===\n")[1:], strict=True))


@pytest.mark.parametrize("imports", IMPORTS)
def test_in_any_order(imports, found):
    assert found[imports].split() == FOUND.split()


def test_the_import_alone_is_light():
    code = "import sys; before = set(sys.modules); import ddep_hub; print(*sys.modules.keys() - before)"
    said, _ = start("-c", code).communicate(timeout=300)
    imported = {name.split(".")[0] for name in said.split()}
    assert "ddep_hub" in imported
    assert imported.isdisjoint({"torch", "timm", "accelerate", "datasets", "huggingface_hub", "numpy"})


def test_in_spawned_workers(folder, tmp_path):
    """A process that starts from nothing unpickles a model, and finds the Auto classes once it has it."""
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys\n"
        "def work(model):\n"
        "    from transformers import AutoModelForSemanticSegmentation\n"
        "    again = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1])\n"
        "    return type(model).__name__, type(again).__name__\n"
        "if __name__ == '__main__':\n"
        "    from ddep_hub import DDePForSemanticSegmentation\n"
        "    model = DDePForSemanticSegmentation.from_pretrained(sys.argv[1])\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(*pool.apply(work, (model,)))\n"
    )
    result = run_fork(tmp_path / "script.py", str(folder))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["DDePForSemanticSegmentation"] * 2
