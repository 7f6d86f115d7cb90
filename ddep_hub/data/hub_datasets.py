"""Data sets of the Hugging Face Hub, and local ones that `datasets` reads, as the rows of this package."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from .classes import ClassTable, class_colors
from .decoding import BadFileError, decode_image, decode_mask
from .opening import load_split, local_contents
from .rows import labelled_row


if TYPE_CHECKING:
    import datasets

WEBDATASET_COLUMNS = ("jpg", "jpeg", "png", "webp")


class HubImages(Dataset[dict[str, Any]]):
    """The images of a data set that is downloaded and kept in the cache.

    A row is `{"image": {"path": str, "bytes": bytes or None}, "path": str}`, undecoded; `PretrainTransform` takes it.

    Args:
        name: A data set of the Hub, such as `org/name`, or a local folder or file that `datasets` reads.
        split: The split.
        column: Column of the images.
        config: Configuration of the data set, where it has several.
        revision: Branch, tag or commit on the Hub.

    Attributes:
        contents: What tells this data from other data, the same wherever it lies.

    Raises:
        ValueError: There is no such split or column, or the column holds no images.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        column: str = "image",
        config: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = f"{name}/{split}"
        self.column = column
        data = load_split(name, split, config=config, revision=revision)
        self.contents = local_contents(name) or [data._fingerprint]
        self.data = with_undecoded(data, [column], self.name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return undecoded_row(self.data[index][self.column], f"{self.name}, row {index}")


class HubSegmentation(Dataset[dict[str, Any]]):
    """Images with masks of class ids, from a data set that is downloaded and kept in the cache.

    Its rows are those of `SegmentationFolder`. Reading a row raises `BadFileError` for a file that cannot be used.

    Args:
        name: A data set of the Hub, such as `org/name`, or a local folder or file that `datasets` reads.
        split: The split.
        classes: The classes, such as of `read_class_table`. By default the names of the data set's one list of
            `ClassLabel`s; a single `ClassLabel` names the whole image, not its pixels.
        image_column: Column of the images.
        mask_column: Column of the masks: images of one channel, pixel value = class id.
        config: Configuration of the data set, where it has several.
        revision: Branch, tag or commit on the Hub.
        stems: The examples to use, in this order; all by default.

    Attributes:
        classes: The classes.
        stems: The examples in use: row numbers of eight digits.

    Raises:
        ValueError: There is no such split or column, a column holds no images, `stems` names an example that is not
            there, or the data set does not name its classes.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: ClassTable | None = None,
        *,
        image_column: str = "image",
        mask_column: str = "annotation",
        config: str | None = None,
        revision: str | None = None,
        stems: Iterable[str] | None = None,
    ) -> None:
        self.name = f"{name}/{split}"
        self.image_column, self.mask_column = image_column, mask_column
        data = load_split(name, split, config=config, revision=revision)
        self.classes: ClassTable = classes or _classes_of(data.features, self.name)
        self.data = with_undecoded(data, [image_column, mask_column], self.name)
        rows = {f"{index:08d}": index for index in range(len(self.data))}
        self.stems: list[str] = list(rows) if stems is None else list(stems)
        unknown = [stem for stem in self.stems if stem not in rows]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(self.stems)} stems are not in {self.name}, such as {unknown[0]!r}; a stem is "
                f"a row number of eight digits, up to {len(rows) - 1:08d}"
            )
        self._indices = [rows[stem] for stem in self.stems]
        self.contents = [*(local_contents(name) or [data._fingerprint]), *self.stems]

    def __len__(self) -> int:
        return len(self.stems)

    def mask(self, index: int) -> np.ndarray:
        """The `annotation` of a row alone."""
        (file,) = self._files(index, self.mask_column)
        return self._decoded(file)

    def _files(self, index: int, *columns: str) -> list[dict[str, Any]]:
        number = self._indices[index]
        row = self.data[number]  # once: it fetches all columns
        return [undecoded_row(row[column], f"{self.name}, row {number}, {column}") for column in columns]

    def _decoded(self, mask: dict[str, Any]) -> np.ndarray:
        return decode_mask(mask["image"], num_classes=self.classes.num_classes, ignore_index=self.classes.ignore_index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self._files(index, self.image_column, self.mask_column)
        return labelled_row(decode_image(image["image"]), self._decoded(mask), image["path"], mask["path"])


class ShardedImages:
    """The images of a streaming data set, shard by shard; a source of `ImageStream`.

    A row is as that of `HubImages`; of WebDataset shards, its path is that of the shard and the image's in it.

    Args:
        data: A data set opened with `streaming=True`.
        name: What messages call it.
        contents: What tells this data from other data, the same wherever it lies.
        column: Column of the images; of WebDataset shards, the first of jpg, jpeg, png and webp that a row has.

    Raises:
        ValueError: There is no such column, or it holds no images.
    """

    def __init__(
        self, data: "datasets.IterableDataset", name: str, contents: Sequence[str], *, column: str = "image"
    ) -> None:
        self.name = name
        self.contents = list(contents)
        names = list(data.features or {})
        self._is_webdataset = "__key__" in names and "__url__" in names
        self.columns = [column]
        if self._is_webdataset and column not in names:
            self.columns = [known for known in WEBDATASET_COLUMNS if known in names] or [column]
        self.data = with_undecoded(
            data, self.columns, name, keep=["__key__", "__url__"] if self._is_webdataset else []
        )
        self.num_shards: int = data.num_shards

    def rows(self, shard: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of one shard from row `start` on."""
        part = self.data.shard(num_shards=self.num_shards, index=shard)
        if start:
            part = part.skip(start)
        try:
            # A plain loop over `part` would share it out among the workers of a DataLoader once more.
            for number, batch in enumerate(part.iter(batch_size=1), start):
                row = {name: values[0] for name, values in batch.items()}
                column = next((name for name in self.columns if row[name] is not None), self.columns[0])
                place = f"{self.name}, shard {shard}, row {number}"
                if self._is_webdataset:
                    place = f"{row['__url__']}/{row['__key__']}.{column}"
                    row[column] = row[column] and {**row[column], "path": None}
                try:
                    yield undecoded_row(row[column], place)
                except BadFileError:
                    # A row like any other, which cannot be decoded: an error here would end the iteration for good.
                    yield {"image": {"path": place, "bytes": b""}, "path": place}
        except Exception as error:
            error.add_note(f"while reading shard {shard} of {self.name}")
            raise


def with_undecoded(data: Any, columns: Sequence[str], name: str, keep: Sequence[str] = ()) -> Any:
    """Only these columns of a data set, those of images undecoded."""
    import datasets

    images = [column for column, feature in (data.features or {}).items() if isinstance(feature, datasets.Image)]
    for column in columns:
        if column not in images:
            raise ValueError(f"{name} has no column {column!r} of images; its columns of images are {images}")
        data = data.cast_column(column, datasets.Image(decode=False))
    return data.select_columns([*columns, *keep])


def undecoded_row(value: Any, place: str) -> dict[str, Any]:
    """A row of what `datasets.Image(decode=False)` gives, named after its file, or else its place."""
    if value is None or (value["bytes"] is None and not value["path"]):
        raise BadFileError(f"{place} holds no image; remove the row from the data set", place)
    content, path = value["bytes"], value["path"]
    if content is None and "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            content = file.read()
    name = path if value["bytes"] is None else f"{place} ({path})" if path else place
    return {"image": {"path": name, "bytes": content}, "path": name}


def _classes_of(features: Any, name: str) -> ClassTable:
    """The names of the one list of `ClassLabel`s among the columns."""
    import datasets

    lists = [feature.feature for feature in features.values() if isinstance(feature, datasets.List)]
    labels = [feature for feature in lists if isinstance(feature, datasets.ClassLabel)]
    if len(labels) != 1:
        raise ValueError(
            f"{name} does not name the classes of its masks; write them to a file classes.json and give "
            'classes=read_class_table("classes.json")'
        )
    names = tuple(labels[0].names)
    return ClassTable(names=names, colors=class_colors(len(names)))
