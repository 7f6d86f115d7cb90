"""Unlabelled images as files that training and prediction read: pages of TIFF stacks, and tiles of large images."""

import shutil
from collections import Counter
from pathlib import Path

from ddep_hub.data.image_io import IMAGE_EXTENSIONS, is_array
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.utils.files import path_below

from .image_files import RawImage, count_pages, crop, image_size, iter_tiles, read_image_file, write_image_file


def write_unlabelled(source: Path, folder: Path, tile: int | None, overlap: int) -> Counter[str]:
    """Writes the pages of TIFF stacks, or tiles, to `images/` in a folder.

    Args:
        source: A folder of images, in which masks are left out, see [`unlabelled_images`]; or an image file.
        folder: The folder.
        tile: Side of the tiles in pixels; by default whole pages.
        overlap: Minimum overlap of neighbouring tiles in pixels.

    Returns:
        Number of `images` in the source, of their `pages`, and of the files `written`.

    Raises:
        BadFileError: An image is damaged; names it.
        ValueError: There is no image, or nothing to take apart.
    """
    files = [source / name for name in unlabelled_images(source)] if source.is_dir() else [source]
    if not files[0].name.lower().endswith(IMAGE_EXTENSIONS):
        raise ValueError(f"{source} is neither a folder nor an image.")
    num_pages = [count_pages(file) for file in files]
    if tile is None and max(num_pages) == 1:
        raise ValueError(f"{source} holds no TIFF stacks: use the images as they are, or cut them with `tile`.")
    counts, used = Counter(images=len(files), pages=sum(num_pages), written=0), set[str]()
    root = source if source.is_dir() else source.parent
    for file, pages in zip(files, num_pages, strict=True):
        name = path_below(file.relative_to(root).with_suffix("").as_posix())
        if name in used:  # as `a.jpg` and `a.tif` in one folder
            name = path_below(file.relative_to(root).as_posix())
        used.add(name)
        if tile is None and pages == 1:
            target = folder / "images" / f"{name}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            counts["written"] += 1
            continue
        for page in range(pages):
            picture = read_image_file(file, page if pages > 1 else None)
            page_name = f"{name}-{page:04d}" if pages > 1 else name
            counts["written"] += _write(folder / "images" / page_name, picture, tile, overlap, as_array=is_array(file))
    return counts


def _write(target: Path, picture: RawImage, tile: int | None, overlap: int, *, as_array: bool) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = image_size(picture, None)
    if tile is None:
        write_image_file(target, picture, size, as_array=as_array)
        return 1
    boxes = list(iter_tiles(size, tile, overlap))
    for top, left, height, width in boxes:
        part = crop(picture, size, top, left, height, width)
        write_image_file(target.with_name(f"{target.name}_{top}_{left}"), part, (height, width), as_array=as_array)
    return len(boxes)
