"""Detects the format of labelled images, and finds its reader."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from ddep_hub.data.class_files import read_class_table
from ddep_hub.data.folders import DEFAULT_OPTIONS, FolderOptions, find_split_folders, subfolders
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, iter_files
from ddep_hub.data.layouts import find_layout
from ddep_hub.data.pairing import PAIRS
from ddep_hub.utils.files import format_list, read_json

from .coco import is_coco, read_coco
from .cvat import read_cvat
from .label_studio import is_label_studio, read_label_studio
from .labelme import is_labelme, read_labelme
from .mask_folders import read_folder
from .masks import read_object_folders, read_roboflow_masks, read_stacks
from .source import Source, pluralize, read_json_files
from .yolo import read_yolo


LABELLED_FORMATS = ("coco", "labelme", "cvat", "label-studio", "yolo", "roboflow-masks", "objects", "stacks", "masks")
# Raised when a field is missing or has the wrong type.
MALFORMED_ERRORS = (KeyError, TypeError, IndexError, AttributeError)
_MASK_FORMATS = ("objects", "stacks", "masks")
_JSON = {"coco": is_coco, "labelme": is_labelme, "label-studio": is_label_studio}


def read_source(source: Path, name: str | None = None, options: FolderOptions = DEFAULT_OPTIONS) -> Source:
    """Reads labelled images from a folder or an annotation file.

    `name` is one of `LABELLED_FORMATS`, by default detected, and `masks` if `options` say where masks are; their
    `classes` are for masks whose values or colours do not tell the class names. Raises a FileNotFoundError if there is
    no source or nothing in it is recognised, and a ValueError if it is damaged or not of this format.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist. Pass a folder or an annotation file.")
    if options.has_folders:
        if name not in (None, "masks"):
            raise ValueError(f"The format {name} takes no image_dir, mask_dir or mask_suffix. Leave them out.")
        name = "masks"
    root = source if source.is_dir() else source.parent
    coco_root = root
    if source.is_file() and root.name == "annotations" and not any(iter_files(root, IMAGE_EXTENSIONS)):
        coco_root = root.parent  # as in COCO's own archive, where the folders of the images lie beside it
    table = read_class_table(options.classes) if options.classes else None
    format_tests = [test for format, test in _JSON.items() if name in (format, None)]
    files, problems = read_json_files(source, format_tests) if source.is_dir() and format_tests else ({}, [])
    if source.suffix == ".json":
        files = {source: read_json(source)}
    tables = sorted([*root.glob("_classes.csv"), *root.glob("*/_classes.csv")])
    readers: dict[str, Callable[[], Source | None]] = {
        "coco": lambda: _read_matching(read_coco, coco_root, files, is_coco),
        "labelme": lambda: _read_matching(read_labelme, root, files, is_labelme),
        "label-studio": lambda: _read_matching(read_label_studio, root, files, is_label_studio),
        "cvat": lambda: read_cvat(root, _require_single(exports)) if (exports := _find_cvat_files(source)) else None,
        "yolo": lambda: read_yolo(root, is_named=name == "yolo"),
        "roboflow-masks": lambda: read_roboflow_masks(tables) if tables else None,
        "objects": lambda: read_object_folders(root, table),
        "stacks": lambda: read_stacks(root, table),
        "masks": lambda: read_folder(root, table, options),
    }
    if name is not None:
        readers = {name: readers[name]}
    elif source.is_file():  # the folder around it may hold something else
        readers = {format: readers[format] for format in (*_JSON, "cvat")}
    if source.is_file() and source.suffix not in (".json", ".xml"):
        raise ValueError(f"{source} is neither a folder nor a .json or .xml annotation file.")
    unread_note = f" Files that cannot be read: {problems[0]}" if problems else ""
    try:
        found = ((format, _read(reader, format, source)) for format, reader in readers.items())
        format, result = next((format, result) for format, result in found if result)
    except FileNotFoundError as error:
        if _has_layout(root):
            raise  # the folder is known, but something in it is missing
        raise FileNotFoundError(
            f"{source} holds {_describe_contents(root)}, in no recognised format. Looked for COCO, LabelMe or Label "
            "Studio JSON, annotations.xml of CVAT, labels/*.txt of YOLO, _classes.csv of Roboflow, <id>/images and "
            f"<id>/masks, TIFF stacks and folders of images and masks.{unread_note}"
        ) from error
    except StopIteration:
        if name is None:
            message = f"{source} is not an annotation file of COCO, LabelMe, Label Studio or CVAT."
        else:
            message = f"{source} is not in the format {name}: it holds {_describe_contents(root)}."
        raise ValueError(message + unread_note) from None
    except ValueError as error:
        if not problems:
            raise
        raise ValueError(f"{error}{unread_note}") from error
    if table is not None and format not in _MASK_FORMATS:
        raise ValueError(f"classes has no effect on the format {format}, which names its classes. Leave it out.")
    if problems:
        result.notes.append(
            f"{pluralize(len(problems), 'JSON file')} cannot be read: skipped with all labels. {problems[0]}"
        )
    return result


def _read(reader: Callable[[], Source | None], format: str, source: Path) -> Source | None:
    try:
        return reader()
    except MALFORMED_ERRORS as error:
        if format in _MASK_FORMATS:  # which have no fields: the error is not the file's
            raise
        raise ValueError(incomplete_message(str(source), error)) from error


def _find_cvat_files(source: Path) -> list[Path]:
    """XML files that CVAT may have written, whatever their names; unlike Pascal VOC's, they hold `<annotations>`."""

    def is_cvat(path: Path) -> bool:
        if path.name == "annotations.xml":
            return True
        with contextlib.suppress(OSError), path.open("rb") as file:  # a folder, or a link to nowhere
            return b"<annotations>" in file.read(1024)
        return False

    if source.suffix == ".xml":
        return [source]
    root = source if source.is_dir() else source.parent
    return [path for path in sorted([*root.glob("*.xml"), *root.glob("*/*.xml")]) if is_cvat(path)]


def incomplete_message(source_name: str, error: BaseException) -> str:
    """The message for annotations that lack a field, or have one of the wrong type."""
    field = f"no field {error}" if isinstance(error, KeyError) else f"a field of another type ({error})"
    return f"{source_name}: an annotation has {field}. Export the annotations again, or correct the file."


def _has_layout(root: Path) -> bool:
    try:
        return (root / PAIRS).is_file() or bool(find_split_folders(root) or find_layout(root))
    except FileNotFoundError:
        return False


def _read_matching(
    read: Callable[..., Source], root: Path, files: dict[Path, object], test: Callable[[object], bool]
) -> Source | None:
    """Reads the files of one format, if there are any."""
    matches = {path: content for path, content in files.items() if test(content)}
    return read(root, matches) if matches else None


def _require_single(files: list[Path]) -> Path:
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} are exports of different tasks. Prepare one at a time.")
    return files[0]


def _describe_contents(root: Path) -> str:
    names = [*(f"{name}/" for name in subfolders(root)), *(p.name for p in sorted(root.iterdir()) if p.is_file())]
    return format_list(names) if names else "nothing"
