"""Which layers a user's words name, on the architectures that the book uses."""

import pytest
import torch
from tiny_models import (
    CONFIGS,
    Blocks,
    albert,
    assert_untouched,
    bert,
    fingerprint,
    gpt2,
    jamba,
    llama,
    mamba,
    numbers,
    roberta,
    vit,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

import vbank
from vbank.targets import part_of, resolve

ENCODER_LAYER = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
ENCODER_LAYER += ["intermediate.dense", "output.dense"]
LLAMA_LAYER = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
VIT_LAYER = [f"attention.{p}_proj" for p in "qkvo"] + ["mlp.fc1", "mlp.fc2"]


def names(model: nn.Module, targets) -> list[str]:
    return [part.site.name for part in resolve(model, targets)]


@pytest.mark.parametrize(
    ("build", "prefix", "layer"),
    [
        (bert, "bert.encoder.layer", ENCODER_LAYER),
        (roberta, "roberta.encoder.layer", ENCODER_LAYER),
        (gpt2, "transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        (llama, "model.layers", LLAMA_LAYER),
        (vit, "vit.layers", VIT_LAYER),
    ],
    ids=["bert", "roberta", "gpt2", "llama", "vit"],
)
def test_all_linear_is_every_linear_layer_of_the_blocks_without_pooler_and_head(build, prefix, layer):
    assert sorted(names(build(), "all-linear")) == sorted(f"{prefix}.{i}.{end}" for i in range(2) for end in layer)


def test_all_linear_leaves_alberts_embedding_projection_and_pooler_out():
    found = names(albert(), "all-linear")
    assert {name.rsplit(".", 1)[-1] for name in found} == {"query", "key", "value", "dense", "ffn", "ffn_output"}
    assert len(found) == 6  # one shared layer


@pytest.mark.parametrize(
    ("build", "ends"),
    [
        (bert, ["self.query", "self.value"]),
        (roberta, ["self.query", "self.value"]),
        (llama, ["q_proj", "v_proj"]),
        (vit, ["q_proj", "v_proj"]),
        (gpt2, ["c_attn:query", "c_attn:value"]),
    ],
    ids=["bert", "roberta", "llama", "vit", "gpt2"],
)
def test_qv_is_one_query_and_one_value_a_layer(build, ends):
    found = names(build(), "qv")
    assert [any(name.endswith(end) for end in ends) for name in found] == [True] * 4
    assert [sum(name.endswith(end) for name in found) for end in ends] == [2, 2]


def test_qv_takes_the_true_sizes_of_grouped_query_attention_and_of_fused_slices():
    shapes = {part.site.name[-6:]: (part.site.in_features, part.site.out_features) for part in resolve(llama(), "qv")}
    assert shapes == {"q_proj": (16, 16), "v_proj": (16, 8)}  # two heads share one value head
    query, value = resolve(gpt2(), "qv")[:2]
    assert (query.start, query.stop, value.start, value.stop) == (0, 16, 32, 48)
    assert (value.site.in_features, value.site.out_features) == (16, 16)


def test_a_list_matches_ends_of_names_at_a_dot():
    model = bert()
    assert len(names(model, ["dense"])) == 2 * 3 + 1  # the pooler's too
    assert names(model, ["pooler.dense"]) == ["bert.pooler.dense"]
    assert names(model, ("classifier",)) == ["classifier"]
    with pytest.raises(ValueError, match="'ense' matches no module"):
        names(model, ["ense"])


def test_a_list_gives_the_models_order_once_each():
    assert names(Blocks(), ["2", "blocks.0.2", "0"]) == [f"blocks.{i}.{j}" for i in range(3) for j in (0, 2)]


def test_a_regular_expression_matches_the_whole_name():
    assert names(Blocks(), r"blocks\.[12]\.0") == ["blocks.1.0", "blocks.2.0"]
    with pytest.raises(ValueError, match="read as a regular expression for whole names such as 'blocks.0.0'"):
        names(Blocks(), r"blocks\.[12]")


def test_a_layer_of_another_kind_among_the_matches_of_a_name_is_left_out():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Module(), nn.Module()
            self.left.proj, self.right.proj = nn.Linear(4, 4), nn.LayerNorm(4)

    assert names(Mixed(), ["proj"]) == ["left.proj"]


def test_all_linear_leaves_out_layers_that_mamba_reads_without_a_call():
    assert {name.rpartition(".")[2] for name in names(mamba(), "all-linear")} == {"in_proj"}
    found = names(jamba(), r".*\.mamba\..*_proj")  # its two kinds of blocks are not what "all-linear" looks for
    assert [name.rpartition(".")[2] for name in found] == ["in_proj", "x_proj", "out_proj"]


def test_a_stored_site_that_is_not_called_has_no_place_in_the_model():
    model = mamba()
    assert part_of(model, "backbone.layers.0.mixer.dt_proj") is None
    assert part_of(model, "backbone.layers.0.mixer.in_proj").stop == 64


def wavlm() -> nn.Module:
    """An attention and a layer that follows it, without the convolutions that come before."""
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    return nn.ModuleDict({"attention": WavLMAttention(8, 2), "output_dense": nn.Linear(8, 8)})


def float8() -> nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    layers = [FP8Linear(128, 128, block_size=(128, 128)) for _ in range(3)]
    for layer in layers:
        layer.weight.data = torch.zeros(128, 128).to(torch.float8_e4m3fn)  # its own are whatever lay in memory
        layer.weight_scale_inv.data.fill_(1.0)
    blocks = nn.ModuleList(nn.Sequential(layer) for layer in layers[:2])
    return nn.ModuleDict({"blocks": blocks, "up": layers[2], "head": nn.Linear(128, 2)})


REFUSED = {
    "misspelt": (bert, ["qurey", "value"], r"'qurey' matches no module of BertForSequenceClassification.*'query'"),
    "case": (bert, ["Query"], "did you mean.*'query'"),
    "far off": (bert, ["xyzzy"], "'xyzzy' matches no module.*there are 'query', 'key', 'value', 'dense', 'classifier'"),
    "empty list": (bert, [], "no target named: give at least one"),
    "empty name": (bert, [""], "target '' is no module name"),
    "no string": (bert, [3], "target 3 is no module name"),
    "embedding": (bert, ["word_embeddings"], "'bert.embeddings.word_embeddings' is a Embedding, not a linear layer"),
    "container": (bert, ["self"], "'bert.encoder.layer.0.attention.self' is a BertSelfAttention, not a linear layer"),
    "keyword": (bert, "all-linaer", "did you mean 'all-linear'"),
    "name as string": (bert, "query", r"read as a regular expression.*did you mean \['query'\]"),
    "broken expression": (bert, "blocks.(", "is no regular expression: "),
    "no query": (Blocks, "qv", 'targets "qv": Blocks has no layers with a known query or value name'),
    "no blocks": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), "all-linear", "no list of equal blocks"),
    "no linear": (lambda: nn.Sequential(nn.Conv2d(1, 1, 1)), ["0"], "Sequential has no linear layer"),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        ["out_proj"],
        "'self_attn.out_proj': MultiheadAttention may read its weight without calling it.*; use an attention that",
    ),
    "mamba": (
        mamba,
        ["in_proj", "dt_proj"],
        "'backbone.layers.0.mixer.dt_proj': MambaMixer may read its weight without calling it, so an update would be"
        " ignored; target 'in_proj'",
    ),
    "mamba's kernels": (mamba, ["x_proj"], "'backbone.layers.0.mixer.x_proj': MambaMixer may read its weight"),
    "mamba by expression": (
        mamba,
        r".*\.dt_proj",
        "names only layers such as 'backbone.layers.0.mixer.dt_proj': Mamba",
    ),
    "jamba": (jamba, ["dt_proj"], "JambaMambaMixer may read.*; target 'in_proj', 'x_proj' or 'out_proj'"),
    "qv of an attention that reads all": (wavlm, "qv", "names only layers such as .*WavLMAttention.*'output_dense'"),
    "8-bit floats": (
        float8,
        ["up"],
        "up is a FP8Linear with weights in torch.float8_e4m3fn, to which a merge could not",
    ),
    "8-bit floats among others": (float8, "all-linear", r"blocks.0.0 is a FP8Linear.*FineGrainedFP8Config\(dequantize"),
}


@pytest.mark.parametrize(("build", "targets", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_targets_that_name_nothing_usable_are_refused_and_the_model_is_untouched(build, targets, message):
    model = build()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        vbank.attach(model, vbank.LoRA(2), targets)
    assert_untouched(before, model)


def test_qv_refuses_a_fused_layer_that_is_interleaved_by_head():
    class NeoX(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query_key_value = nn.Linear(8, 24)

    with pytest.raises(ValueError, match=r"not three equal blocks; adapt it whole with targets=\['query_key_value'\]"):
        names(NeoX(), "qv")
    assert names(NeoX(), ["query_key_value"]) == ["query_key_value"]


def test_qv_refuses_a_fused_layer_of_unequal_parts():
    model = nn.ModuleDict({"qkv": nn.Linear(8, 16)})  # fewer keys than queries
    with pytest.raises(ValueError, match="not three equal blocks"):
        names(model, "qv")


def test_two_modules_with_one_weight_are_one_site():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    parts = resolve(model, ["0", "1", "2"])
    assert [part.module for part in parts] == ["0", "1"]


def test_one_module_under_two_names_is_one_site():
    layer = nn.Linear(8, 8)
    assert names(nn.ModuleList([layer, nn.Tanh(), layer]), ["0"]) == ["0"]


def test_conv1d_sites_read_the_transposed_shape():
    model = nn.Sequential(Conv1D(12, 8))
    site = resolve(model, ["0"])[0].site
    assert (site.in_features, site.out_features) == (8, 12)


def test_vector_length_that_does_not_divide_lists_every_layer_and_the_lengths_that_would():
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 20))
    before = fingerprint(model, numbers(2, 12))
    with pytest.raises(ValueError) as error:
        vbank.attach(model, vbank.VBLoRA(2, 6, vector_length=8), ["0", "1"])
    for said in ("0 (12 -> 8)", "1 (8 -> 20)", "lengths that divide all layers: 1, 2, 4"):
        assert said in str(error.value)
    assert_untouched(before, model, numbers(2, 12))


def test_a_refused_attach_draws_no_random_numbers():
    model = Blocks()
    state = torch.get_rng_state()
    with pytest.raises(ValueError):
        vbank.attach(model, CONFIGS[-1], ["nothing"])
    assert torch.equal(state, torch.get_rng_state())
