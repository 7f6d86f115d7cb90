"""Losses of images without labels: joint denoising, and consistency."""

import types

import pytest
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.data.samplers import StepBatchSampler, example_seed, pair_batches
from ddep_hub.training.losses import (
    IGNORE_INDEX,
    UnlabelledLoss,
    freeze_batch_norm_statistics,
    random_box,
    sample_noise,
)
from ddep_hub.training.optim import set_encoder_mode


@pytest.fixture
def model(hybrid_config):
    return DDePForSemanticSegmentation(
        DDePConfig(
            encoder_name="tf_efficientnet_lite0", decoder_hidden_sizes=[8] * 5, decoder_bottleneck_size=8, num_labels=3
        )
    )


def loss_of(model, teacher=None, **fields):
    args = types.SimpleNamespace(**{"denoising_weight": 0.0, "consistency_weight": 0.0, "seed": 3, **fields})
    return UnlabelledLoss(model, args, Normalize([0.5] * 3, [0.5] * 3), lambda: teacher)


def batch():
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    return {"unlabelled": images, "strong": 255 - images, "inside": torch.ones(2, 64, 64, dtype=torch.bool)}


def test_the_denoising_loss_is_that_of_pretraining(model):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss, data = loss_of(model, denoising_weight=2.0), batch()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert model.noise_head.in_channels == 8 + 3  # beside the decoder's, the image: this encoder loses the noise
    set_encoder_mode(model, frozen=False, frozen_norms=False)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    (total,) = loss.sums(data, 7, [4, 5])
    (count,) = loss.counts(data)
    images = loss.normalize(data["unlabelled"])
    noise, sigma = sample_noise(images, (0.22, 0.22), 3, 7, [4, 5])
    expected = loss.denoiser.train()(pixel_values=images, noise=noise, sigma=sigma).loss
    model.train()
    torch.testing.assert_close(total / count, 2 * expected)
    total.backward()
    assert all(p.grad is None for p in model.ddep.encoder.parameters())  # the decoder alone, as in DDeP
    assert all(p.grad.abs().sum() > 0 for p in model.noise_head.parameters())
    loss.sums(data, 7, [4, 5])
    changed = [
        n for n, t in model.named_buffers() if "running" in n and "encoder" in n and not torch.equal(t, before[n])
    ]
    assert not changed and modes == [module.training for module in model.modules()]


class Teacher(nn.Module):
    """Sure of class 1 on the left half, unsure on the right."""

    def forward(self, pixel_values):
        self.seen = pixel_values
        logits = torch.zeros(len(pixel_values), 3, *pixel_values.shape[-2:])
        logits[:, 1, :, :32] = 9.0
        return types.SimpleNamespace(logits=logits)


def test_consistency_learns_from_confident_pixels_alone(model, monkeypatch):
    monkeypatch.setattr("ddep_hub.training.losses.random_box", lambda size, seed: torch.zeros(*size) > 0)
    teacher = Teacher()
    loss, data = loss_of(model, teacher, consistency_weight=1.0), batch()
    data["inside"][:, :8] = False
    (total,) = loss.sums(data, 0, [0, 1])
    assert torch.equal(teacher.seen, loss.normalize(data["unlabelled"]))  # the images before the strong changes
    (count,) = loss.counts(data)
    assert count == 2 * 56 * 64
    with freeze_batch_norm_statistics(model):
        logits = model(pixel_values=loss.normalize(data["strong"])).logits
    entropy = -logits.log_softmax(1)[:, 1, 8:, :32]
    torch.testing.assert_close(total, entropy.sum())


def test_pasted_boxes_bring_their_labels(model, monkeypatch):
    """Where image 0 gets a box of image 1, it gets the teacher's labels of image 1."""
    seeds, seen = [], {}
    monkeypatch.setattr(
        "ddep_hub.training.losses.random_box", lambda size, seed: seeds.append(seed) or torch.ones(*size) > 0
    )
    monkeypatch.setattr(
        model, "forward", lambda pixel_values: seen.update(images=pixel_values) or Teacher()(pixel_values)
    )
    cross_entropy = torch.nn.functional.cross_entropy

    def recorded(logits, labels, **kwargs):
        seen["labels"] = labels
        return cross_entropy(logits, labels, **kwargs)

    monkeypatch.setattr("ddep_hub.training.losses.F.cross_entropy", recorded)
    loss, data = loss_of(model, Teacher(), consistency_weight=1.0), batch()
    data["inside"][1] = False
    loss.sums(data, 7, [4, 5])
    assert seeds == [example_seed(3, 7, 4), example_seed(3, 7, 5)]  # others in each step, wherever the image lies
    assert torch.equal(seen["images"], loss.normalize(data["strong"]).roll(1, 0))
    assert (seen["labels"][0] == IGNORE_INDEX).all() and (seen["labels"][1, :, :32] == 1).all()


def test_boxes_and_statistics(model):
    boxes = [random_box((40, 60), seed) for seed in range(200)]
    shares = [float(box.float().mean()) for box in boxes]
    corners = [(box.nonzero().amin(0), box.nonzero().amax(0), box.sum()) for box in boxes if box.any()]
    assert all(area == (end - start + 1).prod() for start, end, area in corners)
    places = torch.stack([start / (torch.tensor([39, 59]) - end + start).clamp(min=1) for start, end, _ in corners]).T
    assert places.amin(1).max() < 0.1 and places.amax(1).min() > 0.9  # from one edge to the other
    assert torch.corrcoef(places)[0, 1].abs() < 0.4  # rows and columns are drawn apart
    assert 60 < sum(share == 0 for share in shares) < 140 and max(shares) <= 0.45
    assert min(share for share in shares if share) > 0.005
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}
    momentum = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises(RuntimeError), freeze_batch_norm_statistics(model):
        model.train()(torch.randn(2, 3, 64, 64))
        raise RuntimeError
    assert all(torch.equal(tensor, dict(model.named_buffers())[name]) for name, tensor in before.items())
    assert momentum == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_pairs_of_a_resumed_run():
    def pairs(start):
        one, other = (StepBatchSampler(n, seed=0, global_batch_size=3, start_step=start, end_step=9) for n in (4, 10))
        return list(pair_batches(one, other))

    assert pairs(5) == pairs(0)[5:] and len(pairs(0)[0]) == 3
    assert {index for batch in pairs(0) for _, (_, index) in batch} == set(range(10))
