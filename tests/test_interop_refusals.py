"""What cannot go to PEFT or come from it is refused by name, before anything is changed or written."""

import copy
import errno
import json
import os
import shutil

import peft_side
import pytest
import safetensors.torch
import tiny_models
import torch
from peft import IA3Config, LoraConfig, VBLoRAConfig, VeraConfig
from tiny_models import assert_untouched, fingerprint, move, tokens
from torch import nn

import vbank
from vbank import interop

QV = ["query", "value"]
PREFIX = "base_model.model."
LAYER = f"{PREFIX}bert.encoder.layer.0.attention.self.query"
KINDS = {
    "lora": LoraConfig(r=3, target_modules=QV, modules_to_save=["classifier"]),
    "vera": VeraConfig(r=3, target_modules=QV),
    "vb": VBLoRAConfig(r=2, topk=3, num_vectors=9, vector_length=8, target_modules=QV),
    "small": VBLoRAConfig(r=2, topk=3, num_vectors=9, vector_length=8, target_modules=QV, save_only_topk_weights=True),
}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(7)
    return tiny_models.bert().eval()


@pytest.fixture(scope="module")
def folders(bert, tmp_path_factory):
    """One folder of PEFT's a kind."""
    root = tmp_path_factory.mktemp("peft")
    for name, config in KINDS.items():
        peft_side.saved(bert, config, root / name)
    return root


@pytest.fixture
def folder(folders, tmp_path):
    def copied(kind="lora"):
        return shutil.copytree(folders / kind, tmp_path / kind)

    return copied


def refused(bert, folder, said, **kwargs):
    model = copy.deepcopy(bert)
    before = fingerprint(model, tokens())
    with pytest.raises(ValueError, match=said):
        vbank.from_peft(model, folder, **kwargs)
    assert_untouched(before, model, tokens())


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("lora", {"peft_type": "IA3"}, "peft_type is 'IA3'; vbank reads LORA, VERA, VBLORA"),
        ("lora", {"peft_type": ["LORA"]}, "peft_type is"),
        ("lora", {"use_dora": True}, "use_dora is True.*DoRA"),
        ("lora", {"bias": "lora_only"}, "bias is 'lora_only'"),
        ("lora", {"lora_bias": True}, "lora_bias is True"),
        ("lora", {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the weights of the base"),
        ("lora", {"init_lora_weights": "olora"}, "'olora', which changes"),
        ("lora", {"layer_replication": [[0, 2]]}, "layer_replication.*copied layers"),
        ("lora", {"trainable_token_indices": [3]}, "trainable_token_indices"),
        ("lora", {"target_parameters": ["experts.w"]}, "target_parameters"),
        ("lora", {"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow is 3, which vbank does not read"),
        ("lora", {"r": 4}, r"lora_A.weight has shape \(3, 16\); adapter_config.json needs \(4, 16\)"),
        ("lora", {"r": "3"}, "rank is '3'"),
        ("lora", {"lora_alpha": 0}, "alpha is 0"),
        ("lora", {"lora_alpha": None}, "alpha"),
        ("lora", {"rank_pattern": {"query": 2}}, r"has shape \(3, 16\); adapter_config.json needs \(2, 16\)"),
        ("lora", {"rank_pattern": {"(": 2}}, r"rank_pattern has '\('"),
        (
            "lora",
            {"rank_pattern": {"(a+)+b": 2}},
            r"rank_pattern has '\(a\+\)\+b'; vbank reads names of at most 500 letters, with",
        ),
        ("lora", {"alpha_pattern": {"a++": 2}}, r"alpha_pattern has 'a\+\+'"),
        ("lora", {"alpha_pattern": {"query|[a-z]": 2}}, "alpha_pattern has .*name the layers instead"),
        (
            "lora",
            {"alpha_pattern": {"q" * 501: 2}},
            r"alpha_pattern has 'q{80}\.\.\.'; vbank reads names of at most 500",
        ),
        ("lora", {"rank_pattern": [2]}, "rank_pattern is"),
        ("lora", {"modules_to_save": "classifier"}, "modules_to_save is 'classifier'"),
        (
            "lora",
            {"modules_to_save": None},
            "holds .*classifier.bias.*which a LORA adapter with these settings has not",
        ),
        ("lora", {"lora_dropout": 1.0}, "dropout is 1.0"),
        ("vera", {"r": 4}, "vera_lambda_d has shape"),
        ("vera", {"projection_prng_key": -1}, "seed is -1"),
        ("vb", {"topk": 10}, "top_k is 10 but the bank has num_vectors = 9"),
        ("vb", {"num_vectors": 8}, r"vector_bank has shape \(9, 8\); adapter_config.json needs \(8, 8\)"),
        ("vb", {"r": 3}, "vblora_logits_A has shape"),
        ("small", {"topk": 2}, "topk_indices has shape"),
    ],
)
def test_settings_that_are_not_read(bert, folder, kind, changed, said):
    path = folder(kind)
    peft_side.rewrite(path, changed)
    refused(bert, path, said)


def drop(key):
    return lambda values: {k: v for k, v in values.items() if k != key}


def put(key, value):
    return lambda values: values | {key: value(values[key]) if callable(value) else value}


INDICES, WEIGHTS = (f"{LAYER}.vblora_logits_A_topk_{part}" for part in ("indices", "weights"))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("lora", put(f"{LAYER}.lora_magnitude_vector", torch.ones(16)), "lora_magnitude_vector, which a LORA adapter"),
        ("lora", put(f"{PREFIX}bert.embeddings.word_embeddings.lora_embedding_A", torch.ones(3, 40)), "embedding_A"),
        ("lora", put(f"{PREFIX}bert.pooler.dense.weight", torch.ones(16, 16)), "pooler.dense.weight, which"),
        ("lora", put("lora_A.weight", torch.ones(3, 16)), "lora_A.weight, which"),
        (
            "lora",
            drop(f"{LAYER}.lora_B.weight"),
            "safetensors: bert.encoder.layer.0.attention.self.query must have lora_A.weight and lora_B",
        ),
        ("lora", put(f"{LAYER}.lora_A.weight", lambda A: A * torch.nan), "lora_A.weight holds NaN"),
        ("lora", put(f"{LAYER}.lora_A.weight", lambda A: A.int()), "lora_A.weight is torch.int32"),
        ("lora", put(f"{LAYER}.lora_A.weight", lambda A: A[0]), "lora_A.weight has shape"),
        ("lora", put(f"{LAYER}.lora_A.weight", lambda A: A[:, :8]), r"query is 16 -> 16, not 8 -> 16"),
        ("lora", put(f"{PREFIX}classifier.weight", torch.ones(3, 16)), r"classifier.weight has shape \(2, 16\), not"),
        ("lora", put(f"{PREFIX}classifier.weight", torch.full((2, 16), torch.inf)), "classifier.weight.*not finite"),
        ("lora", drop(f"{PREFIX}classifier.bias"), "classifier.bias is trained, but the file lacks it"),
        ("lora", lambda values: {k: v for k, v in values.items() if "lora" in k}, "classifier.weight is trained, but"),
        ("lora", lambda values: {k: v for k, v in values.items() if "lora" not in k}, "no tensor of a LORA layer"),
        ("vera", drop("base_model.vera_A"), "holds one of base_model.vera_A and base_model.vera_B"),
        ("vera", put("base_model.vera_A", lambda A: A[:, :15]), "vera_A has shape"),
        ("vb", drop("base_model.vblora_vector_bank"), "lacks base_model.vblora_vector_bank"),
        ("vb", put(f"{LAYER}.vblora_logits_A", lambda v: v.fill_(-torch.inf)), "NaN or infinite"),
        ("small", put(INDICES, lambda v: v + 8), "points outside the bank of 9 vectors"),
        ("small", put(INDICES, lambda v: v.short() - 9), "index -9 names no bank vector"),
        ("small", put(INDICES, lambda v: v.fill_(2)), "names one bank vector twice"),
        ("small", put(WEIGHTS, lambda v: v.fill_(0.6)), "no shares of one"),
        ("small", put(WEIGHTS, lambda v: -v), "no shares of one"),
        ("small", drop(WEIGHTS), "safetensors: bert.encoder.layer.0.attention.self.query must have"),
    ],
)
def test_tensors_that_do_not_fit(bert, folder, kind, change, said):
    path = folder(kind)
    peft_side.rewrite(path, values=change(peft_side.tensors(path)))
    refused(bert, path, said)


def test_another_base_model_is_refused_with_all_that_is_wrong(folder):
    wide = tiny_models.bert(hidden_size=32, intermediate_size=64)
    refused(wide, folder(), r"self.query is 32 -> 32, not 16 -> 16; bert.encoder.layer.0.attention.self.value is")
    one = tiny_models.bert(num_hidden_layers=1)
    refused(one, folder("vb"), r"layer.1.attention.self.query \(16 -> 16\) is absent; .*layer.1.attention.self.value")
    refused(one, folder("vera"), r"trained on another model: .*layer.1.attention.self.query, .*is absent from this one")


def test_a_name_that_is_taken_is_refused(bert, folder):
    model = copy.deepcopy(bert)
    vbank.from_peft(model, folder())
    with pytest.raises(ValueError, match="'default' is attached already"):
        vbank.from_peft(model, folder("vb"))


def test_another_method_of_peft_is_refused(bert, tmp_path):
    peft_side.saved(bert, IA3Config(target_modules=["value"], feedforward_modules=[]), tmp_path)
    refused(bert, tmp_path, "peft_type is 'IA3'")


# Files


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "damaged"), (b"[" * 100_000, "damaged"), (b"[]", "holds a list"), (b"\xff{}", "damaged")],
)
def test_a_damaged_configuration(bert, folder, content, said):
    path = folder()
    (path / "adapter_config.json").write_bytes(content)
    refused(bert, path, said)


def test_a_damaged_tensor_file(bert, folder):
    path = folder()
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    refused(bert, path, "no safetensors file")
    file.unlink()
    refused(bert, path, "lacks adapter_model.safetensors")


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_never_opened(bert, folder, tmp_path):
    path = folder()
    (path / "adapter_model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "mark")}, path / "adapter_model.bin")
    refused(bert, path, "adapter_model.bin is a pickle")
    assert not (tmp_path / "mark").exists()


def test_what_is_no_folder_of_pefts(bert, tmp_path):
    refused(bert, tmp_path / "absent", "is no folder")
    refused(bert, tmp_path, "holds no adapter_config.json")
    (tmp_path / "file").write_text("")
    refused(bert, tmp_path / "file", "is no folder")


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(bert, folder, tmp_path, name):
    path, outside = folder(), tmp_path / "outside"
    outside.mkdir()
    (path / name).rename(outside / name)
    (path / name).symlink_to(f"../outside/{name}")
    refused(bert, path, f"{name} is a link that leaves the folder")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_inside_the_folder_and_in_a_hubs_cache_are_followed(bert, folder, tmp_path):
    path = folder()
    (path / "adapter_model.safetensors").rename(path / "values")
    (path / "adapter_model.safetensors").symlink_to("values")
    vbank.from_peft(copy.deepcopy(bert), path)
    hub = tmp_path / "models--someone--something"
    snapshot, blobs = hub / "snapshots" / "0123", hub / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(path / name, blobs / f"blob-{name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    vbank.from_peft(copy.deepcopy(bert), snapshot)


@pytest.mark.parametrize("name", ["..", "a..b", "../../etc", "bert/../query", ""])
def test_a_layer_name_that_climbs_is_no_layer(bert, folder, name):
    path = folder()
    values = peft_side.tensors(path)
    moved = {key.replace(LAYER, PREFIX + name): v for key, v in values.items()}
    peft_side.rewrite(path, values=moved)
    refused(bert, path, "is absent|which a LORA adapter with these settings has not")


# To PEFT


def attached(base, config, targets=QV, **kwargs):
    model = copy.deepcopy(base)
    vbank.attach(model, config, targets, **kwargs)
    return move(model)


@pytest.mark.parametrize(
    ("config", "kwargs", "said"),
    [
        (vbank.TiedLoRA(rank=2), {}, "PEFT has no Tied-LoRA; write it with as_lora=True"),
        (
            vbank.PRoLoRA(rank=4, unshared_rank=1, share_a=2, share_b=2),
            {},
            "PEFT has no PRoLoRA; write it with as_lora",
        ),
        (vbank.VeRA(rank=2, shared=False), {}, "one pair for all layers.*as_lora=True"),
        (vbank.VBLoRA(2, 9, 8, selection="noisy_top_k"), {}, "selection is 'noisy_top_k'.*compact=True or as_lora"),
        (vbank.LoRA(rank=2), {"as_lora": True, "compact": True}, "a plain LoRA has no such part"),
        (vbank.LoRA(rank=2), {"name": "other"}, "no adapter is called 'other'"),
    ],
)
def test_what_peft_has_no_format_for(bert, config, kwargs, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        vbank.to_peft(attached(bert, config), tmp_path / "out", **kwargs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config", [vbank.LoRA(rank=2), vbank.VeRA(rank=2), vbank.VBLoRA(2, 9, 8)], ids=lambda config: config.method
)
def test_slices_of_a_fused_projection_go_as_lora_alone(config, tmp_path):
    model = attached(tiny_models.gpt2(), config, "qv")
    with pytest.raises(ValueError, match="c_attn:query.*are slices of a fused projection; write it with as_lora=True"):
        vbank.to_peft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head.weight = self.embed.weight


def test_a_head_that_peft_would_store_otherwise(tmp_path):
    model = attached(TiedHead(), vbank.LoRA(rank=2), ["query"], train=["head"])
    with pytest.raises(ValueError, match="lose embed.weight, which they share"):
        vbank.to_peft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_not_written(bert, tmp_path):
    model = attached(bert, vbank.LoRA(rank=2))
    with torch.no_grad():
        model.vbank.adapter("default").method.B[1][0, 0] = torch.nan
    for as_lora in (False, True):
        with pytest.raises(ValueError, match="lora_B.weight of adapter 'default' is not finite"):
            vbank.to_peft(model, tmp_path / "out", as_lora=as_lora)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        vbank.to_peft(model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x" and not (tmp_path / "out").exists()


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_former_adapter_whole(bert, tmp_path, monkeypatch, failing):
    model, real, calls = attached(bert, vbank.LoRA(rank=2)), interop.write_file, []

    def full(path, blob):
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, blob)

    vbank.to_peft(model, tmp_path / "old")
    (tmp_path / "old" / "README.md").write_text("kept")
    before = content(tmp_path / "old")
    move(model, seed=5)
    monkeypatch.setattr(interop, "write_file", full)
    for folder in ("old", "new"):
        calls.clear()
        with pytest.raises(OSError, match="the adapter is not saved"):
            vbank.to_peft(model, tmp_path / folder)
    assert content(tmp_path / "old") == before and not (tmp_path / "new").exists()
    monkeypatch.setattr(interop, "write_file", real)
    vbank.to_peft(model, tmp_path / "old")
    after = content(tmp_path / "old")
    assert after["adapter_model.safetensors"] != before["adapter_model.safetensors"]
    assert after.keys() == before.keys() and after["README.md"] == b"kept"
    assert json.loads(after["adapter_config.json"])["r"] == 2


FILES = ["adapter_config.json", "adapter_model.safetensors"]


def failing_replace(monkeypatch, folder, first, error, last=None):
    """Renames into or out of the adapter's names fail from the `first` to the `last` one."""
    real, calls = os.replace, []

    def replace(source, target):
        if str(folder) in (os.path.dirname(source), os.path.dirname(target)):
            calls.append(target)
            if first <= len(calls) <= (last or first):
                raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "file in use"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_an_exchange_that_fails_brings_the_former_adapter_back(bert, tmp_path, monkeypatch, first, error):
    """Two renames move the former files aside, two the new ones in."""
    vbank.to_peft(attached(bert, vbank.LoRA(rank=2)), tmp_path)
    before, new = content(tmp_path), attached(bert, vbank.LoRA(rank=2, alpha=64))
    with monkeypatch.context() as patch:
        failing_replace(patch, tmp_path, first, error)
        with pytest.raises(type(error)) as said:
            vbank.to_peft(new, tmp_path)
    assert content(tmp_path) == before
    if isinstance(error, OSError):
        assert "file in use: the adapter is not saved, and one that was in the folder is whole" in str(said.value)
        assert "make room" not in str(said.value)
    vbank.to_peft(new, tmp_path)
    assert sorted(content(tmp_path)) == FILES
    assert peft_side.settings(tmp_path)["lora_alpha"] == 64


@pytest.mark.parametrize("first", [1, 2])
def test_an_exchange_that_fails_in_a_folder_without_adapter_leaves_no_file(bert, tmp_path, monkeypatch, first):
    (tmp_path / "README.md").write_text("kept")
    failing_replace(monkeypatch, tmp_path, first + 2, PermissionError(errno.EACCES, "file in use"))
    with pytest.raises(OSError, match="file in use"):
        vbank.to_peft(attached(bert, vbank.LoRA(rank=2)), tmp_path)
    assert sorted(content(tmp_path)) == ["README.md"]


@pytest.mark.parametrize("first", [2, 3, 4])
def test_an_exchange_that_is_cut_short_leaves_nothing_that_loads(bert, tmp_path, monkeypatch, first):
    """Old tensors beside new settings would load, and give outputs of neither. The former files are not lost."""
    model = attached(bert, vbank.LoRA(rank=2))
    vbank.to_peft(model, tmp_path)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        failing_replace(patch, tmp_path, first, PermissionError(errno.EACCES, "no more"), last=99)
        with pytest.raises(OSError, match="the former files lie in .*former"):
            vbank.to_peft(attached(bert, vbank.LoRA(rank=2, alpha=64)), tmp_path)
    refused(bert, tmp_path, "holds no adapter_config.json")
    (left,) = tmp_path.glob(".aside-*/former")
    kept = content(left)
    assert kept["adapter_config.json"] == before["adapter_config.json"]
    old = "adapter_model.safetensors"
    assert (kept.get(old) or (tmp_path / old).read_bytes()) == before[old]
    vbank.to_peft(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES


def test_a_folder_in_the_place_of_a_file_is_not_touched(bert, tmp_path):
    (tmp_path / "adapter_model.safetensors").mkdir()
    (tmp_path / "adapter_model.safetensors" / "note").write_text("kept")
    with pytest.raises(OSError, match=r"adapter_model.safetensors is a folder: the adapter is not saved"):
        vbank.to_peft(attached(bert, vbank.LoRA(rank=2)), tmp_path)
    assert os.listdir(tmp_path) == ["adapter_model.safetensors"]
    assert (tmp_path / "adapter_model.safetensors" / "note").read_text() == "kept"


def test_a_failed_save_leaves_what_another_process_wrote_meanwhile(bert, tmp_path, monkeypatch):
    folder = tmp_path / "new"

    def full(path, blob):
        (folder / "theirs").write_text("kept")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(interop, "write_file", full)
    with pytest.raises(OSError, match="make room"):
        vbank.to_peft(attached(bert, vbank.LoRA(rank=2)), folder)
    assert os.listdir(folder) == ["theirs"]


def test_without_locks_a_writer_leaves_alone_what_another_one_needs(bert, tmp_path, monkeypatch):
    """A whole adapter is written while another one has its first file aside."""

    def flock(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    first, second = attached(bert, vbank.LoRA(rank=2)), attached(bert, vbank.LoRA(rank=3))
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 2:
            vbank.to_peft(second, tmp_path)
        real(source, target)

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    monkeypatch.setattr(os, "replace", replace)
    vbank.to_peft(first, tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert peft_side.settings(tmp_path)["r"] == 2


def test_a_seed_of_more_than_a_load_draws_goes_with_its_matrices(bert, tmp_path, monkeypatch):
    config = vbank.VeRA(rank=3)
    model = attached(bert, config)
    vbank.to_peft(model, tmp_path / "seed", compact=True)
    monkeypatch.setattr(vbank.stored, "DRAWN", 0)
    numbers, limit = vbank.stored.may_draw(config, model.vbank.adapter("default").sites)
    rank = limit * 3 // numbers + 1
    vbank.to_peft(attached(bert, vbank.VeRA(rank=rank)), tmp_path / "pair", compact=True)
    assert peft_side.settings(tmp_path / "pair")["save_projection"]
    assert not peft_side.settings(tmp_path / "seed")["save_projection"]
    vbank.from_peft(copy.deepcopy(bert), tmp_path / "pair")
    vbank.from_peft(copy.deepcopy(bert), tmp_path / "seed")
    file = tmp_path / "pair" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "lambda" in k}, file)
    refused(bert, tmp_path / "pair", f"rank is {rank}, .* at most {limit:,} are drawn .* with save_projection=True")


@pytest.mark.skipif(os.name != "posix", reason="no lock, so nothing is certain to be left")
def test_what_killed_writers_left_is_removed(bert, tmp_path):
    (tmp_path / ".aside-dead" / "former").mkdir(parents=True)
    (tmp_path / ".aside-dead" / "former" / "adapter_config.json").write_text("{}")
    (tmp_path / ".aside-file").write_text("")
    (tmp_path / ".hidden").write_text("kept")
    vbank.to_peft(attached(bert, vbank.LoRA(rank=2)), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", *FILES]
