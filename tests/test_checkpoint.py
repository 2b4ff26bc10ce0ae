"""Save and load: what comes back, what stands in the files, and how many bytes they take."""

import errno
import hashlib
import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import vbank
from vbank.methods.vb_lora import compose

CONFIGS = {
    "lora": vbank.LoRA(rank=3, alpha=6),
    "vera": vbank.VeRA(rank=5, seed=3),
    "tied-lora": vbank.TiedLoRA(rank=3, alpha=2.5),
    "prolora": vbank.PRoLoRA(rank=4, unshared_rank=1, share_a=3, share_b=2, alpha=8),
    "vb-lora": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=3),
}
VARIANTS = {
    **CONFIGS,
    "vera own pairs, only b": vbank.VeRA(rank=2, shared=False, train_d=False),
    "vera only d": vbank.VeRA(rank=2, train_b=False, init="uniform"),
    "prolora unshared": vbank.PRoLoRA(rank=2, unshared_rank=2, rotate=False, rectified=False),
    "vb-lora all": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, selection="select_all"),
    "vb-lora one": vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=1, selection="gumbel_softmax"),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Model(nn.Module):
    """Two layers of different shapes and a head of several parameters, whose names do not sort in model order."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query = nn.Linear(12, width)
        self.value = nn.Linear(width, 16, bias=False)
        self.head = nn.Sequential(nn.Linear(16, 6), nn.LayerNorm(6), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.value(torch.tanh(self.query(x)))))


def base(width: int = 8) -> Model:
    """The same base model at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Model(width)


def attached(config: vbank.Config, dtype: torch.dtype = torch.float32, train: tuple[str, ...] = ("head",)) -> Model:
    """A model whose adapter and head have moved away from their start."""
    model = base()
    adapter = vbank.attach(model, config, ["query", "value"], train=train, dtype=dtype)
    with torch.no_grad():
        for parameter in (*adapter.parameters(), *adapter.head(model).values()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def loaded(path: Path, **kwargs: str) -> Model:
    model = base()
    vbank.load(model, path, **kwargs)
    return model


def batch() -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def payload(path: Path) -> dict[str, torch.Tensor]:
    (file,) = path.glob("*.safetensors")
    return safetensors.torch.load_file(file)


def tensor_bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# What comes back


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_resumable_gives_identical_outputs_on_a_fresh_base(config, dtype, tmp_path):
    model = attached(config, dtype).eval()
    vbank.save(model, tmp_path / "a", form="resumable")
    again = loaded(tmp_path / "a").eval()
    assert torch.equal(again(batch()), model(batch()))
    assert model.state_dict().keys() == again.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert again.vbank.adapter("default").config == config
    vbank.save(again, tmp_path / "b", form="resumable")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_compact_gives_equal_outputs_and_stays_as_it_is(config, dtype, tmp_path):
    model = attached(config, dtype).eval()
    vbank.save(model, tmp_path / "a")
    again = loaded(tmp_path / "a").eval()
    if config.method == "vb-lora":
        assert relative(again(batch()), model(batch())) <= (1e-6 if dtype == torch.float32 else 2**-8 * config.stored_k)
    else:
        assert torch.equal(again(batch()), model(batch()))
    vbank.save(again, tmp_path / "b")
    third = loaded(tmp_path / "b").eval()
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert torch.equal(third(batch()), again(batch()))


SPREADS = {"trained": 1.0, "large": 30.0, "one-hot": 1e4}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("num_vectors", [8, 256, 257])
@pytest.mark.parametrize("top_k", range(1, 7))
def test_compact_vb_lora_survives_every_round_trip(top_k, num_vectors, dtype, spread, tmp_path):
    """PEFT's compact files reload as NaN for k >= 3 and not at all in bfloat16."""
    config = vbank.VBLoRA(rank=4, num_vectors=num_vectors, vector_length=4, top_k=top_k)
    model = base().eval()
    method = vbank.attach(model, config, ["query", "value"], dtype=dtype).method
    with torch.no_grad():
        method.logits.normal_(0.0, spread)
        method.bank.normal_()
    vbank.save(model, tmp_path / "0")
    again = loaded(tmp_path / "0").eval()
    compact = again.vbank.adapter("default").method

    # A rounded weight is off by at most u = eps / 2 of itself; the largest, 1 minus the others, by u more.
    u = torch.finfo(dtype).eps / 2
    (indices, weights), (kept, shares) = method.selected, compact.selected
    assert torch.equal(indices, kept)
    assert torch.isfinite(shares).all() and (shares >= 0).all()
    assert torch.equal(weights[:, 1:], shares[:, 1:])
    assert (weights - shares).abs().max() <= 4 * u
    exact = compose(indices, weights.double(), method.bank.double())
    assert relative(compose(kept, shares.double(), method.bank.double()), exact) <= top_k * 4 * u
    # 1e-6 in float32; bfloat16 keeps 8 bits of a weight and the update is a product of two factors.
    assert relative(again(batch()), model(batch())) <= (1e-6 if dtype == torch.float32 else 2**-5)

    before = again(batch())
    for trip in range(1, 3):
        vbank.save(again, tmp_path / str(trip))
        again = loaded(tmp_path / str(trip)).eval()
        assert files(tmp_path / str(trip)) == files(tmp_path / "0")
        assert torch.equal(again(batch()), before)


@pytest.mark.parametrize("dtype, h", [(torch.bfloat16, 416), (torch.float16, 2930)], ids=["bf16", "fp16"])
def test_compact_weights_of_a_flat_choice_stay_shares_of_one(dtype, h, tmp_path):
    """h - 1 weights of 1/h, each rounded up, sum to more than one; the last is then 0, not negative."""
    assert (h - 1) * torch.tensor(1 / h).to(dtype).item() > 1.0
    config = vbank.VBLoRA(rank=1, num_vectors=h, vector_length=4, selection="select_all")
    model = base().eval()
    method = vbank.attach(model, config, ["query", "value"], dtype=dtype).method
    with torch.no_grad():
        method.logits.zero_()
        method.bank.normal_()
    vbank.save(model, tmp_path)
    again = loaded(tmp_path).eval()
    shares = again.vbank.adapter("default").method.selected[1]
    assert (shares[:, 0] == 0.0).all() and (shares >= 0.0).all()
    assert relative(again(batch()), model(batch())) <= 2**-5


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    model.train()
    for step in steps:
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_training_resumes_bit_for_bit(config, tmp_path):
    straight = attached(config)
    optimizer = torch.optim.AdamW(vbank.param_groups(straight, lr=0.05))
    train(straight, optimizer, range(4))
    vbank.save(straight, tmp_path / "adapter", form="resumable")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(straight, optimizer, range(4, 8))

    resumed = loaded(tmp_path / "adapter")
    optimizer = torch.optim.AdamW(vbank.param_groups(resumed, lr=0.05))
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train(resumed, optimizer, range(4, 8))
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("rate", [0.01, 20.0])
def test_compact_after_training(rate, tmp_path):
    """A large learning rate drives the weights to 0 and 1."""
    config = vbank.VBLoRA(rank=2, num_vectors=9, vector_length=4, top_k=4)
    model = attached(config)
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr={"logits": rate, "default": 0.01}))
    train(model, optimizer, range(10))
    model.eval()
    vbank.save(model, tmp_path)
    again = loaded(tmp_path).eval()
    assert relative(again(batch()), model(batch())) <= 1e-6
    assert (again.vbank.adapter("default").method.selected[1] >= 0).all()


def test_compact_vb_lora_cannot_be_trained(tmp_path):
    vbank.save(attached(CONFIGS["vb-lora"]), tmp_path / "compact")
    model = loaded(tmp_path / "compact")
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="compact.*resumable"):
        vbank.param_groups(model, lr=1e-3)
    with pytest.raises(ValueError, match='compact.*form="compact"'):
        vbank.save(model, tmp_path / "resumable", form="resumable")
    assert not (tmp_path / "resumable").exists()


@pytest.mark.parametrize("form", ["compact", "resumable"])
@pytest.mark.parametrize("config", [c for m, c in CONFIGS.items() if m != "vb-lora"], ids=lambda c: c.method)
def test_other_methods_can_be_trained_from_either_form(config, form, tmp_path):
    vbank.save(attached(config), tmp_path, form=form)
    groups = vbank.param_groups(loaded(tmp_path), lr=1e-3)
    assert all(p.requires_grad for group in groups for p in group["params"])


# Which model, which adapter, which head


def test_load_by_a_chosen_name_becomes_active(tmp_path):
    vbank.save(attached(CONFIGS["lora"]), tmp_path / "lora")
    vbank.save(attached(CONFIGS["vb-lora"]), tmp_path / "vb")
    model = base()
    one = vbank.load(model, tmp_path / "lora", name="one")
    first = model(batch())
    two = vbank.load(model, tmp_path / "vb", name="two")
    assert (one.name, two.name, model.vbank.active) == ("one", "two", "two")
    assert torch.equal(model(batch()), loaded(tmp_path / "vb")(batch()))
    vbank.activate(model, "one")
    assert torch.equal(model(batch()), first)
    vbank.detach(model, "one")
    vbank.detach(model, "two")
    assert torch.equal(model(batch()), base()(batch()))
    assert model.state_dict().keys() == base().state_dict().keys()


def test_save_takes_the_named_adapter_with_its_own_head(tmp_path):
    model = attached(CONFIGS["lora"])
    first = model(batch()).detach()
    second = vbank.attach(model, CONFIGS["vera"], ["value"], train=["head"], name="second")
    with torch.no_grad():
        for parameter in (*second.parameters(), *second.head(model).values()):
            parameter.add_(torch.randn_like(parameter))
    other = model(batch()).detach()
    vbank.save(model, tmp_path / "first", name="default")
    vbank.save(model, tmp_path / "second")
    with vbank.enabled(model, False):
        vbank.save(model, tmp_path / "disabled")
        vbank.save(model, tmp_path / "first while disabled", name="default")
    assert torch.equal(loaded(tmp_path / "first")(batch()), first)
    assert torch.equal(loaded(tmp_path / "second")(batch()), other)
    assert files(tmp_path / "disabled") == files(tmp_path / "second")
    assert files(tmp_path / "first while disabled") == files(tmp_path / "first")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_save_while_merged(config, tmp_path):
    model = attached(config)
    vbank.save(model, tmp_path / "before")
    vbank.merge(model)
    vbank.save(model, tmp_path / "merged")
    with vbank.enabled(model, False):
        vbank.save(model, tmp_path / "off")
    assert files(tmp_path / "merged") == files(tmp_path / "before") == files(tmp_path / "off")


def test_save_through_the_wrapper_of_a_compiled_model(tmp_path):
    model = attached(CONFIGS["lora"])
    vbank.save(model, tmp_path / "plain")
    vbank.save(torch.compile(model), tmp_path / "wrapped")
    assert files(tmp_path / "plain") == files(tmp_path / "wrapped")


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_save_and_load_leave_random_numbers_alone(config, tmp_path):
    model = attached(config)
    state = torch.get_rng_state()
    vbank.save(model, tmp_path)
    loaded(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_and_train_come_back_as_given(tmp_path):
    model = base()
    vbank.attach(model, CONFIGS["lora"], "query|value", train=("head.0",))
    vbank.save(model, tmp_path)
    adapter = vbank.load(base(), tmp_path)
    assert adapter.targets == "query|value"
    assert adapter.train_modules == ["head.0"]
    assert adapter.trained == ["head.0.weight", "head.0.bias"]


def test_load_follows_the_model_to_its_precision(tmp_path):
    model = attached(CONFIGS["vb-lora"])
    vbank.save(model, tmp_path)
    half = base().to(torch.bfloat16)
    adapter = vbank.load(half, tmp_path)
    assert adapter.method.bank.dtype == torch.float32
    assert half.head[0].weight.dtype == torch.bfloat16
    assert relative(half(batch().bfloat16()).float(), model(batch())) < 0.1


def test_slices_of_a_fused_projection(tmp_path):
    transformers = pytest.importorskip("transformers")

    def gpt2() -> nn.Module:
        torch.manual_seed(3)
        config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=11, n_positions=8)
        return transformers.GPT2Model(config).eval()

    tokens = torch.arange(8)[None]
    model = gpt2()
    vbank.attach(model, CONFIGS["vb-lora"], "qv")
    vbank.save(model, tmp_path, form="resumable")
    again = gpt2()
    adapter = vbank.load(again, tmp_path)
    assert [site.name for site in adapter.sites][:2] == ["h.0.attn.c_attn:query", "h.0.attn.c_attn:value"]
    assert torch.equal(again(tokens).last_hidden_state, model(tokens).last_hidden_state)


# Bytes


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_compact_payload_is_what_count_says(config, dtype, tmp_path):
    model = attached(config, dtype)
    vbank.save(model, tmp_path)
    count = vbank.count(model)
    assert tensor_bytes(payload(tmp_path)) == count.bytes + count.head.nbytes
    again = vbank.count(loaded(tmp_path))
    assert (again.bytes, again.head) == (count.bytes, count.head)


def test_roberta_base_takes_the_papers_bytes(tmp_path):
    """VB-LoRA on RoBERTa-base's query and value layers stores 23,904 float32 equivalents."""
    layers = nn.ModuleDict(
        {f"layer{i}": nn.ModuleDict({n: nn.Linear(768, 768) for n in ("query", "value")}) for i in range(12)}
    )
    vbank.attach(layers, vbank.VBLoRA(rank=4, num_vectors=90, vector_length=256, top_k=2), "qv")
    vbank.save(layers, tmp_path)
    assert tensor_bytes(payload(tmp_path)) == vbank.count(layers).bytes == 95_616
    assert sum(len(content) for content in files(tmp_path).values()) <= 95_616 * 1.01 + 4096


@pytest.mark.parametrize("num_vectors, dtype", [(8, torch.uint8), (256, torch.uint8), (257, torch.uint16)])
def test_an_index_takes_the_smallest_unsigned_type(num_vectors, dtype, tmp_path):
    """PEFT spends 2 bytes at h = 256."""
    config = vbank.VBLoRA(rank=2, num_vectors=num_vectors, vector_length=4, top_k=2)
    model = attached(config, train=())
    with torch.no_grad():
        model.vbank.adapter("default").method.logits[:, -1] = 50.0  # the highest index occurs
    vbank.save(model, tmp_path)
    tensors = payload(tmp_path)
    assert tensors["indices"].dtype == dtype
    assert int(tensors["indices"].long().max()) == num_vectors - 1
    assert set(tensors) == {"bank", "indices", "weights"}
    assert relative(loaded(tmp_path)(batch()), model(batch())) <= 1e-6


def test_vera_stores_its_seed_and_no_matrices(tmp_path):
    model = attached(CONFIGS["vera"], train=())
    vbank.save(model, tmp_path / "seed")
    vbank.save(model, tmp_path / "matrices", frozen=True)
    assert set(payload(tmp_path / "seed")) == {"d.0", "d.1", "b.0", "b.1"}
    assert set(payload(tmp_path / "matrices")) == {"d.0", "d.1", "b.0", "b.1", "frozen.A0", "frozen.B0"}
    description = json.loads((tmp_path / "seed" / "adapter.json").read_text())
    assert description["config"]["seed"] == 3 and len(description["record"]["checksum"]) == 64
    for path in ("seed", "matrices"):
        assert torch.equal(loaded(tmp_path / path)(batch()), model(batch()))


@pytest.mark.parametrize("change", [{"config": {"seed": 4}}, {"record": {"checksum": "0" * 64}}])
def test_vera_with_another_seed_or_checksum_is_refused(change, tmp_path):
    vbank.save(attached(CONFIGS["vera"]), tmp_path)
    file = tmp_path / "adapter.json"
    description = json.loads(file.read_text())
    for key, values in change.items():
        description[key] |= values
    file.write_text(json.dumps(description))
    model = base()
    with pytest.raises(vbank.CheckpointError, match=r"seed \d.*checksum.*frozen=True"):
        vbank.load(model, tmp_path)
    assert not hasattr(model, "vbank")


def test_vera_drawn_by_another_generator_travels_with_its_matrices(tmp_path):
    model = attached(CONFIGS["vera"])
    method = model.vbank.adapter("default").method
    with torch.no_grad():
        method.A0.normal_()
    vbank.save(model, tmp_path, frozen=False)  # the seed alone would give other matrices here
    assert "frozen.A0" in payload(tmp_path)
    assert torch.equal(loaded(tmp_path)(batch()), model(batch()))


def test_vera_after_a_change_of_precision(tmp_path):
    model = attached(CONFIGS["vera"])
    model.vbank.to(torch.bfloat16).to(torch.float32)
    vbank.save(model, tmp_path, form="resumable")
    assert torch.equal(loaded(tmp_path)(batch()), model(batch()))


# The folder


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_folder_holds_two_files_however_often_it_is_written(config, tmp_path):
    foreign = {"README.md": b"x", "adapter-notes.txt": b"y", "adapter-mine.safetensors": b"z"}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".aside-0123").write_bytes(b"left by a killed save")
    for _ in range(3):
        model = attached(config)
        vbank.save(model, tmp_path)
        found = files(tmp_path)
        assert {name: found.pop(name) for name in foreign} == foreign
        description = json.loads(found.pop("adapter.json"))
        (name,) = found
        assert description["tensors"] == name
        assert description["sha256"] == hashlib.sha256(found[name]).hexdigest()
    assert relative(loaded(tmp_path)(batch()), model(batch())) <= 1e-6


def test_a_save_writes_files_of_the_users_mode(tmp_path):
    before = os.umask(0o027)
    try:
        vbank.save(attached(CONFIGS["lora"]), tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


def test_the_folder_is_made_with_its_parents_and_taken_as_a_string(tmp_path):
    path = tmp_path / "runs" / "1" / "adapter"
    vbank.save(attached(CONFIGS["lora"]), str(path))
    vbank.load(base(), str(path))


def test_savers_at_the_same_time_leave_one_whole_adapter(tmp_path):
    models = [attached(CONFIGS["lora"]) for _ in range(4)]
    outputs = [model(batch()) for model in models]
    savers = [threading.Thread(target=vbank.save, args=(m, tmp_path)) for _ in range(5) for m in models]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    assert len(files(tmp_path)) == 2
    found = loaded(tmp_path)(batch())
    assert any(torch.equal(found, output) for output in outputs)


@pytest.mark.parametrize("moment", ["it has the JSON", "it has seen the tensors"])
def test_a_reader_whose_tensors_go_takes_those_of_the_save_that_removed_them(moment, tmp_path, monkeypatch):
    old, new, real = attached(CONFIGS["lora"]), attached(CONFIGS["vera"]), Path.read_bytes
    vbank.save(old, tmp_path)
    pending = [new]

    def read_bytes(file: Path) -> bytes:
        content = real(file) if moment == "it has the JSON" else b""
        if pending and (file.name == "adapter.json") == (moment == "it has the JSON"):
            vbank.save(pending.pop(), tmp_path)
        return content or real(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert torch.equal(loaded(tmp_path)(batch()), new(batch())) and not pending


def test_a_reader_sees_a_new_save_also_where_the_json_is_as_before(tmp_path, monkeypatch):
    one, other, real, reads = attached(CONFIGS["lora"]), attached(CONFIGS["lora"]), Path.read_bytes, []
    vbank.save(one, tmp_path)

    def read_bytes(file: Path) -> bytes:
        if file.name != "adapter.json":
            return real(file)
        reads.append(file)
        if len(reads) == 2:
            vbank.save(one, tmp_path)
        content = real(file)
        if len(reads) <= 2:
            vbank.save(other, tmp_path)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert torch.equal(loaded(tmp_path)(batch()), other(batch())) and len(reads) == 3


@pytest.fixture
def no_locks(monkeypatch) -> None:
    """A file system without locks."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)


@pytest.mark.parametrize("rename", [0, 1], ids=["tensors", "json"])
def test_without_locks_a_saver_leaves_alone_what_another_one_needs(rename, no_locks, tmp_path, monkeypatch):
    """A whole save happens just before another one renames its first or its second file."""
    first, second, real, calls = attached(CONFIGS["lora"]), attached(CONFIGS["vera"]), os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == rename + 1:
            vbank.save(second, tmp_path)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    vbank.save(first, tmp_path)
    assert len(calls) == 4
    assert torch.equal(loaded(tmp_path)(batch()), first(batch()))


def test_without_locks_only_what_is_old_is_removed(no_locks, tmp_path):
    left = [tmp_path / ".aside-dead", tmp_path / "adapter-0123456789abcdef.safetensors"]
    new = [tmp_path / ".aside-alive", tmp_path / "adapter-fedcba9876543210.safetensors"]
    for file in (*left, *new):
        file.write_bytes(b"")
    for file in left:
        os.utime(file, (0, 0))
    model = attached(CONFIGS["lora"])
    vbank.save(model, tmp_path)
    assert all(file.exists() for file in new) and not any(file.exists() for file in left)
    assert torch.equal(loaded(tmp_path)(batch()), model(batch()))


def test_settings_survive_json(tmp_path):
    config = vbank.LoRA(rank=2, alpha=1 / 3, dropout=0.1)
    model = attached(config)
    vbank.save(model, tmp_path)
    assert vbank.load(base(), tmp_path).config == config
    assert math.isclose(vbank.load(base(), tmp_path).method.scale, 1 / 6)
