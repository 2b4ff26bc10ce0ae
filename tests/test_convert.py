"""`vbank convert`: from any of the three forms to any other, without the base model's weights."""

import copy
import errno
import json

import peft_side
import pytest
import tiny_models
import torch
from peft import LoraConfig, VBLoRAConfig, VeraConfig
from tiny_models import every_method, logits, move, tokens

import vbank
from vbank import checkpoint, cli, hollow

EQUAL = 1e-5
QV = ["query", "value"]
BANK = {"num_vectors": 9, "vector_length": 8}


def ours(base, config, targets=QV, train=()):
    model = copy.deepcopy(base)
    vbank.attach(model, config, targets, train=train)
    move(model)
    with torch.no_grad():
        for parameter in model.vbank.adapter("default").head(model).values():
            parameter.add_(0.1)
    return model.eval()


def far(one, other):
    with torch.no_grad():
        return (logits(one, tokens()) - logits(other, tokens())).abs().max().item()


def loaded(base, folder, **kwargs):
    model = copy.deepcopy(base)
    vbank.load(model, folder, **kwargs)
    return model.eval()


def convert(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def done(capsys, *arguments):
    code, out, err = convert(capsys, *arguments)
    assert (code, err) == (0, ""), err
    return out


@every_method
def test_any_method_to_lora_and_back(bert, config, tmp_path, capsys):
    model = ours(bert, config, train=["classifier"])
    vbank.save(model, tmp_path / "v")
    out = done(capsys, tmp_path / "v", tmp_path / "lora", "--to", "lora")
    size = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert f"adapter_model.safetensors {size:,} bytes" in out
    assert far(peft_side.loaded(bert, tmp_path / "lora"), model) <= EQUAL
    done(capsys, tmp_path / "lora", tmp_path / "again", "--to", "vbank")
    assert far(loaded(bert, tmp_path / "again"), model) <= EQUAL


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    "config", [vbank.LoRA(3), vbank.VeRA(5), vbank.VBLoRA(2, **BANK, top_k=3)], ids=lambda config: config.method
)
def test_to_peft_and_back_is_what_the_live_model_writes(bert, config, compact, tmp_path, capsys):
    model = ours(bert, config, "all-linear", train=["classifier"])
    vbank.save(model, tmp_path / "v", form="compact" if compact else "resumable")
    bert.config.save_pretrained(tmp_path / "base")
    flags = ["--compact"] * compact
    done(capsys, tmp_path / "v", tmp_path / "p", "--to", "peft", "--base", tmp_path / "base", *flags)
    vbank.to_peft(model, tmp_path / "live", compact=compact, base=str(tmp_path / "base"))
    assert peft_side.settings(tmp_path / "p") == peft_side.settings(tmp_path / "live")
    for key, value in peft_side.tensors(tmp_path / "live").items():
        torch.testing.assert_close(peft_side.tensors(tmp_path / "p")[key], value, rtol=1e-6, atol=1e-7)
    assert far(peft_side.loaded(bert, tmp_path / "p"), model) <= EQUAL
    form = "compact" if compact else "resumable"
    done(capsys, tmp_path / "p", tmp_path / "again", "--to", "vbank", "--form", form, "--base", tmp_path / "base")
    assert json.loads((tmp_path / "again" / "adapter.json").read_text())["form"] == form
    assert far(loaded(bert, tmp_path / "again"), model) <= EQUAL


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=6, target_modules=QV, use_rslora=True, modules_to_save=["classifier"]),
        VBLoRAConfig(r=2, topk=3, target_modules=QV, save_only_topk_weights=True, **BANK),
        VBLoRAConfig(r=2, topk=3, target_modules=QV, modules_to_save=["classifier"], **BANK),
    ],
    ids=["lora", "vb-lora compact", "vb-lora"],
)
def test_pefts_files_to_ours_from_the_files_alone(bert, config, tmp_path, capsys):
    theirs = peft_side.saved(bert, config, tmp_path / "p")
    done(capsys, tmp_path / "p", tmp_path / "v", "--to", "vbank")
    assert far(loaded(bert, tmp_path / "v"), theirs) <= EQUAL


@pytest.mark.parametrize("projection", [False, True])
def test_pefts_vera_needs_the_base_models_configuration(bert, projection, tmp_path, capsys):
    config = VeraConfig(r=6, projection_prng_key=5, save_projection=projection, target_modules=[*QV, "dense"])
    theirs = peft_side.saved(bert, config, tmp_path / "p")
    code, out, err = convert(capsys, tmp_path / "p", tmp_path / "v", "--to", "vbank")
    assert code == 2 and not out and "name the model with --base" in err and not (tmp_path / "v").exists()
    bert.config.save_pretrained(tmp_path / "base")  # no weights
    done(capsys, tmp_path / "p", tmp_path / "v", "--to", "vbank", "--base", tmp_path / "base")
    assert far(loaded(bert, tmp_path / "v"), theirs) <= EQUAL


@pytest.mark.parametrize("based", [False, True], ids=["alone", "with base"])
def test_slices_of_a_fused_projection_become_one_block(gpt2, based, tmp_path, capsys):
    model = ours(gpt2, vbank.VBLoRA(2, **BANK), "qv")
    vbank.save(model, tmp_path / "v")
    config = copy.deepcopy(gpt2.config)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path / "base")
    done(capsys, tmp_path / "v", tmp_path / "lora", "--to", "lora", *["--base", tmp_path / "base"] * based)
    settings = peft_side.settings(tmp_path / "lora")
    assert settings["r"] == 4 and settings["fan_in_fan_out"] is based
    if based:
        assert settings["target_modules"] == ["c_attn"]
        assert far(peft_side.loaded(gpt2, tmp_path / "lora"), model) <= EQUAL
    else:  # PEFT sees the layout for itself, and says so
        assert settings["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
        with pytest.raises(UserWarning, match="Setting fan_in_fan_out to True"):
            peft_side.loaded(gpt2, tmp_path / "lora")
    again = copy.deepcopy(gpt2)
    vbank.from_peft(again, tmp_path / "lora")
    assert far(again.eval(), model) <= EQUAL


def test_names_stay_whole_where_other_layers_are_not_known(bert, tmp_path, capsys):
    """A short name would adapt the same layer of every block."""
    model = ours(bert, vbank.LoRA(3), r".*layer\.0\.attention\.self\.query")
    vbank.save(model, tmp_path / "v")
    done(capsys, tmp_path / "v", tmp_path / "p", "--to", "peft")
    assert peft_side.settings(tmp_path / "p")["target_modules"] == ["bert.encoder.layer.0.attention.self.query"]
    theirs = peft_side.loaded(bert, tmp_path / "p")
    assert far(theirs, model) <= EQUAL
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == 1


def test_a_compact_file_becomes_resumable_the_same_at_every_call(bert, tmp_path, capsys):
    model = ours(bert, vbank.VBLoRA(2, **BANK, top_k=3))
    vbank.save(model, tmp_path / "v")
    for out in ("1", "2"):
        torch.rand(int(out))  # another state of the generator
        done(capsys, tmp_path / "v", tmp_path / out, "--to", "vbank", "--form", "resumable")
    assert (tmp_path / "1" / "adapter.json").read_bytes() == (tmp_path / "2" / "adapter.json").read_bytes()
    again = loaded(bert, tmp_path / "1")
    assert far(again, model) <= EQUAL
    assert vbank.param_groups(again, lr=1e-3)[1]["name"] == "logits"


def test_a_hollow_layer_holds_one_number():
    sites = [vbank.Site("model.layers.0.mlp.up_proj", 4096, 11008), vbank.Site("h.0.c_attn:value", 1024, 1024)]
    model = hollow.hollow(sites, {"lm_head.weight": torch.ones(3, 2, dtype=torch.bfloat16)})
    up, fused = model.get_submodule("model.layers.0.mlp.up_proj"), model.get_submodule("h.0.c_attn")
    assert up.weight.shape == (11008, 4096) and up.weight.untyped_storage().nbytes() == 4
    assert fused.weight.shape == (3072, 1024)
    assert model.get_parameter("lm_head.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("based", [False, True], ids=["alone", "with base"])
def test_an_adapter_with_a_tied_head_is_converted(gpt2, based, tmp_path, capsys):
    """The file calls lm_head's weight transformer.wte.weight, once."""
    model = ours(gpt2, vbank.VBLoRA(2, **BANK), "qv", train=["lm_head"])
    assert list(model.vbank.adapter("default").head(model)) == ["transformer.wte.weight"]
    vbank.save(model, tmp_path / "v")
    config = copy.deepcopy(gpt2.config)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path / "base")
    flags = ["--base", tmp_path / "base"] * based
    done(capsys, tmp_path / "v", tmp_path / "again", "--to", "vbank", "--form", "resumable", *flags)
    assert far(loaded(gpt2, tmp_path / "again"), model) <= EQUAL
    code, out, err = convert(capsys, tmp_path / "v", tmp_path / "lora", "--to", "lora", *flags)
    assert code == 2 and not out and "lose transformer.wte.weight, which they share with another module" in err
    assert not (tmp_path / "lora").exists()


class TiedHead(torch.nn.Module):
    """A head with a parameter of its own and one that it shares."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = torch.nn.Embedding(5, 8), torch.nn.Linear(8, 8)
        self.head, self.last = torch.nn.Linear(8, 5), torch.nn.Linear(5, 2)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("train", [["head"], ["head", "last"], ["last"]], ids="+".join)
def test_a_head_that_shares_one_of_its_parameters(train, tmp_path, capsys):
    model = ours(TiedHead(), vbank.LoRA(2), ["query"], train=train)
    vbank.save(model, tmp_path / "v")
    done(capsys, tmp_path / "v", tmp_path / "again", "--to", "vbank")
    again = loaded(TiedHead(), tmp_path / "again")
    tiny_models.assert_same(again.state_dict(), again.state_dict() | model.vbank.adapter("default").head(model))


def test_a_rank_above_vllms_is_noted(tmp_path, capsys):
    model = torch.nn.Sequential(torch.nn.Linear(520, 520))
    vbank.attach(model, vbank.VeRA(rank=1024), ["0"])
    vbank.save(model, tmp_path / "v")
    assert "note: this LoRA has rank 520" in done(capsys, tmp_path / "v", tmp_path / "lora", "--to", "lora")


@pytest.fixture
def saved(bert, tmp_path):
    vbank.save(ours(bert, vbank.TiedLoRA(2), train=["classifier"]), tmp_path / "v")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    tiny_models.bert(hidden_size=32, intermediate_size=64).config.save_pretrained(tmp_path / "wide")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("v out --to pfet", "'peft'"),
        ("v out", "--to"),
        ("absent out --to lora", "absent is no folder"),
        ("file out --to lora", "file is no folder"),
        ("empty out --to lora", "holds neither of adapter.json (vbank) and adapter_config.json (PEFT)"),
        ("v v --to lora", "is the source"),
        ("v file --to lora", "is a file"),
        ("v out --to peft", "PEFT has no Tied-LoRA"),
        ("v out --to lora --compact", "--compact does nothing without --to peft"),
        ("v out --to lora --form resumable", "--form does nothing without --to vbank"),
        ("v out --to vbank --form small", "form is 'small'"),
        ("v out --to lora --base empty", "base model 'empty' cannot be built"),
        ("v out --to lora --base wide", "query is 32 -> 32, not 16 -> 16"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(saved, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    code, out, err = convert(capsys, *arguments.split())
    assert code == 2 and not out
    assert err.startswith("vbank: ") and err.count("\n") == 1 and said in err
    assert not (saved / "out").exists()


def test_help_shows_an_example(capsys):
    code, out, _ = convert(capsys, "--help")
    assert code == 0 and "vbank convert adapter/ lora/ --to lora" in out.partition("Example:")[2]


def test_two_adapters_in_one_folder_are_refused(saved, bert, capsys):
    vbank.to_peft(ours(bert, vbank.LoRA(2)), saved / "v")
    code, _, err = convert(capsys, saved / "v", saved / "out", "--to", "lora")
    assert code == 2 and "holds both of adapter.json (vbank) and adapter_config.json (PEFT)" in err


@pytest.mark.parametrize("name", ["a..b", "..", "", "forward", "a.weight.b"])
def test_names_that_fit_no_model(saved, name, capsys):
    file = saved / "v" / "adapter.json"
    description = json.loads(file.read_text())
    sites = list(description["sites"].items())
    description["sites"] = dict([("a", [16, 16]), *sites[1:-1], (name, [16, 16])])
    file.write_text(json.dumps(description))
    code, _, err = convert(capsys, saved / "v", saved / "out", "--to", "lora")
    assert code == 2 and "do not fit one model" in err and not (saved / "out").exists()


def test_a_full_disk_is_one_line_too(saved, monkeypatch, capsys):
    def full(path, blob):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    code, _, err = convert(capsys, saved / "v", saved / "out", "--to", "vbank")
    assert code == 2 and err.count("\n") == 1 and "No space left on device: the adapter is not saved" in err
