"""Checkpoints of other packages become models that do the same, and back; what does not coincide is refused."""

import json

import pytest
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub import convert_smp as converting
from ddep_hub.cli import main
from ddep_hub.convert_smp import convert_from_ddep, convert_to_ddep, prediction


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
    assert DDePImageProcessor.from_pretrained(tmp_path / "ddep").image_mean[0] in (
        0.5,
        0.485,
        pytest.approx(0.449),
    )  # the last is the average, for four channels  # the encoder's

    command = ["convert", str(tmp_path / "ddep"), "--to", "smp", "--output_dir", str(tmp_path / "back")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("outputs differ by at most") == 2
    back = smp.from_pretrained(str(tmp_path / "back")).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(images), expected, **close)
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_the_image_processor_goes_there_and_comes_back(tmp_path, caplog):
    saved_unet(tmp_path / "smp", encoder_name="resnet18")
    convert_to_ddep(tmp_path / "smp", tmp_path / "ddep")
    assert "does not record mean, std and size" in caplog.text
    caplog.clear()
    options = {"image_mean": [0.1, 0.2, 0.3], "size": {"shortest_edge": 48}, "channel_order": [2, 1, 0]}
    DDePImageProcessor(do_resize=True, **options).save_pretrained(tmp_path / "ddep")
    convert_from_ddep(DDePForSemanticSegmentation.from_pretrained(tmp_path / "ddep"), tmp_path / "unet")
    convert_to_ddep(tmp_path / "unet", tmp_path / "back")
    processor = DDePImageProcessor.from_pretrained(tmp_path / "back")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.do_resize
    assert processor.size["shortest_edge"] == 48 and list(processor.channel_order) == [2, 1, 0]
    assert "mean, std and size" not in caplog.text


def test_a_denoiser_becomes_a_unet(tmp_path):
    fields = {"decoder_bottleneck_size": 0, "decoder_hidden_sizes": [8] * 5, "decoder_interpolation": "nearest"}
    model = trained(DDePForPreTraining(DDePConfig(encoder_name="resnet18", **fields)))
    convert_from_ddep(model, tmp_path / "smp")
    unet = smp.from_pretrained(str(tmp_path / "smp")).eval()
    noise = torch.randn(IMAGES.shape)
    with torch.no_grad():
        output = model(IMAGES, noise=noise)
        close = {"rtol": 0, "atol": 1e-4 * float(output.prediction.abs().max())}
        torch.testing.assert_close(unet(output.noisy_pixel_values), output.prediction, **close)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoder_name": "resnet18", "decoder_attention_type": "scse"}, "decoder_attention_type='scse'"),
        ({"encoder_name": "resnet18", "activation": "sigmoid"}, "activation='sigmoid'"),
        ({"encoder_name": "resnet18", "encoder_depth": 4, "decoder_channels": [8] * 4}, "encoder_depth=4"),
        ({"encoder_name": "resnet18", "decoder_interpolation": "bicubic"}, "='nearest' or 'bilinear'"),
        ({"encoder_name": "mobilenet_v2"}, "mobilenet_v2 .* is not a timm model"),
        # The same names and shapes as timm's, and yet another function.
        ({"encoder_name": "densenet121"}, "converted model gives different outputs: its outputs differ by"),
    ],
)
def test_a_unet_without_counterpart_is_refused(arguments, message, tmp_path):
    saved_unet(tmp_path / "smp", **arguments)
    with pytest.raises(ValueError, match=message):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smp"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty is not a folder that `save_pretrained` of an `smp\.Unet` wrote"):
        convert_to_ddep(tmp_path / "empty", tmp_path / "out")
    smp.FPN("resnet18", encoder_weights=None).save_pretrained(tmp_path / "fpn")
    with pytest.raises(OSError, match="contains a FPN"):
        convert_to_ddep(tmp_path / "fpn", tmp_path / "out")
    saved_unet(tmp_path / "smp", encoder_name="resnet18")
    weights = tmp_path / "smp" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="smp cannot be read"):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")
    torch.save(smp.Unet("resnet18", encoder_weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        OSError, match=r"weights\.pth is not a folder.*Load a \.pth or \.ckpt file into an `smp\.Unet`"
    ):
        convert_to_ddep(tmp_path / "weights.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_counterpart_is_refused(tmp_path, capsys):
    fields = {"encoder_name": "resnet18", "decoder_bottleneck_size": 0, "decoder_hidden_sizes": [8] * 5}

    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            convert_from_ddep(DDePForPreTraining(DDePConfig(**{**fields, **changes})), tmp_path / "out")

    refused("decoder_bottleneck_size: 8 has no counterpart", decoder_bottleneck_size=8)
    refused("decoder_norm: group has no counterpart", decoder_norm="group")
    refused("image_skip: True has no counterpart", image_skip=True)
    refused("blocks of the decoder: 4 has no counterpart", decoder_hidden_sizes=[8] * 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.png").write_text("x")
    assert main(["convert", str(tmp_path / "smp"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_conversion_that_goes_wrong_writes_nothing(tmp_path, monkeypatch):
    saved_unet(tmp_path / "smp", encoder_name="resnet18")
    monkeypatch.setattr(converting, "prediction", lambda model, images: prediction(model, images) + 0.1)
    with pytest.raises(ValueError, match=r"gives different outputs.*Nothing was written"):
        convert_to_ddep(tmp_path / "smp", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smp"]
    assert json.loads((tmp_path / "smp" / "config.json").read_text())["_model_class"] == "Unet"
