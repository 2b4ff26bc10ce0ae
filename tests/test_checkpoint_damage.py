"""Bad files, bad folders and saves that are cut short: an error that names the thing, and nothing is harmed."""

import builtins
import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from test_checkpoint import CONFIGS, Model, attached, base, batch, files, loaded, payload
from torch import nn

import vbank

Tensors = dict[str, torch.Tensor]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


def forge(path: Path, tensors: Tensors | None = None, /, blob: bytes | None = None, **changes: object) -> None:
    """Write an adapter folder as `vbank.save` does, hashes in order, whatever it holds."""
    description = json.loads((path / "adapter.json").read_text())
    if tensors is not None:
        blob = safetensors.torch.save(tensors)
    if blob is not None:
        (path / description["tensors"]).unlink()
        digest = hashlib.sha256(blob).hexdigest()
        description |= {"tensors": f"adapter-{digest[:16]}.safetensors", "sha256": digest}
        (path / description["tensors"]).write_bytes(blob)
    (path / "adapter.json").write_text(json.dumps(description | changes))


def state(model: nn.Module) -> tuple:
    """All that a failed load must not touch."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [(n, p.requires_grad) for n, p in model.named_parameters()],
        [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()],
        model(batch()).detach(),
    )


def same(before: tuple, after: tuple) -> bool:
    return (
        before[0].keys() == after[0].keys()
        and all(torch.equal(value, after[0][key]) for key, value in before[0].items())
        and before[1:3] == after[1:3]
        and torch.equal(before[3], after[3])
    )


def refused(path: Path, match: str, kind: type[Exception] = vbank.CheckpointError, model: nn.Module | None = None):
    """The load fails with this message and leaves a plain model, and one with an adapter, as they were."""
    other = base()
    vbank.attach(other, vbank.LoRA(rank=1), ["query"], name="first")
    for target in [model] if model is not None else [base(), other]:
        before, random_state = state(target), torch.get_rng_state()
        with pytest.raises(kind, match=match):
            vbank.load(target, path)
        assert same(before, state(target))
        assert torch.equal(random_state, torch.get_rng_state())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(method: str = "vb-lora", form: str = "compact", train: tuple[str, ...] = ("head",)) -> Path:
        vbank.save(attached(CONFIGS[method], train=train), tmp_path / "a", form=form)
        return tmp_path / "a"

    return save


# The tensor file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    vbank.save(attached(CONFIGS["vb-lora"]), path)
    return path


@hypothesis.given(st.data())
def test_a_flipped_bit_of_the_tensors_is_found(folder, data):
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    model = base()
    file.write_bytes(damaged)
    try:
        with pytest.raises(vbank.CheckpointError, match="adapter-.*is damaged.*SHA-256"):
            vbank.load(model, folder)
    finally:
        file.write_bytes(whole)
    assert not hasattr(model, "vbank")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
def test_truncated_tensors(fraction, saved):
    path = saved()
    (file,) = path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * fraction)])
    refused(path, "adapter-.*is damaged.*bytes")


@pytest.mark.parametrize("cut", [0, 4, 20, 200])
def test_truncated_tensors_under_a_matching_hash(cut, saved):
    path = saved()
    (file,) = path.glob("*.safetensors")
    forge(path, blob=file.read_bytes()[:cut])
    refused(path, "no safetensors file")


def test_nothing_is_unpickled(saved):
    """A pickle under the tensors' name, with the right hash, is refused unread."""
    path = saved()
    touched = path / "touched"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(touched),)

    zipped = io.BytesIO()
    torch.save({"bank": Trap()}, zipped)
    for blob in (pickle.dumps(Trap()), pickle.dumps(payload(path)), zipped.getvalue()):
        forge(path, blob=blob)
        with pytest.raises(vbank.CheckpointError, match="no safetensors file"):
            vbank.load(base(), path)
    assert not touched.exists()


def test_a_missing_tensor_file(saved):
    path = saved()
    (file,) = path.glob("*.safetensors")
    file.unlink()
    refused(path, f"lacks {file.name}.*adapter.json names; copy both")


@pytest.mark.parametrize(
    "name",
    ["../adapter-0123456789abcdef.safetensors", "/etc/passwd", "adapter-x.safetensors", "", "adapter.json", "..", "a/b"]
    + [
        "adapter-0123456789abcdef.safetensors\n",
        "adapter-0123456789abcdef.safetensors/../../x",
        "adapter-0123456789ABCDEF.bin",
    ],
)
def test_a_tensor_file_elsewhere(name, saved):
    path = saved()
    (file,) = path.glob("*.safetensors")
    shutil.copy(file, path.parent / "adapter-0123456789abcdef.safetensors")
    forge(path, tensors=name)
    refused(path, "no name that vbank.save writes")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method, form", [(m, f) for m in CONFIGS for f in ("compact", "resumable")])
def test_values_that_are_not_finite_in_the_file(method, form, value, saved):
    path = saved(method, form)
    for key, tensor in payload(path).items():
        if tensor.is_floating_point():
            tensors = payload(path) | {key: torch.full_like(tensor, value)}
            copy = path.parent / key
            shutil.copytree(path, copy)
            forge(copy, tensors)
            with pytest.raises(vbank.CheckpointError, match=f"{key.removeprefix('head.')}.*not finite.*save"):
                vbank.load(base(), copy)


def test_head_values_beyond_the_models_precision(saved):
    path = saved("lora")
    tensors = payload(path)
    tensors["head.head.0.weight"][0, 0] = 1e30
    forge(path, tensors)
    vbank.load(base(), path)
    half = base().to(torch.float16)
    with pytest.raises(vbank.CheckpointError, match="head.0.weight.*float16"):
        vbank.load(half, path)
    assert not hasattr(half, "vbank")


def test_indices_out_of_range(saved):
    path = saved()
    tensors = payload(path)
    tensors["indices"][-1, -1] = 9
    forge(path, tensors)
    refused(path, "index 9 points outside the bank of 9")


def test_a_vector_named_twice(saved):
    path = saved()
    tensors = payload(path)
    tensors["indices"][5] = torch.tensor([7, 2, 7])
    forge(path, tensors)
    refused(path, "a sub-vector names one bank vector twice")


@pytest.mark.parametrize("value", [-0.01, 0.9])
def test_weights_that_are_no_shares(value, saved):
    path = saved()
    tensors = payload(path)
    tensors["weights"][3, :] = value
    forge(path, tensors)
    refused(path, "no shares of one")


def without(tensors: Tensors, key: str) -> Tensors:
    return {k: v for k, v in tensors.items() if k != key}


TENSOR_FAULTS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "missing": ("lora", lambda t: without(t, "A.1"), "lacks A.1"),
    "extra": ("lora", lambda t: t | {"A.2": torch.ones(1)}, "unknown keys A.2"),
    "extra frozen": ("lora", lambda t: t | {"frozen.A0": torch.ones(1)}, "unknown keys frozen.A0"),
    "half of the frozen pair": ("vera", lambda t: t | {"frozen.A0": torch.ones(5, 12)}, "lacks frozen.B0"),
    "frozen of another shape": (
        "vera",
        lambda t: t | {"frozen.A0": torch.ones(1, 1), "frozen.B0": torch.ones(16, 5)},
        r"frozen.A0 is .*\(1, 1\).*\(5, 12\)",
    ),
    "other frozen values": (
        "vera",
        lambda t: t | {"frozen.A0": torch.ones(5, 12), "frozen.B0": torch.ones(16, 5)},
        "checksum",
    ),
    "half precision": ("lora", lambda t: t | {"A.0": t["A.0"].half()}, "A.0 is torch.float16.*float32"),
    "integers": ("lora", lambda t: t | {"A.0": t["A.0"].int()}, "A.0 is torch.int32.*float32"),
    "wide indices": ("vb-lora", lambda t: t | {"indices": t["indices"].long()}, "indices is torch.int64.*uint8"),
    "a shape that would broadcast": ("lora", lambda t: t | {"A.0": t["A.0"][:1]}, r"A.0 is .*\(1, 12\).*\(3, 12\)"),
    "one weight too many": (
        "vb-lora",
        lambda t: t | {"weights": torch.cat([t["weights"], t["weights"][:, :1]], 1)},
        "weights is",
    ),
    "logits in a compact file": ("vb-lora", lambda t: t | {"logits": torch.ones(22, 9)}, "unknown keys logits"),
    "integer head": ("lora", lambda t: t | {"head.head.0.bias": torch.ones(6).int()}, "head.0.bias.*int32.*floating"),
}


@pytest.mark.parametrize("method, fault, match", TENSOR_FAULTS.values(), ids=TENSOR_FAULTS)
def test_tensors_that_do_not_fit_the_settings(method, fault, match, saved):
    path = saved(method)
    tensors = fault(payload(path))
    forge(path, tensors)
    refused(path, match)


HEAD_FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (lambda t: without(t, "head.head.0.bias"), "head.0.bias is trained, but the file lacks it"),
    "another module": (lambda t: t | {"head.query.bias": torch.ones(8)}, "query.bias is not part of what is trained"),
    "an adapter's own": (lambda t: t | {"head.vbank.first.method.A.0": torch.ones(1, 12)}, "vbank.first.*not part"),
    "no parameter": (lambda t: t | {"head.nothing": torch.ones(1)}, "nothing is not part"),
    "another shape": (lambda t: t | {"head.head.0.bias": torch.ones(1)}, r"head.0.bias has shape \(6,\), not \(1,\)"),
}


@pytest.mark.parametrize("fault, match", HEAD_FAULTS.values(), ids=HEAD_FAULTS)
def test_a_head_that_is_not_the_models(fault, match, saved):
    path = saved("lora")
    tensors = fault(payload(path))
    forge(path, tensors)
    refused(path, match, ValueError)


# The JSON


@pytest.mark.parametrize("version", [0, 3, -1, "1", None, True, 1.0, [1], {}])
def test_an_unknown_format_version(version, saved):
    path = saved()
    forge(path, format_version=version)
    refused(path, "format version .*reads versions 1 to 2: update vbank")


def test_a_json_without_version(saved):
    path = saved()
    (path / "adapter.json").write_text("{}")
    refused(path, "format version None")


BROKEN_JSON = {
    "empty": b"",
    "text": b"hello",
    "truncated": b'{"format_version": 1, "method": "lo',
    "not UTF-8": b'{"format_version": "\xff\xfe\xfa"}',
    "zeros": bytes(100),
    "deep": b"[" * 100_000,
    "long number": b'{"format_version": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
def test_no_json(content, saved):
    path = saved()
    (path / "adapter.json").write_bytes(content)
    refused(path, "adapter.json is damaged.*restore it from a copy")


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_json_that_is_no_object(content, saved):
    path = saved()
    (path / "adapter.json").write_text(content)
    refused(path, "adapter.json holds a .*, not an object")


KEYS = ["method", "config", "form", "dtype", "stored", "targets", "train", "sites", "record", "tensors", "sha256"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key(key, saved):
    path = saved()
    description = json.loads((path / "adapter.json").read_text())
    del description[key]
    (path / "adapter.json").write_text(json.dumps(description))
    refused(path, f"adapter.json lacks {key}")


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type(key, saved):
    path = saved()
    for value in (None, 3, True, {"a": 1} if key not in ("config", "sites", "record") else "text"):
        forge(path, None, **{key: value})
        with pytest.raises(vbank.CheckpointError, match=f"adapter.json: {key} is .*not of its type"):
            vbank.load(base(), path)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"alpha": 3}, "unknown keys alpha"),
        ({"method": "dora"}, "method is 'dora'; it must be one of lora"),
        ({"form": "full"}, "form is 'full'; it must be one of compact, resumable"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32"),
        ({"dtype": "bfloat16"}, "stored is 'float32'; it must be bfloat16, as dtype is, or float16"),
        ({"dtype": "bfloat16", "stored": "bfloat16"}, "float32 .*need torch.bfloat16"),
        ({"stored": "float16"}, "float32 .*need torch.float16"),
        ({"stored": "int8"}, "stored is 'int8'; it must be float32"),
        ({"format_version": 1}, "has unknown keys stored"),
        ({"form": "resumable"}, "lacks logits and has unknown keys indices, weights"),
        ({"targets": ["query", 3]}, "targets is .*not of its type"),
        ({"train": [None]}, "train is .*not of its type"),
        ({"sites": {}}, "sites is empty"),
        ({"sites": {"query": [12]}}, "site 'query' has shape"),
        ({"sites": {"query": [12, 8.0]}}, "site 'query' has shape"),
        ({"sites": {"query": [12, True]}}, "site 'query' has shape"),
        ({"sites": {"query": [0, 8]}}, "site 'query' has shape"),
        ({"sites": {"query": [12, 8]}}, "bank|indices is"),
        ({"record": {"checksum": "0"}}, "record has unknown keys checksum"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_values_out_of_range(changes, match, saved):
    path = saved()
    forge(path, **changes)
    refused(path, match)


@pytest.mark.parametrize(
    "method, setting, value",
    [
        *(("lora", "rank", v) for v in ("4", True, 3.0, 0, -1, None, [3])),
        *(("lora", "alpha", v) for v in ("4", True, 0, -1.0, float("nan"), float("inf"), [1])),
        *(("lora", "dropout", v) for v in ("0", False, None, 1.0, -0.1, float("nan"))),
        *(("vera", "seed", v) for v in ("3", -1, 2**63, True, None)),
        *(("vera", "d_init", v) for v in ("0.1", None, True, float("nan"))),
        *(("vera", "init", v) for v in ("ones", None, [], {})),
        *(("vera", "shared", v) for v in ("no", 1, None)),
        *(("prolora", "rotate", v) for v in ("false", 0, None)),
        *(("prolora", "unshared_rank", v) for v in (-1, 5, "1")),
        *(("vb-lora", "top_k", v) for v in (0, 10, "3", True)),
        *(("vb-lora", "num_vectors", v) for v in (0, 2**16 + 1, 9.0)),
        *(("vb-lora", "selection", v) for v in ("top_p", None, ["top_k"])),
        *(("vb-lora", "vector_length", v) for v in (5, 0, "4")),
    ],
)
def test_settings_of_another_type_or_out_of_range(method, setting, value, saved):
    path = saved(method)
    config = json.loads((path / "adapter.json").read_text())["config"]
    forge(path, config=config | {setting: value})
    refused(path, f"adapter.json.*{setting}")


@pytest.mark.parametrize("method", CONFIGS)
def test_config_with_missing_and_extra_keys(method, saved):
    path = saved(method)
    config = json.loads((path / "adapter.json").read_text())["config"]
    forge(path, config={k: v for k, v in config.items() if k != "rank"} | {"r": 4})
    refused(path, "config lacks rank and has unknown keys r;")


@hypothesis.given(st.data())
def test_a_flipped_bit_of_the_json_harms_nothing(folder, data):
    """Either an error that says so, or an adapter whose tensors fit; never half of one."""
    file = folder / "adapter.json"
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    model = base()
    file.write_bytes(damaged)
    try:
        vbank.load(model, folder)
    except ValueError as error:
        assert str(folder) in str(error)
        assert same(state(base()), state(model))
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("rank", [10**9, 10**15, 10**30])
@pytest.mark.parametrize("method", CONFIGS)
def test_a_huge_rank_allocates_nothing(method, rank, saved):
    path = saved(method)
    config = json.loads((path / "adapter.json").read_text())["config"]
    forge(path, config=config | {"rank": rank})
    start = time.process_time()
    refused(path, "need torch|overflow|too large|out of range|exceed|size|int|frozen=True", vbank.CheckpointError)
    assert time.process_time() - start < 10.0


@pytest.mark.parametrize("rank", [600_000, 10**9, 10**30])
@pytest.mark.parametrize("shared", [True, False])
def test_a_rank_that_no_tensor_shows_draws_nothing(shared, rank, tmp_path, monkeypatch):
    config = vbank.VeRA(rank=5, train_d=False, shared=shared)
    vbank.save(attached(config), tmp_path)
    forge(tmp_path, config=config.settings() | {"rank": rank})
    monkeypatch.setattr("vbank.methods.vera.draw", lambda *args: pytest.fail("it draws"))
    numbers = rank * (12 + 16 if shared else 12 + 8 + 8 + 16)
    refused(tmp_path, rf"adapter.json: rank is {rank:,}, .* of {numbers:,} .* at most 16,777,216 .* with frozen=True")


@pytest.mark.parametrize("shared, largest", [(True, 16), (False, 10)])  # 2 * 224 weights, 28 or 44 numbers a rank
@pytest.mark.parametrize("train_d", [True, False])
def test_matrices_that_a_load_would_not_draw_are_stored(train_d, shared, largest, tmp_path, monkeypatch):
    monkeypatch.setattr(vbank.stored, "DRAWN", 0)
    for rank in (largest, largest + 1):
        model, path = attached(vbank.VeRA(rank=rank, train_d=train_d, shared=shared)), tmp_path / str(rank)
        vbank.save(model, path)
        assert any(key.startswith("frozen.") for key in payload(path)) == (rank > largest)
        assert torch.equal(loaded(path)(batch()), model(batch()))
    forge(path, {key: value for key, value in payload(path).items() if not key.startswith("frozen.")})
    refused(path, f"rank is {largest + 1}, .* for these layers at most 448 are drawn")


def test_huge_sites_allocate_nothing(saved):
    path = saved("lora")
    forge(path, sites={"query": [10**12, 10**12], "value": [8, 16]})
    refused(path, r"A.0 is .*\(3, 12\); these settings and layers need .*\(3, 1000000000000\)")


# The model


def test_a_model_of_other_shapes_is_told_all_at_once(saved):
    path = saved("lora")
    model = base(width=10)
    model.head[0] = nn.Linear(16, 7)
    model.head[1], model.head[2] = nn.LayerNorm(7), nn.Linear(7, 2)
    refused(path, "query is 12 -> 10, not 12 -> 8; value is 10 -> 16, not 8 -> 16; head.0.*6.*more", ValueError, model)


def test_a_model_of_other_names(saved):
    path = saved("lora")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    refused(path, r"query \(12 -> 8\) is absent; value \(8 -> 16\) is absent", ValueError, Wrapped())


def test_a_model_without_the_head(saved):
    path = saved("lora")
    model = base()
    model.head = nn.Identity()
    refused(path, "another model: in this Model, train module 'head'|head", ValueError, model)


def test_a_layer_that_is_not_linear(saved):
    path = saved("lora", train=())
    model = base()
    model.query = nn.Sequential(nn.Linear(12, 8))
    refused(path, "query .*is absent", ValueError, model)


def test_a_name_that_is_taken_or_none(saved):
    path = saved("lora")
    model = base()
    vbank.load(model, path, name="one")
    before = state(model)
    for name, match in (
        ("one", "'one' is attached already"),
        ("a.b", "letters, digits"),
        ("", "letters"),
        ("keys", "attribute"),
    ):
        with pytest.raises(ValueError, match=match):
            vbank.load(model, path, name=name)
    vbank.merge(model)
    with pytest.raises(ValueError, match="unmerge"):
        vbank.load(model, path, name="two")
    vbank.unmerge(model)
    assert same(before, state(model))


# The folder


def test_a_path_that_is_a_file_or_absent(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    model = attached(CONFIGS["lora"])
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        vbank.save(model, file)
    with pytest.raises(OSError, match="below.*") as raised:
        vbank.save(model, file / "below")
    assert "choose another folder" in str(raised.value)
    assert file.read_text() == "mine"
    refused(file, "file is a file; give the folder that holds adapter.json")
    refused(tmp_path / "absent", "absent holds no adapter.json; give a folder that vbank.save wrote")
    refused(tmp_path, "holds no adapter.json")
    (tmp_path / "adapter.json").mkdir()
    refused(tmp_path, "holds no adapter.json")


@posix
def test_links_are_read_and_never_written_through(tmp_path):
    """The Hub's cache is made of links that lead out of their folder; the hash says whether the content is right."""
    model, blobs = attached(CONFIGS["vb-lora"]), tmp_path / "blobs"
    vbank.save(model, blobs)
    before = files(blobs)
    (tmp_path / "a").mkdir()
    for name in before:
        (tmp_path / "a" / name).symlink_to(blobs / name)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert torch.equal(loaded(tmp_path / "b")(batch()), loaded(blobs)(batch()))
    vbank.save(attached(CONFIGS["lora"]), tmp_path / "b")
    assert files(blobs) == before
    assert not any(file.is_symlink() for file in (tmp_path / "a").iterdir())


@posix
@pytest.mark.parametrize("target", ["/dev/zero", "../elsewhere", "."], ids=["endless", "nowhere", "a folder"])
def test_a_link_to_something_else_is_refused(target, saved):
    path = saved()
    (file,) = path.glob("*.safetensors")
    file.unlink()
    file.symlink_to(target)
    refused(path, f"lacks {file.name}")
    (path / "adapter.json").unlink()
    (path / "adapter.json").symlink_to(target)
    refused(path, "holds no adapter.json")


@posix
def test_a_link_to_other_content_is_refused(saved, tmp_path):
    path = saved()
    (file,) = path.glob("*.safetensors")
    file.rename(tmp_path / "whole")
    (tmp_path / "other").write_bytes(b"x" + (tmp_path / "whole").read_bytes())
    file.symlink_to(tmp_path / "other")
    refused(path, "SHA-256")


def parameter_names(method: str) -> list[str]:
    return [n for n, _ in attached(CONFIGS[method]).vbank.adapter("default").method.named_parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method, key", [(m, k) for m in CONFIGS for k in parameter_names(m)])
def test_values_that_are_not_finite_are_not_saved(method, key, value, tmp_path):
    model = attached(CONFIGS[method])
    vbank.save(model, tmp_path)
    before = files(tmp_path)
    with torch.no_grad():
        model.vbank.adapter("default").method.get_parameter(key).view(-1)[1] = value
    for form in ("compact", "resumable"):
        with pytest.raises(ValueError, match=f"{key}.* of adapter 'default' is not finite"):
            vbank.save(model, tmp_path, form=form)
    assert files(tmp_path) == before


def test_a_logit_that_is_not_a_number_is_seen_though_top_1_stores_no_weights(tmp_path):
    model = attached(vbank.VBLoRA(rank=1, num_vectors=4, vector_length=4, top_k=1))
    with torch.no_grad():
        model.vbank.adapter("default").method.logits[0, 0] = float("nan")
    with pytest.raises(ValueError, match="logits of adapter 'default' is not finite"):
        vbank.save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_head_that_is_not_finite_is_not_saved(tmp_path):
    model = attached(CONFIGS["lora"])
    with torch.no_grad():
        model.head[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="head.0.bias"):
        vbank.save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_saves_that_ask_for_what_is_not_there(tmp_path):
    model = attached(CONFIGS["lora"])
    with pytest.raises(ValueError, match="form is 'full'; choose one of compact, resumable"):
        vbank.save(model, tmp_path / "a", form="full")
    with pytest.raises(ValueError, match="no adapter is called 'other'; there are 'default'"):
        vbank.save(model, tmp_path / "a", name="other")
    with pytest.raises(ValueError, match="has no adapter"):
        vbank.save(base(), tmp_path / "a")
    model.vbank.adapter("default").method.A[0].data = model.vbank.adapter("default").method.A[0].data.half()
    with pytest.raises(ValueError, match="of type float16, float32; a file holds one"):
        vbank.save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# Saves that are cut short


def two(path: Path) -> tuple[Model, Model, dict[str, bytes]]:
    """An adapter in the folder, and another one that is to replace it."""
    old, new = attached(CONFIGS["vb-lora"]), attached(CONFIGS["lora"])
    vbank.save(old, path)
    return old, new, files(path)


def failing(function: Callable, at: int, before: Callable[[], object]) -> Callable:
    """`function`, which on its call number `at` does `before` first."""
    calls = iter(range(1000))

    def call(*args, **kwargs):
        if next(calls) == at:
            before()
        return function(*args, **kwargs)

    return call


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class HalfWritten:
    """A file whose disk is full after half of what is written."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file = file

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        no_space()


@pytest.mark.parametrize("step", [0, 1], ids=["tensors", "json"])
@pytest.mark.parametrize("where", ["open", "write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_adapter_whole(where, step, tmp_path, monkeypatch):
    old, new, before = two(tmp_path)
    if where == "open":
        monkeypatch.setattr("vbank.checkpoint.open", failing(open, step, no_space), raising=False)
    elif where == "write":
        opened = iter(range(10))

        def half(*args):
            file = builtins.open(*args)
            return HalfWritten(file) if next(opened) == step else file

        monkeypatch.setattr("vbank.checkpoint.open", half, raising=False)
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", failing(os.fsync, 2 * step, no_space))  # each file, then its folder
    else:
        monkeypatch.setattr(os, "replace", failing(os.replace, step, no_space))
    with pytest.raises(OSError, match="No space left.*not saved.*whole; make room.*") as raised:
        vbank.save(new, tmp_path)
    assert raised.value.errno == errno.ENOSPC and str(tmp_path) in str(raised.value)
    monkeypatch.undo()
    after = files(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.startswith(".")]
    expected = base()
    vbank.load(expected, tmp_path)
    assert expected.vbank.adapter("default").config == CONFIGS["vb-lora"]
    vbank.save(new, tmp_path)
    assert len(files(tmp_path)) == 2
    assert torch.equal(loaded(tmp_path)(batch()), new(batch()))


def in_child(function: Callable[[], object]) -> int:
    """Run in a forked process; returns what `os.waitpid` says."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@posix
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_save_killed_at_any_step_leaves_an_adapter_whole(when, tmp_path):
    old, new, before = two(tmp_path / "start")
    outputs = {"old": loaded(tmp_path / "start")(batch()), "new": new(batch())}
    seen = []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    steps = [(os, "fsync", 4), (os, "replace", 2), (Path, "unlink", 1), (os, "open", 3), (Path, "mkdir", 1)]
    for owner, function, calls in steps:
        for at in range(calls):
            path = tmp_path / f"{function}{at}"
            shutil.copytree(tmp_path / "start", path)

            def save(owner=owner, function=function, at=at, path=path) -> None:
                real, count = getattr(owner, function), iter(range(1000))

                def patched(*args, **kwargs):
                    last = next(count) == at
                    if last and when == "before":
                        die()
                    result = real(*args, **kwargs)
                    if last:
                        die()
                    return result

                setattr(owner, function, patched)
                vbank.save(new, path)

            status = in_child(save)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (function, at)
            found = loaded(path)(batch())
            seen.append(next(which for which, output in outputs.items() if torch.equal(found, output)))
            vbank.save(new, path)  # the lock went with the process, and so do its leftovers
            assert files(path).keys() == {"adapter.json", *(f.name for f in path.glob("adapter-*.safetensors"))}
            assert len(files(path)) == 2
    assert set(seen) == {"old", "new"}


@posix
def test_saves_killed_at_any_moment_leave_an_adapter_whole(tmp_path):
    models = [attached(CONFIGS["lora"]) for _ in range(2)]
    outputs = [model(batch()) for model in models]
    vbank.save(models[0], tmp_path)
    moments = random.Random(0)
    for _ in range(15):
        child = os.fork()
        if child == 0:
            while True:
                for model in models:
                    vbank.save(model, tmp_path)
        time.sleep(0.005 + 0.03 * moments.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = loaded(tmp_path)(batch())
        assert any(torch.equal(found, output) for output in outputs)
    vbank.save(models[1], tmp_path)
    assert len(files(tmp_path)) == 2


@posix
def test_a_limit_on_file_sizes_cuts_the_real_write_short(tmp_path):
    resource = pytest.importorskip("resource")
    old, new, before = two(tmp_path)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        with pytest.raises(OSError, match="too large.*not saved"):
            vbank.save(new, tmp_path)

    assert in_child(save) == 0
    assert files(tmp_path) == before


@posix
def test_a_folder_that_cannot_be_written(tmp_path):
    model = attached(CONFIGS["lora"])
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    path = place / "adapter"
    vbank.save(model, path)
    before = files(path)
    with torch.no_grad():
        model.head[0].bias.add_(1.0)
    for folder in (path, place):
        os.chmod(folder, 0o555)

    def save() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        for folder in (path, place / "new"):
            with pytest.raises(PermissionError, match="not saved.*choose another folder"):
                vbank.save(model, folder)
        vbank.load(base(), path)

    try:
        assert in_child(save) == 0
        assert files(path) == before
    finally:
        for folder in (place, path):
            os.chmod(folder, 0o755)
        shutil.rmtree(place)


def test_leftovers_of_a_killed_save_do_not_disturb_a_load(tmp_path):
    model = attached(CONFIGS["lora"])
    vbank.save(model, tmp_path)
    (tmp_path / ".aside-00ff").write_bytes(b"half")
    (tmp_path / "adapter-0123456789abcdef.safetensors").write_bytes(b"the next one")
    assert torch.equal(loaded(tmp_path)(batch()), model(batch()))
    vbank.save(model, tmp_path)
    assert len(files(tmp_path)) == 2
