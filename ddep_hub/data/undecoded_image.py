"""The feature of `datasets` that reads streams of images; a separate file, because it imports `datasets`."""

import dataclasses
from typing import Any

import datasets


@dataclasses.dataclass(repr=False)
class UndecodedImage(datasets.Image):
    """An image as its bytes or path, undecoded.

    `datasets.Image` drops the bytes of a streamed sample if the current folder has a file of its name, and then reads
    that file.
    """

    decode: bool = False

    def encode_example(self, value: Any) -> Any:
        """A sample as it is stored; as in `datasets`, but for those bytes."""
        if isinstance(value, dict) and value.get("bytes") is not None:
            return value
        return super().encode_example(value)
