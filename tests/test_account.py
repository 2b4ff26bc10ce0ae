"""The account before a run against live tensors: bytes that autograd saves, peaks, 4-bit weights, and the papers."""

import json

import bitsandbytes as bnb
import pytest
import tiny_models
import torch
import transformers

import vbank
from vbank import account
from vbank.account import MIB, flops, memory, seconds
from vbank.cli import main
from vbank.layers import is_quantised
from vbank.live_memory import LivePeak, saved_bytes
from vbank.quantised import steady_norms

METHODS = [
    vbank.LoRA(4),
    vbank.VeRA(8),
    vbank.VeRA(8, train_b=False),
    vbank.TiedLoRA(4),
    vbank.PRoLoRA(4, unshared_rank=1, share_a=2, share_b=2),
    vbank.VBLoRA(2, num_vectors=20, vector_length=16, top_k=2),
    vbank.LoRA(4, dropout=0.1),
    vbank.VeRA(70),
    "full",
]
METHOD_IDS = ["lora", "vera", "vera-d", "tied-lora", "prolora", "vb-lora", "lora-dropout", "vera-70", "full"]
ROWS, LENGTH, WORDS = 3, 32, 500
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"n_embd": 64, "n_head": 4, "vocab_size": WORDS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FAMILIES = {
    "llama": lambda n: transformers.LlamaConfig(**SIZES | TOKENS | {"num_hidden_layers": n}, num_key_value_heads=2),
    "gemma": lambda n: transformers.GemmaConfig(
        **SIZES | TOKENS | {"num_hidden_layers": n}, num_key_value_heads=4, head_dim=32
    ),
    "gpt2": lambda n: transformers.GPT2Config(n_layer=n, **GPT2, **TOKENS),
    "bert": lambda n: transformers.BertConfig(**SIZES | STILL | {"num_hidden_layers": n}),
    "roberta": lambda n: transformers.RobertaConfig(**SIZES | STILL | {"num_hidden_layers": n}),
    "vit": lambda n: transformers.ViTConfig(**SIZES | STILL | {"num_hidden_layers": n}, image_size=8, patch_size=2),
}


def trained(family, layers, method, targets, dtype, eager=False):
    torch.manual_seed(0)
    shape = FAMILIES[family](layers)
    kind = transformers.AutoModelForCausalLM if family in account.CAUSAL else transformers.AutoModel
    model = kind.from_config(shape, attn_implementation="eager" if eager else "sdpa").to(dtype).train()
    if method != "full":
        vbank.attach(model, method, targets=targets)
    return model


def batch(family):
    if family == "vit":
        return {"pixel_values": torch.randn(ROWS, 3, 8, 8)}  # 16 patches and one token in front
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, -5:] = 0
    return {"input_ids": torch.randint(3, WORDS, (ROWS, LENGTH)), "attention_mask": mask}


def saved_a_layer(family, method, targets="all-linear", dtype=torch.float32, eager=False):
    """Bytes that one more layer adds to the graph. The first differs: nothing before its first adapter is needed."""
    x = batch(family)
    x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in x.items()}
    models = [trained(family, layers, method, targets, dtype, eager) for layers in (2, 3)]
    fewer, more = (saved_bytes(model, lambda model=model: model(**x)[0]) for model in models)
    return more - fewer


def reckoned_a_layer(family, method, **settings):
    length = 17 if family == "vit" else LENGTH
    held = [
        memory(FAMILIES[family](n), method, batch=ROWS, length=length, **settings).held["activations"] for n in (2, 3)
    ]
    return held[1] - held[0]


def without_composition(method, family, dtype_size):
    """VB-LoRA's sub-vectors lie outside the graph that the hooks see, for checkpointing's sake."""
    if getattr(method, "method", "") != "vb-lora":
        return 0
    from vbank.activations import Run, composition

    found = account.body(FAMILIES[family](1))
    return composition(found.linear, method, Run(ROWS, LENGTH, dtype_size))


EVERY_METHOD = [(family, method) for family in ("llama", "gpt2", "bert") for method in METHODS]
FEW = [(family, METHODS[i]) for family in ("gemma", "roberta", "vit") for i in (1, 5, 8)]


@pytest.mark.parametrize(("family", "method"), EVERY_METHOD + FEW, ids=str)
def test_activations_are_what_autograd_saves(family, method):
    expected = saved_a_layer(family, method)
    reckoned = reckoned_a_layer(family, method, mask_size=4) - without_composition(method, family, 4)
    if getattr(method, "method", "") == "vb-lora":  # in float32 the layers save views of the composition, counted there
        sites = account.body(FAMILIES[family](1)).linear
        reckoned += 4 * method.rank * sum(site.in_features + site.out_features for site in sites)
    assert reckoned == expected


@pytest.mark.parametrize("method", METHODS[:-1], ids=METHOD_IDS[:-1])
def test_activations_in_bfloat16(method):
    expected = saved_a_layer("llama", method, dtype=torch.bfloat16)
    reckoned = reckoned_a_layer("llama", method, compute="bf16", mask_size=2)
    assert reckoned - without_composition(method, "llama", 2) == expected


def quantised(layers, method):
    """A 4-bit Llama as `vbank run` trains one: normalisations in float32, products in bfloat16 by autocast."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(FAMILIES["llama"](layers)).to(torch.bfloat16)
    model = tiny_models.four_bit(model, torch.bfloat16)
    steady_norms(model, autocast=True)
    vbank.attach(model.train(), method, targets="all-linear")
    return model


def saved_a_quantised_layer(method):
    """Bytes that one layer more makes autograd keep, the packed weights aside."""
    x = batch("llama")

    def kept(layers):
        model = quantised(layers, method)
        packed = [layer.weight.data for layer in model.modules() if is_quantised(layer)]
        with torch.autocast("cpu", torch.bfloat16):
            return saved_bytes(model, lambda: model(**x)[0], beside=packed)

    return kept(3) - kept(2)


@pytest.mark.parametrize("method", METHODS[:6], ids=METHOD_IDS[:6])
def test_activations_of_a_quantised_model(method):
    reckoned = reckoned_a_layer("llama", method, compute="bf16", quantise="nf4", mask_size=2)
    assert reckoned - without_composition(method, "llama", 2) == saved_a_quantised_layer(method)


DROPOUT = [
    vbank.LoRA(4, dropout=0.05),
    vbank.VeRA(8, dropout=0.1),
    vbank.PRoLoRA(4, unshared_rank=1, share_a=2, share_b=2, dropout=0.1),
    vbank.VBLoRA(2, num_vectors=20, vector_length=16, top_k=2, dropout=0.05),
]


@pytest.mark.parametrize("method", DROPOUT, ids=lambda method: method.method)
def test_activations_of_a_quantised_model_with_dropout(method):
    """As the recipes train Llama. On a CPU a mask has the type of what it masks, of some layers half that of others."""
    reckoned = reckoned_a_layer("llama", method, compute="bf16", quantise="nf4", mask_size=4)
    assert reckoned - without_composition(method, "llama", 2) == pytest.approx(
        saved_a_quantised_layer(method), rel=0.03
    )


def test_weights_in_int8():
    """A byte a weight and a float32 a row (Dettmers et al. 2022)."""
    sites = account.body(FAMILIES["llama"](3)).linear
    held = memory(FAMILIES["llama"](3), vbank.LoRA(4), length=LENGTH, quantise="int8").held
    rows = sum(site.out_features for site in sites)
    assert held["linear layers in blocks"] == sum(s.in_features * s.out_features for s in sites) + 4 * rows


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("method", METHODS[:6], ids=METHOD_IDS[:6])
def test_the_peak_of_a_quantised_step(method, checkpointing):
    model, x = quantised(3, method), batch("llama")
    if checkpointing:
        model.activation_checkpointing_enable()

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**x, labels=x["input_ids"]).loss
        loss.backward()

    step()
    with LivePeak() as live:
        step()
    settings = {"quantise": "nf4", "compute": "bf16", "checkpointing": checkpointing}
    found = memory(FAMILIES["llama"](3), method, batch=ROWS, length=LENGTH, **settings)
    reckoned = found.held["activations"] + max(found.passing.values())
    assert 0.97 < reckoned / live.peak < (1.13 if checkpointing else 1.04)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_activations_of_query_and_value(family):
    assert reckoned_a_layer(family, vbank.LoRA(4), targets="qv") == saved_a_layer(family, vbank.LoRA(4), "qv")


def test_eager_attention_keeps_its_scores():
    expected = saved_a_layer("bert", vbank.LoRA(4), eager=True)
    assert reckoned_a_layer("bert", vbank.LoRA(4), attention="eager") == expected


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("method", METHODS[:6], ids=METHOD_IDS[:6])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_peak_of_a_step(family, method, checkpointing):
    shape = FAMILIES[family](4)
    model = trained(family, 4, method, "all-linear", torch.float32)
    if checkpointing:
        model.activation_checkpointing_enable()
    x = batch(family)

    def step():
        model(**x, labels=x["input_ids"]).loss.backward()

    step()  # gradients are there from now on
    with LivePeak() as live:
        step()
    found = memory(shape, method, batch=ROWS, length=LENGTH, checkpointing=checkpointing)
    reckoned = found.held["activations"] + max(found.passing.values())
    assert 0.97 < reckoned / live.peak < (1.13 if checkpointing else 1.04)


def test_weights_gradients_and_optimizer_state():
    method = vbank.VBLoRA(2, num_vectors=20, vector_length=16)
    model = trained("bert", 3, method, "all-linear", torch.float32)
    model.vbank.requires_grad_(False)
    own = sum(p.numel() * 4 for name, p in model.named_parameters() if not name.startswith("vbank"))
    count = vbank.count(model)
    found = memory(FAMILIES["bert"](3), method, batch=ROWS, length=LENGTH, classes=3)
    kinds = ("linear layers in blocks", "embeddings", "norms and biases")
    assert sum(found.held[kind] for kind in kinds) == own
    assert found.trained == count.trainable + 3 * 65
    assert found.held["adapter and head"] == found.held["gradients"] == 4 * found.trained
    assert found.held["optimizer state"] == 8 * found.trained


@pytest.mark.parametrize("double", [True, False])
def test_quantised_weights_weigh_what_bitsandbytes_makes_of_them(double):
    shape = FAMILIES["llama"](1)
    sites = account.body(shape).linear
    total = 0
    for site in sites:
        weight = bnb.nn.Params4bit(
            torch.randn(site.out_features, site.in_features), quant_type="nf4", compress_statistics=double
        ).to("cpu")
        if weight.quant_state is None:
            weight = weight._quantize("cpu")
        state = weight.quant_state
        scales = [state.absmax, *([state.state2.absmax] if double else [])]
        total += weight.numel() * weight.element_size() + sum(s.numel() * s.element_size() for s in scales)
    found = memory(shape, vbank.LoRA(4), quantise="nf4", double_quantise=double)
    reckoned = found.held["linear layers in blocks"]
    assert reckoned == pytest.approx(total, rel=2e-3)  # blocks at the end of a small layer are not full


def test_full_bitfit_and_head():
    full, bitfit, head = (memory("minilm", name, batch=8, length=64) for name in ("full", "bitfit", "head"))
    assert full.trained > bitfit.trained > head.trained == 2 * 385
    assert full.held["adapter and head"] == 4 * head.trained
    assert full.held["activations"] > bitfit.held["activations"] > head.held["activations"] == 0


def test_optimizers_and_precision():
    kind = {"batch": 4, "length": 64}
    paged = memory("llama2-7b", vbank.LoRA(64), optimizer="paged_adamw_32bit", **kind)
    eight = memory("llama2-7b", vbank.LoRA(64), optimizer="adamw_8bit", **kind)
    half = memory("llama2-7b", vbank.LoRA(64), adapter="bf16", **kind)
    assert paged.pageable == paged.held["optimizer state"] == 8 * paged.trained
    assert eight.held["optimizer state"] < 0.26 * paged.held["optimizer state"] and not eight.pageable
    assert half.held["adapter and head"] == 2 * half.trained and half.held["optimizer state"] == 4 * half.trained


# VB-LoRA, Table 9, in MiB; it does not print the length of the rows. Beside it, pinned: what our account gives for 512
# tokens over what is printed. It is no reproduction, but a change of the account shows here.
TABLE_9 = {
    ("llama2-7b", "lora"): (vbank.LoRA(64), 8467, 0.95),
    ("llama2-7b", "vb-lora"): (vbank.VBLoRA(4, 2048, 256, 2), 6872, 1.01),
    ("llama2-13b", "lora"): (vbank.LoRA(64), 11624, 1.15),
    ("llama2-13b", "vb-lora"): (vbank.VBLoRA(6, 2048, 256, 2), 11486, 1.11),
}


def qlora(shape, method, length=512):
    settings = {"quantise": "nf4", "compute": "bf16", "checkpointing": True, "optimizer": "paged_adamw_32bit"}
    return memory(shape, method, batch=4, length=length, **settings)


@pytest.mark.parametrize("key", TABLE_9, ids=" ".join)
def test_the_papers_qlora_runs_stay_where_the_account_has_them(key):
    method, printed, pinned = TABLE_9[key]
    found = qlora(key[0], method)
    assert found.total / MIB / printed == pytest.approx(pinned, abs=0.02)
    assert found.fits(40) and not found.fits(5)


def test_the_papers_two_sizes_cannot_have_run_alike():
    """Table 9's 13B run needs 3,157 MiB more than its 7B run. The weights alone, in NF4 and bfloat16, take more."""
    small, large = (qlora(shape, vbank.LoRA(64), length=1) for shape in ("llama2-7b", "llama2-13b"))
    kinds = ("linear layers in blocks", "embeddings", "output layer", "norms and biases")
    more = sum(large.held[kind] - small.held[kind] for kind in kinds)
    assert 11624 - 8467 < more / MIB < 3200
    assert large.held["optimizer state"] > small.held["optimizer state"] + 600 * MIB


def test_the_papers_saving_of_vera_over_lora():
    """VeRA, Table 12: at rank 64 on LLaMA-7B, 23.42 GB for LoRA and 21.69 GB for VeRA."""
    lora, vera = (qlora("llama2-7b", method) for method in (vbank.LoRA(64), vbank.VeRA(64)))
    fixed = ("adapter and head", "gradients", "optimizer state")
    saved = sum(lora.held[kind] - vera.held[kind] for kind in fixed) / account.GIB
    assert 23.42 - 21.69 < saved < 2.5


def test_the_papers_difference_between_query_value_and_all_linear():
    """VB-LoRA, Table 7: 24,552 and 28,120 MiB, base; 9,804 and 12,170 MiB, large. Attention was eager in 2024."""
    for name, rows, length, printed in (("roberta-base", 32, 512, 28120 - 24552), ("roberta-large", 32, 128, 2366)):
        both = [
            memory(name, vbank.VBLoRA(4), targets, batch=rows, length=length, attention="eager").total
            for targets in ("qv", "all-linear")
        ]
        assert (both[1] - both[0]) / MIB == pytest.approx(printed, rel=0.03)


def test_operations_and_time():
    frozen = sum(site.in_features * site.out_features for site in account.body("llama2-7b").linear)
    output = 32000 * 4096
    short = flops("llama2-7b", vbank.VeRA(1), tokens=1000, length=1)
    assert short / 1000 == pytest.approx(4 * (frozen + output), rel=0.01)
    full = flops("llama2-7b", "full", tokens=1000, length=1)
    assert full / 1000 == pytest.approx(6 * (frozen + output), rel=0.01)
    again = flops("llama2-7b", vbank.VeRA(1), tokens=1000, length=1, checkpointing=True)
    assert (again - short) / 1000 == pytest.approx(2 * frozen, rel=0.01)
    assert seconds(312e12, "A100", "bf16", share=0.5) == 2.0


def test_operations_of_thin_matrices():
    """A and B cost 6 a weight and token where they are trained, 4 where they are frozen; 2 more with checkpointing."""
    sites = account.body("llama2-7b").linear
    sizes = sum(site.in_features + site.out_features for site in sites)
    for checkpointing, more in ((False, 0), (True, 2)):
        bare = flops("llama2-7b", "bitfit", tokens=10, length=128, checkpointing=checkpointing)
        lora = flops("llama2-7b", vbank.LoRA(64), tokens=10, length=128, checkpointing=checkpointing)
        vera = flops("llama2-7b", vbank.VeRA(1024), tokens=10, length=128, checkpointing=checkpointing)
        assert lora - bare == 10 * (6 + more) * 64 * sizes
        assert vera - bare == 10 * (4 + more) * 1024 * sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "ful"}, "did you mean 'full'"),
        ({"tokens": -5}, "tokens is -5; it must be at least 1"),
        ({"length": 0}, "length is 0"),
        ({"length": 1025}, "this gpt2 reads 1024 tokens at most"),
        ({"architecture": "gtp2-medium"}, "did you mean 'gpt2-medium'"),
    ],
)
def test_refusals_of_operations(change, message):
    with pytest.raises(ValueError, match=message):
        flops(**{"architecture": "gpt2-medium", "config": vbank.LoRA(4)} | change)


@pytest.mark.parametrize(
    ("name", "longest"),
    [("minilm", 512), ("roberta-base", 512), ("roberta-large", 512), ("gpt2-large", 1024), ("llama2-13b", 4096)],
)
def test_rows_longer_than_the_model_are_refused(name, longest):
    """RoBERTa counts its positions from 2 on."""
    memory(name, vbank.LoRA(4), length=longest)
    with pytest.raises(ValueError, match=f"reads {longest} tokens at most"):
        memory(name, vbank.LoRA(4), length=longest + 1)


def test_images_have_no_longest_row():
    assert memory("vit-base", vbank.LoRA(4), "qv", length=197).total > 0


def test_the_table_and_its_json():
    found = memory("gpt2-medium", vbank.LoRA(4), "qv", batch=8, length=128, optimizer="paged_adamw_32bit")
    text = str(found)
    assert "LoRA on gpt2-medium, 8 x 128 tokens, fp32" in text and "at the peak" in text and "pageable" in text
    kept = json.loads(json.dumps(found.as_dict()))
    assert kept["total"] == found.total == sum(kept["held"].values()) + max(kept["passing"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantise": "nf5"}, "did you mean 'nf4'"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"compute": "bf32"}, "compute"),
        ({"attention": "flash"}, "attention"),
        ({"config": "ful"}, "did you mean 'full'"),
        ({"batch": 0}, "batch is 0"),
        ({"targets": ["c_atn"]}, "c_attn"),
        ({"architecture": "gtp2-medium"}, "did you mean 'gpt2-medium'"),
        ({"autocast": True}, "autocast is accounted for in llama"),
        ({"architecture": transformers.T5Config()}, "no memory account for 't5'"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        memory(**{"architecture": "gpt2-medium", "config": vbank.LoRA(4)} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"device": "A10"}, "A100"), ({"compute": "fp8"}, "compute"), ({"share": 0.0}, "share is 0.0")],
)
def test_refusals_of_time(change, message):
    with pytest.raises(ValueError, match=message):
        seconds(1e15, **change)


def call(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["count", *arguments.split()])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


LORA = "--model llama2-7b --method lora --rank 64 --targets all-linear"
QLORA = f"{LORA} --memory --batch 4 --length 512 --quantise nf4 --compute bf16 --checkpointing --optimizer adamw_8bit"


def test_the_command(capsys):
    code, out, _ = call(capsys, f"{QLORA} --gib 24 --tokens 1000000000")
    assert code == 0 and "4 x 512 tokens, bf16, nf4, checkpointing" in out and "\nfits 24 GiB" in out
    work = flops("llama2-7b", vbank.LoRA(64), tokens=10**9, length=512, checkpointing=True)
    hours = seconds(work, "A100", "bf16", 0.4) / 3600
    assert f"operations, {hours:.1f} hours on an A100 at 0.4 of its bf16 peak" in out
    code, out, _ = call(capsys, f"{QLORA} --gib 24 --tokens 1000 --device H100 --share 0.5 --json")
    report = json.loads(out)
    assert report["trainable"] and report["memory"]["fits"]
    assert report["memory"]["total"] > report["memory"]["held"]["optimizer state"]
    time = report["time"]
    assert time["seconds"] == pytest.approx(time["operations"] / (0.5 * 989e12)) and time["length"] == 512


def test_the_command_accounts_for_time_alone(capsys):
    code, out, _ = call(capsys, f"{LORA} --tokens 1000000 --length 128 --compute bf16")
    assert code == 0 and "minutes on an A100" in out and "at the peak" not in out


@pytest.mark.parametrize("method", ["full", "bitfit", "head"])
def test_the_command_accounts_for_baselines(capsys, method):
    arguments = f"--model roberta-base --method {method} --memory --batch 8 --length 128 --tokens 1000"
    code, out, _ = call(capsys, arguments)
    assert code == 0 and out.startswith(f"{method} on roberta-base, 8 x 128 tokens") and "minutes" in out
    _, out, _ = call(capsys, f"{arguments} --json")
    report = json.loads(out)
    assert report["memory"]["total"] == memory("roberta-base", method, batch=8, length=128).total
    assert "trainable" not in report and report["method"] == method


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"{LORA} --memory --quantise nf5", "did you mean 'nf4'"),
        (f"{LORA} --gib 24", "--gib does nothing without --memory; add that"),
        (f"{LORA} --tokens 10 --quantise nf4", "--quantise does nothing without --memory"),
        (f"{LORA} --length 128", "--length does nothing without --memory or --tokens"),
        (f"{LORA} --memory --share 0.3", "--share does nothing without --tokens"),
        (f"{LORA} --memory --gib -3", "--gib is -3"),
        (f"{LORA} --memory --gib nan", "--gib is nan"),
        (f"{LORA} --tokens 0", "tokens is 0"),
        (f"{LORA} --tokens 10 --device A10", "'A100'"),
        (f"{LORA} --tokens 10 --share 2", "share is 2.0"),
        (f"{LORA} --memory --length 8192", "reads 4096 tokens at most"),
        ("--model minilm --method full", "add --memory or --tokens"),
        ("--model minilm --method full --memory --targets qv", "leave out --targets"),
        ("--model minilm --method full --memory --rank 4", "unknown option '--rank'"),
        ("--model minilm --method ful --memory", "did you mean 'full'"),
    ],
)
def test_the_command_refuses(capsys, arguments, said):
    code, out, err = call(capsys, arguments)
    assert code == 2 and not out and err.count("\n") == 1 and said in err
