"""Where cached files and data are found."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for what is made once and used by many runs: `DDEP_CACHE`, or `~/.cache/ddep_hub`."""
    return Path(os.environ.get("DDEP_CACHE") or Path.home() / ".cache" / "ddep_hub")


def resolve_data(name: str | Path) -> Path:
    """A folder, looked up below the one in the variable `DDEP_DATA` where there is none of that name."""
    root = os.environ.get("DDEP_DATA")
    if root and not Path(name).exists() and (Path(root) / name).exists():
        return Path(root) / name
    return Path(name)
