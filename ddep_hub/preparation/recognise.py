"""Which format a source has."""

from collections.abc import Callable
from pathlib import Path

from ddep_hub.data.classes import read_class_table
from ddep_hub.data.folders import subfolders
from ddep_hub.data.image_io import first_few

from .coco import is_coco, read_coco, read_json, read_json_files
from .label_studio import is_label_studio, read_label_studio
from .masks import read_folder, read_object_folders, read_roboflow_masks, read_stacks
from .source import Source, counted
from .tools import is_labelme, read_cvat, read_labelme


# What reading a field raises that is not there, or of another type.
INCOMPLETE = (KeyError, TypeError, IndexError, AttributeError)
FORMATS = ("coco", "labelme", "cvat", "label-studio", "roboflow-masks", "objects", "stacks", "masks")
_JSON = {"coco": is_coco, "labelme": is_labelme, "label-studio": is_label_studio}


def read_source(source: Path, name: str | None = None, classes: Path | None = None) -> Source:
    """Reads labelled images of any known format.

    Args:
        source: A folder, or the file of the annotations.
        name: One of `FORMATS`; recognised by default.
        classes: A `classes.json`, for masks whose values or colours say nothing of their names.

    Raises:
        FileNotFoundError: There is no source, or nothing in it is recognised; the message says what was looked for.
        ValueError: The source is damaged or not of this format.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist. Give a folder, or a file of annotations.")
    root = source if source.is_dir() else source.parent
    table = read_class_table(classes) if classes else None
    tests = [test for format, test in _JSON.items() if name in (format, None)]
    files, problems = read_json_files(source, tests) if source.is_dir() and tests else ({}, [])
    if source.suffix == ".json":
        files = {source: read_json(source)}
    xml = [source] if source.suffix == ".xml" else [*root.glob("annotations.xml"), *root.glob("*/annotations.xml")]
    tables = sorted([*root.glob("_classes.csv"), *root.glob("*/_classes.csv")])
    readers: dict[str, Callable[[], Source | None]] = {
        "coco": lambda: read_coco(root, found) if (found := _only(files, is_coco)) else None,
        "labelme": lambda: read_labelme(root, found) if (found := _only(files, is_labelme)) else None,
        "label-studio": lambda: read_label_studio(root, found) if (found := _only(files, is_label_studio)) else None,
        "cvat": lambda: read_cvat(root, _single(xml)) if xml else None,
        "roboflow-masks": lambda: read_roboflow_masks(root, tables) if tables else None,
        "objects": lambda: read_object_folders(root, table),
        "stacks": lambda: read_stacks(root, table),
        "masks": lambda: read_folder(root, table),
    }
    if name is not None:
        readers = {name: readers[name]}
    if source.is_file() and source.suffix not in (".json", ".xml"):
        raise ValueError(f"{source} is neither a folder nor a .json or .xml file of annotations.")
    unread = f" Files that cannot be read: {problems[0]}" if problems else ""
    try:
        result = next(filter(None, (read() for read in readers.values())))
    except INCOMPLETE as error:
        raise ValueError(incomplete(str(source), error)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{source} holds {_contents(root)}, of which nothing is recognised. Looked for json of COCO, LabelMe or "
            "Label Studio, annotations.xml of CVAT, _classes.csv of Roboflow, <id>/images and <id>/masks, TIFF stacks "
            f"and folders of images and masks.{unread}"
        ) from error
    except StopIteration:
        raise ValueError(f"{source} is not of the format {name}: it holds {_contents(root)}.{unread}") from None
    except ValueError as error:
        if not problems:
            raise
        raise ValueError(f"{error}{unread}") from error
    if problems:
        result.notes.append(
            f"{counted(len(problems), 'json file')} cannot be read: left out with all labels. {problems[0]}"
        )
    return result


def incomplete(what: str, error: BaseException) -> str:
    """What to say of annotations that lack a field, or have one of another type."""
    field = f"no field {error}" if isinstance(error, KeyError) else f"a field of another type ({error})"
    return f"{what}: an annotation has {field}. Export the annotations again, or correct the file."


def _only(files: dict[Path, object], test: Callable[[object], bool]) -> dict[Path, object]:
    return {path: content for path, content in files.items() if test(content)}


def _single(files: list[Path]) -> Path:
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} are exports of two tasks. Prepare one at a time.")
    return files[0]


def _contents(root: Path) -> str:
    names = [*(f"{name}/" for name in subfolders(root)), *(p.name for p in sorted(root.iterdir()) if p.is_file())]
    return first_few(names) if names else "nothing"
