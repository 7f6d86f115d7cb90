"""BatchNorm folded into convolutions: the same outputs, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.encoders import build_encoder, extract_features
from ddep_hub.folding import fold_batch_norms


def used(module):
    """Gives BatchNorms the statistics of a trained network."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return module.eval()


def features(encoder, side=64):
    torch.manual_seed(1)
    return extract_features(encoder, torch.randn(2, 3, side, side))[0]


def norms(module):
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("tf_efficientnet_lite0", 0),
        ("resnet18", 0),
        ("mobilenetv4_conv_small", 0),
        ("repvgg_a0", None),  # BatchNorm on the identity branch
        ("regnety_002", 0),
        ("hrnet_w18_small", None),
        ("densenet121", None),  # BatchNorm in front of the convolution
    ],
)
def test_encoders_give_the_same_features(name, left):
    encoder = used(build_encoder(DDePConfig(encoder_name=name)))
    before = copy.deepcopy(encoder.state_dict())
    folded = fold_batch_norms(encoder, features)
    assert folded is not encoder and norms(folded) < norms(encoder)
    assert left is None or norms(folded) == left
    for found, wanted in zip(features(folded, 96), features(encoder, 96), strict=True):
        assert (found - wanted).norm() < 2e-5 * wanted.norm()
    after = encoder.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


def test_what_cannot_be_folded_stays():
    tokens = build_encoder(DDePConfig(encoder_name="swin_tiny_patch4_window7_224", encoder_kwargs={"img_size": 64}))
    assert fold_batch_norms(tokens.eval(), features) is tokens

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, images):
            output = self.conv(images)
            return output + self.norm(output)

    module, images = used(Twice()), torch.randn(1, 3, 8, 8)
    assert fold_batch_norms(module, lambda network: [network(images)]) is module
    in_training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert fold_batch_norms(in_training, lambda network: [network(images)]) is in_training
    half = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().bfloat16()
    assert fold_batch_norms(half, lambda network: [network(images)]) is half


def test_a_frozen_encoder_runs_folded_and_is_saved_as_it_was(tmp_path):
    model = DDePForPreTraining(DDePConfig(encoder_name="tf_efficientnet_lite0", decoder_hidden_sizes=[8] * 5))
    used(model.ddep.encoder)
    images, noise = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    plain = model.eval()(images, noise=noise).prediction
    model.ddep.fold_encoder()
    torch.testing.assert_close(model(images, noise=noise).prediction, plain, rtol=1e-3, atol=1e-4)
    assert not torch.equal(model(images, noise=noise).prediction, plain)  # the folded encoder did run
    model.ddep.encoder.train()
    model.ddep.fold_encoder()
    assert model.ddep.encoder.training  # its mode is what it was
    model.train()(images).loss.backward()
    assert all(parameter.grad is None for parameter in model.ddep.encoder.parameters())
    after = model.state_dict()
    encoder = [name for name in before if ".encoder." in name]
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in encoder)
    model.save_pretrained(tmp_path)
    assert DDePForPreTraining.from_pretrained(tmp_path)(images, noise=noise).prediction.shape == plain.shape


def test_folded_networks_are_compared_in_full_float32():
    """TF32, which convolutions on a GPU use by default, rounds folded weights to others."""
    convolutions = torch.backends.cudnn.conv
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    images, seen, previous = torch.randn(1, 3, 8, 8), [], convolutions.fp32_precision

    def run(module):
        seen.append(convolutions.fp32_precision)
        return [module(images)]

    try:
        convolutions.fp32_precision = "tf32"
        assert fold_batch_norms(network, run) is not network
        assert seen == ["ieee", "ieee"] and convolutions.fp32_precision == "tf32"
    finally:
        convolutions.fp32_precision = previous
