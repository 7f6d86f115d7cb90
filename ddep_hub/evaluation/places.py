"""The images that are given to prediction: files, folders, patterns and URLs."""

import http.client
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path, PurePosixPath

from ddep_hub.data.image_io import decode_image
from ddep_hub.data.preprocessing import AnyImage
from ddep_hub.data.unlabelled import unlabelled_images


SECONDS = 60


def find_images(names: Sequence[str]) -> dict[str, str]:
    """The images behind names, by what their results are called.

    Args:
        names: image files, folders (searched recursively; masks in them are left out, see [`unlabelled_images`]),
            patterns such as `photos/*.jpg` (`**` for any depth; a folder that is there is no pattern, whatever its
            name), and http(s) URLs of images.

    Returns:
        Path or URL by a relative path without suffix: that of the file's name, or below the folder, or below the
        folder that all matches of a pattern share.

    Raises:
        FileNotFoundError: a file does not exist, or a pattern matches none.
        ValueError: a folder holds no image, or two images would have results of one name.
    """
    found: dict[str, str] = {}
    for name in names:
        for key, place in _behind(name):
            if not _same(found.setdefault(key, place), place):
                raise ValueError(
                    f"{found[key]} and {place} would both be written as {key}.png. Predict them in separate calls."
                )
    return found


def read_image(place: str, channels: int = 3) -> AnyImage:
    """Reads an image from a path or an http(s) URL, see [`decode_image`].

    Raises:
        OSError: it cannot be read or fetched.
        BadFileError: it is not an image, or damaged.
    """
    if not is_url(place):
        return decode_image(place, channels)
    try:
        with urllib.request.urlopen(place, timeout=SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # the second: cut short, or no address
        raise OSError(f"{place} could not be downloaded ({error}). Check the address.") from error
    return decode_image({"path": place, "bytes": content}, channels)


def _behind(name: str) -> list[tuple[str, str]]:
    path = Path(name)
    if is_url(name):
        file = PurePosixPath(urllib.parse.unquote(urllib.parse.urlparse(name).path)).name
        return [(PurePosixPath(file).stem or "image", name)]
    if path.is_dir():
        return [(_without_suffix(image), str(path / image)) for image in unlabelled_images(path)]
    if path.is_file():
        return [(path.stem, name)]
    matches = sorted(match for match in glob(_pattern(path), recursive=True) if os.path.isfile(match))
    if not matches:
        raise FileNotFoundError(f"{name} is not a file, folder or URL, and matches none. Check the path.")
    shared = os.path.commonpath([os.path.dirname(match) for match in matches])
    return [(_without_suffix(os.path.relpath(match, shared or ".")), match) for match in matches]


def _pattern(path: Path) -> str:
    """A pattern in which folders that are there stand for themselves, such as `photos [1]`."""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    return os.path.join("" if there == Path() else escape(str(there)), path.relative_to(there))


def _same(one: str, other: str) -> bool:
    """Whether two places are one: the same address, or the same file by two names."""
    if one == other:
        return True
    return not (is_url(one) or is_url(other)) and os.path.realpath(one) == os.path.realpath(other)


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(Path(path).as_posix()).with_suffix(""))


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
