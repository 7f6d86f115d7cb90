"""What a run makes of its machine."""

import contextlib
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, GradientState
from launching import run_fork
from torch.overrides import _get_current_function_mode_stack

from ddep_hub.training import step
from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.training.optim import build_optimizer
from ddep_hub.utils import hardware, processes
from ddep_hub.utils.depthwise import FastDepthwise
from ddep_hub.utils.hardware import get_native_precision, supports_bf16_convolution
from ddep_hub.utils.processes import build_accelerator


@pytest.fixture
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "no"),
        ({}, "no"),
    ],
)
def test_the_format_follows_the_cpu(capabilities, wanted, monkeypatch, fresh_state):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_native_precision(torch.device("cpu")) == wanted
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert build_accelerator("auto").mixed_precision == wanted
    # The launcher's word counts for more, an argument for most; one process can have runs in both formats.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert build_accelerator("bf16").mixed_precision == "bf16"
    assert build_accelerator("no").mixed_precision == "no"
    assert build_accelerator("bf16").mixed_precision == "bf16"
    assert build_accelerator("auto").mixed_precision == "no"


def test_channels_that_the_cpu_convolves_wrongly_in_bfloat16(monkeypatch, fresh_state, caplog):
    """oneDNN's AMX kernels return noise for some numbers of channels; whether this CPU's do is not known here."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    exact = torch.nn.functional.conv2d

    def convolve(images, weight, **options):
        wrong = images.dtype == torch.bfloat16 and images.shape[1] == 4 and weight.shape[-1] == 16
        return exact(images.float(), weight.float() * (-1 if wrong else 1), **options).to(images.dtype)

    monkeypatch.setattr(hardware.functional, "conv2d", convolve)
    supports_bf16_convolution.cache_clear()
    assert build_accelerator("auto", channels=4).mixed_precision == "no" and not caplog.text
    assert build_accelerator("bf16", channels=4).mixed_precision == "bf16"
    assert "bfloat16 convolutions of 4 channels are wrong on this CPU" in caplog.text
    assert build_accelerator("auto", channels=5).mixed_precision == "bf16"
    supports_bf16_convolution.cache_clear()


def test_a_run_that_is_told_to_use_the_cpu_has_its_format(monkeypatch, fresh_state):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes, "get_native_precision", lambda device, _: "no" if device.type == "cpu" else "bf16")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert build_accelerator("auto").mixed_precision == "no"


def test_the_launchers_gradient_accumulation_divides_nothing(monkeypatch, fresh_state):
    """A run accumulates by itself; accelerate would divide the loss once more."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(1))
    build_accelerator("no").backward(weight.sum())
    assert weight.grad.item() == 1


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "message"),
    [
        ("FSDP", False, "FSDP version 1 is not supported. Pass `--fsdp_version 2`"),
        ("DEEPSPEED", False, "DEEPSPEED is not supported"),
        ("FSDP", True, None),
        ("MULTI_GPU", False, None),
    ],
)
def test_sharding_that_no_checkpoint_would_hold_is_refused(kind, is_fsdp2, message):
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=is_fsdp2)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        processes._check_sharding(accelerator)


PROGRAM = """
import resource
import torch
from ddep_hub.utils.processes import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16_000_000)  # 15600 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_kept_unless_malloc_is_set_up_already(own, tmp_path, monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_fork(tmp_path / "program.py")
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    if kept == "False" and not own:
        pytest.skip("not glibc")
    assert (kept == "True") is not own
    assert (int(faults) < 10_000) is not own


@pytest.mark.parametrize(
    ("precision", "native", "encoder", "wanted"),
    [
        ("bf16", "bf16", "tf_efficientnet_lite0", True),
        ("bf16", "bf16", "resnet10t", False),
        ("bf16", "no", "tf_efficientnet_lite0", False),
        ("no", "bf16", "tf_efficientnet_lite0", False),
    ],
)
def test_slow_gradients_are_replaced_where_bf16_is_native(
    precision, native, encoder, wanted, monkeypatch, fresh_state
):
    monkeypatch.setattr(step, "get_native_precision", lambda device: native)
    accelerator = build_accelerator(precision, cpu=True)
    model = timm.create_model(encoder, num_classes=2)
    args = FinetuneArguments(batch_size=2, mixed_precision=precision)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, args, None))
    training_step = step.TrainingStep(accelerator, args, model, optimizer, 0.0)
    used = []

    class Losses:
        def loss_counts(self, batch):
            return [torch.tensor(2.0)]

        def loss_sums(self, model, batch, step, positions):
            used.append(any(isinstance(mode, FastDepthwise) for mode in _get_current_function_mode_stack()))
            return [model(batch["image"]).float().square().sum()]

    training_step.take(Losses(), {"image": torch.randn(2, 3, 32, 32)}, 0, [], wants_to_stop=False)
    assert used == [wanted] and training_step.grad_norm.isfinite()
