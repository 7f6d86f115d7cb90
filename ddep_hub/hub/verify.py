"""After publishing: what the Hub holds is read back, loaded by the repository's name, and compared."""

import functools
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging

from ddep_hub import DDePConfig, DDePPreTrainedModel
from ddep_hub.checkpoints import WEIGHTS_NAME, check_decoder_fits, encoder_weights_file

from .client import PublishError, asked
from .staging import model_class, read_config


logger = logging.get_logger(__name__)
SIZE = (64, 96)
TOLERANCE = 1e-4  # of the largest output; the same weights on the same machine agree to the last digits


@dataclass
class Expected:
    """What the published model must do.

    Args:
        cls: its class.
        outputs: what the local one computes for a fixed input; `None` where its encoder cannot be had.
        encoder: file of the encoder, for a decoder-only model.
    """

    cls: type[DDePPreTrainedModel]
    outputs: torch.Tensor | None
    encoder: Path | None


def expected_of(folder: Path, name: str, encoder_weights: str | Path | None) -> Expected:
    """Loads a folder before it is published, and keeps what it computes.

    Args:
        folder: the files that are about to be published.
        name: what the folder is called in messages.
        encoder_weights: file of the encoder of a decoder-only model; by default it comes from timm's repository.

    Raises:
        OSError: the folder cannot be loaded.
        RuntimeError: weights are missing or do not fit.
    """
    cls, encoder = model_class(folder), None
    if read_config(folder).get("decoder_only"):
        config = DDePConfig.from_pretrained(folder)
        try:
            encoder = Path(encoder_weights) if encoder_weights else encoder_weights_file(config)[0]
        except OSError as error:
            _check_decoder(cls, config, folder, name)
            logger.warning(
                f"{name} holds no encoder, and that could not be had ({error}) So the published files are compared "
                "and its decoder's weights checked, but the model is not run."
            )
            return Expected(cls, None, None)
    return Expected(cls, _outputs(cls, folder, encoder), encoder)


def read_back(
    repo_id: str,
    commit: str,
    sent: Mapping[str, bytes | Path],
    expected: Expected,
    *,
    token: str | None,
    remote_code: bool,
) -> None:
    """Reads a commit back into an empty cache, loads the model by the repository's name and compares it.

    Args:
        repo_id: the repository.
        commit: the commit.
        sent: what was uploaded, by path.
        expected: what the model must do.
        token: token to use instead of the stored one.
        remote_code: load the model with the code that was published.

    Raises:
        PublishError: the files cannot be read back, differ, or do not make the same model.
    """
    with tempfile.TemporaryDirectory(prefix="ddep-read-back-", ignore_cleanup_errors=True) as cache:
        hub: dict[str, Any] = {"revision": commit, "cache_dir": cache, "token": token}
        for name, content in sent.items():
            _compare_file(repo_id, name, content, hub)

        def load() -> torch.Tensor | None:
            cls: Any = expected.cls
            if remote_code:
                cls = get_class_from_dynamic_module(f"modeling_ddep.{cls.__name__}", repo_id, **hub)
            if expected.outputs is None:
                cls.config_class.from_pretrained(repo_id, **hub)
                return None
            return _outputs(cls, repo_id, expected.encoder, **hub)

        try:
            found = asked(load, f"loading {repo_id} at {commit}")
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise PublishError(f"{error} It was published, but cannot be loaded.") from error
        if expected.outputs is not None and found is not None:
            difference = float((found - expected.outputs).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.outputs.abs().max())):
                raise PublishError(
                    f"{repo_id} at {commit} is not the model that was published: its outputs differ by up to "
                    f"{difference:.3g} from those of the local one."
                )


def _compare_file(repo_id: str, name: str, content: bytes | Path, hub: dict[str, Any]) -> None:
    """Raises a PublishError where a file is not what was sent; a download that went wrong is done again."""
    wanted = _sha256(content)
    for again in (False, True):
        path = asked(
            functools.partial(hf_hub_download, repo_id, name, force_download=again, **hub),
            f"reading {name} of {repo_id} back",
        )
        found = _sha256(Path(path))
        if found == wanted:
            return
    raise PublishError(
        f"{name} of {repo_id} at {hub['revision']} is not what was sent (SHA-256 {found[:12]}, sent {wanted[:12]}). "
        "Publish again."
    )


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def _outputs(cls: Any, source: str | Path, encoder: Path | None, **hub: Any) -> torch.Tensor:
    """What a model computes for a fixed input; a denoising one with fixed noise."""
    more = {} if encoder is None else {"encoder_weights": encoder}
    model = cls.from_pretrained(source, dtype=torch.float32, **more, **hub).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, model.config.num_channels, *SIZE, generator=generator)
    if cls.__name__ == "DDePForPreTraining":
        noise = torch.randn(images.shape, generator=generator)
        return model(images, noise=noise, sigma=sum(model.config.sigma_range) / 2).prediction
    return model(images).logits if cls.__name__ == "DDePForSemanticSegmentation" else model(images).last_hidden_state


def _check_decoder(cls: type[DDePPreTrainedModel], config: DDePConfig, folder: Path, name: str) -> None:
    """Checks a decoder that cannot be put on its encoder: every weight is there, and of the model's shape.

    Raises:
        RuntimeError: one is missing or does not fit.
    """
    prefix = "" if cls.__name__ == "DDePModel" else f"{cls.base_model_prefix}."
    with torch.device("meta"):
        whole = cls(config).state_dict()
    weights = load_file(folder / WEIGHTS_NAME)
    check_decoder_fits(config, weights, whole, prefix, name)
    missing = [key for key in whole if not key.startswith(f"{prefix}encoder.") and key not in weights]
    if missing:
        raise RuntimeError(f"{name} lacks {len(missing)} weights, such as {missing[0]}. Save the model again.")
