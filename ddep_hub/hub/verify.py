"""Checks after publishing: files are read back, and the model is loaded by name and compared with the local one."""

import filecmp
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ddep_hub import DDePConfig, DDePPreTrainedModel
from ddep_hub.encoders import build_encoder

from .client import PublishError, call_hub
from .staging import model_class, read_config


SIZE = (64, 96)
TOLERANCE = 1e-4  # relative to the largest output; the same weights on the same machine agree to the last digits


class Verifier:
    """Compares a published model with what its folder computed before.

    Both are run on a fixed input; a decoder-only model on a randomly initialised encoder, so that no encoder has to be
    downloaded.

    Args:
        folder: The files that are about to be published.

    Raises:
        OSError: The folder cannot be loaded.
        RuntimeError: Weights are missing or do not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.cls = model_class(folder)
        self.config = DDePConfig.from_pretrained(folder)
        self.decoder_only = bool(read_config(folder).get("decoder_only"))
        self.expected = self._outputs(self.cls, folder)

    def check(
        self, repo_id: str, commit: str, sent: Mapping[str, Path], *, token: str | None, remote_code: bool
    ) -> None:
        """Reads a commit back into an empty cache and compares files and model.

        Args:
            repo_id: The repository.
            commit: Hash of the commit.
            sent: The uploaded files by their path in the repository.
            token: Token to use instead of the stored one.
            remote_code: Load the model with the published code.

        Raises:
            PublishError: The files cannot be read back, differ, or do not make the same model.
        """
        with tempfile.TemporaryDirectory(prefix="ddep-read-back-", ignore_cleanup_errors=True) as cache:
            hub: dict[str, Any] = {"revision": commit, "cache_dir": cache, "token": token}
            for name, file in sent.items():
                _compare_file(repo_id, name, file, hub)

            def load() -> torch.Tensor:
                cls: Any = self.cls
                if remote_code:
                    cls = get_class_from_dynamic_module(f"modeling_ddep.{cls.__name__}", repo_id, **hub)
                return self._outputs(cls, repo_id, **hub)

            try:
                outputs = call_hub(load, f"loading {repo_id} at {commit}")
            except (OSError, ValueError, ImportError, AttributeError) as error:
                raise PublishError(f"{error} It was published, but cannot be loaded.") from error
        difference = float((outputs - self.expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(self.expected.abs().max())):
            raise PublishError(
                f"{repo_id} at {commit} is not the model that was published: its outputs differ by up to "
                f"{difference:.3g} from those of the local one. Publish again."
            )

    @torch.no_grad()
    def _outputs(self, cls: type[DDePPreTrainedModel], source: str | Path, **hub: Any) -> torch.Tensor:
        """What a model computes for a fixed input; a pretrained one with fixed noise."""
        with tempfile.TemporaryDirectory(prefix="ddep-encoder-") as temporary:
            if self.decoder_only:
                # Without the recorded hash: these are not the weights that the decoder was trained on.
                hub |= {"encoder_weights": self._random_encoder(Path(temporary)), "encoder_weights_hash": None}
            model = cls.from_pretrained(source, dtype=torch.float32, **hub).eval()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, model.config.num_channels, *SIZE, generator=generator)
        if cls.__name__ == "DDePForPreTraining":
            noise = torch.randn(images.shape, generator=generator)
            return model(images, noise=noise, sigma=sum(model.config.sigma_range) / 2).prediction
        output = model(images)
        return output.logits if cls.__name__ == "DDePForSemanticSegmentation" else output.last_hidden_state

    def _random_encoder(self, folder: Path) -> Path:
        """Writes the weights of a random encoder, the same each time."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            weights = build_encoder(self.config).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "encoder.safetensors")
        return folder / "encoder.safetensors"


def _compare_file(repo_id: str, name: str, sent: Path, hub: dict[str, Any]) -> None:
    """Raises a PublishError if a file is not what was sent; a corrupt download is repeated once."""
    for force in (False, True):
        download = functools.partial(hf_hub_download, repo_id, name, force_download=force, **hub)
        if filecmp.cmp(call_hub(download, f"reading {name} of {repo_id} back"), sent, shallow=False):
            return
        filecmp.clear_cache()
    raise PublishError(f"{name} of {repo_id} at {hub['revision']} is not what was sent. Publish again.")
