"""Gradient checkpointing, both kinds: the gradients without it, for every method."""

import pytest
import torch
from tiny_models import (
    CONFIGS,
    Blocks,
    assert_same,
    bert,
    every_method,
    gpt2,
    gradients,
    llama,
    logits,
    move,
    numbers,
    tokens,
    vit,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import vbank
from vbank.methods.vb_lora import VBLoRAMethod

VB = CONFIGS[-1]
both_kinds = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


class Checkpointed(Blocks):
    """Blocks whose blocks are recomputed in the backward; `reentrant` None recomputes nothing."""

    reentrant: bool | None = None

    def forward(self, x):
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def blocks(config: vbank.Config, reentrant: bool | None, **settings) -> nn.Module:
    torch.manual_seed(0)
    model = Checkpointed()
    model.reentrant = reentrant
    vbank.attach(model, config, "all-linear", train=["head"], **settings)
    return move(model)


def entry(seed: int = 3) -> torch.Tensor:
    return numbers(5, 8, seed=seed).requires_grad_()  # a reentrant checkpoint needs an input that has a gradient


def compositions(monkeypatch) -> list[tuple]:
    """The rows of every composition that is made from now on."""
    made, compose = [], VBLoRAMethod.compose

    def counted(self, *rows):
        made.append(rows)
        return compose(self, *rows)

    monkeypatch.setattr(VBLoRAMethod, "compose", counted)
    return made


@every_method
@both_kinds
@pytest.mark.parametrize("build", [bert, gpt2, llama], ids=["bert", "gpt2", "llama"])
def test_transformers_own_checkpointing_gives_the_same_gradients(config, reentrant, build):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build().train()
        vbank.attach(model, config, "all-linear")
        move(model, std=0.1)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        found.append(gradients(model, logits(model, tokens()).square().mean()))
    scale = max(float(g.abs().max()) for g in found[0].values())
    assert scale > 1e-3
    assert_same(found[1], found[0], rtol=1e-5, atol=1e-6 * max(scale, 1.0))


@every_method
@both_kinds
def test_torchs_checkpointing_gives_the_same_gradients(config, reentrant):
    plain, recomputed = blocks(config, None), blocks(config, reentrant)
    expected = gradients(plain, plain(entry()).square().mean())
    for _ in range(2):  # also in a second step
        assert_same(gradients(recomputed, recomputed(entry()).square().mean()), expected, **CLOSE)


@every_method
@both_kinds
def test_two_forwards_before_one_backward(config, reentrant):
    plain, recomputed = blocks(config, None), blocks(config, reentrant)

    def contrast(model: nn.Module) -> torch.Tensor:
        return (model(entry(3)) * model(entry(4))).square().mean()

    assert_same(gradients(recomputed, contrast(recomputed)), gradients(plain, contrast(plain)), **CLOSE)


@every_method
@both_kinds
def test_an_evaluation_between_forward_and_backward(config, reentrant):
    plain, recomputed = blocks(config, None), blocks(config, reentrant)
    expected = gradients(plain, plain(entry()).square().mean())
    loss = recomputed(entry()).square().mean()
    with torch.no_grad():
        recomputed(entry(4))
        recomputed.blocks[1](entry(5))  # and a part of the model
    assert_same(gradients(recomputed, loss), expected, **CLOSE)


@every_method
def test_dropout_is_repeated_in_the_recomputation(config):
    config = type(config)(**(config.settings() | {"dropout": 0.5}))
    found = []
    for reentrant in (None, True, False):
        model = blocks(config, reentrant)
        torch.manual_seed(7)
        found.append(gradients(model, model(entry()).square().mean()))
    assert_same(found[1], found[0], **CLOSE)
    assert_same(found[2], found[0], **CLOSE)


@both_kinds
@pytest.mark.parametrize("selection", ["noisy_top_k", "gumbel_softmax", "straight_through"])
def test_a_selection_that_draws_repeats_its_draw_in_the_recomputation(selection, reentrant):
    config = vbank.VBLoRA(2, 9, 8, selection=selection)
    plain, recomputed = blocks(config, None), blocks(config, reentrant)
    found = []
    for model in (plain, recomputed):
        torch.manual_seed(7)
        found.append(gradients(model, (model(entry(3)) * model(entry(4))).square().mean()))
    assert_same(found[1], found[0], **CLOSE)
    torch.manual_seed(8)
    other = gradients(plain, (plain(entry(3)) * plain(entry(4))).square().mean())
    assert any(not torch.allclose(other[n], found[0][n], atol=1e-4) for n in other)  # the draw does matter


def test_the_graph_can_be_walked_twice():
    plain, recomputed = blocks(VB, None), blocks(VB, False)
    expected = gradients(plain, plain(entry()).square().mean())
    loss = recomputed(entry()).square().mean()
    loss.backward(retain_graph=True)
    assert_same(gradients(recomputed, loss), expected, **CLOSE)


def test_a_part_called_after_a_recomputation_has_its_gradient():
    model, twin = blocks(VB, None), blocks(VB, None)
    expected = torch.autograd.grad(twin.blocks[1](entry()).square().sum(), [twin.vbank["default"].method.logits])
    loss = checkpoint(model.blocks[0], entry(), use_reentrant=False).square().sum()
    with torch.no_grad():
        model(entry())  # drops the composition, so that the recomputation makes another
    loss.backward()
    found = torch.autograd.grad(model.blocks[1](entry()).square().sum(), [model.vbank["default"].method.logits])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_only_part_of_the_parameters_may_be_asked_for():
    plain, recomputed = blocks(VB, None), blocks(VB, False)
    found = []
    for model in (plain, recomputed):
        loss = model(entry()).square().mean()
        found.append(torch.autograd.grad(loss, [model.vbank["default"].method.logits])[0])
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_the_whole_model_may_be_one_checkpoint():
    plain = blocks(VB, None)
    expected = gradients(plain, plain(entry()).square().mean())
    for reentrant in (True, False):
        model = blocks(VB, None)
        loss = checkpoint(model, entry(), use_reentrant=reentrant).square().mean()
        assert_same(gradients(model, loss), expected, **CLOSE)


def test_non_reentrant_checkpointing_composes_once_a_step(monkeypatch):
    model = blocks(VB, False)
    made = compositions(monkeypatch)
    for step in range(3):
        gradients(model, model(entry()).square().mean())
        assert made == [()] * (step + 1)


def test_transformers_non_reentrant_checkpointing_composes_once_a_step(monkeypatch):
    model = bert().train()
    vbank.attach(model, VB, "all-linear")
    model.activation_checkpointing_enable({"use_reentrant": False})
    made = compositions(monkeypatch)
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr=0.1))
    for step in range(3):
        gradients(model, logits(model, tokens()).square().mean())
        optimizer.step()
        assert made == [()] * (step + 1)


def test_a_frozen_embedding_lets_reentrant_checkpoints_start():
    model, x = vit().train(), numbers(2, 3, 8, 8)
    vbank.attach(model, VB, "qv")  # nothing before the first checkpoint is trained
    model.activation_checkpointing_enable({"use_reentrant": True})
    found = gradients(model, logits(model, x).square().mean())
    assert all(g.abs().max() > 0 for g in found.values())
    vbank.detach(model)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("reentrant", [None, False])
def test_saved_tensors_may_be_kept_elsewhere(reentrant):
    model = blocks(VB, reentrant)
    expected = gradients(model, model(entry()).square().mean())
    with torch.autograd.graph.save_on_cpu():
        loss = model(entry()).square().mean()
    assert_same(gradients(model, loss), expected, **CLOSE)
