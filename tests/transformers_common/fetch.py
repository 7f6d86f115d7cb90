"""Gets transformers' own common tests, of the installed release, for the tests in this folder.

They are in the source distribution on the package index, not in the wheel, and are not ours to copy. Usage:

    python tests/transformers_common/fetch.py [DEST]

DEST is by default in the virtual environment, one folder a release. Does nothing where the files are there already.
Without a network it says so and succeeds: the tests then skip with that reason.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


# An environment variable, so that the tests find a DEST other than the default.
DESTINATION_VARIABLE = "TRANSFORMERS_COMMON_TESTS"
FILES = (
    "LICENSE",
    "tests/test_configuration_common.py",
    "tests/test_image_processing_common.py",
    "tests/test_modeling_common.py",
    "tests/test_pipeline_mixin.py",
)


def destination() -> Path:
    """Returns the folder the tests look in: `TRANSFORMERS_COMMON_TESTS`, else one in the virtual environment."""
    version = importlib.metadata.version("transformers")
    default = Path(sys.prefix) / "share" / f"transformers-common-tests-{version}"
    return Path(os.environ.get(DESTINATION_VARIABLE) or default)


def fetch(folder: Path) -> None:
    """Puts the common tests of the installed transformers into a folder.

    The folder appears under its name only when it is whole.

    Args:
        folder: Where to put them; must not exist.

    Raises:
        subprocess.CalledProcessError: pip could not get them.
        KeyError: The source distribution has none of the name.
    """
    version = importlib.metadata.version("transformers")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        download, content = Path(scratch, "download"), Path(scratch, "content")
        # pip only reads the metadata, nothing is built; with setuptools at hand it need not fetch that either.
        isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
        source = ["--no-deps", "--no-binary", "transformers", *isolation, f"transformers=={version}"]
        # Few retries: without a network the answer should come in seconds.
        options = ["--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "30"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(download), *source]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (archive,) = download.glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            top = archive.name.removesuffix(".tar.gz")
            for name in FILES:
                member = tar.extractfile(f"{top}/{name}")
                assert member is not None, f"{name} is no plain file in {archive.name}"
                target = content / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(member.read())
        try:
            content.rename(folder)
        except OSError:
            # Another process was faster: its result is as good.
            if not folder.is_dir():
                raise


def main(arguments: list[str]) -> int:
    """Runs the script; returns its exit status."""
    folder = Path(arguments[0]) if arguments else destination()
    if folder.is_dir():
        print(f"transformers' common tests: in {folder}")
        return 0
    try:
        fetch(folder)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "no message").strip().splitlines()[-1]
        print(
            f"transformers' common tests: not fetched, their tests will skip. Is there a network? pip says: {reason}"
        )
        return 0
    print(f"transformers' common tests: fetched into {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
