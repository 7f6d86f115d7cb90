"""The images that a user names: files, folders, patterns and URLs."""

import http.client
import os
import urllib.parse
import urllib.request
from collections.abc import Sequence
from glob import glob
from pathlib import Path, PurePosixPath

from PIL import Image

from ddep_hub.data.decoding import decode_image
from ddep_hub.data.image_files import images_below


SECONDS = 60


def find_images(names: Sequence[str]) -> dict[str, str]:
    """The images behind names, by what their results are called.

    Args:
        names: image files, folders (searched recursively), patterns such as `photos/*.jpg` (`**` for any depth), and
            http(s) URLs of images.

    Returns:
        Path or URL by a relative path without suffix: that of the file's name, or below the folder, or below the
        folder that all matches of a pattern share.

    Raises:
        FileNotFoundError: there is no such file, or a pattern matches none.
        ValueError: a folder holds no image, or two images would have results of one name.
    """
    found: dict[str, str] = {}
    for name in names:
        for key, place in _behind(name):
            if found.get(key, place) != place:
                raise ValueError(f"{found[key]} and {place} would both be written as {key}.png. Predict them apart.")
            found[key] = place
    return found


def read_image(place: str) -> Image.Image:
    """Reads an image from a path or an http(s) URL, as RGB.

    Raises:
        OSError: it cannot be read or fetched.
        BadFileError: it is no image, or damaged.
    """
    if not _is_url(place):
        return decode_image(place)
    try:
        with urllib.request.urlopen(place, timeout=SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # the second: cut short, or no address
        raise OSError(f"{place} could not be fetched ({error}). Check the address.") from error
    return decode_image({"path": place, "bytes": content})


def _behind(name: str) -> list[tuple[str, str]]:
    path = Path(name)
    if _is_url(name):
        file = PurePosixPath(urllib.parse.unquote(urllib.parse.urlparse(name).path)).name
        return [(PurePosixPath(file).stem or "image", name)]
    if path.is_dir():
        return [(_without_suffix(image), str(path / image)) for image in images_below(path)]
    if path.is_file():
        return [(path.stem, name)]
    matches = sorted(match for match in glob(name, recursive=True) if os.path.isfile(match))
    if not matches:
        raise FileNotFoundError(f"{name} is no file, folder or URL, and matches none. Check the path.")
    shared = os.path.commonpath([os.path.dirname(match) for match in matches])
    return [(_without_suffix(os.path.relpath(match, shared or ".")), match) for match in matches]


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(Path(path).as_posix()).with_suffix(""))


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
