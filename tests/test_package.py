"""What is installed: a wheel with everything it needs, and a version that is told once."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ddep_hub


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


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    tracked = subprocess.run(["git", "ls-files", "ddep_hub"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert names == set(tracked or names) and "ddep_hub/py.typed" in names
    assert licences


def test_the_installed_wheel_imports(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ddep_hub, ddep_hub.training.finetuning; "
        "from importlib.metadata import version; "
        "print(ddep_hub.__file__, version('ddep-hub') == ddep_hub.__version__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "ddep_hub" / "__init__.py"), "True"]


def test_the_citation_names_this_version():
    assert f"version: {ddep_hub.__version__}" in (ROOT / "CITATION.cff").read_text()
