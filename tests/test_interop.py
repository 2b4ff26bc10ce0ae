"""PEFT's formats: what one side writes, the other reads, with equal outputs. Both directions, all methods."""

import copy
import warnings
from pathlib import Path

import peft
import peft_side
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, VBLoRAConfig, VeraConfig
from peft.utils.other import get_pattern_key
from tiny_models import EXACT, assert_same, every_method, logits, move, numbers, tokens
from torch import nn

import vbank
from vbank.interop import VLLM_LARGEST_RANK, target_modules
from vbank.peft_files import Folder
from vbank.peft_formats import _patterned, _patterns

EQUAL = 1e-5
QV, GPT2 = ["query", "value"], ["c_attn", "c_proj", "c_fc"]
BANK = {"num_vectors": 9, "vector_length": 8}


def ours(base, config, targets=QV, train=(), dtype=None, std=0.3):
    model = copy.deepcopy(base)
    vbank.attach(model, config, targets, train=train, dtype=dtype)
    move(model, std)
    with torch.no_grad():
        for parameter in model.vbank.adapter("default").head(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def far(one, other, x=None):
    """The largest difference between the outputs of two models."""
    x = tokens() if x is None else x
    with torch.no_grad():
        return (logits(one, x) - logits(other, x)).abs().max().item()


def read(base, folder, **kwargs):
    model = copy.deepcopy(base)
    vbank.from_peft(model, folder, **kwargs)
    return model.eval()


# From here to PEFT

OWN = {
    "lora": vbank.LoRA(rank=3, alpha=6),
    "lora without alpha": vbank.LoRA(rank=3, dropout=0.1),
    "vera": vbank.VeRA(rank=5, seed=11),
    "vera only b": vbank.VeRA(rank=5, train_d=False),
    "vera only d": vbank.VeRA(rank=5, train_b=False),
    **{f"vb-lora k={k}": vbank.VBLoRA(rank=2, top_k=k, **BANK) for k in (1, 2, 3, 9)},
    "vb-lora all": vbank.VBLoRA(rank=2, selection="select_all", **BANK),
}


@pytest.mark.parametrize("compact", [False, True], ids=["full", "compact"])
@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_peft_loads_our_files_and_gives_equal_outputs(bert, config, compact, tmp_path):
    model = ours(bert, config, train=["classifier"])
    assert far(model, bert) > 0.05
    vbank.to_peft(model, tmp_path / "out", compact=compact)
    theirs = peft_side.loaded(bert, tmp_path / "out")
    assert far(theirs, model) <= EQUAL
    assert far(read(bert, tmp_path / "out"), model) <= EQUAL
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_the_same_on_conv1d(gpt2, config, tmp_path):
    model = ours(gpt2, config, GPT2)
    assert far(model, gpt2) > 0.05
    vbank.to_peft(model, tmp_path, compact=True)
    assert peft_side.settings(tmp_path)["fan_in_fan_out"]
    assert far(peft_side.loaded(gpt2, tmp_path), model) <= EQUAL
    assert far(read(gpt2, tmp_path), model) <= EQUAL


@pytest.mark.parametrize("targets", ["qv", ["c_attn"], ["c_attn", "c_proj", "c_fc"]], ids=["qv", "fused", "all"])
@every_method
def test_any_method_becomes_a_plain_lora_on_gpt2(gpt2, config, targets, tmp_path):
    model = ours(gpt2, config, targets)
    vbank.to_peft(model, tmp_path, as_lora=True)
    assert far(peft_side.loaded(gpt2, tmp_path), model) <= EQUAL
    again = read(gpt2, tmp_path)
    assert far(again, model) <= EQUAL
    assert again.vbank.adapter("default").config.rank == config.rank * (2 if targets == "qv" else 1)


@pytest.mark.parametrize("train", [[], ["classifier"]], ids=["no head", "head"])
@every_method
def test_any_method_becomes_a_plain_lora_on_bert(bert, config, train, tmp_path):
    model = ours(bert, config, "all-linear", train=train).train()
    vbank.to_peft(model, tmp_path, as_lora=True)
    assert model.vbank.adapter("default").method.training
    settings = peft_side.settings(tmp_path)
    assert settings["peft_type"] == "LORA" and settings["lora_alpha"] == settings["r"] == config.rank
    assert not settings["rank_pattern"]
    assert far(peft_side.loaded(bert, tmp_path), model.eval()) <= EQUAL


def test_the_block_lora_of_a_fused_projection_leaves_the_key_alone(gpt2, tmp_path):
    model = ours(gpt2, vbank.LoRA(rank=3, alpha=6), "qv")
    vbank.to_peft(model, tmp_path, as_lora=True)
    tensors = peft_side.tensors(tmp_path)
    key = "base_model.model.transformer.h.0.attn.c_attn"
    A, B = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
    method = model.vbank.adapter("default").method
    (A_q, B_q), (A_v, B_v) = (method.factors(f"transformer.h.0.attn.c_attn:{part}") for part in ("query", "value"))
    wanted = torch.zeros(48, 6)
    wanted[:16, :3], wanted[32:, 3:] = 2 * B_q.detach(), 2 * B_v.detach()  # scale alpha / rank = 2
    torch.testing.assert_close(A, torch.cat([A_q, A_v]).detach(), **EXACT)
    torch.testing.assert_close(B, wanted, **EXACT)


def test_a_rank_above_the_layer_becomes_the_layers(tmp_path):
    """16 -> 16 takes rank 12 as it is, 16 -> 8 the update itself behind an identity of rank 8."""
    torch.manual_seed(7)
    base = tiny_models.llama().eval()
    model = ours(base, vbank.VeRA(rank=12), ["q_proj", "v_proj", "up_proj", "down_proj"])
    vbank.to_peft(model, tmp_path, as_lora=True)
    settings, tensors = peft_side.settings(tmp_path), peft_side.tensors(tmp_path)
    assert settings["r"] == 12 and set(settings["rank_pattern"].values()) == {8} == set(
        settings["alpha_pattern"].values()
    )
    v = "base_model.model.model.layers.1.self_attn.v_proj"
    assert tensors[f"{v}.lora_A.weight"].shape == (8, 16)
    torch.testing.assert_close(tensors[f"{v}.lora_B.weight"], torch.eye(8), **EXACT)
    delta = vbank.delta(model.vbank.adapter("default").method, "model.layers.1.self_attn.v_proj").detach()
    torch.testing.assert_close(tensors[f"{v}.lora_A.weight"], delta, rtol=1e-6, atol=1e-6)
    assert far(peft_side.loaded(base, tmp_path), model) <= EQUAL
    assert far(read(base, tmp_path), model) <= EQUAL


@pytest.mark.parametrize(("width", "warned"), [(VLLM_LARGEST_RANK, False), (VLLM_LARGEST_RANK + 8, True)])
def test_a_rank_that_vllm_does_not_serve_is_said(width, warned, tmp_path):
    model = nn.Sequential(nn.Linear(width, width, bias=False))
    vbank.attach(model, vbank.VeRA(rank=1024), ["0"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        vbank.to_peft(model, tmp_path, as_lora=True)
    assert [f"rank {width}; PEFT loads it, vLLM does not" in str(w.message) for w in said] == [True] * warned


@pytest.mark.parametrize("config", [vbank.LoRA(VLLM_LARGEST_RANK + 1), vbank.LoRA(2)], ids=["rank 513", "rank 2"])
@pytest.mark.parametrize("train", [["1"], []], ids=["head", "no head"])
def test_what_vllm_does_not_serve_is_said_of_loras_own_format_too(config, train, tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    vbank.attach(model, config, ["0"], train=train)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        vbank.to_peft(model, tmp_path)
    wanted = ["this LoRA has rank 513"] * (config.rank > 512) + ["this LoRA has a head, 1; PEFT loads it"] * len(train)
    assert [w.startswith(s) for w, s in zip([str(w.message) for w in said], wanted, strict=True)] == [True] * len(
        wanted
    )


def test_nothing_is_said_of_what_is_no_plain_lora(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    vbank.attach(model, vbank.VeRA(rank=1024), ["0"], train=["1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vbank.to_peft(model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [OWN["lora"], OWN["vera"], OWN["vb-lora k=3"]], ids=["lora", "vera", "vb-lora"])
def test_half_precision_adapters_go_through_unchanged(bert, config, dtype, tmp_path):
    model = ours(bert, config, dtype=dtype)
    vbank.to_peft(model, tmp_path / "full")
    again = read(bert, tmp_path / "full")
    assert_same(again.vbank.adapter("default").state_dict(), model.vbank.adapter("default").state_dict(), **EXACT)
    vbank.to_peft(model, tmp_path / "compact", compact=True)
    for form in ("full", "compact"):  # PEFT computes in float32 from the same numbers
        theirs = peft_side.loaded(bert, tmp_path / form)
        wide = copy.deepcopy(model)
        wide.vbank.adapter("default").float()
        assert far(theirs, wide) <= (EQUAL if form == "full" or config.method != "vb-lora" else 0.05)


def test_vera_draws_what_peft_draws_and_stores_a_pair_that_it_would_not(bert, tmp_path):
    model = ours(bert, vbank.VeRA(rank=5, seed=11), "all-linear")
    vbank.to_peft(model, tmp_path / "seed", compact=True)
    assert not any("vera_A" in key for key in peft_side.tensors(tmp_path / "seed"))
    theirs = peft_side.loaded(bert, tmp_path / "seed")
    method = model.vbank.adapter("default").method
    torch.testing.assert_close(theirs.base_model.vera_A["default"], method.A0, **EXACT)
    torch.testing.assert_close(theirs.base_model.vera_B["default"], method.B0, **EXACT)
    assert method.A0.shape == (5, 32) and method.B0.shape == (32, 5)
    for name, kwargs in {
        "init": {"config": vbank.VeRA(rank=5, init="uniform")},
        "bf16": {"dtype": torch.bfloat16},
    }.items():
        model = ours(bert, **{"config": vbank.VeRA(rank=5), "targets": QV} | kwargs)
        vbank.to_peft(model, tmp_path / name, compact=True)
        assert peft_side.settings(tmp_path / name)["save_projection"]
        model.vbank.adapter("default").float()
        assert far(peft_side.loaded(bert, tmp_path / name), model) <= EQUAL


def test_a_compact_adapter_goes_on_to_peft_compact(bert, tmp_path):
    model = ours(bert, OWN["vb-lora k=3"])
    vbank.save(model, tmp_path / "v")
    again = copy.deepcopy(bert)
    vbank.load(again, tmp_path / "v")
    vbank.to_peft(again.eval(), tmp_path / "p", compact=True)
    assert far(peft_side.loaded(bert, tmp_path / "p"), model) <= EQUAL
    with pytest.raises(ValueError, match="compact=True"):
        vbank.to_peft(again, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_the_named_adapter_is_written_with_its_own_head(bert, tmp_path):
    model = ours(bert, OWN["lora"], train=["classifier"])
    alone = copy.deepcopy(model)
    vbank.attach(model, OWN["vera"], QV, train=["classifier"], name="other")
    vbank.to_peft(model, tmp_path / "idle", name="default")
    assert far(peft_side.loaded(bert, tmp_path / "idle"), alone) <= EQUAL
    vbank.activate(model, "default")
    vbank.merge(model)
    vbank.to_peft(model, tmp_path / "merged")
    assert far(peft_side.loaded(bert, tmp_path / "merged"), alone) <= EQUAL


def test_an_adapter_that_is_off_is_written_with_its_own_head(bert, tmp_path):
    model = ours(bert, OWN["lora"], train=["classifier"])
    vbank.to_peft(model, tmp_path / "on")
    with vbank.enabled(model, False):
        vbank.to_peft(model, tmp_path / "off")
    assert far(peft_side.loaded(bert, tmp_path / "off"), model) <= EQUAL
    on, off = (sorted((file.name, file.read_bytes()) for file in (tmp_path / name).iterdir()) for name in ("on", "off"))
    assert on == off


class TwoHeads(nn.Module):
    """A head whose name is the end of another's, and layers whose names are ends of others that stay as they are."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"query": nn.Linear(8, 8), "key": nn.Linear(8, 8)})
        self.pre_classifier = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x):
        return self.classifier(self.pre_classifier(self.inner["key"](torch.tanh(self.inner["query"](self.query(x))))))


def test_names_that_peft_would_match_too_widely(tmp_path):
    base, x = TwoHeads(), numbers(5, 8)
    model = ours(base, vbank.LoRA(rank=2), r"query|inner\.key", train=["classifier"])
    vbank.to_peft(model, tmp_path)
    assert peft_side.settings(tmp_path)["target_modules"] == r"query|inner\.key"
    assert "base_model.model.pre_classifier.weight" in peft_side.tensors(tmp_path)
    assert far(peft_side.loaded(base, tmp_path), model, x) <= EQUAL
    assert far(read(base, tmp_path), model, x) <= EQUAL


def test_target_modules_are_as_short_as_they_can_be():
    base = tiny_models.bert()
    names = [n for n, m in base.named_modules() if isinstance(m, nn.Linear)]
    layer = [n for n in names if ".layer." in n]
    assert target_modules(base, [n for n in layer if n.endswith(("query", "value"))]) == QV
    output = [n for n in layer if n.endswith("attention.output.dense")]
    assert target_modules(base, output) == ["attention.output.dense"]
    assert target_modules(base, output[:1]) == ["layer.0.attention.output.dense"]


# From PEFT to here


def compacts(k, compact):
    return VBLoRAConfig(r=2, topk=k, target_modules=QV, save_only_topk_weights=compact, **BANK)


def lora(r, **changes):
    return LoraConfig(r=r, **{"target_modules": QV} | changes)


THEIRS = {
    "lora": lora(3, lora_alpha=6, lora_dropout=0.1),
    "rslora": lora(3, lora_alpha=5, use_rslora=True),
    "gaussian": lora(3, init_lora_weights="gaussian"),
    "rank pattern": lora(4, lora_alpha=4, rank_pattern={"value": 2}, alpha_pattern={"value": 2}),
    "larger ranks": lora(2, lora_alpha=3, rank_pattern={r"layer\.1\..*query": 5}),
    "alpha pattern": lora(4, alpha_pattern={"layer.0.attention.self.value": 20}),
    "both and rslora": lora(4, rank_pattern={"query": 2}, alpha_pattern={"query": 3}, use_rslora=True),
    "some layers": lora(3, layers_to_transform=[1]),
    "all but": lora(3, exclude_modules=["value"]),
    "vera": VeraConfig(r=6, projection_prng_key=5, target_modules=QV),
    "vera seed": VeraConfig(r=6, projection_prng_key=5, save_projection=False, target_modules=[*QV, "dense"]),
    **{f"vb-lora k={k} full": compacts(k, False) for k in (1, 2, 4)},
    **{f"vb-lora k={k} compact": compacts(k, True) for k in (1, 2, 4)},
}


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS)
def test_we_load_pefts_files_and_give_equal_outputs(bert, config, tmp_path):
    config = copy.deepcopy(config)
    config.modules_to_save = ["classifier"] if "dense" not in config.target_modules else None
    theirs = peft_side.saved(bert, config, tmp_path)
    assert far(theirs, bert) > 0.05
    state = torch.random.get_rng_state()
    model = read(bert, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert far(model, theirs) <= EQUAL
    vbank.save(model, tmp_path / "again")
    again = copy.deepcopy(bert)
    vbank.load(again, tmp_path / "again")
    assert far(again.eval(), theirs) <= EQUAL


@pytest.mark.parametrize("name", ["lora", "vera", "vb-lora k=2 full", "vb-lora k=4 compact"])
def test_the_same_from_conv1d(gpt2, name, tmp_path):
    config = copy.deepcopy(THEIRS[name])
    config.target_modules, config.fan_in_fan_out = set(GPT2), True
    theirs = peft_side.saved(gpt2, config, tmp_path)
    assert far(read(gpt2, tmp_path), theirs) <= EQUAL


@pytest.mark.parametrize("name", ["lora", "vera", "vera seed", "vb-lora k=2 full"])
def test_there_and_back_changes_no_bit(bert, name, tmp_path):
    peft_side.saved(bert, THEIRS[name], tmp_path / "theirs")
    model = read(bert, tmp_path / "theirs")
    vbank.to_peft(model, tmp_path / "ours", compact=name == "vera seed")
    assert_same(peft_side.tensors(tmp_path / "ours"), peft_side.tensors(tmp_path / "theirs"), **EXACT)
    there, here = peft_side.settings(tmp_path / "theirs"), peft_side.settings(tmp_path / "ours")
    for key in set(here) - {"target_modules", "rank_pattern", "alpha_pattern"}:
        assert here[key] == there[key], key


@pytest.mark.parametrize("name", ["lora", "rslora", "rank pattern", "vera", "vb-lora k=2 full"])
def test_training_goes_on_with_the_gradients_that_peft_has(bert, name, tmp_path):
    config = copy.deepcopy(THEIRS[name])
    for dropout in ("lora_dropout", "vera_dropout", "vblora_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    theirs = peft_side.saved(bert, config, tmp_path)
    model = read(bert, tmp_path)
    for side in (theirs, model):
        side.train()
    for parameter in theirs.parameters():
        parameter.requires_grad_(True)
    for side in (theirs, model):
        logits(side, tokens()).square().sum().backward()
    layer = "bert.encoder.layer.1.attention.self.value"
    grads = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    method = model.vbank.adapter("default").method
    i = method.index[layer]
    key = f"base_model.model.{layer}."
    if config.peft_type == "LORA":
        rank = 2 if name == "rank pattern" else config.r
        pairs = [(method.A[i].grad[:rank], "lora_A.weight"), (method.B[i].grad[:, :rank], "lora_B.weight")]
        assert not method.A[i].grad[rank:].any() and not method.B[i].grad[:, rank:].any()
    elif config.peft_type == "VERA":
        pairs = [(method.d[i].grad, "vera_lambda_d"), (method.b[i].grad, "vera_lambda_b")]
    else:
        start, middle, end = method.spans[i]
        pairs = [(method.logits.grad[start:middle].view(2, 2, 9), "vblora_logits_A")]
        pairs += [(method.logits.grad[middle:end].view(2, 2, 9), "vblora_logits_B")]
        bank = next(value for n, value in grads.items() if "vector_bank" in n)
        torch.testing.assert_close(method.bank.grad, bank, rtol=1e-4, atol=1e-6)
    for gradient, end in pairs:
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, grads[key + end], rtol=1e-4, atol=1e-6)


def test_an_adapter_of_lower_precision_and_one_of_two_types(bert, tmp_path):
    peft_side.saved(bert, THEIRS["lora"], tmp_path)
    values = peft_side.tensors(tmp_path)
    half = {key: v.bfloat16() for key, v in values.items()}
    peft_side.rewrite(tmp_path, values=half)
    assert read(bert, tmp_path).vbank.adapter("default").method.A[0].dtype == torch.bfloat16
    mixed = {key: v.half() if "lora_A" in key else v.bfloat16() for key, v in values.items()}
    peft_side.rewrite(tmp_path, values=mixed)
    model = read(bert, tmp_path)
    assert model.vbank.adapter("default").method.A[0].dtype == torch.float32  # holds both unchanged
    assert far(model, peft_side.loaded(bert, tmp_path)) <= EQUAL


def test_albert_shares_its_layers_on_both_sides(tmp_path):
    torch.manual_seed(7)
    base = tiny_models.albert().eval()
    theirs = peft_side.saved(base, LoraConfig(r=3, target_modules=QV), tmp_path / "p")
    assert far(read(base, tmp_path / "p"), theirs) <= EQUAL
    model = ours(base, vbank.VBLoRA(rank=2, **BANK), QV)
    vbank.to_peft(model, tmp_path / "v")
    assert far(peft_side.loaded(base, tmp_path / "v"), model) <= EQUAL


class Tied(nn.Module):
    """Two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))


def test_layers_that_share_a_weight_take_one_update(tmp_path):
    base, x = Tied(), numbers(5, 8)
    model = ours(base, vbank.LoRA(rank=2), ["one", "last"])
    assert len(model.vbank.adapter("default").sites) == 2
    vbank.to_peft(model, tmp_path / "v")
    assert far(peft_side.loaded(base, tmp_path / "v"), model, x) <= EQUAL
    assert far(read(base, tmp_path / "v"), model, x) <= EQUAL
    peft_side.saved(base, LoraConfig(r=2, target_modules=["one", "two"]), tmp_path / "p")
    with pytest.raises(ValueError, match="one shares its weight with two"):
        read(base, tmp_path / "p")


def test_a_compact_file_can_be_trained_on(bert, tmp_path):
    theirs = peft_side.saved(bert, THEIRS["vb-lora k=4 compact"], tmp_path)
    model = copy.deepcopy(bert)
    vbank.from_peft(model, tmp_path, trainable=True)
    assert far(model.eval(), theirs) <= EQUAL
    logits(model, tokens()).square().sum().backward()
    assert model.vbank.adapter("default").method.logits.grad.abs().max() > 0


def test_two_adapters_of_two_folders_are_two_adapters(bert, tmp_path):
    one = peft_side.saved(bert, THEIRS["lora"], tmp_path / "1")
    two = peft_side.saved(bert, THEIRS["vb-lora k=2 full"], tmp_path / "2")
    model = read(bert, tmp_path / "1", name="one")
    vbank.from_peft(model, tmp_path / "2", name="two")
    assert far(model.eval(), two) <= EQUAL
    vbank.activate(model, "one")
    assert far(model, one) <= EQUAL
    assert isinstance(peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path / "1"), peft.PeftModel)


PIECES = st.sampled_from(["a", "b", ".", r"\.", r"\d", "[0-9]", "1", "_", r"\-", "ab", "a.b"])
PATTERN = st.lists(st.tuples(PIECES, st.sampled_from(["", "", "*", "+", "?"])).map("".join), max_size=4).map("".join)
ANCHORED = st.tuples(st.sampled_from(["", "^"]), PATTERN, st.sampled_from(["", "$"])).map("".join)


@given(st.lists(ANCHORED, min_size=1, max_size=2).map("|".join), st.text("ab.1_-", max_size=8))
def test_a_rank_pattern_takes_what_pefts_regular_expression_takes(pattern, layer):
    found = Folder(Path(), {"rank_pattern": {pattern: 5}}, {}, {}, {}, torch.float32)
    wanted = 5 if get_pattern_key([pattern], layer) == pattern else 3  # where nothing matches, the layer's name
    assert _patterned(_patterns(found, "rank_pattern"), layer, 3) == wanted


@pytest.mark.parametrize(
    ("pattern", "layer"),
    [("^b", "a.b"), (r"\d", "a"), (r"\d", "a.1"), ("b$", "a.b"), ("a|^b", "c.b"), (r"a\.b", "axb")],
)
def test_anchors_and_digits_are_those_of_peft(pattern, layer):
    found = Folder(Path(), {"rank_pattern": {pattern: 5}}, {}, {}, {}, torch.float32)
    wanted = 5 if get_pattern_key([pattern], layer) == pattern else 3
    assert _patterned(_patterns(found, "rank_pattern"), layer, 3) == wanted


def test_a_rank_pattern_that_backtracks_for_ages_is_read_in_one_pass():
    found = Folder(
        Path(), {"rank_pattern": {"a*" * 200 + "b": 4, r".*\d+.*.*.*c": 5, "a+": 6}}, {}, {}, {}, torch.float32
    )
    patterns = _patterns(found, "rank_pattern")
    assert [_patterned(patterns, name, 3) for name in ("a" * 300, "a" * 300 + "b", "a1" * 99 + "c", "x")] == [
        6,
        4,
        5,
        3,
    ]
