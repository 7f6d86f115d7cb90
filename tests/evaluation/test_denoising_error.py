"""The denoising error and its references, on cases with known answers."""

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tvf

from ddep_hub import DDePForPreTraining
from ddep_hub.denoising import corrupt
from ddep_hub.evaluation.denoising_error import denoising_error


class Oracle(nn.Module):
    """Predicts a known multiple of the target."""

    def __init__(self, config, share):
        super().__init__()
        self.config, self.share = config, share
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values, noise, sigma):
        from ddep_hub.modeling_ddep import DDePForPreTrainingOutput

        target = noise if self.config.prediction_type == "epsilon" else pixel_values
        noisy = corrupt(pixel_values, noise, sigma, self.config.corruption)
        return DDePForPreTrainingOutput(prediction=self.share * target, noisy_pixel_values=noisy)


@pytest.fixture
def smooth():
    return tvf.gaussian_blur(torch.randn(6, 3, 48, 48), 31, 8.0) * 5


@pytest.mark.parametrize("corruption", ["scaled", "simple"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_a_perfect_prediction_has_no_error(corruption, prediction_type, hybrid_config, smooth):
    config = hybrid_config(corruption=corruption, prediction_type=prediction_type)
    figures = denoising_error(Oracle(config, 1.0), smooth)
    assert figures["denoising_error"] == pytest.approx(0, abs=1e-6)
    assert figures["predicting_zero"] == pytest.approx(1, abs=0.02)


def test_predicting_half_the_noise(hybrid_config, smooth):
    figures = denoising_error(Oracle(hybrid_config(), 0.5), smooth)
    assert figures["denoising_error"] == pytest.approx(0.25 * figures["predicting_zero"], rel=1e-4)


def test_a_blur_denoises_smooth_images_well_and_noise_not_at_all(hybrid_config, smooth):
    oracle = Oracle(hybrid_config(), 1.0)
    assert denoising_error(oracle, smooth)["gaussian_blur"] < 0.05
    assert denoising_error(oracle, torch.randn(4, 3, 48, 48))["gaussian_blur"] > 0.9


def test_the_error_is_that_of_the_model_and_does_not_depend_on_the_batch(hybrid_config, smooth):
    model = DDePForPreTraining(hybrid_config())
    one, other = (denoising_error(model, smooth, batch_size=size)["denoising_error"] for size in (1, 6))
    assert one == pytest.approx(other, rel=1e-5)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert one == pytest.approx(model(smooth, noise=noise).loss.item(), rel=1e-4)
