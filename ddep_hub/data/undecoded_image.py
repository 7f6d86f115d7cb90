"""A `datasets` feature for streaming images; a separate file, because it imports `datasets`."""

import dataclasses
from typing import Any

import datasets


@dataclasses.dataclass(repr=False)
class UndecodedImage(datasets.Image):
    """An undecoded image, as its bytes or path.

    `datasets.Image` drops the bytes of a streamed sample if the current folder has a file of the same name, and reads
    that file instead.
    """

    decode: bool = False

    def encode_example(self, value: Any) -> Any:
        """Encodes a sample as in `datasets`, but keeps these bytes."""
        if isinstance(value, dict) and value.get("bytes") is not None:
            return value
        return super().encode_example(value)
