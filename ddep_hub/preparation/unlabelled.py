"""Writes unlabelled images that training and prediction read: pages of TIFF stacks, and tiles of large images."""

import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from ddep_hub.data.image_io import IMAGE_EXTENSIONS, is_array
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.tiff import read_nodata_tag
from ddep_hub.utils.files import atomic_dir, format_list

from .image_files import count_pages, crop, image_size, iter_tiles, read_image_file, write_image_file
from .masks import pair_stacks
from .record import write_record
from .source import example_name, pluralize, shorten_name


logger = logging.getLogger(__name__)


def prepare_unlabelled(source: Path, output: Path, tile: int | None, overlap: int) -> str:
    """Writes the pages of TIFF stacks, or tiles, to `images/` in a folder; returns a summary.

    `source` is an image file, or a folder in which masks are left out, see [`unlabelled_images`]. `tile` is the side
    of the tiles and `overlap` the minimum overlap of neighbours, in pixels; without `tile`, whole pages are written.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist. Pass a folder of images or an image.")
    files = _find_images(source)
    num_pages = [count_pages(file) for file in files]
    if tile is None and max(num_pages) == 1:
        raise ValueError(f"{source} holds no TIFF stacks: use the images as they are, or cut them with `tile`.")
    with atomic_dir(output) as folder:
        num_written = _write_images(source, folder, dict(zip(files, num_pages, strict=True)), tile, overlap)
        write_record(folder, source=source.name, found="unlabelled images", tile=tile, overlap=overlap)
    found = pluralize(len(files), "image")
    if sum(num_pages) > len(files):
        found += f" with {sum(num_pages):,} pages"
    folder_name = shlex.quote(str(output))
    return (
        f"{source}: {found}\n{output}: {pluralize(num_written, 'tile' if tile else 'image')}\n"
        f"Use them: ddep-hub pretrain --images {folder_name}, or ddep-hub finetune --unlabelled {folder_name}"
    )


def _write_images(source: Path, folder: Path, files: Mapping[Path, int], tile: int | None, overlap: int) -> int:
    """Writes the files, each with its number of pages; returns the number of files written."""
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

    for file, pages in files.items():
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
    return len(taken)


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
