"""Runs the model tests on the oldest releases that pyproject.toml allows: `python tests/oldest.py ENVIRONMENT`."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parent.parent

# What a model, its checkpoints and both trainings need; transformers' own common tests belong to the newest release.
TESTS = [
    "tests/test_configuration_ddep.py",
    "tests/test_encoders.py",
    "tests/test_decoder.py",
    "tests/test_denoising.py",
    "tests/test_checkpoints.py",
    "tests/test_auto_classes.py",
    "tests/test_loading.py",
    "tests/test_decoder_only.py",
    "tests/test_modeling_ddep.py",
    "tests/test_image_skip.py",
    "tests/test_training.py",
    "tests/test_image_processing_ddep.py",
    "tests/data",
    "tests/evaluation",
    "tests/training",
]
# What the tests themselves need.
TOOLS = ["pytest", "parameterized", "tensorboard"]


def oldest(requirements: list[str]) -> list[str]:
    """Turns `name>=bound` into `name==bound`."""
    return [re.sub(r">=\s*", "==", requirement) for requirement in requirements if ">=" in requirement]


def main(environment: Path) -> None:
    """Makes the environment where there is none, and runs the tests in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = oldest([*project["dependencies"], *extras["plots"], *extras["quickstart"]])
    python = environment / "bin" / "python"
    stamp = environment / ".installed"
    if not stamp.is_file() or stamp.read_text() != "\n".join([*pins, *TOOLS]):
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *TOOLS], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT], check=True)
        stamp.write_text("\n".join([*pins, *TOOLS]))
    print("\n".join(pins))
    raise SystemExit(subprocess.run([python, "-m", "pytest", *TESTS], cwd=ROOT).returncode)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
