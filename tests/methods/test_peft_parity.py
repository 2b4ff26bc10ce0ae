"""LoRA, VeRA and VB-LoRA against Hugging Face PEFT's own layers with the same parameters: outputs and gradients."""

import copy
import warnings

import pytest
import torch
from torch import nn

import vbank

peft = pytest.importorskip("peft")
from transformers.pytorch_utils import Conv1D  # noqa: E402

TOLERANCE = 1e-5
LAYERS = ["inner", "wide", "narrow"]


class Net(nn.Module):
    """Three layers of different shapes, so that a shared pair must be sliced and a bank serves several sizes."""

    def __init__(self, kind: str) -> None:
        super().__init__()

        def layer(n_in: int, n_out: int) -> nn.Module:
            return nn.Linear(n_in, n_out) if kind == "linear" else Conv1D(n_out, n_in)

        self.inner, self.wide, self.narrow = layer(12, 12), layer(12, 24), layer(24, 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.inner(x))
        return self.narrow(torch.tanh(self.wide(x)))


def pair(kind: str, config: vbank.Config, theirs: "peft.PeftConfig"):
    """One network twice: with our adapter and with PEFT's."""
    base = Net(kind)
    ours = copy.deepcopy(base)
    adapter = vbank.attach(ours, config, targets=LAYERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(base), theirs)
    layers = {name: getattr(wrapped.base_model.model, name) for name in LAYERS}
    return ours, adapter.method, wrapped, layers


def compare(ours: nn.Module, wrapped: nn.Module, parameters: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Outputs, the gradient with respect to x, and each pair of parameters' gradients agree, and are not all zero."""
    x = torch.randn(2, 5, 12)
    weight = torch.randn(2, 5, 8)
    results = []
    for model in (ours, wrapped):
        model.train()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        (y * weight).sum().backward()
        results.append((y.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    with vbank.enabled(ours, False):
        assert (ours(x) - results[0][0]).abs().max() > 1e-2  # the adapters do something
    for a, b in parameters:
        assert a.grad.abs().max() > 1e-4
        torch.testing.assert_close(a.grad, b.grad, rtol=TOLERANCE, atol=TOLERANCE)


kinds = pytest.mark.parametrize("kind", ["linear", "conv1d"])


@kinds
@pytest.mark.parametrize("rank, alpha", [(1, 1.0), (4, 16), (7, 3)])
def test_lora(kind, rank, alpha):
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=LAYERS, fan_in_fan_out=kind == "conv1d")
    ours, method, wrapped, layers = pair(kind, vbank.LoRA(rank, alpha), config)
    parameters = []
    for i, name in enumerate(LAYERS):
        A, B = layers[name].lora_A["default"].weight, layers[name].lora_B["default"].weight
        with torch.no_grad():
            A.normal_(), B.normal_()
            method.A[i].copy_(A)
            method.B[i].copy_(B)
        parameters += [(method.A[i], A), (method.B[i], B)]
    compare(ours, wrapped, parameters)


@kinds
def test_lora_starts_in_the_same_range(kind):
    config = peft.LoraConfig(r=200, target_modules=LAYERS, fan_in_fan_out=kind == "conv1d")
    _, method, _, layers = pair(kind, vbank.LoRA(200), config)
    for i, name in enumerate(LAYERS):
        theirs = layers[name].lora_A["default"].weight
        assert method.A[i].abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
        assert (layers[name].lora_B["default"].weight == 0).all() and (method.B[i] == 0).all()


@kinds
@pytest.mark.parametrize("rank, d_init, seed", [(1, 0.1, 0), (6, 0.5, 3), (32, 0.1, 42)])
def test_vera(kind, rank, d_init, seed):
    config = peft.VeraConfig(
        r=rank,
        d_initial=d_init,
        projection_prng_key=seed,
        target_modules=LAYERS,
        fan_in_fan_out=kind == "conv1d",
    )
    ours, method, wrapped, layers = pair(kind, vbank.VeRA(rank, d_init, seed), config)
    # nothing copied: the same seed gives the same frozen pair, sized for the largest layer on each side
    assert torch.equal(method.A0, wrapped.base_model.vera_A["default"])
    assert torch.equal(method.B0, wrapped.base_model.vera_B["default"])
    assert method.A0.shape == (rank, 24) and method.B0.shape == (24, rank)
    parameters = []
    for i, name in enumerate(LAYERS):
        d, b = layers[name].vera_lambda_d["default"], layers[name].vera_lambda_b["default"]
        assert torch.equal(method.d[i], d) and torch.equal(method.b[i], b)
        with torch.no_grad():
            d.normal_(), b.normal_()
            method.d[i].copy_(d)
            method.b[i].copy_(b)
        parameters += [(method.d[i], d), (method.b[i], b)]
    compare(ours, wrapped, parameters)


@kinds
@pytest.mark.parametrize("rank, num_vectors, top_k", [(1, 5, 1), (3, 11, 2), (2, 11, 5), (4, 6, 6)])
def test_vb_lora(kind, rank, num_vectors, top_k):
    config = peft.VBLoRAConfig(
        r=rank,
        num_vectors=num_vectors,
        vector_length=4,
        topk=top_k,
        target_modules=LAYERS,
        fan_in_fan_out=kind == "conv1d",
    )
    ours, method, wrapped, layers = pair(kind, vbank.VBLoRA(rank, num_vectors, 4, top_k), config)
    bank = wrapped.base_model.vblora_vector_bank["default"]
    rows, logits = [], []
    with torch.no_grad():
        bank.normal_()
        method.bank.copy_(bank)
        for name in LAYERS:
            A, B = layers[name].vblora_logits_A["default"], layers[name].vblora_logits_B["default"]
            A.normal_(), B.normal_()
            rows += [A.flatten(0, 1), B.flatten(0, 1)]  # (rank, in / b, h) and (out / b, rank, h)
            logits += [A, B]
        method.logits.copy_(torch.cat(rows))
    assert wrapped.base_model.get_nb_savable_parameters()[0] == method.bank.numel() + method.logits.numel()
    compare(ours, wrapped, [(method.bank, bank)])
    theirs = torch.cat([t.grad.flatten(0, 1) for t in logits])
    assert (method.logits.grad.abs().max() > 1e-4) == (top_k > 1)
    torch.testing.assert_close(method.logits.grad, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@kinds
def test_vb_lora_starts_in_the_same_range(kind):
    config = peft.VBLoRAConfig(
        r=8,
        num_vectors=300,
        vector_length=4,
        init_logits_std=0.01,  # the paper's and its authors' code's; PEFT's own default is 0.1
        target_modules=LAYERS,
        fan_in_fan_out=kind == "conv1d",
    )
    _, method, wrapped, layers = pair(kind, vbank.VBLoRA(8, 300, 4), config)
    bank = wrapped.base_model.vblora_vector_bank["default"]
    assert bank.abs().max().item() == pytest.approx(method.bank.abs().max().item(), rel=0.01)
    logits = layers["wide"].vblora_logits_A["default"]
    assert logits.std().item() == pytest.approx(method.logits.std().item(), rel=0.05)


@kinds
@pytest.mark.parametrize("method", ["lora", "vera", "vb-lora"])
def test_a_merged_weight_is_peft_s(kind, method):
    fan = kind == "conv1d"
    ours, theirs = {
        "lora": (
            vbank.LoRA(3, 6),
            peft.LoraConfig(r=3, lora_alpha=6, target_modules=LAYERS, fan_in_fan_out=fan, init_lora_weights=False),
        ),
        "vera": (vbank.VeRA(3), peft.VeraConfig(r=3, target_modules=LAYERS, fan_in_fan_out=fan)),
        "vb-lora": (
            vbank.VBLoRA(3, 9, 4),
            peft.VBLoRAConfig(r=3, num_vectors=9, vector_length=4, target_modules=LAYERS, fan_in_fan_out=fan),
        ),
    }[method]
    _, built, wrapped, layers = pair(kind, ours, theirs)
    for name, layer in layers.items():
        with torch.no_grad():
            if method == "lora":
                i = built.index[name]
                built.A[i].copy_(layer.lora_A["default"].weight)
                built.B[i].copy_(layer.lora_B["default"].weight)
            elif method == "vera":
                i = built.index[name]
                built.b[i].normal_()
                layer.vera_lambda_b["default"].copy_(built.b[i])
            else:
                start, middle, end = built.spans[built.index[name]]
                bank = wrapped.base_model.vblora_vector_bank["default"]
                bank.copy_(built.bank)
                A, B = layer.vblora_logits_A["default"], layer.vblora_logits_B["default"]
                A.copy_(built.logits[start:middle].reshape(A.shape))
                B.copy_(built.logits[middle:end].reshape(B.shape))
        expected = layer.get_delta_weight("default")
        got = vbank.delta(built, name)
        assert got.abs().max() > 1e-5
        torch.testing.assert_close(
            got.T if fan else got, expected, rtol=TOLERANCE, atol=TOLERANCE * got.abs().max().item()
        )
