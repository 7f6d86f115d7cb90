"""What is uploaded of a folder, put together beside it: the folder itself is never written to."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import ddep_hub
from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePModel, DDePPreTrainedModel
from ddep_hub.checkpoints import hash_weights


MODELS = {cls.__name__: cls for cls in (DDePForSemanticSegmentation, DDePForPreTraining, DDePModel)}
# What `register_for_auto_class` and `save_pretrained` would write, without marking the classes of this process.
AUTO_MAP: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "configuration_ddep.DDePConfig",
        "AutoModel": "modeling_ddep.DDePModel",
        "AutoModelForPreTraining": "modeling_ddep.DDePForPreTraining",
        "AutoModelForSemanticSegmentation": "modeling_ddep.DDePForSemanticSegmentation",
    },
    # The PIL backend's class, then torchvision's: how transformers tells them apart.
    "preprocessor_config.json": {
        "AutoImageProcessor": [
            "image_processing_pil_ddep.DDePImageProcessorPil",
            "image_processing_ddep.DDePImageProcessor",
        ]
    },
}


def files_of(folder: Path) -> list[str]:
    """Files of a folder that are published: none that is hidden, and no link to a place outside of it."""
    inside = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.resolve().is_relative_to(inside):
            found.append(name.as_posix())
    return found


def stage(folder: Path, place: Path, *, decoder_only: bool, remote_code: bool) -> None:
    """Puts the files to publish into an empty folder.

    Args:
        folder: a folder that `from_pretrained` loads.
        place: where to; files that stay as they are become links.
        decoder_only: leave the encoder out.
        remote_code: add the model's code, for `trust_remote_code=True`.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        ValueError: it is no model of this package, or its encoder was trained and cannot be left out.
    """
    names = files_of(folder)
    if "config.json" not in names:
        raise FileNotFoundError(
            f"{folder} holds no config.json of its own. Publish a folder that save_pretrained wrote."
        )
    model_class(folder)
    for name in names:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to((folder / name).resolve())
        except OSError:  # Windows, without the right to make links
            shutil.copy2(folder / name, target)
    if decoder_only:
        _leave_encoder_out(folder, place)
    if remote_code:
        _add_code(place)


def model_class(folder: Path) -> type[DDePPreTrainedModel]:
    """The class that a folder was saved from.

    Raises:
        ValueError: none of this package.
    """
    architectures = read_config(folder).get("architectures") or ["none"]
    if architectures[0] not in MODELS:
        raise ValueError(f"{folder}/config.json names the architecture {architectures[0]}, not one of {list(MODELS)}.")
    return MODELS[architectures[0]]


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` holds.

    Raises:
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Save the model again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no configuration. Save the model again.")
    return found


def _leave_encoder_out(folder: Path, place: Path) -> None:
    if read_config(place).get("decoder_only"):
        return
    model = model_class(folder).from_pretrained(folder)
    recorded = model.config.encoder_weights_hash
    if recorded is not None and hash_weights(model.base_model.encoder.state_dict()) != recorded:
        raise ValueError(
            f"decoder_only: the encoder of {folder} was trained, and is no longer {model.config.encoder_name} as it "
            "was loaded. Its decoder alone would be put on the original. Publish the whole model."
        )
    for weights in place.glob("model*.safetensors*"):
        weights.unlink()
    # Not into `place`: what is there are links, and writing through one would change the folder.
    with tempfile.TemporaryDirectory(dir=place.parent) as new:
        model.save_pretrained(new, decoder_only=True)
        for file in Path(new).iterdir():
            os.replace(file, place / file.name)


def _add_code(place: Path) -> None:
    package = Path(ddep_hub.__file__).parent
    for name, auto_map in AUTO_MAP.items():
        if not (place / name).is_file():
            continue
        stored = json.loads((place / name).read_text(encoding="utf-8"))
        _replace(place / name, json.dumps({**stored, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n")
        references = [part for value in auto_map.values() for part in (value if isinstance(value, list) else [value])]
        modules = [package / f"{reference.split('.')[0]}.py" for reference in references]
        needed = {Path(file) for module in modules for file in (module, *get_relative_import_files(module))}
        for file in needed:
            _replace(place / file.name, file.read_text(encoding="utf-8"))


def _replace(path: Path, text: str) -> None:
    """Writes a file anew: it may be a link, whose end must stay as it is."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
