"""The models: any image size, losses, initialisation, what they import."""

import pytest
import torch
from launching import run
from torch.nn import functional as F

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePModel
from ddep_hub.denoising import corrupt, draw_mask
from ddep_hub.encoders import build_encoder, extract_features
from ddep_hub.segmentation import segmentation_loss


SWIN = {
    "encoder_name": "swin_tiny_patch4_window7_224",
    "encoder_kwargs": {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)},
}
CONVNEXT = {"encoder_name": "convnext_tiny", "encoder_kwargs": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}}
SIZES = [(32, 32), (33, 47), (100, 65), (64, 128), (31, 1)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize(
    "encoder", [{}, {"encoder_name": "tf_efficientnet_lite0", "encoder_kwargs": None}, CONVNEXT, SWIN]
)
def test_logits_have_the_size_of_the_image(hybrid_config, encoder, height, width):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=5, **encoder)).eval()
    pixel_values = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert logits.shape == (2, 5, height, width)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(model(pixel_values[1:]).logits, logits[1:], atol=1e-5, rtol=1e-4)


def test_padding_repeats_the_edge_and_is_cropped_off(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config()).eval()
    pixel_values = torch.randn(1, 3, 40, 63)
    padded = F.pad(pixel_values, (0, 1, 0, 24), mode="replicate")
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits, model(padded).logits[..., :40, :63])


def test_multiples_of_the_stride_are_not_touched(hybrid_config):
    model = DDePModel(hybrid_config()).eval()
    seen = []
    model.encoder.patch_embed.backbone.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    pixel_values = torch.randn(1, 3, 64, 96)
    model(pixel_values)
    assert torch.equal(seen[0], pixel_values)


def test_a_wrong_number_of_channels_is_named(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config())
    with pytest.raises(ValueError, match=r"pixel_values: expected floats \(batch, 3, .*\(1, 1, 32, 32\)"):
        model(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("size", [(32, 32), (17, 30)])
def test_a_single_value_a_channel_in_batch_norm_is_an_error_with_a_mend(hybrid_config, size):
    model = DDePForSemanticSegmentation(hybrid_config()).train()
    with pytest.raises(ValueError, match=r'larger crop or batch, or decoder_norm="group"'):
        model(torch.randn(1, 3, *size))
    model(torch.randn(2, 3, *size))
    model(torch.randn(1, 3, 32, 64))
    model.eval()(torch.randn(1, 3, *size))


def test_segmentation_loss_is_the_cross_entropy_of_the_pixels_that_count(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=4, semantic_loss_ignore_index=9)).eval()
    pixel_values, labels = torch.randn(2, 3, 33, 40), torch.randint(0, 4, (2, 33, 40))
    labels[:, :10] = 9
    outputs = model(pixel_values, labels=labels)
    per_pixel = -outputs.logits.log_softmax(1).gather(1, labels.clamp(max=3)[:, None])[:, 0]
    torch.testing.assert_close(outputs.loss, per_pixel[:, 10:].mean())
    assert model(pixel_values).loss is None


def test_smaller_logits_are_upsampled_to_the_labels():
    logits, labels = torch.randn(2, 3, 8, 10), torch.randint(0, 3, (2, 16, 40))
    upsampled = F.interpolate(logits, size=(16, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(logits, labels, 255), F.cross_entropy(upsampled, labels))


def test_the_loss_can_be_replaced_as_in_transformers(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3))
    model.loss_function = lambda logits, labels, ignore_index: logits.sum() + labels.sum() + ignore_index
    outputs = model(torch.randn(2, 3, 32, 32), labels=torch.ones(2, 32, 32, dtype=torch.long))
    assert outputs.loss == outputs.logits.sum() + 2 * 32 * 32 + 255


@pytest.mark.parametrize("corruption", ["scaled", "simple"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_denoising_outputs(hybrid_config, corruption, prediction_type):
    model = DDePForPreTraining(hybrid_config(corruption=corruption, prediction_type=prediction_type)).eval()
    clean, noise, sigma = torch.randn(2, 3, 40, 64), torch.randn(2, 3, 40, 64), torch.tensor([0.1, 0.4])
    outputs = model(clean, noise=noise, sigma=sigma)
    assert torch.equal(outputs.noisy_pixel_values, corrupt(clean, noise, sigma, corruption))
    assert torch.equal(outputs.target, noise if prediction_type == "epsilon" else clean)
    assert torch.equal(outputs.sigma, sigma)
    assert outputs.prediction.shape == clean.shape
    torch.testing.assert_close(outputs.loss, (outputs.prediction - outputs.target).square().mean())
    # The prediction sees the corrupted image and nothing else.
    seen = model.ddep(outputs.noisy_pixel_values).last_hidden_state
    torch.testing.assert_close(outputs.prediction, model.noise_head(seen)[..., :40, :])


def test_features_are_predicted_from_the_image_at_half_its_size(conv_config):
    model = DDePForPreTraining(conv_config(corruption="downsampled", prediction_type="features"))
    clean = torch.randn(2, 3, 100, 128)
    outputs = model(clean)
    padded = F.pad(clean, (0, 0, 0, 28), mode="replicate")  # to 64, whose half is the encoder's stride
    half = F.interpolate(padded, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(outputs.noisy_pixel_values, half, atol=1e-5, rtol=1e-5)
    *_, fine, coarse = (f.movedim(1, -1) for f in extract_features(model.ddep.encoder, padded)[0])
    fine, coarse = (
        ((f - f.mean(-1, True)) / (f.var(-1, False, True) + 1e-5) ** 0.5).movedim(-1, 1) for f in (fine, coarse)
    )
    target = torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode="bilinear")], dim=1)
    torch.testing.assert_close(outputs.target, target, atol=1e-4, rtol=1e-4)
    decoded = model.ddep(outputs.noisy_pixel_values).last_hidden_state
    prediction = model.noise_head(F.avg_pool2d(decoded, 8))  # stride 16 of the image is 8 of its half
    torch.testing.assert_close(outputs.prediction, prediction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.loss, (prediction - target).square().mean())
    outputs.loss.backward()
    assert not any(p.requires_grad for p in model.ddep.encoder.parameters()) and not outputs.target.requires_grad
    assert all(p.grad.abs().sum() > 0 for p in (*model.ddep.decoder.parameters(), *model.noise_head.parameters()))


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_features_of_other_encoders_are_predicted(name):
    config = DDePConfig(
        encoder_name=name,
        encoder_kwargs={"depth": 4},
        decoder_hidden_sizes=[8] * 4,
        decoder_bottleneck_size=8,
        corruption="downsampled",
        prediction_type="features",
    )
    model = DDePForPreTraining(config)
    outputs = model(torch.randn(1, 3, 130, 64))
    assert outputs.prediction.shape == outputs.target.shape and outputs.loss.isfinite()
    height, width = outputs.target.shape[-2:]
    assert height == 3 * width and height > 2  # 192 x 64 with its padding


def test_features_need_an_encoder_of_any_size():
    fields = {"corruption": "downsampled", "prediction_type": "features"}
    config = DDePConfig(encoder_name="beit_base_patch16_224", **fields)
    with torch.device("meta"), pytest.raises(ValueError, match="beit_base_patch16_224 accepts only one"):
        DDePForPreTraining(config)


def test_features_of_an_encoder_that_is_not_frozen_later_are_refused(conv_config):
    model = DDePForPreTraining(conv_config(corruption="downsampled", prediction_type="features"))
    model.config.freeze_encoder = False
    with pytest.raises(ValueError, match="features of the encoder, which must not change"):
        model.train()


@pytest.mark.parametrize("number", [1, 5])
def test_features_of_decoders_of_any_depth(conv_config, number):
    fields = {"corruption": "downsampled", "prediction_type": "features", "decoder_hidden_sizes": [8] * number}
    outputs = DDePForPreTraining(conv_config(**fields))(torch.randn(1, 3, 128, 64))
    assert outputs.prediction.shape == outputs.target.shape == (1, outputs.target.shape[1], 8, 4)


def test_masked_patches_are_predicted(hybrid_config):
    fields = {"corruption": "masked", "prediction_type": "sample", "mask_ratio": 0.4, "mask_patch_size": 24}
    model = DDePForPreTraining(hybrid_config(**fields)).eval()
    clean, noise = torch.randn(2, 3, 40, 64), torch.randn(2, 3, 40, 64)
    outputs = model(clean, noise=noise)
    assert torch.equal(outputs.mask, draw_mask(noise, 0.4, 24)) and torch.equal(outputs.target, clean)
    assert torch.equal(outputs.noisy_pixel_values, clean.masked_fill(outputs.mask, 0))
    seen = model.ddep(outputs.noisy_pixel_values).last_hidden_state
    torch.testing.assert_close(outputs.prediction, model.noise_head(seen)[..., :40, :])
    errors = [
        (outputs.prediction - clean)[index, :, outputs.mask[index, 0]].square().mean() for index in range(len(clean))
    ]
    # Patches at the border are smaller, and yet every image counts the same.
    assert outputs.mask.sum((1, 2, 3)).unique().numel() == 2
    torch.testing.assert_close(outputs.loss, sum(errors) / 2)
    # Of the noise, only the order at the corners of the patches matters.
    torch.testing.assert_close(model(clean, noise=0.1 * noise + 3, sigma=0.5).loss, outputs.loss)


def test_a_denoiser_becomes_one_of_masked_patches_only_with_all_their_fields(hybrid_config, tmp_path):
    DDePForPreTraining(hybrid_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='Set prediction_type="sample" and image_skip=False'):
        DDePForPreTraining.from_pretrained(tmp_path, corruption="masked")
    masked = DDePForPreTraining.from_pretrained(tmp_path, corruption="masked", prediction_type="sample")
    assert masked(torch.randn(2, 3, 32, 32)).mask is not None


def test_noise_and_levels_follow_the_generator(hybrid_config):
    model = DDePForPreTraining(hybrid_config(sigma=[0.2, 0.3])).eval()
    clean = torch.randn(4, 3, 32, 32)
    first, again, other = (model(clean, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.noisy_pixel_values, again.noisy_pixel_values) and torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.target, other.target) and not torch.equal(first.sigma, other.sigma)
    assert first.sigma.unique().numel() == 4 and 0.2 <= first.sigma.min() and first.sigma.max() <= 0.3
    fixed = DDePForPreTraining(hybrid_config()).eval()(clean)
    assert fixed.sigma.tolist() == pytest.approx([0.22] * 4)
    assert model(clean, sigma=0.5).sigma.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"pixel_values": torch.zeros(2, 3, 32, 64, dtype=torch.uint8)}, r"pixel_values: expected floats .*uint8"),
        ({"pixel_values": torch.zeros(3, 32, 64)}, r"pixel_values: .*got torch.float32 \(3, 32, 64\)"),
        ({"noise": torch.zeros(1, 3, 32, 64)}, r"noise is \(1, 3, 32, 64\), but pixel_values are \(2, 3"),
        ({"sigma": 0.0}, "sigma must be a positive number, or one for each of 2 images, got 0.0"),
        ({"sigma": -1}, "sigma must be a positive number.*got -1"),
        ({"sigma": float("nan")}, "sigma must be a positive number"),
        ({"sigma": [0.2, -0.2]}, "sigma must be a positive number"),
        ({"sigma": torch.ones(3)}, r"sigma must be .*got a tensor of shape \(3,\)"),
        ({"sigma": torch.ones(2, 1)}, r"sigma must be .*got a tensor of shape \(2, 1\)"),
    ],
)
def test_what_cannot_be_denoised_is_named(hybrid_config, inputs, message):
    model = DDePForPreTraining(hybrid_config()).eval()
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": torch.zeros(2, 3, 32, 64), **inputs})
    assert model(torch.zeros(2, 3, 32, 64), sigma=[0.1, 0.2]).sigma.tolist() == pytest.approx([0.1, 0.2])


def test_hidden_states(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config()).eval()
    states = model(torch.randn(1, 3, 64, 64), output_hidden_states=True).hidden_states
    assert [tuple(state.shape[1:]) for state in states[:3]] == [(64, 32, 32), (64, 16, 16), (32, 2, 2)]
    assert [state.shape[-1] for state in states[3:]] == [2, 4, 8, 16, 32, 64]
    assert model(torch.randn(1, 3, 64, 64)).hidden_states is None
    as_tuple = model(torch.randn(1, 3, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.long), return_dict=False)
    assert as_tuple[0].ndim == 0 and as_tuple[1].shape == (1, 2, 64, 64)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("encoder", [{}, SWIN, CONVNEXT])
def test_the_encoder_starts_as_timm_initialises_it(hybrid_config, encoder, loaded):
    config = hybrid_config(**encoder)
    # transformers builds what it loads without memory, and fills in what the weights lack: here, all.
    model = DDePModel.from_pretrained(None, config=config, state_dict={}) if loaded else DDePModel(config)
    ours, reference = model.encoder.state_dict(), build_encoder(config).state_dict()
    assert set(ours) == set(reference)
    for name, tensor in reference.items():
        if tensor.std() == 0 or tensor.numel() == 1:
            assert torch.equal(ours[name], tensor), name
        else:
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.5), name


def test_nothing_is_fetched_at_construction(monkeypatch, hybrid_config):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    DDePForSemanticSegmentation(hybrid_config(encoder_name="vit_tiny_r_s16_p8_224.augreg_in21k"))
    with torch.device("meta"):
        DDePForSemanticSegmentation(DDePConfig())


def test_the_model_needs_neither_datasets_nor_accelerate():
    code = """
import sys
sys.modules["datasets"] = sys.modules["accelerate"] = None  # an import of them fails
import torch
from ddep_hub import DDePConfig, DDePForPreTraining
config = DDePConfig(encoder_name="tf_efficientnet_lite0", decoder_bottleneck_size=8, decoder_hidden_sizes=[8])
assert DDePForPreTraining(config)(torch.zeros(2, 3, 32, 32)).loss is not None
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(hybrid_config, dtype):
    model, labels = DDePForSemanticSegmentation(hybrid_config(num_labels=3)).eval(), torch.randint(0, 3, (2, 40, 33))
    images = torch.randn(2, 3, 40, 33)
    assert torch.equal(model(images, labels=labels.to(dtype)).loss, model(images, labels=labels).loss)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.zeros(2, 40, 33), r"whole numbers \(2, height, width\).*float32 \(2, 40, 33\)"),
        (torch.zeros(2, 1, 40, 33, dtype=torch.long), r"whole numbers.*int64 \(2, 1, 40, 33\)"),
        (torch.zeros(1, 40, 33, dtype=torch.long), r"whole numbers.*\(1, 40, 33\)"),
        (torch.zeros(2, 33, 40, dtype=torch.long), "33x40 for images of 40x33: rows and columns are swapped"),
        (
            torch.full((2, 40, 33), -100),
            "class ids are 0 to 2, and 255 .*semantic_loss_ignore_index. is ignored",
        ),
        ([[0]], "whole numbers.*got list"),
    ],
)
def test_labels_that_are_none_are_named(hybrid_config, labels, named):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3))
    with pytest.raises(ValueError, match=named):
        model(torch.randn(2, 3, 40, 33), labels=labels)


def test_an_encoder_trains_once_it_is_no_longer_frozen(conv_config):
    """DDeP, then DeP with the same model, then fine-tuning with its encoder."""
    model = DDePForPreTraining(conv_config())
    assert not any(parameter.requires_grad for parameter in model.ddep.encoder.parameters())
    model.config.freeze_encoder = False
    model.train()
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.ddep.encoder.parameters())
    next(model.ddep.encoder.parameters()).requires_grad_(False)  # by hand: stays
    model.train()
    assert not next(model.ddep.encoder.parameters()).requires_grad
    frozen = DDePForPreTraining(conv_config())
    finetuned = DDePForSemanticSegmentation(frozen.config, frozen.ddep.encoder)
    assert finetuned.ddep.encoder.training and all(p.requires_grad for p in finetuned.parameters())


def test_a_frozen_encoder_stays_in_eval_mode_where_a_part_is_set_to_training(conv_config):
    model = DDePForPreTraining(conv_config())
    before = {name: buffer.clone() for name, buffer in model.ddep.encoder.named_buffers()}
    model.ddep.train()
    model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.ddep.encoder.named_buffers())


def test_the_loss_of_a_model_in_half_precision_is_measured_in_float32(hybrid_config):
    model = DDePForPreTraining(hybrid_config(decoder_norm="group")).bfloat16().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    outputs = model(images)
    assert outputs.prediction.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, F.mse_loss(outputs.prediction.float(), outputs.target.float()))
    assert model(images, return_loss=False).loss is None


def test_a_noise_level_that_was_changed_is_checked(conv_config):
    model = DDePForPreTraining(conv_config())
    model.config.sigma = -1
    with pytest.raises(ValueError, match=r"sigma must be positive, or a range .* got -1"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("encoder", ["resnet18", "test_vit", None])
def test_replicas_of_data_parallel_have_no_parameters(encoder, hybrid_config):
    """As Trainer makes them where it sees several GPUs."""
    fields = {"encoder_name": encoder, "encoder_kwargs": {}} if encoder else {}
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3, **fields)).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images).logits
    for module in model.modules():  # as nn.parallel.replicate does it
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                object.__setattr__(module, name, parameter.data)
    assert not list(model.parameters())
    assert torch.equal(model(images).logits, expected)


def test_an_encoder_without_a_convolution_has_no_input_embeddings(hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config())
    model.ddep.encoder = torch.nn.Linear(2, 2)
    with pytest.raises(NotImplementedError, match="no convolution that takes the pixels"):
        model.get_input_embeddings()
