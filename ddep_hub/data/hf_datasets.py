"""Opens data sets with `datasets`: from the Hub, `save_to_disk` folders, Parquet files, WebDataset shards.

`datasets` is imported lazily, because it is slow to import and folders of images do not need it.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ddep_hub.utils.files import format_list, is_url

from .folders import match_split
from .image_io import IMAGE_EXTENSIONS, BadFileError, iter_files


# A data set saved by `save_to_disk` is memory-mapped and can be split anywhere: into this many shards.
NUM_SAVED_SHARDS = 256
HUB_PREFIX = "hf://datasets/"


def load_split(name: str, split: str, *, revision: str | None = None) -> Any:
    """A split of a data set on the Hub, or of a local folder or file, as `datasets.Dataset`.

    `split` is ignored for a single `Dataset` written by `save_to_disk`, which has no splits. Raises a ValueError that
    lists the splits if there is no such split.
    """
    import datasets

    if is_saved(name):
        saved = datasets.load_from_disk(name)
        if isinstance(saved, datasets.Dataset):
            return saved
        return saved[_resolve_split(name, split, list(saved))]
    return _load_dataset(name, split, revision)


def stream_split(name: str, split: str, *, revision: str | None = None) -> Any:
    """The same as `datasets.IterableDataset`, without storing it on disk."""
    if is_saved(name):
        data = load_split(name, split)
        return data.to_iterable_dataset(num_shards=max(1, min(len(data), NUM_SAVED_SHARDS)))
    return _load_dataset(name, split, revision, streaming=True)


def stream_shards(shards: Sequence[str]) -> Any:
    """WebDataset shards, local files or URLs, as `datasets.IterableDataset`.

    Raises a ValueError if the first shards cannot be read; other damaged shards are detected only when reached.
    """
    import datasets

    if any(shard.startswith(("http://", "https://")) for shard in shards) and find_spec("aiohttp") is None:
        raise ImportError(f"{shards[0]} is read with aiohttp; install it with `pip install aiohttp`")
    try:
        return datasets.load_dataset("webdataset", data_files=list(shards), split="train", streaming=True)
    except tarfile.TarError as error:  # it reads the first samples
        raise ValueError(f"one of the shards {format_list(shards)} is damaged ({error}); replace it") from error
    except ValueError as error:  # no files, or several kinds
        raise ValueError(
            f"the shards {format_list(shards)} are not WebDataset shards ({' '.join(str(error).split())}); give all "
            "samples the same extensions, such as 0001.jpg and 0001.json"
        ) from error


def is_saved(name: str) -> bool:
    """Whether this is a folder written by `save_to_disk`."""
    root = Path(name)
    is_single = (root / "state.json").is_file() and (root / "dataset_info.json").is_file()
    return is_single or (root / "dataset_dict.json").is_file()


def local_fingerprint(name: str) -> list[str]:
    """Relative names and sizes of all files of a local data set; empty for one on the Hub."""
    root = Path(name)
    if root.is_file():
        return [f"{root.name} {root.stat().st_size}"]
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files]


def parse_hub_name(name: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and split of `hf://datasets/org/name[@revision][/split]`; `None` for what is not given."""
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/([^/@]+))?", name.removeprefix(HUB_PREFIX))
    if match is None:
        raise ValueError(
            f"{name} is not the name of a data set on the Hub; write {HUB_PREFIX}org/name or "
            f"{HUB_PREFIX}org/name@revision, optionally followed by /split (write a slash in a revision as %2F)"
        )
    return match[1], match[2] and unquote(match[2]), match[3]


def holds_dataset(name: str) -> bool:
    """Whether a local folder or file is a data set of `datasets`: Parquet or Arrow files."""
    root = Path(name)
    if root.is_file():
        return root.suffix in (".parquet", ".arrow")
    return is_saved(name) or next(_data_files(root), None) is not None


def describes_images(name: str) -> bool:
    """Whether a local folder has image files, and Parquet files without images, which then describe the former."""
    if is_saved(name) or next(iter_files(Path(name), IMAGE_EXTENSIONS), None) is None:
        return False
    return not any(path.suffix == ".arrow" or _holds_images(path) for path in _data_files(Path(name)))


def _holds_images(file: Path) -> bool:
    """Whether a Parquet file has an image column, a struct of bytes and path."""
    import pyarrow
    from pyarrow import parquet

    try:
        types = [field.type for field in parquet.read_schema(file)]
    except pyarrow.ArrowInvalid:  # damaged
        return False
    return any(pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 for kind in types)


def _data_files(root: Path) -> Iterator[Path]:
    # In the Hub's layouts, files are at the top level or one folder below.
    return (path for depth in ("", "*/") for kind in ("parquet", "arrow") for path in root.glob(f"{depth}*.{kind}"))


def image_columns(data: Any) -> list[str]:
    """The columns of a data set that hold images."""
    import datasets

    return [column for column, feature in (data.features or {}).items() if isinstance(feature, datasets.Image)]


def select_undecoded(data: Any, columns: Sequence[str], name: str, extra_columns: Sequence[str] = ()) -> Any:
    """Selects these columns of a data set, with undecoded images."""
    import datasets

    from .undecoded_image import UndecodedImage

    undecoded = UndecodedImage() if isinstance(data, datasets.IterableDataset) else datasets.Image(decode=False)
    images = image_columns(data)
    for column in columns:
        if column not in images:
            raise ValueError(f"{name} has no image column {column!r}; its image columns are {images}")
        data = data.cast_column(column, undecoded)
    return data.select_columns([*columns, *extra_columns])


def make_undecoded_sample(value: Any, location: str) -> dict[str, Any]:
    """Makes a sample from a value of `datasets.Image(decode=False)`, named after its file or else its location."""
    if value is None or (value["bytes"] is None and not value["path"]):
        raise BadFileError(f"{location} holds no image; remove the sample from the data set", location)
    content, path = value["bytes"], value["path"]
    if content is None and is_url(path):
        import fsspec

        with fsspec.open(path, "rb") as file:
            content = file.read()
    name = path if value["bytes"] is None else f"{location} ({path})" if path else location
    return {"image": {"path": name, "bytes": content}, "path": name}


def _load_dataset(name: str, split: str, revision: str | None, **options: Any) -> Any:
    import datasets

    path, source = Path(name), {"path": name, "revision": revision}
    if path.is_file():
        if path.suffix not in (".parquet", ".arrow"):
            raise ValueError(f"{name} is a file that cannot be read as a data set; give a .parquet or .arrow file")
        source |= {"path": path.suffix[1:], "data_files": name}
    splits = datasets.get_dataset_split_names(**source)
    return datasets.load_dataset(**source, split=_resolve_split(name, split, splits), **options)


def _resolve_split(name: str, split: str, splits: Sequence[str]) -> str:
    """A split's name in the data set: `datasets` calls the split of `val` files validation."""
    match = match_split(splits, split)
    if match is None:
        raise ValueError(f"{name} has no split {split!r}; it has {sorted(splits)}")
    return match
