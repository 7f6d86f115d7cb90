"""Windows, scales and flips: on models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.evaluation.inference import (
    InferenceOptions,
    blending_weights,
    predict_ids,
    predict_probabilities,
    window_positions,
)


class Pointwise(nn.Module):
    """Logits that depend on each pixel alone, so that windows cannot change them; notes what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        red, green, blue = pixel_values.unbind(1)
        return SimpleNamespace(logits=torch.stack([red, 2 * green, blue - red, red * green], dim=1))


class Sided(nn.Module):
    """Class 1 in the left half of what it is given, class 0 in the right one."""

    def forward(self, pixel_values):
        batch, _, height, width = pixel_values.shape
        left = (torch.arange(width) < width // 2).float().expand(batch, height, width)
        return SimpleNamespace(logits=torch.stack([-10 * left, 10 * left - 10], dim=1))


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 50)


@pytest.mark.parametrize("blending", ["uniform", "hann"])
@pytest.mark.parametrize(
    ("window", "stride"),
    [((16, 16), None), ((16, 24), (7, 24)), ((40, 25), (40, 25)), ((64, 16), None), ((99, 99), None)],
)
def test_windows_of_a_pointwise_model_change_nothing(window, stride, blending, images):
    model = Pointwise()
    options = InferenceOptions(window=window, stride=stride, blending=blending, window_batch=3)
    found = predict_probabilities(model, images, (40, 50), options)
    assert torch.allclose(found, model(images).logits.softmax(1), atol=1e-5)
    cut = (min(window[0], 40), min(window[1], 50))
    assert all(shape[0] <= 3 and shape[2:] == cut for shape in model.seen[:-1])
    assert torch.equal(predict_ids(model, images, (40, 50), options), found.argmax(1))


def test_the_halves_of_cityscapes_are_tiles():
    options = InferenceOptions(**get_dataset_info("cityscapes").evaluation)
    assert list(window_positions((1024, 2048), options.window, options.steps)) == [(0, 0), (0, 1024)]
    assert options.flip and options.scales == (1.0,)
    small = InferenceOptions(window=(8, 8), stride=(8, 8))
    found = predict_ids(Sided(), torch.zeros(1, 3, 8, 16), (8, 16), small)
    assert torch.equal(found[0, 0], torch.tensor([1] * 4 + [0] * 4 + [1] * 4 + [0] * 4))


def test_places_cover_the_image_and_end_with_it():
    assert list(window_positions((10, 7), (4, 7), (3, 3))) == [(0, 0), (3, 0), (6, 0)]
    assert list(window_positions((11, 7), (4, 7), (3, 3))) == [(0, 0), (3, 0), (6, 0), (7, 0)]
    weights = blending_weights((5, 8), "hann")
    assert weights.shape == (5, 8) and weights.min() > 0 and weights[2, 4] > 10 * weights[0, 0]
    assert torch.allclose(weights, weights.flip(0, 1), atol=1e-6)


def test_overlapping_windows_are_blended_by_their_weights():
    """Two windows of 8 that overlap in 4 columns: `Sided` says 0 in the overlap from the left, 1 from the right."""
    images = torch.zeros(1, 3, 8, 12)
    sure = torch.tensor([-10.0, 0.0]).softmax(0)[0].item()
    for blending in ("uniform", "hann"):
        options = InferenceOptions(window=(8, 8), stride=(8, 4), blending=blending)
        found = predict_probabilities(Sided(), images, (8, 12), options)[0, 1, 3]
        weights = blending_weights((8, 8), blending)[3]
        left, right = weights[4:], weights[:4]
        low = torch.tensor([0.0, -10.0]).softmax(0)[1].item()
        expected = (left * low + right * (1 - sure)) / (left + right)
        assert torch.allclose(found[4:8], expected, atol=1e-5)


def test_scales_and_flip_are_averaged(images):
    model = Pointwise()
    options = InferenceOptions(scales=(0.5, 1.0, 2.0), flip=True)
    found = predict_probabilities(model, images, (30, 60), options)
    assert [shape[2:] for shape in model.seen] == [(20, 25)] * 2 + [(40, 50)] * 2 + [(80, 100)] * 2
    assert torch.allclose(found.sum(1), torch.ones(2, 30, 60), atol=1e-5)
    expected = 0
    for size in [(20, 25), (40, 50), (80, 100)]:
        scaled = torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        logits = model(scaled).logits
        expected += torch.nn.functional.interpolate(logits, size=(30, 60), mode="bilinear").softmax(1) / 3
    assert torch.allclose(found, expected, atol=1e-5)  # a pointwise model does not see the flip
    both = predict_probabilities(Sided(), torch.zeros(1, 3, 4, 8), (4, 8), InferenceOptions(flip=True))
    assert torch.allclose(both, torch.full_like(both, 0.5), atol=1e-4)


def test_one_pass_is_what_is_done_without_options(images):
    model = Pointwise()
    assert torch.equal(predict_ids(model, images, (45, 70), InferenceOptions()), predict_ids(model, images, (45, 70)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": (4, 4)}, "set window as well"),
        ({"window": (0, 4)}, "window is"),
        ({"window": (4, 4), "stride": (5, 4)}, "gaps"),
        ({"blending": "gauss"}, "uniform or hann"),
        ({"scales": ()}, "scales is"),
        ({"scales": (1.0, -1.0)}, "scales is"),
        ({"window_batch": 0}, "window_batch"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**options)


@pytest.mark.parametrize("stride", [None, (5, 16), (16, 16)])
def test_ids_of_windows_need_memory_for_the_rows_of_one_window(stride, images):
    """However tall the image is: nothing of the size of all its probabilities is kept."""
    tall = images.repeat(1, 1, 8, 1)
    options = InferenceOptions(window=(16, 16), stride=stride, blending="hann")
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            largest.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Sizes():
        found = predict_ids(Pointwise(), tall, (320, 50), options)
    assert max(largest) < 4 * 320 * 50  # the probabilities of one of the two images
    assert torch.equal(found, predict_probabilities(Pointwise(), tall, (320, 50), options).argmax(1))


def test_no_gradients_are_kept(images):
    class Weighted(Pointwise):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, pixel_values):
            return super().forward(self.weight * pixel_values)

    assert not predict_probabilities(Weighted(), images, (40, 50), InferenceOptions()).requires_grad
