"""Many adapters on one model: every row of a batch is answered as its own adapter would answer alone."""

import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from served import alone, assert_distinct, assert_rows, write
from tiny_models import (
    CONFIGS,
    EXACT,
    Blocks,
    Convolutional,
    albert,
    assert_untouched,
    bert,
    fingerprint,
    four_bit,
    gpt2,
    llama,
    logits,
    numbers,
    roberta,
    tokens,
    vit,
)
from torch import nn

import vbank
from vbank.layers import to_training_layout

EVERY = {config.method: config for config in CONFIGS}
VARIANTS = EVERY | {
    "lora of another rank": vbank.LoRA(rank=5),
    "lora of rank 1": vbank.LoRA(rank=1, alpha=3),
    "vera of another seed": vbank.VeRA(rank=5, seed=9),
    "vera, own pairs": vbank.VeRA(rank=2, shared=False),
    "vera, only b": vbank.VeRA(rank=4, train_d=False),
    "vera, only d": vbank.VeRA(rank=4, train_b=False, init="uniform"),
    "prolora, unshared": vbank.PRoLoRA(rank=2, unshared_rank=2),
    "vb-lora, one vector": vbank.VBLoRA(rank=4, num_vectors=9, vector_length=4, top_k=1),
    "vb-lora, all vectors": vbank.VBLoRA(rank=2, num_vectors=5, vector_length=8, selection="select_all"),
}
MODELS = {
    "bert": (bert, "qv", lambda rows: tokens(rows)),
    "albert, one layer for all": (albert, ["query", "ffn"], lambda rows: tokens(rows)),
    "gpt2, slices of c_attn": (gpt2, "qv", lambda rows: tokens(rows)),
    "llama, all linear": (llama, "all-linear", lambda rows: tokens(rows)),
    "vit": (vit, "qv", lambda rows: numbers(rows, 3, 8, 8)),
    "blocks of Linear": (Blocks, "all-linear", lambda rows: numbers(rows, 3, 8)),
    "vectors, not sequences": (Blocks, "all-linear", lambda rows: numbers(rows, 8)),
    "Conv1D": (Convolutional, ["c_attn", "c_proj"], lambda rows: numbers(rows, 3, 8)),
}


def served(model, paths, **kwargs):
    server = vbank.serve(model, **kwargs)
    for name, path in paths.items():
        server.add(name, path)
    return server


@torch.no_grad()
def answer(server, names, x):
    with server.rows(names) as model:
        return logits(model, x)


@pytest.mark.parametrize(("make", "targets", "inputs"), MODELS.values(), ids=MODELS)
def test_mixed_rows_equal_each_adapter_alone(make, targets, inputs, tmp_path):
    model = make().eval()
    x = inputs(len(EVERY) + 1)
    paths = {name: write(model, c, tmp_path / name, targets, seed=i) for i, (name, c) in enumerate(EVERY.items())}
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    server = served(model, paths)
    names = ["vb-lora", None, "vera", "lora", "prolora", "tied-lora"]
    assert_rows(answer(server, names, x), names, each)
    for name in paths:
        torch.testing.assert_close(answer(server, [name] * 6, x), each[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer(server, [None] * 6, x), each[None], **EXACT)
    torch.testing.assert_close(alone(model, None, x), each[None], **EXACT)  # outside of `rows`


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """A BERT, fifteen adapters on disk, a server of them, and what each answers alone to six rows."""
    torch.manual_seed(0)
    model, folder = bert().eval(), tmp_path_factory.mktemp("variants")
    targets = [["query"], ["query", "value"], "all-linear", ["value", "dense"]]
    paths = {}
    for i, (name, config) in enumerate(VARIANTS.items()):
        train = ["classifier"] if i % 3 == 0 else ["pooler"] if i % 5 == 0 else []
        wanted = targets[i % 4] if targets[i % 4][-1] != "dense" or not train else "qv"
        paths[name] = write(model, config, folder / str(i), wanted, train, seed=i)
    x = tokens(6)
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    return served(model, paths, cache_bytes=20_000), x, each


@settings(max_examples=60)
@given(names=st.lists(st.sampled_from([None, *VARIANTS]), min_size=6, max_size=6))
def test_any_names_for_the_rows(variants, names):
    server, x, each = variants
    assert_rows(answer(server, names, x), names, each)


@settings(max_examples=20)
@given(one=st.sampled_from([None, *VARIANTS]), other=st.sampled_from([None, *VARIANTS]), cut=st.integers(0, 6))
def test_runs_of_equal_names(variants, one, other, cut):
    server, x, each = variants
    names = [one] * cut + [other] * (6 - cut)
    assert_rows(answer(server, names, x), names, each)


def test_whole_layers_and_slices_of_them_in_one_batch(tmp_path):
    model, x = gpt2().eval(), tokens(4)
    paths = {
        "slices": write(model, EVERY["lora"], tmp_path / "slices", "qv", seed=1),
        "whole": write(model, EVERY["lora"], tmp_path / "whole", ["c_attn"], seed=2),
        "everything": write(model, EVERY["tied-lora"], tmp_path / "everything", "all-linear", seed=3),
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    names = ["whole", "slices", None, "everything"]
    assert_rows(answer(served(model, paths), names, x), names, each)


FILES = {
    "resumable": {"form": "resumable"},
    "half": {"half": True},
}


@pytest.mark.parametrize("save", FILES.values(), ids=FILES)
@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_other_forms_of_files(config, save, tmp_path):
    model, x = bert().eval(), tokens(3)
    paths = {
        "a": write(model, config, tmp_path / "a", seed=1, **save),
        "b": write(model, config, tmp_path / "b", seed=2),
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    server = served(model, paths)
    assert_rows(answer(server, ["b", "a", None], x), ["b", "a", None], each)
    assert server.nbytes.adapters == 2 * vbank.count_sites(config, sites(model)).bytes  # logits are not kept


def sites(model, targets="qv"):
    return [part.site for part in vbank.targets.resolve(model, targets)]


def test_frozen_matrices_from_a_file(tmp_path):
    """A VeRA pair that no seed gives is served from the file; adapters with the seed's pair keep that one."""
    model, x = bert().eval(), tokens(4)
    paths = {"drawn": write(model, EVERY["vera"], tmp_path / "drawn", seed=1)}
    adapter = vbank.attach(model, EVERY["vera"], "qv")
    with torch.no_grad():
        for tensor in (*adapter.parameters(), *adapter.method.frozen_tensors().values()):
            tensor.normal_(std=0.3)
    for name in ("own", "twin"):
        paths[name] = tmp_path / name
        vbank.save(model, paths[name])
    vbank.detach(model)
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    server = served(model, paths)
    names = ["own", "drawn", None, "twin"]
    assert_rows(answer(server, names, x), names, each)
    assert server.nbytes.shared == 2 * (5 * 16 + 16 * 5) * 4


# Heads


def test_heads_of_the_rows(tmp_path):
    model, x = roberta().eval(), tokens(6)
    paths = {
        "head": write(model, EVERY["vb-lora"], tmp_path / "1", train=["classifier"], seed=1),
        "other": write(model, EVERY["lora"], tmp_path / "2", train=["classifier"], seed=2),
        "part": write(model, EVERY["lora"], tmp_path / "3", train=["classifier.out_proj"], seed=3),
        "none": write(model, EVERY["lora"], tmp_path / "4", seed=4),
        "norms": write(model, EVERY["lora"], tmp_path / "5", train=["LayerNorm"], seed=5),
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    before = fingerprint(model, x)
    server = served(model, paths)
    names = ["none", "head", "other", None, "part", "norms"]
    assert_rows(answer(server, names, x), names, each)
    for name in paths:
        torch.testing.assert_close(answer(server, [name] * 6, x), each[name], rtol=1e-5, atol=1e-5)
    assert server.nbytes.heads == 4 * sum(
        p.numel()
        for path in ("1", "2", "3", "5")
        for p in [value for key, value in payload(tmp_path / path).items() if key.startswith("head.")]
    )
    server.close()
    assert_untouched(before, model, x)


def payload(path):
    (file,) = path.glob("*.safetensors")
    return safetensors.torch.load_file(file)


def test_a_head_that_shares_its_weight_with_the_embedding(tmp_path):
    model, x = gpt2().eval(), tokens(3)
    assert model.lm_head.weight is model.transformer.wte.weight
    paths = {
        name: write(model, EVERY["lora"], tmp_path / name, train=["lm_head"], seed=i) for i, name in enumerate("ab")
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_rows(answer(served(model, paths), ["b", None, "a"], x), ["b", None, "a"], each)


# Generation


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation(make, settings, tmp_path):
    model, x = make().eval(), tokens(4, 5)
    settings = settings | {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    paths = {name: write(model, EVERY[name], tmp_path / name, "qv", seed=i) for i, name in enumerate(EVERY)}
    names = ["vb-lora", None, "prolora", "vera"]
    each = {}
    for name in names:
        if name is not None:
            vbank.load(model, paths[name])
        each[name] = model.generate(x, **settings).view(4, -1)
        if name is not None:
            vbank.detach(model)
    assert len({str(each[name].tolist()) for name in names}) == 4
    with served(model, paths).rows(names, repeat=settings.get("num_beams", 1)):
        mixed = model.generate(x, **settings).view(4, -1)
    for i, name in enumerate(names):
        assert mixed[i].tolist() == each[name][i].tolist()


def test_generation_by_an_encoder_and_a_decoder(tmp_path):
    """Beams multiply the decoder's rows and not the encoder's."""
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model, x = transformers.T5ForConditionalGeneration(config).eval(), tokens(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    paths = {name: write(model, EVERY[name], tmp_path / name, ["q", "v", "wo"], seed=i) for i, name in enumerate(EVERY)}
    names, settings = ["lora", None, "vb-lora"], {"num_beams": 4, "max_new_tokens": 6, "min_new_tokens": 6}
    each = {}
    for name in names:
        if name is not None:
            vbank.load(model, paths[name])
        each[name] = model.generate(x, **settings)
        if name is not None:
            vbank.detach(model)
    with served(model, paths).rows(names, repeat=4):
        mixed = model.generate(x, **settings)
    assert [mixed[i].tolist() for i in range(3)] == [each[name][i].tolist() for i, name in enumerate(names)]
    assert len({str(each[name].tolist()) for name in names}) == 3


# Types and modes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(dtype, tmp_path):
    model, x = bert().to(dtype).eval(), tokens(6)
    paths = {
        name: write(model, EVERY[name], tmp_path / name, train=["classifier"], seed=i) for i, name in enumerate(EVERY)
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    names = [None, *paths]
    mixed = answer(served(model, paths), names, x)
    assert mixed.dtype == dtype
    largest = max(value.abs().max().item() for value in each.values())
    assert_rows(mixed, names, each, rtol=0.0, atol=largest * 8 * torch.finfo(dtype).eps if dtype.itemsize < 8 else 1e-6)


def test_autocast(tmp_path):
    model, x = bert().eval(), tokens(6)
    paths = {name: write(model, EVERY[name], tmp_path / name, seed=i) for i, name in enumerate(EVERY)}
    with torch.autocast("cpu", torch.bfloat16):
        each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
        server = served(model, paths)
        mixed = answer(server, [None, *paths], x)
    largest = max(value.abs().max().item() for value in each.values())
    assert_rows(mixed, [None, *paths], each, rtol=0.0, atol=largest * 0.04)
    exact = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_rows(answer(server, [None, *paths], x), [None, *paths], exact)  # the cache holds nothing rounded


def test_quantised_layers(tmp_path):
    model, x = four_bit(llama(hidden_size=64, intermediate_size=64)).eval(), tokens(6)
    for module in model.modules():
        to_training_layout(module)  # as `vbank.load` has it; a server leaves bitsandbytes its own, which rounds more
    configs = EVERY | {"vb-lora": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=32)}
    paths = {
        name: write(model, c, tmp_path / name, "all-linear", seed=i) for i, (name, c) in enumerate(configs.items())
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    assert_rows(answer(served(model, paths), [None, *paths], x), [None, *paths], each, rtol=1e-4, atol=1e-4)


def test_what_inference_mode_made_serves_everywhere(tmp_path):
    model, x = bert().eval(), tokens(3)
    paths = {name: write(model, EVERY[name], tmp_path / name, seed=i) for i, name in enumerate(("vb-lora", "lora"))}
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    names = ["lora", "vb-lora", None]
    with torch.inference_mode():
        server = served(model, paths)
        assert_rows(server(names, input_ids=x).logits, names, each)
    with torch.enable_grad(), server.rows(names):
        out = model(input_ids=x).logits
        assert_rows(out, names, each)
        out.sum().backward()  # the base model's own gradients
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_compiled_model_follows_the_names(tmp_path):
    """A traced pass must not keep the names that it was traced with."""
    model, x = Blocks().eval(), numbers(3, 2, 8)
    paths = {name: write(model, EVERY[name], tmp_path / name, "all-linear", seed=i) for i, name in enumerate(EVERY)}
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    server = served(model, paths)
    compiled = torch.compile(model, backend="eager")
    for names in (["lora", None, "vera"], [None, "lora", "lora"], ["vera"] * 3, [None] * 3, ["lora", "vb-lora", None]):
        with server.rows(names), torch.no_grad():
            assert_rows(compiled(x), names, each)
    torch.testing.assert_close(compiled(x), each[None])


def test_two_servers_and_nested_rows(tmp_path):
    one, two, x = bert().eval(), bert().eval(), tokens(2)
    paths = {name: write(one, EVERY["lora"], tmp_path / name, seed=i) for i, name in enumerate("ab")}
    here = {name: alone(one, path, x) for name, path in ({None: None} | paths).items()}
    there = {name: alone(two, path, x) for name, path in ({None: None} | paths).items()}
    first, second = served(one, paths), served(two, paths)
    with torch.no_grad(), first.rows(["a", "b"]), second.rows(["b", None]):
        assert_rows(logits(one, x), ["a", "b"], here)
        assert_rows(logits(two, x), ["b", None], there)
        with first.rows(["b", "b"]):
            assert_rows(logits(one, x), ["b", "b"], here)
            assert_rows(logits(two, x), ["b", None], there)
        assert_rows(logits(one, x), ["a", "b"], here)
    assert_rows(alone(one, None, x), [None, None], here)


def test_a_server_leaves_no_trace(tmp_path):
    model, x = bert(), tokens(3)
    model.eval()
    path = write(model, EVERY["vera"], tmp_path / "a", train=["classifier"])
    before, state = fingerprint(model, x), torch.get_rng_state()
    with vbank.serve(model) as server:
        server.add("a", path)
        answer(server, ["a", None, "a"], x)
        assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(before, model, x)
    assert server.names() == [] and server.nbytes.total == 0
