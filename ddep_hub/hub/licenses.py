"""Licences that restrict the use of weights, which weights trained from them inherit."""

import json
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from ddep_hub.configuration_ddep import resolve_name


CARD, RUN = "README.md", "run.json"  # beside the model
# Licences that allow any use, by their names on the Hub.
OPEN_LICENSES = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
)


def find_restriction(source: str) -> dict[str, str] | None:
    """What restricts the use of weights that are trained from those of `source`, a folder, shipped model or Hub id.

    Returns the name of a `model` and its `license`: what `source` inherited itself, according to its `run.json`, or
    else the licence of its own card. `None` if these allow any use or say nothing.
    """
    try:
        record = _find_file(source, RUN)
        inherited = record and json.loads(record.read_text(encoding="utf-8")).get("inherited_license")
        if inherited:
            return dict(inherited)
        card = _find_file(source, CARD)
        license = card and (metadata_load(card) or {}).get("license")
    except (ValueError, yaml.YAMLError):  # damaged, which does not keep the weights from being used
        return None
    return {"model": source, "license": license} if license and license not in OPEN_LICENSES else None


def _find_file(source: str, name: str) -> Path | None:
    """A file beside a model, from the Hub or its cache where it is no folder; `None` if it is not there."""
    folder = Path(resolve_name(source))
    if folder.is_dir() or folder.is_absolute():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except (EntryNotFoundError, HTTPError, OSError, ValueError):  # not there, not to be reached, or no Hub id
        return None
