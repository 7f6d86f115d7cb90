"""Fonts for names in pictures: names that no available font can draw are replaced, not drawn as boxes."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_UNASSIGNED = "\uffff"  # no font has it: what is drawn instead is the box


def lettering(names: Sequence[str], size: int, stand_ins: Sequence[str] = ()) -> tuple[Font, list[str]]:
    """A font, and names that it can draw.

    Pillow's own font has hardly more than ASCII. DejaVu Sans, which comes with matplotlib (extra `plots`), has Latin,
    Greek, Cyrillic and more, but no Chinese, Japanese or Korean.

    Args:
        names: What is to be drawn.
        size: Height in pixels.
        stand_ins: What is drawn for each name that the font lacks letters for, where dropping accents does not help.
            Default: the name with the numbers of such letters.
    """
    font: Font = ImageFont.load_default(size=size)
    if not _has(font, "".join(names)):
        font = _dejavu(size) or font
    shown = []
    for index, name in enumerate(names):
        if not _has(font, name):
            plain = "".join(
                letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)
            )
            escaped = "".join(x if _has(font, x) else x.encode("ascii", "backslashreplace").decode() for x in plain)
            name = plain if _has(font, plain) else stand_ins[index] if stand_ins else escaped
        shown.append(name)
    return font, shown


def class_lettering(names: Sequence[str], size: int) -> tuple[Font, list[str]]:
    """The same for the names of all classes, by id: `class 3` stands for one whose letters the font lacks."""
    return lettering(names, size, [f"class {index}" for index in range(len(names))])


def _has(font: Font, text: str) -> bool:
    """Whether a font has all letters of a text."""
    box = bytes(font.getmask(_UNASSIGNED))
    return all(letter.isascii() or bytes(font.getmask(letter)) != box for letter in set(text))


@functools.cache
def _dejavu(size: int) -> Font | None:
    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return None
