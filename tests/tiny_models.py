"""Small random models of the kinds that vbank is used on, and the five methods in settings that fit them."""

import tempfile

import pytest
import torch
import transformers
from torch import Tensor, nn

import vbank

CONFIGS = [
    vbank.LoRA(rank=3, alpha=6),
    vbank.VeRA(rank=5),
    vbank.TiedLoRA(rank=3, alpha=2),
    vbank.PRoLoRA(rank=4, unshared_rank=1, share_a=3, share_b=2, alpha=6),
    vbank.VBLoRA(rank=2, num_vectors=9, vector_length=8, top_k=3),
]
every_method = pytest.mark.parametrize("config", CONFIGS, ids=[config.method for config in CONFIGS])


class Blocks(nn.Module):
    """Three blocks of two layers, 8 -> 16 -> 8, and a head 8 -> 4 that stands outside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8, bias=False)) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class DTensor(Tensor):
    """Stands in for torch's class of that name, which needs a process group."""


class Convolutional(nn.Module):
    """transformers' Conv1D, fused query, key and value as in GPT-2, and a plain one after it."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D  # slow to import

        super().__init__()
        self.c_attn = Conv1D(24, 8)
        self.c_proj = Conv1D(8, 24)
        with torch.no_grad():
            self.c_attn.weight.normal_(0, 0.3), self.c_attn.bias.normal_()
            self.c_proj.weight.normal_(0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(torch.tanh(self.c_attn(x)))


QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL["initializer_range"] = 0.3  # large enough that the outputs show what happens inside


def bert(**changes) -> nn.Module:
    settings = dict(vocab_size=40, max_position_embeddings=24, **SMALL, **QUIET) | changes
    return transformers.BertForSequenceClassification(transformers.BertConfig(**settings))


def roberta() -> nn.Module:
    return transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(vocab_size=40, max_position_embeddings=24, **SMALL, **QUIET)
    )


def albert() -> nn.Module:
    config = transformers.AlbertConfig(vocab_size=40, embedding_size=8, max_position_embeddings=24, **SMALL, **QUIET)
    return transformers.AlbertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=24,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(**changes) -> nn.Module:
    settings = dict(vocab_size=40, num_key_value_heads=1, **SMALL) | changes
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def mamba() -> nn.Module:
    config = transformers.MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2)
    return transformers.MambaForCausalLM(config)


def jamba() -> nn.Module:
    """A Mamba layer and an attention layer, each with a plain feed-forward network."""
    kinds = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
    config = transformers.JambaConfig(vocab_size=40, num_key_value_heads=1, mamba_d_state=4, **kinds, **SMALL)
    return transformers.JambaForCausalLM(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **SMALL, **QUIET))


def four_bit(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with its inner linear layers in NF4 with double quantisation, as transformers quantises one."""
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "classifier", "pooler"],
    )
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        quantised = type(model).from_pretrained(folder, quantization_config=settings, dtype=dtype, device_map="cpu")
    assert isinstance(quantised.hf_quantizer, Bnb4BitHfQuantizer)
    return quantised


def move(model: nn.Module, std: float = 0.3, seed: int = 1) -> nn.Module:
    """Draw the parameters of the active adapter, so that its update is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.vbank[model.vbank.active].parameters():
            nn.init.normal_(parameter, std=std)
    return model


def tokens(rows: int = 3, length: int = 7, seed: int = 2) -> Tensor:
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of all trained parameters; every one of them has one."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: parameter.grad for name, parameter in trained(model).items()}
    assert found and all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}


def fingerprint(model: nn.Module, x: Tensor | None = None) -> dict:
    """Everything that attaching might change, for comparison: values, flags, hooks, attributes, outputs."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    seen = {
        "state_dict": {name: value.clone() for name, value in model.state_dict().items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)},
        "identities": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": {name: [len(getattr(m, kind, {})) for kind in hooks] for name, m in model.named_modules()},
        "attributes": sorted(vars(model)),
    }
    if x is not None:
        with torch.no_grad():
            seen["outputs"] = logits(model, x)
    return seen


def assert_untouched(before: dict, model: nn.Module, x: Tensor | None = None) -> None:
    after = fingerprint(model, x)
    assert list(before) == list(after)
    for key in ("requires_grad", "identities", "modules", "hooks", "attributes"):
        assert before[key] == after[key], key
    assert list(before["state_dict"]) == list(after["state_dict"])
    assert_same(before["state_dict"], after["state_dict"], **EXACT)
    if x is not None:
        torch.testing.assert_close(before["outputs"], after["outputs"], **EXACT)
