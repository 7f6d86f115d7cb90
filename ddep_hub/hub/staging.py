"""Collects the files to publish in a temporary folder: the user's folder is never written to."""

import json
import os
import re
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

import ddep_hub
from ddep_hub.checkpoints import hash_weights
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.modeling_ddep import DDePForPreTraining, DDePForSemanticSegmentation, DDePModel
from ddep_hub.shipped import check_config_file
from ddep_hub.utils.files import read_json


# The card of a model, and the record of the run that trained it.
CARD, RUN = "README.md", "run.json"
WEIGHTS_PATTERN = "model*.safetensors*"
# Files of a checkpoint that only resuming needs.
CHECKPOINT_FILES = ("optimizer.pt", "checkpoint.json")
logger = logging.get_logger(__name__)
MODELS = {cls.__name__: cls for cls in (DDePForSemanticSegmentation, DDePForPreTraining, DDePModel)}
# As `register_for_auto_class` and `save_pretrained` would write, without modifying the classes of this process.
AUTO_MAP: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "configuration_ddep.DDePConfig",
        "AutoModel": "modeling_ddep.DDePModel",
        "AutoModelForPreTraining": "modeling_ddep.DDePForPreTraining",
        "AutoModelForSemanticSegmentation": "modeling_ddep.DDePForSemanticSegmentation",
    },
    # In transformers' order: the PIL backend's class, then torchvision's.
    "preprocessor_config.json": {
        "AutoImageProcessor": [
            "image_processing_pil_ddep.DDePImageProcessorPil",
            "image_processing_ddep.DDePImageProcessor",
        ]
    },
}


def stage(folder: Path, target: Path, *, decoder_only: bool, remote_code: bool) -> None:
    """Puts the files to publish into an empty folder: no hidden files, and no links out of `folder`.

    The optimizer state is left out: that of a run's checkpoint, and the folders `checkpoint-N` of transformers'
    Trainer, as in its `push_to_hub`. Unchanged files become links. `decoder_only` leaves the encoder out, and raises a
    ValueError if it was trained; `remote_code` adds the model's code.
    """
    model_class(folder)
    source_root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_excluded = any(part.startswith(".") or re.fullmatch(r"checkpoint-\d+", part) for part in name.parts)
        if is_excluded or str(name) in CHECKPOINT_FILES or not (path.is_file() or path.is_symlink()):
            continue
        if not path.resolve().is_relative_to(source_root):
            if fnmatch(path.name, WEIGHTS_PATTERN) or path.name == "config.json":
                raise ValueError(f"{path} is a link to outside the folder. Replace it with the file.")
            logger.warning(f"{path} is a link to outside the folder, and is not published.")
            continue
        if not path.is_file():  # a link to a folder inside `folder`
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (target / name).symlink_to(path.resolve())
        except OSError:  # Windows, without permission to create links
            shutil.copy2(path, target / name)
    if decoder_only and not read_config(target).get("decoder_only"):
        _remove_encoder(folder, target)
    if remote_code:
        _add_code(target)


def model_class(folder: Path) -> type[DDePPreTrainedModel]:
    """The class that a folder was saved from; raises a ValueError if it is not one of this package."""
    architectures = read_config(folder).get("architectures") or ["none"]
    if architectures[0] not in MODELS:
        raise ValueError(f"{folder}/config.json names the architecture {architectures[0]}, not one of {list(MODELS)}.")
    return MODELS[architectures[0]]


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's `config.json`; raises a FileNotFoundError if there is none."""
    check_config_file(folder)
    return read_json_object(folder / "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises a ValueError that names the file if it is damaged."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a JSON object. Save it again.")
    return content


def _remove_encoder(folder: Path, target: Path) -> None:
    model = model_class(folder).from_pretrained(folder)
    recorded_hash, encoder = model.config.encoder_weights_hash, model.base_model.encoder.state_dict()
    if recorded_hash is None or hash_weights(encoder) != recorded_hash:
        # Rounding changes the hash.
        is_rounded = any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in encoder.values())
        reason = "has weights of unknown origin" if recorded_hash is None else "was trained"
        reason = "is in half precision, so whether it was trained is unknown" if is_rounded else reason
        raise ValueError(
            f"decoder_only: the encoder of {folder} {reason}. Only timm's {model.config.encoder_name} can be left "
            "out. Publish the whole model."
        )
    for weights in target.glob(WEIGHTS_PATTERN):
        weights.unlink()
    # Not directly into `target`, where writing through a link would change the user's folder.
    with tempfile.TemporaryDirectory(dir=target.parent) as temp_dir:
        model.save_pretrained(temp_dir, decoder_only=True)
        for file in Path(temp_dir).iterdir():
            os.replace(file, target / file.name)


def _add_code(target: Path) -> None:
    package = Path(ddep_hub.__file__).parent
    for name, auto_map in AUTO_MAP.items():
        if not (target / name).is_file():
            continue
        config = {**read_json_object(target / name), "auto_map": auto_map}
        _replace(target / name, json.dumps(config, indent=2, sort_keys=True) + "\n")
        references = [item for value in auto_map.values() for item in (value if isinstance(value, list) else [value])]
        modules = [package / f"{reference.split('.')[0]}.py" for reference in references]
        for file in {Path(file) for module in modules for file in (module, *get_relative_import_files(module))}:
            _replace(target / file.name, file.read_text(encoding="utf-8"))


def _replace(path: Path, text: str) -> None:
    """Writes a file that may be a link, without changing the link's target."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
