"""Folders that carry the model's code: loaded by `trust_remote_code=True` where ddep_hub cannot be imported."""

import json

import pytest
import torch
from launching import run
from safetensors.torch import save_file

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor


FILES = {
    "configuration_ddep.py",
    "encoders.py",
    "decoder.py",
    "denoising.py",
    "checkpoints.py",
    "modeling_base_ddep.py",
    "encoder_weights.py",
    "modeling_ddep.py",
    "image_processing_ddep.py",
    "image_processing_pil_ddep.py",
}
AUTO = {
    DDePConfig: "AutoConfig",
    DDePForSemanticSegmentation: "AutoModelForSemanticSegmentation",
    DDePForPreTraining: "AutoModelForPreTraining",
    DDePImageProcessor: "AutoImageProcessor",
}

# Runs with the folder, the encoder's file or "", and where to leave the logits.
USER = """
import sys
sys.modules["ddep_hub"] = None  # an import of it fails
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, encoder, out = sys.argv[1:]
more = {"encoder_weights": encoder} if encoder else {}
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True, **more)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
torch.manual_seed(0)
with torch.no_grad():
    torch.save(model(torch.randn(1, 3, 40, 64)).logits, out)
segment = pipeline("image-segmentation", model=folder, trust_remote_code=True, model_kwargs=more)
assert {found["label"] for found in segment(Image.new("RGB", (50, 40)))} <= {"road", "sky"}
weights = model.state_dict()
from safetensors.torch import load_file, save_file
stored = load_file(f"{folder}/model.safetensors")
del stored["ddep.decoder.bottleneck.0.weight"]
save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
try:
    AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True, **more)
except RuntimeError as error:
    assert "lacks 1 weights" in str(error), error
else:
    raise AssertionError("a missing weight did not raise")
"""


@pytest.fixture
def with_code():
    """Has `save_pretrained` copy the code, and undoes that."""
    for cls, auto_class in AUTO.items():
        cls.register_for_auto_class(auto_class)
    yield
    for cls in AUTO:
        cls._auto_class = None


@pytest.mark.parametrize("decoder_only", [False, True])
def test_without_the_package(tmp_path, with_code, hybrid_config, decoder_only):
    folder = tmp_path / "model"
    model = DDePForSemanticSegmentation(hybrid_config(id2label={0: "road", 1: "sky"})).eval()
    model.save_pretrained(folder, decoder_only=decoder_only, half_precision=False)
    DDePImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    encoder = ""
    if decoder_only:
        encoder = str(tmp_path / "encoder.safetensors")
        save_file(model.ddep.encoder.state_dict(), encoder)
    assert FILES <= {file.name for file in folder.iterdir()}
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSemanticSegmentation"] == "modeling_ddep.DDePForSemanticSegmentation"
    found = run("-c", USER, str(folder), encoder, str(tmp_path / "logits.pt"), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    torch.manual_seed(0)
    with torch.no_grad():
        expected = model(torch.randn(1, 3, 40, 64)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_code_is_carried_only_where_asked_for(tmp_path, hybrid_config, with_code):
    model = DDePForPreTraining(hybrid_config())
    model.save_pretrained(tmp_path / "carrying")
    for cls in AUTO:
        cls._auto_class = None
    model = DDePForPreTraining.from_pretrained(tmp_path / "carrying")
    for folder, source in (("fresh", DDePForPreTraining(hybrid_config())), ("reloaded", model)):
        source.save_pretrained(tmp_path / folder)
        assert {file.name for file in (tmp_path / folder).iterdir()} == {"config.json", "model.safetensors"}
        # An `auto_map` without the files it names would make the folder unloadable for whoever trusts it.
        assert "auto_map" not in json.loads((tmp_path / folder / "config.json").read_text())
