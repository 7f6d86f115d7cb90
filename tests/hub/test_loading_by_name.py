"""Models loaded by the repository's name over HTTP: whole, decoder-only, in a pipeline, without the package."""

import logging

import pytest
import timm
import torch
from fake_hub import Fault
from huggingface_hub import constants
from launching import run
from PIL import Image
from safetensors.torch import load_file, save
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.hub.publish import publish_folder


IMAGES = torch.randn(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))


def same(one, other):
    found, expected = one.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def timm_repository(hub, hybrid_config):
    """timm's repository of the tiny hybrid's encoder, with random weights; and a model on top of them."""
    name = hybrid_config().encoder_name
    cfg = timm.get_pretrained_cfg(name)
    repo_id = cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}"
    encoder = DDePForPreTraining(hybrid_config()).ddep.encoder.state_dict()
    return hub.add(repo_id, {"model.safetensors": save({key: value.contiguous() for key, value in encoder.items()})})


def on_that_encoder(cls, hybrid_config, **fields):
    config = hybrid_config(**fields).to_dict()
    fields = {name: config[name] for name in ("encoder_kwargs", "decoder_hidden_sizes", "decoder_bottleneck_size")}
    labels = {"id2label": {0: "road", 1: "sky"}} if cls is DDePForSemanticSegmentation else {}
    return cls.from_pretrained_encoder(config["encoder_name"], **fields, **labels).eval()


def test_a_whole_model_and_a_pipeline(hub, folder):
    text = "---\npipeline_tag: image-segmentation\n---\n# Card\n"
    (folder / "README.md").write_text(text)
    publish_folder(folder, "org/ddep-transunet", tag="v1")
    local = DDePForSemanticSegmentation.from_pretrained(folder)
    for more in ({}, {"revision": "v1"}):
        assert same(DDePForSemanticSegmentation.from_pretrained("org/ddep-transunet", **more), local)
    assert same(AutoModelForSemanticSegmentation.from_pretrained("org/ddep-transunet"), local)
    assert (
        AutoImageProcessor.from_pretrained("org/ddep-transunet").size
        == DDePImageProcessor.from_pretrained(folder).size
    )
    segment = pipeline("image-segmentation", model="org/ddep-transunet")
    assert {found["label"] for found in segment(Image.new("RGB", (50, 40)))} <= {"road", "sky"}
    with pytest.raises(OSError, match="no-such-branch"):
        DDePForSemanticSegmentation.from_pretrained("org/ddep-transunet", revision="no-such-branch")


@pytest.mark.parametrize("cls", [DDePForSemanticSegmentation, DDePForPreTraining])
def test_decoder_only_on_timms_encoder(hub, timm_repository, hybrid_config, tmp_path, caplog, cls):
    model = on_that_encoder(cls, hybrid_config)
    assert model.config.encoder_revision == timm_repository.branches["main"]
    model.save_pretrained(tmp_path / "whole")
    with caplog.at_level(logging.WARNING):
        publish_folder(tmp_path / "whole", "org/ddep-transunet", decoder_only=True)
    repository = hub.repositories["org/ddep-transunet"]
    assert len(repository.commits) == 2
    weights = tmp_path / "weights"
    weights.write_bytes(repository.head()["model.safetensors"])
    assert not any(name.startswith("ddep.encoder.") for name in load_file(weights))
    loaded = cls.from_pretrained("org/ddep-transunet")
    for name, tensor in loaded.state_dict().items():  # convolutions of the decoder are stored in half precision
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert "was trained on" not in caplog.text and "not run" not in caplog.text
    # timm's repository moves on; the decoder stays on the commit it was trained on.
    timm_repository.add("model.safetensors", b"something else")
    assert same(cls.from_pretrained("org/ddep-transunet"), loaded)


@pytest.mark.parametrize("xet", [False, True])
def test_push_to_hub_of_a_model(hub, timm_repository, hybrid_config, monkeypatch, xet):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    model = on_that_encoder(DDePForPreTraining, hybrid_config)
    model.push_to_hub("org/decoder", decoder_only=True, private=True)
    model.push_to_hub("org/whole", revision="v2", create_pr=False)
    assert hub.repositories["org/decoder"].private and not hub.repositories["org/whole"].private
    assert len(hub.repositories["org/decoder"].commits) == 2
    sizes = [len(hub.repositories["org/decoder"].head()["model.safetensors"])]
    sizes.append(len(hub.repositories["org/whole"].head("v2")["model.safetensors"]))
    assert sizes[0] < sizes[1] / 2
    loaded = DDePForPreTraining.from_pretrained("org/decoder")
    assert same(DDePForPreTraining.from_pretrained("org/whole", revision="v2"), model)
    assert same(loaded.ddep.encoder, model.ddep.encoder)


@pytest.mark.parametrize("what", ["cut in the middle", "cut", 401, 503])
def test_faults_of_a_download(hub, folder, monkeypatch, tmp_path, what):
    """Loading, as opposed to publishing: the client goes on with a cut download, and errors name the repository."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    publish_folder(folder, "org/name", verify=False)
    weights = "/resolve/.*/model.safetensors$"
    if what == "cut in the middle":
        hub.faults = [Fault("GET", weights, what)]
        loaded = DDePForSemanticSegmentation.from_pretrained("org/name", cache_dir=tmp_path / "cache")
        assert same(loaded, DDePForSemanticSegmentation.from_pretrained(folder))
    else:
        hub.faults = [Fault(method, weights, what, 99) for method in ("HEAD", "GET")]
        with pytest.raises(OSError, match="org/name"):
            DDePForSemanticSegmentation.from_pretrained("org/name", cache_dir=tmp_path / "cache")


# Runs where ddep_hub cannot be imported, with where to leave the logits.
USER = """
import sys
sys.modules["ddep_hub"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from PIL import Image
model = AutoModelForSemanticSegmentation.from_pretrained("org/name", trust_remote_code=True)
for backend in ("pil", "torchvision"):
    processor = AutoImageProcessor.from_pretrained("org/name", trust_remote_code=True, backend=backend)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
assert type(model).__module__.startswith("transformers_modules."), type(model)
images = torch.randn(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save(model(images).logits, sys.argv[1])
pipeline("image-segmentation", model="org/name", trust_remote_code=True)(Image.new("RGB", (50, 40)))
"""


def test_with_its_code_it_loads_without_the_package(hub, folder, tmp_path):
    local = DDePForSemanticSegmentation.from_pretrained(folder)
    publish_folder(folder, "org/name", remote_code=True)
    assert {"modeling_ddep.py", "configuration_ddep.py", "checkpoints.py"} <= set(hub.repositories["org/name"].head())
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
    }
    found = run("-c", USER, str(tmp_path / "logits.pt"), HF_HOME=str(tmp_path / "home"))
    assert found.returncode == 0, found.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), local(IMAGES).logits)
