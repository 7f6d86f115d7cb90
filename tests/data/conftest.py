"""Tiny data sets: JPEGs, WebDataset shards, parquet files."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image


def _jpeg(number, size=(40, 32), **options):
    """The bytes of a JPEG of noise; another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def _write_shards(folder, counts, suffix="jpg", broken=()):
    """Shards `train-000.tar`, ... of so many images, each with a JSON beside it; keys go on from shard to shard."""
    folder.mkdir(exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for _ in range(count):
                content = _jpeg(number)[:200] if number in broken else _jpeg(number)
                for name, data in ((f"{number:04d}.{suffix}", content), (f"{number:04d}.json", b"{}")):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                number += 1
    return str(folder / "*.tar")


def _image_dataset(count, first=0, **columns):
    """A `datasets.Dataset` of JPEGs, with more columns if wanted."""
    import datasets

    rows = {"image": [{"bytes": _jpeg(first + index), "path": None} for index in range(count)], **columns}
    data = datasets.Dataset.from_dict(rows)
    for name in {"image", "annotation"} & set(rows):
        data = data.cast_column(name, datasets.Image())
    return data


@pytest.fixture
def jpeg():
    """See above."""
    return _jpeg


@pytest.fixture
def write_shards():
    """See above."""
    return _write_shards


@pytest.fixture
def image_dataset():
    """See above."""
    return _image_dataset
