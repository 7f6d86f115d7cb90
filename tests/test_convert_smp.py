"""Checkpoints of other packages become models that do the same, and back; what does not coincide is refused."""

import json

import pytest
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub import convert_smp as converting
from ddep_hub.cli import main
from ddep_hub.convert_smp import CHECKPOINT, convert_from_ddep, convert_to_ddep, prediction


smp = pytest.importorskip("segmentation_models_pytorch", reason="extra `convert` is not installed")

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SMALL = {"encoder_weights": None, "decoder_channels": [16, 16, 8, 8, 8], "classes": 3}


def trained(model):
    """A model with BatchNorm statistics and a head that are not those of a fresh one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def saved_unet(folder, **arguments):
    unet = trained(smp.Unet(**{**SMALL, **arguments}))
    unet.save_pretrained(folder)
    return unet


def lightning_file(path, net, **changes):
    hyper_parameters = {
        "arch": "unet",
        "encoder": "resnet18",
        "in_channels": 3,
        "mode": "decoder",
        "noise_type": "simple",
        "noise_std": 0.3,
        "betas": (0.9, 0.999),
    }
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": hyper_parameters | changes}, path)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        {"encoder_name": "resnet18", "decoder_interpolation": "bilinear"},
        {"encoder_name": "tu-tf_efficientnet_lite0"},
        {"encoder_name": "timm-regnetx_002"},
        {"encoder_name": "tu-convnext_atto", "in_channels": 4},  # no skip of stride 2, and other names
    ],
)
def test_a_unet_becomes_a_segmentation_model_and_comes_back(arguments, tmp_path, capsys):
    unet = saved_unet(tmp_path / "smp", **arguments)
    images = IMAGES if "in_channels" not in arguments else torch.cat([IMAGES, IMAGES[:, :1]], 1)
    with torch.no_grad():
        expected = unet(images)
    close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
    written = json.loads((tmp_path / "smp" / "config.json").read_text())
    (tmp_path / "smp" / "config.json").write_text(json.dumps(written | {"encoder_weights": "imagenet"}))
    assert main(["convert", str(tmp_path / "smp"), "--output_dir", str(tmp_path / "ddep")]) == 0
    model = DDePForSemanticSegmentation.from_pretrained(tmp_path / "ddep")
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected, **close)
    assert DDePImageProcessor.from_pretrained(tmp_path / "ddep").image_mean[0] in (0.5, 0.485)  # the encoder's

    command = ["convert", str(tmp_path / "ddep"), "--to", "smp", "--output_dir", str(tmp_path / "back")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("outputs differ by at most") == 2
    back = smp.from_pretrained(str(tmp_path / "back")).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(images), expected, **close)
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"config.json", "model.safetensors"}


def test_a_denoising_checkpoint_becomes_a_denoiser_and_comes_back(tmp_path):
    net = trained(smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, in_channels=3, classes=3))
    convert_to_ddep(lightning_file(tmp_path / "last.ckpt", net), tmp_path / "ddep")
    model = DDePForPreTraining.from_pretrained(tmp_path / "ddep")
    config = model.config
    assert (config.corruption, config.sigma, config.freeze_encoder) == ("simple", 0.3, True)
    assert DDePImageProcessor.from_pretrained(tmp_path / "ddep").image_mean == (0.5,) * 3
    noise = torch.randn(IMAGES.shape)
    with torch.no_grad():
        expected = net(IMAGES + 0.3 * noise)  # as decoder-denoising does it
        found = model(IMAGES, noise=noise).prediction
    close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
    torch.testing.assert_close(found, expected, **close)
    # Its decoder serves for segmentation, as any pretrained one.
    assert DDePForSemanticSegmentation.from_pretrained(tmp_path / "ddep", num_labels=5).config.num_labels == 5

    convert_from_ddep(model, tmp_path / "back", "decoder-denoising")
    content = torch.load(tmp_path / "back" / CHECKPOINT, weights_only=True)
    made = content["hyper_parameters"]
    assert (made["noise_type"], made["noise_std"], made["mode"]) == ("simple", 0.3, "decoder")
    again = smp.create_model(made["arch"], encoder_name=made["encoder"], encoder_weights=None, classes=3).eval()
    again.load_state_dict({name.removeprefix("net."): tensor for name, tensor in content["state_dict"].items()})
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES + 0.3 * noise), expected, **close)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoder_name": "resnet18", "decoder_attention_type": "scse"}, "decoder_attention_type='scse'"),
        ({"encoder_name": "resnet18", "activation": "sigmoid"}, "activation='sigmoid'"),
        ({"encoder_name": "resnet18", "encoder_depth": 4, "decoder_channels": [8] * 4}, "encoder_depth=4"),
        ({"encoder_name": "resnet18", "decoder_interpolation": "bicubic"}, "knows 'nearest' or 'bilinear'"),
        ({"encoder_name": "mobilenet_v2"}, "mobilenet_v2 .* is no model of timm"),
        # The same names and shapes as timm's, and yet another function.
        ({"encoder_name": "densenet121"}, "converted model is another function: its outputs differ by"),
    ],
)
def test_a_unet_without_counterpart_is_refused(arguments, message, tmp_path):
    saved_unet(tmp_path / "smp", **arguments)
    with pytest.raises(ValueError, match=message):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smp"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty holds nothing of segmentation_models\.pytorch"):
        convert_to_ddep(tmp_path / "empty", tmp_path / "out")
    smp.FPN("resnet18", encoder_weights=None).save_pretrained(tmp_path / "fpn")
    with pytest.raises(OSError, match="holds FPN"):
        convert_to_ddep(tmp_path / "fpn", tmp_path / "out")
    saved_unet(tmp_path / "smp", encoder_name="resnet18")
    weights = tmp_path / "smp" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="smp cannot be read"):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")

    net = smp.Unet("resnet18", encoder_weights=None, classes=3)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(OSError, match="Weights alone do not say what model they are of"):
        convert_to_ddep(tmp_path / "weights.pth", tmp_path / "out")
    torch.save({"hyper_parameters": net}, tmp_path / "pickle.ckpt")
    with pytest.raises(OSError, match="holds more than tensors and plain values"):
        convert_to_ddep(tmp_path / "pickle.ckpt", tmp_path / "out")
    with pytest.raises(ValueError, match="only `unet`"):
        convert_to_ddep(lightning_file(tmp_path / "fpn.ckpt", net, arch="fpn"), tmp_path / "out")
    with pytest.raises(OSError, match=r"other\.ckpt does not hold the weights"):
        convert_to_ddep(lightning_file(tmp_path / "other.ckpt", net, encoder="resnet34"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_counterpart_is_refused(tmp_path, capsys):
    fields = {"encoder_name": "resnet18", "decoder_bottleneck_size": 0, "decoder_hidden_sizes": [8] * 5}

    def refused(message, to="smp", cls=DDePForPreTraining, **changes):
        with pytest.raises(ValueError, match=message):
            convert_from_ddep(cls(DDePConfig(**{**fields, **changes})), tmp_path / "out", to)

    refused("decoder_bottleneck_size: 8 has no counterpart", decoder_bottleneck_size=8)
    refused("decoder_norm: group has no counterpart", decoder_norm="group")
    refused("image_skip: True has no counterpart", image_skip=True)
    refused("blocks of the decoder: 4 has no counterpart", decoder_hidden_sizes=[8] * 4)
    refused("decoder_hidden_sizes is", to="decoder-denoising")
    default = {"decoder_hidden_sizes": [256, 128, 64, 32, 16], "to": "decoder-denoising"}
    refused("decoder_interpolation is bilinear", **default)
    refused("prediction_type is sample", decoder_interpolation="nearest", prediction_type="sample", **default)
    refused("sigma is 2", decoder_interpolation="nearest", sigma=[0.1, 0.2], **default)
    refused("head is False", decoder_interpolation="nearest", cls=DDePForSemanticSegmentation, **default)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.png").write_text("x")
    assert main(["convert", str(tmp_path / "smp"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_conversion_that_goes_wrong_writes_nothing(tmp_path, monkeypatch):
    saved_unet(tmp_path / "smp", encoder_name="resnet18")
    monkeypatch.setattr(converting, "prediction", lambda model, images: prediction(model, images) + 0.1)
    with pytest.raises(ValueError, match=r"another function.*Nothing was written"):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smp"]
    assert json.loads((tmp_path / "smp" / "config.json").read_text())["_model_class"] == "Unet"
