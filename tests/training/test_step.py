"""One optimizer step on a model of one weight, whose gradient is known."""

import types

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ddep_hub.training import step as step_module
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.step import TrainingStep


class SumOfProducts:
    """The loss is the mean over examples of weight * x, whose gradient is the mean of x."""

    def loss_counts(self, batch):
        return [torch.tensor(float(len(batch["x"])))]

    def loss_sums(self, model, batch, step, positions):
        assert len(positions) == len(batch["x"])
        return [model(batch["x"][:, None]).sum()]


class Root(SumOfProducts):
    """Finite where its gradient is not."""

    def loss_sums(self, model, batch, step, positions):
        return [(model(batch["x"][:, None]) * 0).sum().sqrt()]


class Nothing(SumOfProducts):
    """No element counts, as where all pixels are ignored."""

    def loss_counts(self, batch):
        return [torch.tensor(0.0)]

    def loss_sums(self, model, batch, step, positions):
        return [model(batch["x"][:, None]).sum() * 0]


@pytest.fixture
def training_step():
    """Makes steps of plain gradient descent with a learning rate of 1."""

    def make(**fields):
        arguments = {"batch_size": 3, "learning_rate": 1.0, "warmup_steps": 0, "max_steps": 10}
        args = PretrainArguments(**{**arguments, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, **fields})
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        group = {"params": list(model.parameters()), "peak_lr": args.learning_rate}
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD([group], lr=123.0))
        return TrainingStep(accelerator, args, model, optimizer, 0.0)

    return make


def take(steps, step=0, losses=None):
    """How far a step moves the weight."""
    before = steps.model.weight.item()
    batch = {"x": torch.tensor([1.0, 2.0, 6.0])}
    steps.take(losses or SumOfProducts(), batch, step, ["a.png"], wants_to_stop=False)
    return before - steps.model.weight.item()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_gradient_is_that_of_the_mean_over_the_batch(parts, training_step):
    steps = training_step(gradient_accumulation_steps=parts)
    assert take(steps) == pytest.approx(3) and steps.grad_norm.item() == pytest.approx(3)
    assert take(steps) == pytest.approx(3)  # nothing is left of the first one
    assert steps.loss_sum.item() == pytest.approx(-9)  # 0 and -3 * 3


def test_a_batch_without_labels_moves_nothing(training_step):
    steps = training_step()
    assert take(steps, losses=Nothing()) == 0
    steps.check_finite()


def test_gradients_are_clipped_to_their_largest_norm(training_step):
    steps = training_step(max_grad_norm=0.5)
    assert take(steps) == pytest.approx(0.5) and steps.grad_norm.item() == pytest.approx(3)
    assert take(training_step(max_grad_norm=5.0)) == pytest.approx(3)


def test_a_step_takes_the_learning_rate_of_its_number(training_step):
    steps = training_step(warmup_steps=3, max_steps=5, lr_scheduler_type="cosine")
    assert [take(steps, step) / 3 for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5])


def test_a_gradient_that_is_not_finite_is_an_error_though_the_loss_is(training_step):
    steps = training_step()
    take(steps, losses=Root())
    assert steps.loss_sum == 0
    with pytest.raises(FloatingPointError, match=r"not finite in step 1, with the files a\.png"):
        steps.check_finite()


def test_only_steps_skipped_in_a_row_are_an_error(training_step, monkeypatch):
    """Float16's scaler skips single steps in any long run."""
    monkeypatch.setattr(step_module, "MAX_SKIPPED_STEPS", 3)
    skipped = iter([True, True, False, True, True, True])
    steps = training_step()
    steps.optimizer = types.SimpleNamespace(
        param_groups=steps.optimizer.param_groups, step=lambda: None, zero_grad=lambda: None
    )
    for step in range(6):
        steps.optimizer.step_was_skipped = next(skipped)
        if step < 5:
            take(steps, step)
    with pytest.raises(FloatingPointError, match="in the 3 steps up to step 6"):
        take(steps, 5)
