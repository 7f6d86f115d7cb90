"""Training with the tools users have: frozen encoders, accelerate, Trainer, checkpointing, export, compile."""

import copy
import shutil

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer, TrainingArguments

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, those that are not saved included."""
    return {name: t.detach().clone() for name, t in (*module.named_parameters(), *module.named_buffers())}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in state_of(module).items() if not torch.equal(tensor, before[name])}


class Images(torch.utils.data.Dataset):
    """A few random images with labels that can be told from them, or with all labels ignored."""

    def __init__(self, labelled: bool, ignored: bool = False) -> None:
        self.labelled, self.ignored = labelled, ignored

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixel_values = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(index))
        labels = torch.full((32, 64), 255) if self.ignored else (pixel_values[0] > 0).long()
        return {"pixel_values": pixel_values} | ({"labels": labels} if self.labelled else {})


def make(config_maker, head=DDePForPreTraining, **fields):
    model = head(config_maker(**fields))
    for module in model.modules():  # statistics that a step would move
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def plain_steps(model):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 32, 64)).loss.backward()
        optimizer.step()


def steps_after_training_a_part(model):
    model.train()
    model.ddep.train()  # reaches the encoder past the head's own `train`
    model.ddep.encoder.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    model(torch.randn(2, 3, 32, 64)).loss.backward()
    optimizer.step()


def accelerate_steps(model):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(prepared(torch.randn(2, 3, 32, 64)).loss)
        optimizer.step()


def trainer_steps(model, folder, labelled=False, ignored=False, **arguments):
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"weight_decay": 0.5, **arguments},
    )
    images = Images(labelled, ignored)
    trainer = Trainer(model=model, args=args, train_dataset=images, eval_dataset=images)
    trainer.train()
    return trainer


def drive(how, model, folder):
    trainer_steps(model, folder, save_strategy="no") if how == "trainer" else how(model)


WAYS = [plain_steps, steps_after_training_a_part, accelerate_steps, "trainer"]


@pytest.mark.parametrize("how", WAYS, ids=lambda how: getattr(how, "__name__", how))
def test_a_frozen_encoder_is_bit_identical_after_training(tmp_path, conv_config, how):
    model = make(conv_config)
    encoder, decoder = state_of(model.ddep.encoder), state_of(model.ddep.decoder)
    drive(how, model, tmp_path)
    assert changed(model.ddep.encoder, encoder) == set()
    assert changed(model.ddep.decoder, decoder) == set(decoder)
    assert not any(module.training for module in model.ddep.encoder.modules())
    assert all(parameter.grad is None for parameter in model.ddep.encoder.parameters())


@pytest.mark.parametrize("how", WAYS, ids=lambda how: getattr(how, "__name__", how))
def test_dep_trains_all(tmp_path, conv_config, how):
    model = make(conv_config, freeze_encoder=False)
    before = state_of(model)
    drive(how, model, tmp_path)
    assert changed(model, before) == set(before)


def test_only_pretraining_reads_freeze_encoder(conv_config):
    model = make(conv_config, DDePForSemanticSegmentation, freeze_encoder=True)
    before = state_of(model)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(torch.randn(2, 3, 32, 64), labels=torch.randint(0, 2, (2, 32, 64))).loss.backward()
    optimizer.step()
    assert changed(model, before) == set(before)


def test_a_frozen_encoder_stays_frozen_through_saving_and_loading(tmp_path, conv_config):
    make(conv_config).save_pretrained(tmp_path)
    model = DDePForPreTraining.from_pretrained(tmp_path).train()
    assert model.training and model.ddep.decoder.training and not model.ddep.encoder.training
    assert not any(parameter.requires_grad for parameter in model.ddep.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.ddep.decoder.parameters())
    again = DDePForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3).train()
    assert again.ddep.encoder.training and all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_encoder_stores_no_activations(hybrid_config, freeze):
    model = make(hybrid_config, freeze_encoder=freeze).train()
    model.requires_grad_(True)  # whoever does this must not undo the freezing
    saved, inside = [], []
    for module in model.ddep.encoder.modules():
        module.register_forward_pre_hook(lambda *_: inside.append(len(saved)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        outputs = model(torch.randn(2, 3, 64, 64), output_hidden_states=True)
    assert (outputs.hidden_states[0].grad_fn is None) == freeze
    assert (inside[-1] == 0) == freeze  # nothing had been saved when the encoder's last layer began
    outputs.loss.backward()
    assert (model.ddep.encoder.cls_token.grad is None) == freeze


@pytest.mark.parametrize(
    "head, labelled, fields",
    [
        (DDePForSemanticSegmentation, True, {}),
        (DDePForSemanticSegmentation, True, {"num_labels": 1}),
        (DDePForPreTraining, False, {}),
    ],
)
def test_trainer(tmp_path, hybrid_config, head, labelled, fields):
    trainer = trainer_steps(
        make(hybrid_config, head, **fields),
        tmp_path / "run",
        labelled,
        save_steps=1,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        lr_scheduler_type="constant",
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    scores = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = 1 + scores.index(min(scores))
    assert len(scores) == 2 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] > 0
    reloaded = head.from_pretrained(tmp_path / "run" / f"checkpoint-{best}")
    assert changed(reloaded, state_of(trainer.model)) == set()


def test_the_denoising_loss_is_the_mean_squared_error(conv_config):
    model = make(conv_config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 32, 64), "noise": torch.randn(2, 3, 32, 64), "sigma": 0.3}
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.loss, ((outputs.prediction - outputs.target) ** 2).mean())
    assert model(**inputs, return_loss=False).loss is None


def test_trainer_on_batches_without_labels(tmp_path, conv_config):
    model = make(conv_config, DDePForSemanticSegmentation)
    before = state_of(model)
    trainer = trainer_steps(model, tmp_path, True, True, save_strategy="no", logging_steps=1, weight_decay=0.0)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["loss"], entry["grad_norm"]) for entry in logged] == [(0, 0), (0, 0)]
    assert trainer.evaluate()["eval_loss"] == 0
    assert not {name for name in changed(model, before) if "running_" not in name and "num_batches" not in name}


def test_the_mean_is_over_the_labelled_pixels(conv_config):
    model = make(conv_config, DDePForSemanticSegmentation, num_labels=3)
    labels = torch.randint(0, 3, (2, 32, 64))
    labels[0] = labels[1, :5] = 255
    outputs = model(torch.randn(2, 3, 32, 64), labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits.movedim(1, -1)[labels < 255], labels[labels < 255])
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("head", [DDePForSemanticSegmentation, DDePForPreTraining])
def test_gradient_checkpointing_gives_the_same_gradients(hybrid_config, head):
    plain = make(hybrid_config, head, freeze_encoder=False).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    pixel_values = torch.randn(2, 3, 64, 64)
    inputs = {"labels": torch.randint(0, 2, (2, 64, 64))} if head is DDePForSemanticSegmentation else {"sigma": 0.3}
    calls, saved = {}, {}
    for name, model in (("plain", plain), ("checkpointed", checkpointed)):
        calls[name], saved[name] = [], 0
        for block in (*model.ddep.encoder.blocks, *model.ddep.decoder.blocks):
            # Not the last layer: checkpointing stops recomputing once it has what it needs.
            first = next(layer for layer in block.modules() if not list(layer.children()))
            first.register_forward_pre_hook(lambda *_, name=name: calls[name].append(1))

        def keep(tensor, name=name):
            saved[name] += tensor.numel()
            return tensor

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(pixel_values, **inputs).loss
        loss.backward()
    blocks = len(plain.ddep.encoder.blocks) + len(plain.ddep.decoder.blocks)
    assert (len(calls["plain"]), len(calls["checkpointed"])) == (blocks, 2 * blocks)
    assert saved["checkpointed"] < 0.7 * saved["plain"]
    for (name, expected), got in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)


def test_export_with_a_dynamic_batch(hybrid_config):
    model = make(hybrid_config, DDePForSemanticSegmentation).eval()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    batch = torch.export.Dim("batch", min=1, max=16)
    # 40x64 is padded inside.
    exported = torch.export.export(Logits(), (torch.randn(2, 3, 40, 64),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        pixel_values = torch.randn(size, 3, 40, 64)
        torch.testing.assert_close(exported(pixel_values), model(pixel_values).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compile(hybrid_config):
    sizes = {"decoder_hidden_sizes": [8], "decoder_bottleneck_size": 8}
    encoder = {"encoder_kwargs": {"embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": 32}}
    model = make(hybrid_config, DDePForSemanticSegmentation, **sizes, **encoder).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits, atol=1e-4, rtol=1e-3)
