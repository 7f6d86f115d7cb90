"""The denoising error and its references, on cases with known answers."""

from typing import get_args

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tvf

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.configuration_ddep import PREDICTED
from ddep_hub.denoising import CORRUPTIONS, corrupt, draw_mask
from ddep_hub.evaluation.denoising import (
    EVALUATIONS,
    _wide_blur,
    denoising_error,
    denoising_references,
    feature_references,
    masking_references,
    validation_noise,
)
from ddep_hub.hub.model_card import TEMPLATE
from ddep_hub.training.arguments import Corruption


class Oracle(nn.Module):
    """Predicts a known multiple of the target."""

    def __init__(self, config, share):
        super().__init__()
        self.config, self.share = config, share
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values, noise, sigma):
        from ddep_hub.modeling_ddep import DDePForPreTrainingOutput

        target = noise if self.config.prediction_type == "epsilon" else pixel_values
        self.sigma = sigma
        noisy = corrupt(pixel_values, noise, sigma, self.config.corruption)
        return DDePForPreTrainingOutput(prediction=self.share * target, noisy_pixel_values=noisy)


@pytest.fixture
def smooth():
    return tvf.gaussian_blur(torch.randn(6, 3, 48, 48), 31, 8.0) * 5


@pytest.mark.parametrize("corruption", ["scaled", "simple"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_a_perfect_prediction_has_no_error(corruption, prediction_type, hybrid_config, smooth):
    config = hybrid_config(corruption=corruption, prediction_type=prediction_type)
    assert denoising_error(Oracle(config, 1.0), smooth) == pytest.approx(0, abs=1e-6)


def test_predicting_a_part_of_the_noise(hybrid_config, smooth):
    zero = denoising_references(Oracle(hybrid_config(), 0.5), smooth, smooth)["predicting_zero"]
    assert zero == pytest.approx(1, abs=0.02)
    assert denoising_error(Oracle(hybrid_config(), 0.5), smooth) == pytest.approx(0.25 * zero, rel=1e-4)
    assert denoising_error(Oracle(hybrid_config(), 0.0), smooth) == pytest.approx(zero, rel=1e-4)


def test_the_level_is_the_middle_of_a_range(hybrid_config, smooth):
    oracle = Oracle(hybrid_config(sigma=[0.1, 0.5]), 0.0)
    denoising_error(oracle, smooth)
    assert oracle.sigma == pytest.approx(0.3)


def test_a_model_is_measured_in_eval_mode(conv_config):
    model, images = DDePForPreTraining(conv_config()), torch.randn(2, 3, 64, 64)
    expected = denoising_error(model.eval(), images)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert denoising_error(model.train(), images) == expected
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_references_denoise_smooth_images_well_and_noise_not_at_all(hybrid_config, smooth):
    oracle = Oracle(hybrid_config(), 1.0)
    easy = denoising_references(oracle, smooth, smooth.flip(0))
    assert easy["gaussian_blur"] < 0.05 and easy["linear_filter"] < 0.15
    hard = denoising_references(oracle, torch.randn(4, 3, 48, 48), torch.randn(4, 3, 48, 48))
    assert hard["gaussian_blur"] > 0.9 and hard["linear_filter"] > 0.9


def test_the_linear_filter_uses_what_channels_share(hybrid_config, smooth):
    grey = smooth[:, :1].expand(-1, 3, -1, -1) + 0.3 * torch.randn(6, 1, 48, 48)
    metrics = denoising_references(Oracle(hybrid_config(), 1.0), grey, grey.flip(0))
    assert metrics["linear_filter"] < 0.7 * metrics["gaussian_blur"]


def test_the_linear_filter_is_fitted_on_the_training_images(hybrid_config):
    """Black ones, of which all that is seen is noise: its prediction for others is off by these, over the level."""
    clean = torch.randn(4, 3, 48, 48)
    references = denoising_references(Oracle(hybrid_config(sigma=0.5), 1.0), clean, torch.zeros(4, 3, 48, 48))
    assert references["linear_filter"] == pytest.approx(clean.square().mean().item() / 0.5**2, rel=0.02)


def test_the_error_is_that_of_the_model_and_does_not_depend_on_the_batch(hybrid_config, smooth):
    model = DDePForPreTraining(hybrid_config())
    one, other = (denoising_error(model, smooth, batch_size=size) for size in (1, 6))
    assert one == pytest.approx(other, rel=1e-5)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert one == pytest.approx(model(smooth, noise=noise).loss.item(), rel=1e-4)


def test_references_fill_in_smooth_images_well_and_noise_not_at_all(hybrid_config, smooth):
    oracle = Oracle(hybrid_config(corruption="masked", prediction_type="sample", mask_patch_size=8), 1.0)
    easy = masking_references(oracle, smooth)
    assert easy["gaussian_blur"] < 0.3 * easy["predicting_mean"]
    constant = smooth.mean((2, 3), keepdim=True).expand_as(smooth)
    assert masking_references(oracle, constant)["predicting_mean"] < 1e-9
    hard = masking_references(oracle, torch.randn(4, 3, 48, 48))
    assert min(hard.values()) > 0.95


def test_the_references_of_features_do_not_depend_on_the_batch(conv_config, smooth):
    model = DDePForPreTraining(conv_config(corruption="downsampled", prediction_type="features")).eval()
    one, other = (feature_references(model, smooth, batch_size=size) for size in (1, 4))
    assert one == pytest.approx(other, rel=1e-4) and list(one) == ["mean_features", "upsampled_features"]
    with torch.no_grad():
        target = model(smooth).target
    assert one["mean_features"] == pytest.approx(target.var((0, 2, 3), correction=0).mean().item(), rel=1e-3)
    constant = torch.ones(2, 3, 64, 64)  # at half its size it has the same features, but for those near the border
    assert feature_references(model, constant)["upsampled_features"] < 0.5
    assert denoising_error(model, smooth) == pytest.approx(model(smooth).loss.item(), rel=1e-4)


def test_a_wide_blur_is_that_of_torchvision():
    images = torch.randn(2, 3, 40, 56)
    torch.testing.assert_close(_wide_blur(images, 5.0), tvf.gaussian_blur(images, 31, 5.0), atol=1e-6, rtol=1e-5)
    assert _wide_blur(images, 100.0).shape == images.shape  # wider than the image


def test_the_error_of_masked_patches_is_the_loss_and_does_not_depend_on_the_batch(hybrid_config, smooth):
    fields = {"corruption": "masked", "prediction_type": "sample", "mask_patch_size": 20}
    model = DDePForPreTraining(hybrid_config(**fields))
    one, other = (denoising_error(model, smooth, batch_size=size) for size in (1, 4))
    assert one == pytest.approx(other, rel=1e-5)
    nn.init.zeros_(model.noise_head.weight)
    nn.init.constant_(model.noise_head.bias, 0.5)
    masks = draw_mask(validation_noise(smooth), 0.5, 20)
    expected = [(image[:, mask[0]] - 0.5).square().mean().item() for image, mask in zip(smooth, masks, strict=True)]
    assert denoising_error(model, smooth) == pytest.approx(sum(expected) / 6, rel=1e-4)


def test_every_corruption_is_in_all_lists():
    names = get_args(DDePConfig.__dataclass_fields__["corruption"].type)
    assert set(names) == set(get_args(Corruption)) == set(CORRUPTIONS) == set(EVALUATIONS)
    template = TEMPLATE.read_text()
    assert all(f'\n    "{name}": {{\n' in template for name in PREDICTED)
