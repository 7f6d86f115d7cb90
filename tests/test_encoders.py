"""Encoders: features equal to timm's, timm's keys, every parameter used, errors."""

import pytest
import timm
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.encoders import build_encoder, encoder_mean_std, extract_features, feature_maps, is_hybrid


# Small members of each family: name, arguments that shrink it, strides.
PYRAMIDS = [
    ("tf_efficientnet_lite0", {}, [2, 4, 8, 16, 32]),
    ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}, [4, 8, 16, 32]),
    ("resnetv2_50x1_bit", {"channels": (128, 128, 128, 128)}, [2, 4, 8, 16, 32]),
    ("resnet18", {"layers": (1, 1, 1, 1)}, [2, 4, 8, 16, 32]),
    (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)},
        [4, 8, 16, 32],
    ),
]
TINY = ("vit_tiny_r_s16_p8_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
R26 = ("vit_small_r26_s32_224", {"embed_dim": 32, "depth": 1, "num_heads": 2})
IDS = [name for name, *_ in PYRAMIDS]


def feature_info(encoder):
    maps = feature_maps(encoder)
    return list(zip(maps.channels, maps.strides, strict=True))


@pytest.mark.parametrize("height, width", [(64, 64), (96, 64), (32, 160)])
@pytest.mark.parametrize("name, kwargs, strides", PYRAMIDS, ids=IDS)
def test_pyramid_features_are_timms_own(name, kwargs, strides, height, width):
    encoder = build_encoder(DDePConfig(encoder_name=name, encoder_kwargs=kwargs)).eval()
    any_size = {"strict_img_size": False} if "swin" in name else {}
    reference = timm.create_model(name, features_only=True, **any_size, **kwargs).eval()
    # It names its weights otherwise, in the same order.
    assert len(reference.state_dict()) == len(encoder.state_dict())
    reference.load_state_dict(dict(zip(reference.state_dict(), encoder.state_dict().values(), strict=True)))
    pixel_values = torch.randn(2, 3, height, width)
    with torch.no_grad():
        (features, _), expected = extract_features(encoder, pixel_values), reference(pixel_values)
    if "swin" in name:  # timm's come channels last
        expected = [feature.permute(0, 3, 1, 2) for feature in expected]
    assert feature_info(encoder) == list(
        zip(reference.feature_info.channels(), reference.feature_info.reduction(), strict=True)
    )
    assert [stride for _, stride in feature_info(encoder)] == strides
    assert len(features) == len(expected)
    for feature, wanted, (channels, stride) in zip(features, expected, feature_info(encoder), strict=True):
        assert feature.shape == (2, channels, height // stride, width // stride)
        assert torch.equal(feature, wanted)


@pytest.mark.parametrize("name, kwargs", [TINY, R26], ids=["tiny", "r26"])
def test_hybrid_features_are_timms_own(name, kwargs):
    config = DDePConfig(encoder_name=name, encoder_kwargs=kwargs)
    encoder = build_encoder(config).eval()
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True, **kwargs).eval()
    plain.load_state_dict(encoder.state_dict())
    backbone, seen = plain.patch_embed.backbone, {}
    stem = backbone if name == TINY[0] else backbone.stem
    taps = [stem.norm, stem.pool] if name == TINY[0] else [stem.norm, *backbone.stages[:-1]]
    for number, module in enumerate(taps):
        module.register_forward_hook(lambda _, __, output, number=number: seen.__setitem__(number, output))
    pixel_values = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        features, _ = extract_features(encoder, pixel_values)
        tokens = plain.forward_features(pixel_values)
    assert [stride for _, stride in feature_info(encoder)] == ([2, 4, 32] if name == TINY[0] else [2, 4, 8, 16, 32])
    assert [feature.shape[1] for feature in features] == [channels for channels, _ in feature_info(encoder)]
    assert torch.equal(features[-1].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert len(features) == len(seen) + 1
    assert all(torch.equal(feature, seen[number]) for number, feature in enumerate(features[:-1]))


@pytest.mark.parametrize(
    "name, info",
    [
        ("vit_base_r50_s16_224.orig_in21k", [(64, 2), (256, 4), (512, 8), (768, 16)]),
        ("vit_small_r26_s32_224.augreg_in21k", [(64, 2), (256, 4), (512, 8), (1024, 16), (384, 32)]),
        ("vit_tiny_r_s16_p8_224.augreg_in21k", [(64, 2), (64, 4), (192, 32)]),
        ("vit_large_r50_s32_224.augreg_in21k", [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)]),
    ],
)
def test_the_four_hybrids_with_imagenet_21k_weights(name, info):
    with torch.device("meta"):
        encoder = build_encoder(DDePConfig(encoder_name=name)).eval()
        features, _ = extract_features(encoder, torch.zeros(1, 3, 96, 160))
        plain = timm.create_model(name, num_classes=0)
    assert feature_info(encoder) == info
    assert [tuple(feature.shape) for feature in features] == [(1, c, 96 // s, 160 // s) for c, s in info]
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert encoder_mean_std(name) == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("name, kwargs", [*(case[:2] for case in PYRAMIDS), TINY], ids=[*IDS, "tiny"])
def test_keys_are_timms_and_only_layers_behind_the_last_feature_are_gone(name, kwargs):
    with torch.device("meta"):
        own = set(build_encoder(DDePConfig(encoder_name=name, encoder_kwargs=kwargs)).state_dict())
        plain = set(timm.create_model(name, num_classes=0, **kwargs).state_dict())
    assert own <= plain
    assert all(key.startswith(("head.", "norm.", "conv_head.", "bn2.", "norm_pre.")) for key in plain - own)
    if "vit" in name:
        assert own == plain


@pytest.mark.parametrize("name, kwargs", [*(case[:2] for case in PYRAMIDS), TINY, R26], ids=[*IDS, "tiny", "r26"])
def test_every_parameter_gets_a_gradient_in_fine_tuning(name, kwargs):
    config = DDePConfig(
        encoder_name=name, encoder_kwargs=kwargs, decoder_bottleneck_size=16, decoder_hidden_sizes=[16, 16, 16, 16, 16]
    )
    model = DDePForSemanticSegmentation(config).train()
    labels = torch.randint(0, 2, (2, 64, 96))
    model(torch.randn(2, 3, 64, 96), labels=labels).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_position_embeddings_are_interpolated(hybrid_config):
    encoder = build_encoder(hybrid_config()).eval()
    nn.init.normal_(encoder.pos_embed)
    grids = {}
    for side in (64, 128):
        with torch.no_grad():
            grids[side] = extract_features(encoder, torch.zeros(1, 3, side, side))[0][-1]
        assert grids[side].shape[-2:] == (side // 32, side // 32)
    # With a constant image only the position tells tokens apart, so neighbours differ by less on the finer grid.
    coarse, fine = (grid.diff(dim=-1).abs().mean() for grid in (grids[64], grids[128]))
    assert 0 < fine < coarse


def test_the_class_token_takes_part(hybrid_config):
    encoder = build_encoder(hybrid_config()).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    before = extract_features(encoder, pixel_values)[0][-1]
    nn.init.normal_(encoder.cls_token, std=5)
    assert not torch.allclose(before, extract_features(encoder, pixel_values)[0][-1], atol=1e-3)


def test_other_numbers_of_channels(hybrid_config, conv_config):
    for config in (hybrid_config(num_channels=1), conv_config(num_channels=5)):
        encoder = build_encoder(config)
        shapes = [f.shape[1] for f in extract_features(encoder, torch.randn(2, config.num_channels, 64, 64))[0]]
        assert shapes == [channels for channels, _ in feature_info(encoder)]


def test_normalisation_is_the_encoders_own():
    assert encoder_mean_std("tf_efficientnet_lite0") == ([0.5] * 3, [0.5] * 3)
    assert encoder_mean_std("convnext_tiny") == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "config, named",
    [
        ({"encoder_name": "resnet5O"}, "no model `resnet5O`.*resnet50"),
        ({"encoder_name": "hf-hub:timm/resnet18.a1_in1k"}, r"Similar names: \['resnet18.a1_in1k'\]"),
        (
            {"encoder_name": "resnet18.nope"},
            r"encoder_name: .* no weights `resnet18.nope`\. Available: .*resnet18.a1_in1k",
        ),
        ({"encoder_name": "resnet18", "encoder_out_indices": []}, "encoder_out_indices: .*increasing"),
        (
            {"encoder_name": "vit_tiny_patch16_224", "encoder_out_indices": [2, 12]},
            r"encoder_out_indices: vit_tiny_patch16_224 has 12 features.*0 to 11, at most 4",
        ),
        ({"encoder_name": "vit_tiny_patch16_224", "encoder_out_indices": [1, 2, 3, 4, 5]}, "at most 4"),
        ({"encoder_name": "resnet18", "encoder_out_indices": [3, 1]}, "increasing"),
        ({"encoder_name": "vit_tiny_r_s16_p8_224", "encoder_out_indices": [0]}, "none for a ResNet-ViT hybrid"),
        ({"encoder_name": "resnet18", "encoder_kwargs": {"embed_dim": 3}}, "encoder_kwargs.*resnet18.*embed_dim"),
    ],
)
def test_what_cannot_serve_is_refused(config, named):
    with pytest.raises(ValueError, match=named):
        build_encoder(DDePConfig(**config))


@pytest.mark.skipif(
    not hasattr(timm.models.InceptionV3, "forward_intermediates"), reason="of this release of timm, it has no features"
)
def test_too_small_an_image_for_an_encoder_without_padding_is_named():
    with torch.device("meta"):
        encoder = build_encoder(DDePConfig(encoder_name="inception_v3"))
        features, _ = extract_features(encoder, torch.zeros(1, 3, 160, 160))
        assert len(features) == 5
        with pytest.raises(ValueError, match=r"Images of 64x96 pixels are too small for InceptionV3"):
            extract_features(encoder, torch.zeros(1, 3, 64, 96))


def test_hybrids_are_told_from_pyramids(hybrid_config, conv_config):
    assert is_hybrid(build_encoder(hybrid_config()))
    assert not is_hybrid(build_encoder(conv_config()))


def test_an_encoder_that_takes_colours_alone_says_so():
    with pytest.raises(ValueError, match="num_channels: csatv2 takes only RGB images"):
        build_encoder(DDePConfig(encoder_name="csatv2", num_channels=4))
