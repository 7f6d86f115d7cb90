"""Writes unlabelled images that training and prediction read: pages of TIFF stacks, and tiles of large images."""

import logging
import shutil
from collections import Counter
from pathlib import Path

from ddep_hub.data.image_io import IMAGE_EXTENSIONS, format_list, is_array
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.tiff import read_nodata_tag

from .image_files import count_pages, crop, image_size, iter_tiles, read_image_file, write_image_file
from .masks import pair_stacks
from .source import example_name, shorten_name


logger = logging.getLogger(__name__)


def write_unlabelled(source: Path, folder: Path, tile: int | None, overlap: int) -> Counter[str]:
    """Writes the pages of TIFF stacks, or tiles, to `images/` in a folder.

    `source` is an image file, or a folder in which masks are left out, see [`unlabelled_images`]. `tile` is the side
    of the tiles and `overlap` the minimum overlap of neighbours, in pixels; without `tile`, whole pages are written.
    Returns the number of `images` in the source, of their `pages`, and of the files `written`.
    """
    files = _find_images(source)
    num_pages = [count_pages(file) for file in files]
    if tile is None and max(num_pages) == 1:
        raise ValueError(f"{source} holds no TIFF stacks: use the images as they are, or cut them with `tile`.")
    root, taken = source if source.is_dir() else source.parent, set[str]()

    def free_target(name: str) -> Path:
        """Where to write a file without its suffix: pages and tiles may have the name of another image."""
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        target = folder / "images" / free
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    for file, pages in zip(files, num_pages, strict=True):
        name = shorten_name(example_name(file, root))
        if tile is None and pages == 1:
            target = free_target(name)
            shutil.copyfile(file, target.with_name(target.name + file.suffix))
            continue
        nodata = read_nodata_tag(file)
        for page in range(pages):
            picture = read_image_file(file, page if pages > 1 else None)
            page_name, size = f"{name}-{page:04d}" if pages > 1 else name, image_size(picture, None)
            if tile is None:
                write_image_file(free_target(page_name), picture, size, as_array=is_array(file), nodata=nodata)
                continue
            for top, left, height, width in iter_tiles(size, tile, overlap):
                part = crop(picture, size, top, left, height, width)
                target = free_target(f"{page_name}_{top}_{left}")
                write_image_file(target, part, (height, width), as_array=is_array(file), nodata=nodata)
    return Counter(images=len(files), pages=sum(num_pages), written=len(taken))


def _find_images(source: Path) -> list[Path]:
    if not source.is_dir():
        if not source.name.lower().endswith(IMAGE_EXTENSIONS):
            raise ValueError(f"{source} is neither a folder nor an image.")
        return [source]
    files = [source / name for name in unlabelled_images(source)]
    masks = {mask for _, mask in pair_stacks(source)} & {*files}
    if masks:
        logger.warning("%s: skipping the masks of stacks: %s", source, format_list(sorted(masks)))
    return [file for file in files if file not in masks]
