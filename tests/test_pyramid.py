"""The pyramid for encoders that have none, or one that is coarse: geometry, levels, what is trained and saved."""

import pytest
import timm
import torch
from torch.nn import functional as F

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.encoder_weights import read_encoder
from ddep_hub.encoders import (
    DDePEncoderBlock,
    DDePEvaBlock,
    build_encoder,
    encoder_arguments,
    extract_features,
    feature_maps,
)
from ddep_hub.resampling import resample, resize


TINY = {"embed_dim": 32, "depth": 6, "num_heads": 2}
# Plain transformers, made small: patch sizes, class and register tokens or none, positions of each kind, SwiGLU.
PLAIN = [
    ("vit_small_patch14_reg4_dinov2", TINY),
    ("vit_tiny_patch16_224", TINY),
    ("vit_small_patch8_224", {**TINY, "depth": 4}),
    ("vit_small_patch32_224", TINY),
    ("vit_small_patch16_dinov3", TINY),
    ("eva02_tiny_patch14_224", TINY),
    ("vit_base_patch16_siglip_gap_224", TINY),
    ("vit_giant_patch14_reg4_dinov2", {**TINY, "depth": 4}),
    ("samvit_base_patch16", {**TINY, "img_size": 64, "global_attn_indexes": (1,)}),
]
SMALL = {"decoder_hidden_sizes": [16, 8, 8, 8, 8], "decoder_bottleneck_size": 16}


def config(name, kwargs, **fields):
    return DDePConfig(encoder_name=name, encoder_kwargs=kwargs, **{**SMALL, **fields})


@pytest.mark.parametrize("name, kwargs", PLAIN, ids=[name for name, _ in PLAIN])
def test_plain_transformers_take_any_size_and_train_every_parameter(name, kwargs):
    model = DDePForSemanticSegmentation(config(name, kwargs, num_labels=3))
    assert model.ddep.decoder.strides == (1, 2, 4, 8, 16, 32)
    for height, width in ((224, 224), (101, 67), (33, 160)):
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, height, width)).logits.shape == (1, 3, height, width)
    loss = model.train()(torch.randn(2, 3, 50, 70), labels=torch.randint(0, 3, (2, 50, 70))).loss
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name, kwargs", PLAIN, ids=[name for name, _ in PLAIN])
def test_features_are_timms_at_evenly_spaced_blocks(name, kwargs):
    encoder = build_encoder(config(name, kwargs)).eval()
    maps = feature_maps(encoder)
    plain = timm.create_model(name, **encoder_arguments(config(name, kwargs))).eval()
    missing, unexpected = plain.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(("attn_pool", "fc_norm", "neck")) for key in missing)
    assert maps.indices == ((1 - 1, 2, 3, 5) if kwargs["depth"] == 6 else (0, 1, 2, 3))
    pixel_values = torch.randn(2, 3, 4 * maps.multiple, 3 * maps.multiple)
    with torch.no_grad():
        features, covered = extract_features(encoder, pixel_values)
        wanted = plain.forward_intermediates(
            pixel_values, indices=list(maps.indices), norm=maps.norm, intermediates_only=True
        )
    assert covered == (4 * maps.multiple, 3 * maps.multiple)
    assert all(torch.equal(feature, other) for feature, other in zip(features, wanted, strict=True))


def test_blocks_may_be_chosen_and_those_behind_go():
    encoder = build_encoder(config("vit_tiny_patch16_224", TINY, encoder_out_indices=[1, -3]))
    assert feature_maps(encoder).indices == (1, 3)
    assert len(encoder.blocks) == 4
    model = DDePForSemanticSegmentation(config("vit_tiny_patch16_224", TINY, encoder_out_indices=[3]))
    assert model.ddep.decoder.pyramid.sources == {4: 0, 8: 0, 16: 0, 32: 0}  # ViTDet's: all levels from one block
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 2, 64, 64)
    pyramid = build_encoder(config("resnet18", None, encoder_out_indices=[1, 2, 3], decoder_hidden_sizes=[8]))
    assert feature_maps(pyramid).strides == (4, 8, 16)


@pytest.mark.parametrize(
    ("chosen", "sources"), [([1, 3], {4: 0, 8: 0, 16: 1, 32: 1}), ([0, 1, 3], {4: 0, 8: 0, 16: 1, 32: 2})]
)
def test_few_blocks_are_spread_over_the_levels(chosen, sources):
    model = DDePForSemanticSegmentation(config("vit_tiny_patch16_224", TINY, encoder_out_indices=chosen))
    assert model.ddep.decoder.pyramid.sources == sources
    assert model.ddep.decoder.pyramid.channels == (16, 32, 32, 32, 32, 32)  # of the stem, and no more than a block's


def test_an_image_is_padded_to_the_patch_and_not_to_the_deepest_stride():
    encoder = build_encoder(config("vit_small_patch14_reg4_dinov2", TINY))
    features, covered = extract_features(encoder, torch.randn(1, 3, 517, 389))
    assert covered == (518, 392)
    assert {feature.shape[-2:] for feature in features} == {(37, 28)}


def test_resampling_is_torchs_where_both_grids_cover_the_same():
    feature = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    for stride, size in ((8, (12, 18)), (4, (24, 36)), (16, (6, 9))):
        wanted = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resample(feature, (96, 144), stride, size), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(resample(feature, (96, 144), 32, (3, 5))[..., 1:2, 1:2], coarse_like(feature))


def coarse_like(feature):
    """The cell at row 1, column 1 of the coarser grid: four by four cells under a triangle."""
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=feature.dtype) / 8
    return torch.einsum("bcij,i,j->bc", feature[..., 1:5, 1:5], weights, weights)[..., None, None]


@pytest.mark.parametrize("cell", [14, 7, 12])
def test_resampling_keeps_positions(cell):
    # A ramp over pixels, sampled at the centres of cells, is the same ramp at the centres of the new grid.
    rows, columns = 20, 30
    ramp = (torch.arange(columns) + 0.5) * cell
    feature = ramp.expand(1, 1, rows, columns)
    result = resample(feature, (rows * cell, columns * cell), 4, (rows * cell // 4, columns * cell // 4))
    inside = slice(cell, -cell)
    wanted = (torch.arange(columns * cell // 4) + 0.5) * 4
    torch.testing.assert_close(result[0, 0, 0, inside], wanted[inside])
    # What lies beyond the feature repeats its border.
    wider = resample(feature, (rows * cell, columns * cell), 4, (rows * cell // 4 + 2, columns * cell // 4 + 2))
    assert torch.equal(wider[0, 0, -1, -2:], wider[0, 0, 0, -2:]) and wider[0, 0, 0, -1] == ramp[-1]


def test_images_are_resized_as_torch_does():
    images = torch.rand(2, 3, 130, 90)
    for size in ((64, 64), (224, 224), (20, 200)):
        wanted = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        torch.testing.assert_close(resize(images, size), wanted, rtol=1e-4, atol=1e-5)
    assert resize(images, (130, 90)) is images


def test_an_encoder_of_one_size_sees_images_resampled_to_it():
    encoder = build_encoder(config("beit_base_patch16_224", {**TINY, "img_size": 64})).eval()
    assert feature_maps(encoder).image_size == (64, 64)
    native, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 90, 130)
    with torch.no_grad():
        direct = encoder.forward_intermediates(
            native, indices=list(feature_maps(encoder).indices), norm=True, intermediates_only=True
        )
        features, covered = extract_features(encoder, native)
        assert covered == (64, 64) and all(map(torch.equal, features, direct))
        features, covered = extract_features(encoder, other)
    assert covered == (90, 130) and features[0].shape[-2:] == (4, 4)


@pytest.mark.parametrize(
    "name, kwargs, strides",
    [
        ("levit_128s", {"img_size": 64}, (1, 2, 4, 8, 16, 32, 64)),
        ("hiera_tiny_224", {"img_size": (64, 96), "embed_dim": 16, "num_heads": 1}, (1, 2, 4, 8, 16, 32)),
    ],
)
def test_coarse_and_resampled_pyramids_get_a_stem(name, kwargs, strides):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name, encoder_kwargs=kwargs, **{**SMALL}))
    assert model.ddep.decoder.strides == strides
    model(torch.randn(2, 3, 50, 70), labels=torch.randint(0, 2, (2, 50, 70))).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_one_level_of_a_pyramid_serves(name):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name, encoder_out_indices=[2], **SMALL)).eval()
    assert not feature_maps(model.ddep.encoder).norm  # Hiera's features have none
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape[-2:] == (64, 64)


def test_features_of_a_resampled_image_cover_none_of_its_padding():
    """Not even where image and padding have as many cells: they are of another size."""
    kwargs = {"img_size": (64, 96), "embed_dim": 16, "num_heads": 1}
    model = DDePForSemanticSegmentation(config("hiera_tiny_224", kwargs)).ddep.eval()
    assert feature_maps(model.encoder).image_size == (64, 96)
    pyramid = model.decoder.pyramid
    features = [
        torch.randn(1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(pyramid.channels[2:], pyramid.strides[2:], strict=True)
    ]
    finest = pyramid(features, torch.zeros(1, 3, 40, 96), (40, 96))[2]
    assert finest.shape == features[0].shape
    torch.testing.assert_close(finest, resample(features[0], (40, 96), 4, (16, 24)))


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_levels_that_no_block_takes_are_not_made(blocks):
    fields = {**SMALL, "decoder_hidden_sizes": [16] * blocks}
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name="vit_tiny_patch16_224", encoder_kwargs=TINY, **fields))
    assert min(model.ddep.decoder.strides) == (8 if blocks == 2 else 4 if blocks == 3 else 1)  # 1 leads to 2
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 2, (2, 64, 64))).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_a_decoder_only_checkpoint_holds_stem_and_projections(name, tmp_path):
    model = DDePForPreTraining(config(name, TINY)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    optimizer.step()
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key for key in moved if ".encoder." in key} == set()
    assert any("decoder.pyramid.stem" in key for key in moved) and any("pyramid.projections" in key for key in moved)
    weights = tmp_path / "encoder.pth"
    torch.save(model.ddep.encoder.state_dict(), weights)
    model.save_pretrained(tmp_path / "decoder", decoder_only=True, half_precision=False)
    loaded = DDePForPreTraining.from_pretrained(tmp_path / "decoder", encoder_weights=weights)
    pixel_values, noise = torch.randn(1, 3, 70, 45), torch.randn(1, 3, 70, 45)
    with torch.no_grad():
        expected = model.eval()(pixel_values, noise=noise).prediction
        assert torch.equal(loaded(pixel_values, noise=noise).prediction, expected)
    model.save_pretrained(tmp_path / "whole")
    again = DDePForPreTraining.from_pretrained(tmp_path / "whole")  # rotary tables are in no file
    assert torch.equal(again(pixel_values, noise=noise).prediction, expected)


@pytest.mark.parametrize(
    "name, block", [("vit_tiny_patch16_224", DDePEncoderBlock), ("vit_small_patch16_dinov3", DDePEvaBlock)]
)
def test_activation_checkpointing_reaches_the_blocks(name, block):
    model = DDePForSemanticSegmentation(config(name, TINY))
    blocks = model.ddep.encoder.blocks
    assert all(isinstance(each, block) for each in blocks)
    pixel_values, labels = torch.randn(2, 3, 32, 64), torch.zeros(2, 32, 64, dtype=torch.long)
    gradients = []
    for _ in range(2):
        model.train().zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        gradients.append(blocks[0].mlp.fc1.weight.grad.clone() if hasattr(blocks[0].mlp, "fc1") else None)
        model.gradient_checkpointing_enable()
    assert all(each.gradient_checkpointing for each in blocks)
    assert gradients[0] is None or torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("vit_tiny_patch16_224", {"head"}),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("cait_xxs24_224", {"head", "cls_token", "blocks_token_only"}),
        ("levit_128s", {"head", "head_dist"}),
        ("efficientvim_m1", {"heads", "norm", "weights"}),
    ],
)
def test_timms_weights_load_without_their_classifier(name, left_out, tmp_path):
    weights = timm.create_model(name).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    own = read_encoder(DDePConfig(encoder_name=name), tmp_path / "weights.pth").state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own)
    assert {key.split(".")[0] for key in weights.keys() - own.keys()} == left_out


def test_an_encoder_whose_weights_go_by_two_names_is_saved(tmp_path):
    kwargs = {"img_size": 64, "serial_depths": [1] * 4}
    model = DDePForSemanticSegmentation(config("coat_tiny", kwargs, num_labels=2)).eval()
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        loaded = DDePForSemanticSegmentation.from_pretrained(tmp_path)
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
