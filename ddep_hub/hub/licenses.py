"""Licences that restrict the use of weights, which weights trained from them inherit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from ddep_hub.shipped import resolve_name

from .staging import CARD, RUN, read_json_object


# Licences that allow any use, by their names on the Hub.
OPEN_LICENSES = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "zlib", "wtfpl"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "pddl", "odc-by"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0"),
)


def encoder_license(encoder_name: str) -> str | None:
    """Licence of an encoder's weights according to timm, in lower case; `None` if timm names none."""
    license = getattr(timm.get_pretrained_cfg(encoder_name), "license", None)
    return license.lower() if license else None


def find_restriction(source: str) -> dict[str, str] | None:
    """Finds the licence that restricts weights trained from `source`, a folder, shipped model or Hub id.

    Returns the name of a `model` and its `license`: the one that `source` inherited, according to its record or, for a
    checkpoint, to the arguments of its run; or else the licence in its own card. `None` if these allow any use, or are
    missing or damaged, which does not prevent the use of the weights.
    """
    for find in (_inherited_restriction, _own_restriction):
        try:
            if found := find(source):
                return found
        except (AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError):
            continue
    return None


def _inherited_restriction(source: str) -> dict[str, str] | None:
    if record := _find_file(source, RUN):
        return recorded_restriction(read_json_object(record))
    if not (Path(source) / "checkpoint.json").is_file():
        return None
    run = yaml.safe_load((Path(source).parents[1] / "config.yaml").read_text(encoding="utf-8"))
    return find_restriction(run["pretrained"]) if run["pretrained"] else None


def _own_restriction(source: str) -> dict[str, str] | None:
    card = _find_file(source, CARD)
    license = (metadata_load(card) or {}).get("license") if card else None
    names = [name.lower() for name in (license if isinstance(license, list) else [license]) if isinstance(name, str)]
    if not names or {*names} & {*OPEN_LICENSES, "unknown"}:
        return None
    return {"model": source, "license": ", ".join(names)}


def recorded_restriction(record: Mapping[str, Any]) -> dict[str, str] | None:
    """The licence that a run's weights inherited, from its record, `run.json`; see [`find_restriction`]."""
    inherited, pretrained = record.get("inherited_license"), record["arguments"].get("pretrained")
    if "inherited_license" not in record and pretrained is not None and resolve_name(pretrained) != pretrained:
        return find_restriction(pretrained)  # for records without this field: the name of a shipped decoder
    is_valid = isinstance(inherited, dict) and all(isinstance(inherited.get(key), str) for key in ("model", "license"))
    return inherited if is_valid else None


def _find_file(source: str, name: str) -> Path | None:
    """A file beside a model, in its folder, or from the Hub or the cache; `None` if there is none."""
    folder = Path(resolve_name(source))
    if folder.is_dir() or folder.is_absolute():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except (EntryNotFoundError, HTTPError, OSError, ValueError):  # missing, unreachable, or not a Hub id
        return None
