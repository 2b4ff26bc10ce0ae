"""Compact files: their bytes against the formula, half precision, and training on from them."""

import json
import math

import pytest
import torch
from test_checkpoint import CONFIGS, VARIANTS, attached, base, batch, files, loaded, payload, relative, tensor_bytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vbank
from vbank import architectures
from vbank.adapters import Adapter
from vbank.attachment import install
from vbank.targets import resolve


def size(path) -> int:
    return sum(len(content) for content in files(path).values())


# Bytes against the formula

PAPER = vbank.VBLoRA(rank=4, num_vectors=90, vector_length=256, top_k=2)
LLAMA = vbank.VBLoRA(rank=4, num_vectors=2048, vector_length=256, top_k=2)


def skeleton(architecture: str, targets: str, config: vbank.Config) -> nn.Module:
    """The architecture without weights, with an adapter as a compact file leaves it: of VB-LoRA no logits."""
    model = architectures.build(architecture)
    parts = resolve(model, targets)
    sites = [part.site for part in parts]
    if isinstance(config, vbank.VBLoRA):
        method = config.build(sites, device="meta")
        shapes = {key: (value.shape, value.dtype) for key, value in method.compact_tensors().items()}
        tensors = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in shapes.items()}
        tensors["bank"].normal_()
        tensors["indices"][:, 1:] = torch.arange(1, config.top_k)
        method.read(tensors, "compact")
    else:
        method = config.build(sites)
    install(model, Adapter("default", config, method, parts, targets))
    return model


@pytest.mark.parametrize(
    "architecture, targets, config, payload_bytes",
    [
        ("roberta-base", "qv", PAPER, 95_616),
        ("llama2-7b", "all-linear", LLAMA, 2_409_472),
        ("roberta-base", "qv", vbank.VeRA(rank=1024), 4 * 24 * (768 + 1024)),
    ],
    ids=["RoBERTa-base", "Llama-2-7B", "VeRA"],
)
def test_a_compact_folder_is_the_formula_and_one_percent(architecture, targets, config, payload_bytes, tmp_path):
    model = skeleton(architecture, targets, config)
    vbank.save(model, tmp_path / "full")
    counted = vbank.count_sites(config, architectures.sites(architecture, targets))
    assert tensor_bytes(payload(tmp_path / "full")) == counted.bytes == payload_bytes
    assert size(tmp_path / "full") <= 1.01 * counted.bytes + 4096

    vbank.save(model, tmp_path / "half", half=True)
    counted = vbank.count_sites(config, architectures.sites(architecture, targets), itemsize=2)
    assert tensor_bytes(payload(tmp_path / "half")) == counted.bytes < 0.6 * payload_bytes
    assert size(tmp_path / "half") <= 1.01 * counted.bytes + 4096


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that was made outside the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor) and not value.is_meta]
        self.numel = max([self.numel, *(value.numel() for value in made)])
        return result


def test_loading_a_compact_file_makes_no_logits(tmp_path):
    """Llama-2-7B's would take 320 MB for a file of 2.4."""
    config = vbank.VBLoRA(rank=2, num_vectors=200, vector_length=1, top_k=2)
    vbank.save(attached(config, train=()), tmp_path)
    sub_vectors = 2 * (12 + 8 + 8 + 16)
    model = base()
    with Largest() as seen:
        vbank.load(model, tmp_path)
    assert seen.numel < 3 * 200 < sub_vectors * 200
    with Largest() as seen:
        vbank.load(base(), tmp_path, trainable=True)
    assert seen.numel == sub_vectors * 200


# Files of version 1


@pytest.mark.parametrize("form", ["compact", "resumable"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_files_of_version_1_are_read(config, form, tmp_path):
    """They lack `stored`, and their JSON is indented."""
    vbank.save(attached(config), tmp_path, form=form)
    before = loaded(tmp_path)(batch())
    file = tmp_path / "adapter.json"
    description = json.loads(file.read_text())
    del description["stored"]
    file.write_text(json.dumps(description | {"format_version": 1}, indent=1) + "\n")
    again = loaded(tmp_path)
    assert torch.equal(again(batch()), before)
    vbank.save(again, tmp_path, form=form)
    description = json.loads(file.read_text())
    assert (description["format_version"], description["stored"]) == (2, "float32")


# Half precision


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_half_takes_half_and_round_trips_exactly(config, tmp_path):
    model = attached(config).eval()
    vbank.save(model, tmp_path / "full")
    vbank.save(model, tmp_path / "0", half=True)
    stored, full = payload(tmp_path / "0"), payload(tmp_path / "full")
    for key, value in full.items():
        if value.is_floating_point():
            assert stored[key].dtype == torch.float16
            assert ((stored[key].float() - value).abs() <= (value.abs() * 2**-11).clamp(min=2**-25)).all()
        else:
            assert torch.equal(stored[key], value)
    again = loaded(tmp_path / "0").eval()
    method = again.vbank.adapter("default").method
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert again.head[0].weight.dtype == torch.float32
    assert 1e-6 < relative(again(batch()), model(batch())) < 5e-3
    for trip in ("1", "2"):
        vbank.save(again, tmp_path / trip, half=True)
        again = loaded(tmp_path / trip).eval()
        assert files(tmp_path / trip) == files(tmp_path / "0")
    assert json.loads((tmp_path / "0" / "adapter.json").read_text())["stored"] == "float16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_leaves_numbers_of_two_bytes_alone(dtype, tmp_path):
    """bfloat16 to float16 would lose range and spare nothing."""
    model = attached(CONFIGS["vb-lora"], dtype, train=())
    vbank.save(model, tmp_path / "own")
    vbank.save(model, tmp_path / "half", half=True)
    assert files(tmp_path / "own") == files(tmp_path / "half")


@pytest.mark.parametrize("config, key", [(CONFIGS["vb-lora"], "bank"), (CONFIGS["lora"], "B.0")], ids=["bank", "B"])
def test_half_refuses_what_float16_cannot_hold(config, key, tmp_path):
    model = attached(config)
    parameter = model.vbank.adapter("default").method.get_parameter(key)
    with torch.no_grad():
        parameter[0, 1] = 65_504.0
        vbank.save(model, tmp_path, half=True)
        before = files(tmp_path)
        parameter[0, 1] = -70_000.0
    with pytest.raises(ValueError, match=f"{key} of adapter 'default' holds 70,000, and float16 ends at 65,504"):
        vbank.save(model, tmp_path, half=True)
    assert files(tmp_path) == before
    vbank.save(model, tmp_path)


def test_half_refuses_the_form_that_keeps_every_bit(tmp_path):
    with pytest.raises(ValueError, match='half rounds.*"resumable"'):
        vbank.save(attached(CONFIGS["lora"]), tmp_path / "a", form="resumable", half=True)
    assert not (tmp_path / "a").exists()


def test_half_keeps_frozen_matrices_for_their_checksum(tmp_path):
    vbank.save(attached(CONFIGS["vera"]), tmp_path, frozen=True, half=True)
    tensors = payload(tmp_path)
    assert tensors["d.0"].dtype == torch.float16 and tensors["frozen.A0"].dtype == torch.float32
    loaded(tmp_path)


def test_mixed_types_in_one_file_are_refused(tmp_path):
    from test_checkpoint_damage import forge

    vbank.save(attached(CONFIGS["vb-lora"]), tmp_path, half=True)
    forge(tmp_path, payload(tmp_path) | {"weights": payload(tmp_path)["weights"].float()})
    with pytest.raises(vbank.CheckpointError, match="weights is torch.float32.*need torch.float16"):
        loaded(tmp_path)


# Training on from a compact file

REOPENED = {
    "k 1": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=1),
    "k 2": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=2),
    "k 3": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=3),
    "k h": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=9),
    "wide logits": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=2, logits_std=3.0),
    "all": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, selection="select_all"),
    "noisy": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=2, selection="noisy_top_k"),
    "gumbel": vbank.VBLoRA(rank=2, num_vectors=300, vector_length=4, top_k=2, selection="gumbel_softmax"),
}


def spread(config: vbank.VBLoRA, std: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose logits have this deviation: large ones drive weights to zero."""
    model = attached(config, dtype).eval()
    with torch.no_grad():
        model.vbank.adapter("default").method.logits.normal_(0.0, std)
    return model


def reopened(path) -> nn.Module:
    model = base()
    vbank.load(model, path, trainable=True)
    return model.eval()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "half"])
@pytest.mark.parametrize("std", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("config", REOPENED.values(), ids=REOPENED)
def test_reopened_gives_the_stored_outputs_and_choice(config, std, half, tmp_path):
    vbank.save(spread(config, std), tmp_path, half=half)
    frozen, model = loaded(tmp_path).eval(), reopened(tmp_path)
    assert relative(model(batch()), frozen(batch())) <= 1e-6
    stored, method = frozen.vbank.adapter("default").method, model.vbank.adapter("default").method
    assert torch.equal(method.bank, stored.bank)
    width = (len(method.logits), config.num_vectors)

    def spread_out(indices: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(width).scatter(1, indices, weights)

    shares = spread_out(*method.selected)
    torch.testing.assert_close(shares, spread_out(*stored.selected), rtol=4e-6, atol=1e-7)
    assert torch.equal(shares > 0, spread_out(stored.indices.long(), torch.ones_like(method.selected[1])) > 0)
    assert torch.isfinite(method.logits).all()


@pytest.mark.parametrize("std", [0.01, 1.0, 30.0])
def test_reopened_in_bfloat16_keeps_the_choice(std, tmp_path):
    vbank.save(spread(REOPENED["k 3"], std, torch.bfloat16), tmp_path)
    frozen, model = loaded(tmp_path).eval(), reopened(tmp_path)
    stored, method = frozen.vbank.adapter("default").method, model.vbank.adapter("default").method
    assert method.logits.dtype == torch.bfloat16
    assert torch.equal(method.selected[0].sort().values, stored.indices.long().sort().values)
    assert relative(model(batch()), frozen(batch())) <= 2**-4  # a logit keeps 8 bits


def chosen_and_next(path, config: vbank.VBLoRA) -> tuple[Tensor, Tensor]:
    """The smallest chosen logit and the largest of the others, for every sub-vector."""
    logits = reopened(path).vbank.adapter("default").method.logits.detach().sort(descending=True).values
    return logits[:, config.top_k - 1], logits[:, config.top_k]


def test_the_unchosen_stand_as_at_the_start_behind_a_margin(tmp_path):
    config = vbank.VBLoRA(rank=2, num_vectors=300, vector_length=4, top_k=3)
    model = attached(config)
    logits = model.vbank.adapter("default").method.logits
    with torch.no_grad():
        logits.fill_(-5.0)
        logits[:, 7], logits[:, 1], logits[:, 2] = 0.0, -0.9, -3.0  # steps of 0.9 and 2.1: 1.5 on average
    vbank.save(model, tmp_path)
    torch.manual_seed(5)
    least, best = chosen_and_next(tmp_path, config)
    torch.testing.assert_close(least - best, torch.full_like(least, 0.5), rtol=1e-5, atol=1e-5)  # a third
    again = reopened(tmp_path).vbank.adapter("default").method.logits
    rest = again[:, [n for n in range(300) if n not in (1, 2, 7)]]
    assert rest.std().item() == pytest.approx(config.logits_std, rel=0.05)
    torch.manual_seed(6)
    assert not torch.equal(again, reopened(tmp_path).vbank.adapter("default").method.logits)


def test_the_margin_of_an_untrained_choice_is_the_starts_deviation(tmp_path):
    for std in (0.01, 2.0):
        config = vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=2, logits_std=std)
        model = attached(config)
        with torch.no_grad():
            model.vbank.adapter("default").method.logits.fill_(0.0)  # equal weights
        vbank.save(model, tmp_path)
        least, best = chosen_and_next(tmp_path, config)
        torch.testing.assert_close(least - best, torch.full_like(least, std), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", REOPENED.values(), ids=REOPENED)
def test_reopened_trains(config, tmp_path):
    vbank.save(attached(config), tmp_path)
    torch.manual_seed(0)
    model = base()
    method = vbank.load(model, tmp_path, trainable=True).method
    model.train()
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr={"logits": 0.02, "default": 0.01}))
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    before, losses = {name: p.detach().clone() for name, p in method.named_parameters()}, []
    for _ in range(20):
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(method.logits.grad).all() and method.bank.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and math.isfinite(losses[-1])
    assert not torch.equal(method.bank, before["bank"])
    assert torch.equal(method.logits, before["logits"]) == (config.top_k == 1 and config.selection == "top_k")
    vbank.save(model.eval(), tmp_path / "on", form="resumable")
    assert torch.equal(loaded(tmp_path / "on").eval()(batch()), model(batch()))


def test_a_weight_of_zero_comes_back_as_the_rounding_of_one(tmp_path):
    """Its logarithm would be minus infinity, and no gradient would reach the logit again."""
    model = attached(REOPENED["k 2"])
    with torch.no_grad():
        logits = model.vbank.adapter("default").method.logits.fill_(-1e4)
        logits[:, 3], logits[:, 5] = 0.0, -1e3
    vbank.save(model, tmp_path)
    assert (payload(tmp_path)["weights"] == 0).all()
    again = reopened(tmp_path).vbank.adapter("default").method
    torch.testing.assert_close(again.logits[:, 3] - again.logits[:, 5], torch.full((22,), 24 * math.log(2.0)))
    assert relative(reopened(tmp_path)(batch()), loaded(tmp_path)(batch())) <= 1e-6


LACKING = ("vb-lora", "compact")  # the one that lacks its logits
WHOLE = [(method, form) for method in CONFIGS for form in ("compact", "resumable") if (method, form) != LACKING]


@pytest.mark.parametrize("method, form", WHOLE)
def test_trainable_changes_nothing_where_all_was_stored(method, form, tmp_path):
    config = CONFIGS[method]
    vbank.save(attached(config), tmp_path / "a", form=form)
    model = base()
    vbank.load(model, tmp_path / "a", trainable=True)
    vbank.save(model, tmp_path / "b", form=form)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_reopening_leaves_random_numbers_alone(tmp_path):
    vbank.save(attached(CONFIGS["vb-lora"]), tmp_path)
    state = torch.get_rng_state()
    reopened(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
