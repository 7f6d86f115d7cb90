"""The decoder: sizes, parameter counts, skips, norms."""

import pytest
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePModel
from ddep_hub.decoder import (
    DDePConvNormAct,
    DDePDecoder,
    DDePDecoderBlock,
    DDePDecoderConv,
    conv_norm_act,
    decoder_channels,
    restore_weight_norms,
)
from ddep_hub.encoders import FeatureMaps


# TransUNet's pyramid: the features of R50+ViT-B/16.
CHANNELS, STRIDES = (64, 256, 512, 768), (2, 4, 8, 16)


def pyramid(channels, strides):
    return FeatureMaps(tuple(range(len(channels))), channels, strides, True, False, None, strides[-1])


@pytest.mark.parametrize("width, count", [(1, 7_387_200), (2.0, 13_543_040), (3.0, 22_007_488)])
def test_parameter_count_of_the_papers_decoder(width, count):
    config = DDePConfig(decoder_width=width)
    with torch.device("meta"):
        decoder = DDePModel(config).decoder
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count


def test_default_sizes():
    assert decoder_channels(DDePConfig(), 16) == (256, 128, 64, 16)
    assert decoder_channels(DDePConfig(), 32) == (256, 128, 64, 32, 16)
    assert decoder_channels(DDePConfig(decoder_width=1.5), 16) == (384, 192, 96, 24)
    assert decoder_channels(DDePConfig(decoder_hidden_sizes=[8, 4]), 16) == (8, 4)
    assert decoder_channels(DDePConfig(decoder_width=0.01), 16) == (3, 1, 1, 1)  # at least one


def test_too_many_sizes_are_refused():
    with pytest.raises(ValueError, match=r"decoder_hidden_sizes has 5 entries.*stride 16.*at most 4"):
        decoder_channels(DDePConfig(decoder_hidden_sizes=[8, 8, 8, 8, 8]), 16)


def test_each_skip_joins_at_its_own_resolution():
    with torch.device("meta"):
        decoder = DDePDecoder(DDePConfig(), pyramid(CHANNELS, STRIDES))
        features = [torch.zeros(1, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
        shapes = [tuple(state.shape[1:]) for state in decoder(features, torch.zeros(1, 3, 64, 96), (64, 96))]
    assert decoder.skip_strides == [8, 4, 2, None]
    assert shapes == [(512, 4, 6), (256, 8, 12), (128, 16, 24), (64, 32, 48), (16, 64, 96)]
    assert [block.conv1[0].in_channels for block in decoder.blocks] == [512 + 512, 256 + 256, 128 + 64, 64]


def test_every_feature_reaches_the_result():
    config = DDePConfig(decoder_bottleneck_size=8, decoder_hidden_sizes=[8, 8, 8])
    decoder = DDePDecoder(config, pyramid((4, 4, 6), (2, 4, 8)))
    features = [torch.randn(2, c, 16 // s, 16 // s, requires_grad=True) for c, s in ((4, 2), (4, 4), (6, 8))]
    decoder(features, torch.zeros(2, 3, 16, 16), (16, 16))[-1].sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


class Unchanged(DDePConvNormAct):
    """Stands for convolution, norm and activation that change nothing."""

    def __init__(self):
        super().__init__(SkipsSkip(), nn.Identity(), nn.Identity())


class SkipsSkip(nn.Module):
    def forward(self, hidden_state, skip):
        return hidden_state


def test_a_convolution_of_two_parts_is_that_of_their_concatenation():
    conv = DDePDecoderConv(5, 4)
    hidden_state, skip = torch.randn(2, 3, 6, 7, requires_grad=True), torch.randn(2, 2, 6, 7, requires_grad=True)
    both = torch.cat([hidden_state, skip], dim=1)
    torch.testing.assert_close(conv(hidden_state, skip), conv(both))
    wanted = torch.autograd.grad(conv(both).square().sum(), [conv.weight, hidden_state, skip])
    found = torch.autograd.grad(conv(hidden_state, skip).square().sum(), [conv.weight, hidden_state, skip])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_upsampling_uses_half_pixel_centres():
    block = DDePDecoderBlock(1, 0, 1, "group", "bilinear")
    block.conv1, block.conv2 = Unchanged(), nn.Identity()
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert block(ramp)[0, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_upsampling_may_repeat_pixels():
    block = DDePDecoderBlock(1, 0, 1, "group", "nearest")
    block.conv1, block.conv2 = Unchanged(), nn.Identity()
    ramp = torch.arange(3.0).reshape(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert block(ramp)[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_bottleneck_may_be_left_out():
    config = DDePConfig(decoder_bottleneck_size=0, decoder_hidden_sizes=[8, 8, 8], decoder_interpolation="nearest")
    decoder = DDePDecoder(config, pyramid((4, 4, 6), (2, 4, 8)))
    assert [name for name, _ in decoder.named_parameters() if "blocks" not in name] == []
    assert decoder.blocks[0].conv1[0].in_channels == 6 + 4
    assert {block.interpolation for block in decoder.blocks} == {"nearest"}
    features = [torch.randn(2, c, 16 // s, 16 // s, requires_grad=True) for c, s in ((4, 2), (4, 4), (6, 8))]
    states = decoder(features, torch.zeros(2, 3, 16, 16), (16, 16))
    assert torch.equal(states[0], features[-1])
    states[-1].sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


@pytest.mark.parametrize("sizes, scale", [([32, 16], 8), ([32], 16)])
def test_too_few_sizes_end_in_bilinear_upsampling(hybrid_config, sizes, scale):
    model = DDePForSemanticSegmentation(hybrid_config(decoder_hidden_sizes=sizes, num_labels=3)).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    hidden = model.ddep(pixel_values).last_hidden_state
    assert hidden.shape[-2:] == (64 // scale, 96 // scale)
    expected = nn.functional.interpolate(model.classifier(hidden), size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(pixel_values).logits, expected)
    assert model(torch.randn(1, 3, 33, 47)).logits.shape == (1, 3, 33, 47)


@pytest.mark.parametrize("channels", [1, 4, 12, 16, 48, 64, 96, 512])
def test_group_norm_groups_divide_the_channels(channels):
    norm = conv_norm_act(4, channels, "group")[1]
    assert isinstance(norm, nn.GroupNorm)
    assert channels % norm.num_groups == 0
    assert channels < 16 or channels // norm.num_groups >= 8


def test_group_norm_trains_on_one_32x32_crop(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(decoder_norm="group")).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    model(torch.randn(1, 3, 32, 32), labels=torch.ones(1, 32, 32, dtype=torch.long)).loss.backward()
    dead = [n for n, p in model.ddep.decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_batch_norms_of_a_frozen_encoder_do_not_ask_for_larger_crops(conv_config):
    model = DDePForPreTraining(conv_config(decoder_norm="group")).train()
    assert model(torch.randn(1, 3, 32, 32)).loss.isfinite()
    model.config.freeze_encoder = False
    with pytest.raises(ValueError, match="single value per channel"):
        model.train()(torch.randn(1, 3, 32, 32))


def test_convolutions_start_with_he_initialisation(hybrid_config):
    weight = DDePModel(hybrid_config()).decoder.blocks[0].conv1[0].weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[1] * 9)) ** 0.5, rel=0.05)


def test_both_convolutions_of_a_block_have_hooks(hybrid_config):
    model, called = DDePModel(hybrid_config()).eval(), []
    for layer in (model.decoder.blocks[0].conv1, model.decoder.blocks[0].conv2):
        layer.register_forward_hook(lambda module, inputs, output: called.append((module, output.shape[1])))
    model(torch.zeros(1, 3, 64, 64))
    width = model.decoder.blocks[0].conv1[0].out_channels
    assert called == [(layer, width) for layer in (model.decoder.blocks[0].conv1, model.decoder.blocks[0].conv2)]


def test_weight_norms_are_restored_in_stem_and_projections_too():
    kwargs = {"embed_dim": 32, "depth": 4, "num_heads": 2}
    decoder = DDePModel(DDePConfig(encoder_name="vit_tiny_patch16_224", encoder_kwargs=kwargs)).decoder
    convs = [module for module in decoder.pyramid.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.kernel_size for conv in convs} == {(1, 1), (3, 3)}
    with torch.no_grad():
        for conv in convs:
            conv.weight.mul_(7)
    restore_weight_norms(decoder)
    for conv in convs:
        found = conv.weight.detach().square().mean().sqrt().item()
        assert found == pytest.approx((2 / conv.weight[0].numel()) ** 0.5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_restored_weight_norms_are_those_of_a_fresh_decoder_and_change_no_function(hybrid_config, norm):
    model = DDePModel(hybrid_config(decoder_norm=norm)).train()
    images = torch.randn(4, 3, 64, 64)
    convs = [module for module in model.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        for factor, conv in enumerate(convs, start=2):
            conv.weight.mul_(factor)  # as Adam lets them grow
        for _ in range(30):
            model(images)  # running statistics that fit
        before = model.eval()(images).last_hidden_state
        restore_weight_norms(model.decoder)
        after = model(images).last_hidden_state
    for conv in convs:
        found = conv.weight.detach().std(correction=0).item()
        assert found == pytest.approx((2 / (conv.in_channels * 9)) ** 0.5, rel=0.05)
    # But for the small constant in the norms.
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
