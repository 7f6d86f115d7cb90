"""Finding image files."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def images_below(root: Path) -> list[str]:
    """Paths relative to `root`, with forward slashes, sorted. Links to folders are followed, each folder once.

    Args:
        root: The folder; hidden files and folders in it are left out.

    Returns:
        At least one path.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder that holds the images")
    found = []
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                found.append((relative / name).as_posix())
    if not found:
        raise ValueError(f"{root} holds no image ({', '.join(IMAGE_EXTENSIONS)}); check the path")
    return sorted(found)


class PackedNames(Sequence[str]):
    """Names in one piece of memory, of about their own length: 14 million are no burden, also for forked processes.

    Args:
        names: The names; any that the system allows for files.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return os.fsdecode(self._bytes[self._ends[index - 1] if index else 0 : self._ends[index]])


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
