"""Unlabelled images from folders and Hub data sets, and how names are resolved to these."""

import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from ddep_hub.utils.files import is_url

from .hf_datasets import (
    HUB_PREFIX,
    describes_images,
    holds_dataset,
    image_columns,
    load_split,
    local_fingerprint,
    make_undecoded_sample,
    parse_hub_name,
    select_undecoded,
    stream_shards,
    stream_split,
)
from .image_io import BadFileError, PackedNames
from .unlabelled import unlabelled_images


if TYPE_CHECKING:
    import datasets


# For millions of files, reading the sizes takes minutes, and far longer on network drives.
MAX_FILE_SIZES = 100_000


class ImageFolder(Dataset[dict[str, Any]]):
    """All images below a folder, sorted by relative path; hidden files and folders, and masks, are left out.

    See [`unlabelled_images`] for what counts as a mask.

    A sample is `{"image": {"path": str, "bytes": None}, "path": str}`, undecoded for `PretrainTransform`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or only masks.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.names = PackedNames(unlabelled_images(self.root))

    @property
    def fingerprint(self) -> Sequence[str]:
        """Identifies these images, see [`images_fingerprint`]."""
        if len(self.names) > MAX_FILE_SIZES:
            return self.names
        return [f"{name} {_file_size(f'{self.root}/{name}')}" for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = str(self.root / self.names[index])
        return {"image": {"path": path, "bytes": None}, "path": path}


def _file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a broken link, which is reported when it is read
        return 0


IMAGE_COLUMN = "image"  # the default
WEBDATASET_COLUMNS = ("jpg", "jpeg", "png", "webp")


class HubImages(Dataset[dict[str, Any]]):
    """The images of a data set on the Hub, or of a local one that `datasets` reads, kept in the cache.

    A sample is `{"image": {"path": str, "bytes": bytes or None}, "path": str}`, undecoded for `PretrainTransform`. If
    `column` is left at its default, a data set's only image column is used, whatever its name. `fingerprint`
    identifies the data regardless of its location.
    """

    def __init__(self, name: str, split: str, *, column: str = "image", revision: str | None = None) -> None:
        self.name = f"{name}/{split}"
        data = load_split(name, split, revision=revision)
        # If the column is the default, use the only image column, whatever its name.
        images = image_columns(data)
        self.column = images[0] if column == IMAGE_COLUMN and len(images) == 1 else column
        self.fingerprint = local_fingerprint(name) or [data._fingerprint]
        self.data = select_undecoded(data, [self.column], self.name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_undecoded_sample(self.data[index][self.column], f"{self.name}, sample {index}")


class ShardedImages:
    """The images of a data set opened with `streaming=True`, shard by shard; a source of `ImageStream`.

    Samples are like those of `HubImages`; with WebDataset shards, a path consists of the shard and the image in it. If
    the shards have no `column`, the first of jpg, jpeg, png and webp in a sample is used. `name` identifies the data
    in messages, and `fingerprint` identifies it regardless of its location.
    """

    def __init__(
        self, data: "datasets.IterableDataset", name: str, fingerprint: Sequence[str], *, column: str = "image"
    ) -> None:
        self.name = name
        self.fingerprint = list(fingerprint)
        names = list(data.features or {})
        self._is_webdataset = "__key__" in names and "__url__" in names
        self.columns = [column]
        if self._is_webdataset and column not in names:
            self.columns = [known for known in WEBDATASET_COLUMNS if known in names] or [column]
        self.data = select_undecoded(
            data, self.columns, name, extra_columns=["__key__", "__url__"] if self._is_webdataset else []
        )
        self.num_shards: int = data.num_shards

    def samples(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The samples of one shard from sample `start` on."""
        shard_data = self.data.shard(num_shards=self.num_shards, index=shard)
        if start:
            shard_data = shard_data.skip(start)
        try:
            # A plain loop over `shard_data` would split it among the workers of a DataLoader a second time.
            for sample_index, batch in enumerate(shard_data.iter(batch_size=1), start):
                sample = {name: values[0] for name, values in batch.items()}
                column = next((name for name in self.columns if sample[name] is not None), self.columns[0])
                location = f"{self.name}, shard {shard}, sample {sample_index}"
                if self._is_webdataset:
                    location = f"{sample['__url__']}/{sample['__key__']}.{column}"
                    sample[column] = sample[column] and {**sample[column], "path": None}
                try:
                    yield make_undecoded_sample(sample[column], location)
                except BadFileError:
                    # Yields a sample that cannot be decoded, because an error here would end the iteration.
                    yield {"image": {"path": location, "bytes": b""}, "path": location}
        except tarfile.TarError as error:
            raise ValueError(f"shard {shard} of {self.name} is damaged ({error}); replace or remove it") from error
        except Exception as error:
            error.add_note(f"while reading shard {shard} of {self.name}")
            raise


MapSource = ImageFolder | HubImages


def open_images(
    names: Sequence[str], *, column: str = "image", streaming: bool = False
) -> list[MapSource] | list[ShardedImages]:
    """Opens sources of images with undecoded samples: either all map-style data sets, or all sources of `ImageStream`.

    A name is one of

    - a folder of images, which may contain Parquet files with metadata,
    - `hf://datasets/org/name` or `hf://datasets/org/name@revision`, optionally followed by `/split` (default `train`),
    - a local folder with Parquet or Arrow files, or one written by `save_to_disk` (split `train`),
    - WebDataset shards: a .tar file or its http(s) URL, or a pattern of them such as `shards/*.tar` or
      `shards/train-{000..127}.tar`. They are always streamed.

    `column` is the image column of data sets. `streaming` reads data sets without storing them on disk. Raises a
    FileNotFoundError if a folder or file is missing, and a ValueError if a name cannot be read, a split or column does
    not exist, or only some of the sources are streams.
    """
    if not names:
        raise ValueError("no images are given; pass at least one folder or data set")
    sources = [_open_source(name, column, streaming) for name in names]
    streams = [source for source in sources if isinstance(source, ShardedImages)]
    map_sources = [source for source in sources if not isinstance(source, ShardedImages)]
    if streams and map_sources:
        raise ValueError(
            f"{[name for name, source in zip(names, sources, strict=True) if source in streams]} are streams, but "
            f"{[name for name, source in zip(names, sources, strict=True) if source in map_sources]} are not; the two "
            "cannot be mixed. Turn streaming on and pack folders of images into .tar shards, or unpack the shards"
        )
    return streams or map_sources


def images_fingerprint(sources: Sequence[MapSource | ShardedImages]) -> str:
    """A hash of the images in `sources`, 16 hexadecimal digits, with which a resumed run detects changes.

    It covers the relative names of the images in folders, the names and sizes of the files of local data sets and
    shards, the fingerprints of data sets on the Hub, and name, revision and number of shards of streamed ones. In
    folders of at most 100,000 images, it includes file sizes.
    """
    digest = hashlib.sha256()
    for source in sources:
        fingerprint = source.fingerprint
        for part in itertools.chain([type(source).__name__, str(len(fingerprint))], fingerprint):
            digest.update(os.fsencode(part) + b"\0")
    return digest.hexdigest()[:16]


def expand_shards(pattern: str) -> list[str]:
    """Expands a pattern to files or URLs: ranges such as `{000..127}` and, for local files, `*`, `?` or `[...]`.

    Raises a FileNotFoundError if no local file matches.
    """
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match:
        first, last = match.groups()
        if int(last) < int(first):
            raise ValueError(f"{match.group()} of {pattern} runs backwards; write {{{last}..{first}}}")
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1)
        prefix, suffix = pattern[: match.start()], pattern[match.end() :]
        return [name for number in numbers for name in expand_shards(f"{prefix}{number:0{width}d}{suffix}")]
    if is_url(pattern):
        return [pattern]
    # An existing file takes precedence, because its name may contain brackets.
    matches = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not matches:
        raise FileNotFoundError(f"{pattern} matches no file; check the path of the shards")
    return matches


def _open_source(name: str, column: str, streaming: bool) -> MapSource | ShardedImages:
    is_hub = name.startswith(HUB_PREFIX)
    if not is_hub and re.search(r"\.tar([?#].*)?$", name):
        shards = expand_shards(name)
        fingerprint = [shard if is_url(shard) else local_fingerprint(shard)[0] for shard in shards]
        return ShardedImages(stream_shards(shards), name, fingerprint, column=column)
    if not is_hub and is_url(name):
        raise ValueError(f"{name} is neither {HUB_PREFIX}org/name nor the URL of a .tar shard; pass one of these")
    if is_hub or (holds_dataset(name) and not describes_images(name)):
        path, revision, named_split = parse_hub_name(name) if is_hub else (name, None, None)
        split = named_split or "train"
        if not streaming:
            return HubImages(path, split, column=column, revision=revision)
        data = stream_split(path, split, revision=revision)
        fingerprint = [path, revision or "", split, str(data.num_shards)] if is_hub else local_fingerprint(path)
        return ShardedImages(data, name if is_hub else f"{name}/{split}", fingerprint, column=column)
    folder = ImageFolder(name)
    if streaming:
        raise ValueError(
            f"{name} is a folder of images, which cannot be streamed; turn streaming off, or pack it into .tar shards"
        )
    return folder
