"""From what a user types to sources of training images."""

import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from urllib.parse import unquote

from .hub_datasets import HubImages, ShardedImages
from .loading import ImageFolder
from .opening import is_saved, local_contents, stream_shards, stream_split


MapSource = ImageFolder | HubImages
HUB_PREFIX = "hf://datasets/"


def open_images(
    names: Sequence[str], *, column: str = "image", streaming: bool = False
) -> list[MapSource] | list[ShardedImages]:
    """Opens sources of images; their rows are undecoded.

    A name is one of

    - a folder of images,
    - `hf://datasets/org/name`, `hf://datasets/org/name@revision`, either with `/split` behind it (`train` by default),
    - a local folder with parquet or arrow files, or one that `save_to_disk` wrote (split `train`),
    - WebDataset shards: a .tar file or its http(s) URL, or a pattern of them such as `shards/*.tar` or
      `shards/train-{000..127}.tar`. They are always streamed.

    Args:
        names: The sources.
        column: Column of the images in data sets; in WebDataset shards, a known image suffix takes its place where
            there is no such column.
        streaming: Whether to read data sets as they come, without keeping them on the disk.

    Returns:
        A list of data sets with a length and whole-number indices, or a list of sources for `ImageStream`.

    Raises:
        FileNotFoundError: A folder or file is missing, or a pattern matches nothing.
        ValueError: A name cannot be read, a data set has no such split or column, or some sources are streams and
            others are not.
    """
    if not names:
        raise ValueError("no images are given; name at least one folder or data set")
    sources = [_open(name, column, streaming) for name in names]
    streams = [source for source in sources if isinstance(source, ShardedImages)]
    whole = [source for source in sources if not isinstance(source, ShardedImages)]
    if streams and whole:
        raise ValueError(
            f"{[name for name, source in zip(names, sources, strict=True) if source in streams]} are streams, but "
            f"{[name for name, source in zip(names, sources, strict=True) if source in whole]} are not; the two "
            "cannot be mixed. Switch streaming on and pack folders of images into .tar shards, or unpack the shards"
        )
    return streams or whole


def identity(sources: Sequence[MapSource | ShardedImages]) -> str:
    """A short hash over what sources hold, which tells at resuming that the data has changed.

    Args:
        sources: From [`open_images`]. Folders count by the relative names of their images, local data sets and shards
            by those of their files and the sizes, data sets of the Hub by their fingerprint, and streamed ones by
            their name, revision and number of shards.

    Returns:
        16 hexadecimal digits; the same wherever a folder lies.
    """
    digest = hashlib.sha256()
    for source in sources:
        contents = source.names if isinstance(source, ImageFolder) else source.contents
        for part in itertools.chain([type(source).__name__, str(len(contents))], contents):
            digest.update(os.fsencode(part) + b"\0")
    return digest.hexdigest()[:16]


def expand_shards(pattern: str) -> list[str]:
    """The files or URLs that a pattern of shards stands for.

    Args:
        pattern: With any number of ranges such as `{000..127}`, and `*`, `?` or `[...]` for local files.

    Returns:
        The names, ranges counted up and matches sorted.

    Raises:
        FileNotFoundError: A local file is missing, or nothing matches.
        ValueError: A range runs backwards.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        first, last = found.groups()
        if int(last) < int(first):
            raise ValueError(f"{found.group()} of {pattern} runs backwards; write {{{last}..{first}}}")
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1)
        before, after = pattern[: found.start()], pattern[found.end() :]
        return [name for number in numbers for name in expand_shards(f"{before}{number:0{width}d}{after}")]
    if _is_url(pattern):
        return [pattern]
    # A plain file comes first: its name may hold brackets.
    matches = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not matches:
        raise FileNotFoundError(f"{pattern} matches no file; check the path of the shards")
    return matches


def _open(name: str, column: str, streaming: bool) -> MapSource | ShardedImages:
    if name.startswith(HUB_PREFIX):
        return _open_hub(name, column, streaming)
    if re.search(r"\.tar([?#].*)?$", name):
        shards = expand_shards(name)
        contents = [shard if _is_url(shard) else local_contents(shard)[0] for shard in shards]
        return ShardedImages(stream_shards(shards), name, contents, column=column)
    if _is_url(name):
        raise ValueError(f"{name} is neither {HUB_PREFIX}org/name nor the URL of a .tar shard; give one of these")
    if holds_dataset(name):
        if not streaming:
            return HubImages(name, "train", column=column)
        return ShardedImages(stream_split(name, "train"), f"{name}/train", local_contents(name), column=column)
    folder = ImageFolder(name, decode=False)
    if streaming:
        raise ValueError(
            f"{name} is a folder of images, which is not streamed; leave streaming off, or pack it into .tar shards"
        )
    return folder


def parse_hub_name(name: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and split of `hf://datasets/org/name[@revision][/split]`; `None` for what is not given.

    Raises:
        ValueError: It is not of this form.
    """
    found = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/([^/@]+))?", name.removeprefix(HUB_PREFIX))
    if found is None:
        raise ValueError(
            f"{name} names no data set of the Hub; write {HUB_PREFIX}org/name or {HUB_PREFIX}org/name@revision, "
            "either with /split behind it (a slash in a revision is written %2F)"
        )
    return found[1], found[2] and unquote(found[2]), found[3]


def _open_hub(name: str, column: str, streaming: bool) -> MapSource | ShardedImages:
    repository, revision, split = parse_hub_name(name)
    split = split or "train"
    if not streaming:
        return HubImages(repository, split, column=column, revision=revision)
    data = stream_split(repository, split, revision=revision)
    contents = [repository, revision or "", split, str(data.num_shards)]
    return ShardedImages(data, name, contents, column=column)


def holds_dataset(name: str) -> bool:
    """Whether a local folder or file holds a data set that `datasets` wrote: parquet or arrow files."""
    root = Path(name)
    if root.is_file():
        return root.suffix in (".parquet", ".arrow")
    # The Hub's layouts have their files at the top or one folder below.
    patterns = [f"{depth}*{suffix}" for depth in ("", "*/") for suffix in (".parquet", ".arrow")]
    return is_saved(name) or any(next(root.glob(pattern), None) is not None for pattern in patterns)


def _is_url(name: str) -> bool:
    return "://" in name
