"""The denoising head that also sees the noisy image."""

import pytest
import torch

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.denoising import corrupt, noise_scale


@pytest.mark.parametrize("sigma", [0.1, 0.22, 1.0])
def test_noise_scale_is_the_factor_of_the_noise(sigma):
    clean, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for corruption in ("simple", "scaled"):
        with_noise = corrupt(clean, noise, sigma, corruption)
        without = corrupt(clean, torch.zeros_like(noise), sigma, corruption)
        torch.testing.assert_close(with_noise - without, noise_scale(sigma, corruption) * noise)


@pytest.mark.parametrize("corruption", ["simple", "scaled"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_the_head_sees_the_noise_at_its_own_place_and_scale(corruption, size, hybrid_config):
    """A head that copies the image: over a black image what it predicts is the noise itself."""
    model = DDePForPreTraining(hybrid_config(image_skip=True, corruption=corruption)).eval()
    features = model.ddep.decoder.out_channels
    assert model.noise_head.weight.shape[1] == features + 3
    with torch.no_grad():
        model.noise_head.weight.zero_()
        for channel in range(3):
            model.noise_head.weight[channel, features + channel, 1, 1] = 1
    noise = torch.randn(2, 3, *size)
    sigma = torch.tensor([0.1, 0.7])
    output = model(torch.zeros(2, 3, *size), noise=noise, sigma=sigma)
    torch.testing.assert_close(output.prediction, noise)


def test_off_by_default_and_dropped_with_the_head(hybrid_config, tmp_path):
    assert not hybrid_config().image_skip
    model = DDePForPreTraining(hybrid_config(image_skip=True))
    model.save_pretrained(tmp_path)
    segmentation = DDePForSemanticSegmentation.from_pretrained(tmp_path, num_labels=4)
    for name, tensor in model.ddep.state_dict().items():
        assert torch.equal(segmentation.ddep.state_dict()[name], tensor), name
    again = DDePForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.noise_head.weight, model.noise_head.weight)


def test_with_fewer_decoder_blocks(hybrid_config):
    config = hybrid_config(image_skip=True, decoder_hidden_sizes=[16, 16])
    output = DDePForPreTraining(config).train()(torch.randn(2, 3, 64, 96))
    assert output.prediction.shape == (2, 3, 64, 96)
    output.loss.backward()
