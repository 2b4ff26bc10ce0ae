"""What a server refuses, before anything runs, and what it says."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from served import write
from tiny_models import Blocks, bert, gpt2, numbers, tokens
from torch import nn

import vbank
from vbank.serving import Server

LORA = vbank.LoRA(rank=3, alpha=6)


@pytest.fixture
def server(tmp_path):
    model = bert().eval()
    for seed, name in enumerate(("alice", "bob")):
        write(model, LORA, tmp_path / name, seed=seed)
    server = vbank.serve(model)
    server.add("alice", tmp_path / "alice")
    server.add("bob", tmp_path / "bob")
    return server


@pytest.fixture
def runs(server):
    """The layers of the model that were run."""
    seen = []
    for name, module in server.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


@pytest.mark.parametrize("name", ["carol", "Alice", "", "alice ", 3, b"alice", ["alice"], ("alice",), True])
def test_an_unknown_name_is_nobody(server, runs, name):
    with pytest.raises(ValueError, match="no adapter is served under the name .*; add it first, or give None"):
        server(["alice", name], input_ids=tokens(2))
    assert runs == []


@pytest.mark.parametrize("method", ["replace", "remove"])
def test_replace_and_remove_know_the_names(server, tmp_path, method):
    arguments = ("carol", tmp_path / "alice") if method == "replace" else ("carol",)
    with pytest.raises(ValueError, match="no adapter is served under the name 'carol'"):
        getattr(server, method)(*arguments)
    assert server.names() == ["alice", "bob"]


def test_the_message_names_no_other_user(server):
    with pytest.raises(ValueError) as error:
        server(["alicf"], input_ids=tokens(1))
    assert "alice" not in str(error.value) and "bob" not in str(error.value)


def test_a_taken_name(server, tmp_path):
    with pytest.raises(ValueError, match="served under the name 'alice' already; use replace"):
        server.add("alice", tmp_path / "bob")


@pytest.mark.parametrize("name", ["", None, 7, b"x"])
def test_names_are_strings(server, tmp_path, name):
    with pytest.raises(ValueError, match="is no name; give a string"):
        server.add(name, tmp_path / "alice")


@pytest.mark.parametrize("names", [["alice"], ["alice", "bob", None], ["alice"] * 4, [None]])
def test_names_and_batch_of_different_length(server, runs, names):
    with pytest.raises(ValueError, match=f"the batch has 2 rows, but {len(names)} are named"):
        server(names, input_ids=tokens(2), attention_mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match=f"the batch has 2 rows, but {len(names)} are named"), server.rows(names):
        server.model(tokens(2))
    assert runs == []


def test_beams_that_were_not_told(tmp_path):
    model = gpt2().eval()
    server = vbank.serve(model)
    server.add("a", write(model, LORA, tmp_path / "a"))
    settings = {"num_beams": 3, "max_new_tokens": 2, "pad_token_id": 0}
    with server.rows(["a", None]), pytest.raises(ValueError, match=r"6 rows, but 2 are named.*repeat="):
        model.generate(tokens(2), **settings)
    with server.rows(["a", None], repeat=2), pytest.raises(ValueError, match="6 rows, but 2 or 4 are named"):
        model.generate(tokens(2), **settings)
    with server.rows(["a", None], repeat=3):
        assert model.generate(tokens(2), **settings).shape[0] == 2


@pytest.mark.parametrize("names", ["alice", [], (), None, 3, {"alice": 1}, {"alice"}, iter(["alice"])])
def test_names_are_a_list(server, names):
    with pytest.raises(ValueError, match="give a list with one name, or None, for each row"):
        server(names, input_ids=tokens(1))


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True, "2", None])
def test_repeat_is_a_number(server, repeat):
    with pytest.raises(ValueError, match="give how many rows a row becomes"), server.rows(["alice"], repeat=repeat):
        pass


@pytest.mark.parametrize("size", [-1, 1.5, "1", None, True, float("inf")])
def test_cache_bytes_is_a_size(size):
    with pytest.raises(ValueError, match="give a number of bytes, 0 to keep nothing"):
        vbank.serve(bert(), cache_bytes=size)


def test_training_is_refused(server):
    server.model.train()
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        server(["alice"], input_ids=tokens(1))


def test_models_that_cannot_be_served(server, tmp_path):
    model = bert()
    with pytest.raises(ValueError, match="served already"):
        vbank.serve(server.model)
    with pytest.raises(ValueError, match="served already"):
        vbank.serve(nn.Sequential(server.model))
    with pytest.raises(ValueError, match="wrapped in OptimizedModule; serve the model itself"):
        vbank.serve(torch.compile(model))
    with pytest.raises(ValueError, match="model is a str"):
        vbank.serve("bert")
    vbank.attach(model, LORA, "qv")
    with pytest.raises(ValueError, match="adapters attached, which would act on every row"):
        vbank.serve(model)
    with pytest.raises(ValueError, match="adapters attached"):
        vbank.serve(nn.Sequential(model))


def test_an_adapter_attached_later_is_refused(server):
    vbank.attach(server.model, LORA, "qv")
    with pytest.raises(ValueError, match="adapters attached, which would act on every row"):
        server(["alice"], input_ids=tokens(1))
    vbank.detach(server.model)
    server(["alice"], input_ids=tokens(1))


def test_a_closed_server(server, tmp_path):
    server.close()
    for call in (lambda: server(["alice"], input_ids=tokens(1)), lambda: server.add("carol", tmp_path / "alice")):
        with pytest.raises(ValueError, match=r"closed; make another with vbank.serve\(model\)"):
            call()
    vbank.serve(server.model)


def test_files_of_another_model(server, tmp_path):
    path = write(gpt2().eval(), LORA, tmp_path / "gpt2")
    with pytest.raises(ValueError, match="was trained on another model"):
        server.add("carol", path)
    with pytest.raises(ValueError, match="was trained on another model"):
        server.replace("alice", path)
    assert server.names() == ["alice", "bob"]


def test_damaged_files(server, tmp_path):
    (file,) = (tmp_path / "alice").glob("*.safetensors")
    blob = file.read_bytes()
    file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(vbank.CheckpointError, match="is damaged"):
        server.replace("bob", tmp_path / "alice")
    with pytest.raises(vbank.CheckpointError, match="holds no adapter.json"):
        server.add("carol", tmp_path)
    assert server.names() == ["alice", "bob"]
    server(["bob"], input_ids=tokens(1))


def test_a_second_adapter_is_checked_as_the_first(server, tmp_path):
    """Adapters of one kind share what was checked, and not the check of their values."""
    write(bert().eval(), LORA, tmp_path / "c", train=["classifier"])
    server.add("carol", tmp_path / "c")
    description = json.loads((tmp_path / "c" / "adapter.json").read_text())
    file = tmp_path / "c" / description["tensors"]
    for key, message in (("A.0", "A.0 holds values that are not finite"), ("head.classifier.bias", "not finite")):
        tensors = safetensors.torch.load_file(file)
        tensors[key][0] = float("nan")
        blob = safetensors.torch.save(tensors)
        digest = hashlib.sha256(blob).hexdigest()
        broken = description | {"sha256": digest, "tensors": f"adapter-{digest[:16]}.safetensors"}
        folder = tmp_path / key
        folder.mkdir()
        (folder / "adapter.json").write_text(json.dumps(broken))
        (folder / broken["tensors"]).write_bytes(blob)
        with pytest.raises(vbank.CheckpointError, match=message):
            server.add("dave", folder)


def test_vera_with_another_checksum(tmp_path):
    model = bert().eval()
    write(model, vbank.VeRA(rank=4, seed=1), tmp_path / "a")
    server = vbank.serve(model)
    server.add("a", tmp_path / "a")
    file = tmp_path / "a" / "adapter.json"
    description = json.loads(file.read_text())
    description["record"]["checksum"] = "0" * 64
    file.write_text(json.dumps(description))
    with pytest.raises(vbank.CheckpointError, match="another checksum"):
        server.add("b", tmp_path / "a")
    assert server.names() == ["a"]


# Layers whose rows cannot be told


class Flattened(nn.Module):
    """Sees the tokens of all rows as one dimension, as experts and packed batches do."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)

    def forward(self, x):
        return self.query(x.flatten(0, 1)).view(x.shape)


class PositionsFirst(Flattened):
    def forward(self, x):
        return self.query(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("make", [Flattened, PositionsFirst])
def test_rows_that_are_not_the_first_dimension(make, tmp_path):
    model, x = make().eval(), numbers(3, 5, 8)
    server = vbank.serve(model)
    for seed, name in enumerate("ab"):
        server.add(name, write(model, LORA, tmp_path / name, ["query"], seed=seed))
    with pytest.raises(ValueError, match=r"query has an input of shape .* in a batch of 3 rows with several adapters"):
        server(["a", None, "b"], x)
    each = server(["a", "a", "a"], x)  # one adapter needs no rows
    vbank.load(model, tmp_path / "a")
    torch.testing.assert_close(each, model(x))


def test_as_many_rows_as_positions_are_not_confused(tmp_path):
    """A square input does not show its order: the answer is right or refused, also where it comes first."""
    x = numbers(4, 4, 8)
    for make in (Blocks, PositionsFirst):
        model = make().eval()
        targets = "all-linear" if make is Blocks else ["query"]
        server = vbank.serve(model)
        for seed, name in enumerate("ab"):
            server.add(name, write(model, LORA, tmp_path / (make.__name__ + name), targets, seed=seed))
        names = ["a", None, "b", "a"]
        if make is PositionsFirst:
            with pytest.raises(ValueError, match="its first dimension must be the rows"):
                server(names, x)
            continue
        mixed = server(names, x)
        torch.testing.assert_close(mixed[2], server(["b"], x[2:3])[0])
        torch.testing.assert_close(mixed[0], server(["a"], x[:1])[0])


class Experts(nn.Module):
    """Each token goes to one of two layers, which see as many tokens as chose them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.router = nn.Linear(8, 8), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        tokens = self.query(x).flatten(0, 1)
        choice, out = self.router(tokens).argmax(-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            out[choice == number] = expert(tokens[choice == number])
        return out.view(x.shape)


@torch.no_grad()
def right_or_refused(server, names, x):
    """Whether a batch was answered; an answer with another adapter than named fails."""
    try:
        mixed = server(names, x)
    except ValueError as error:
        assert "its first dimension" in str(error)
        return False
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], server([name], x[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    return True


def two(model, folder, targets):
    for seed, name in enumerate("ab"):
        write(model, LORA, folder / name, targets, seed=seed)
    return reopened(model, folder)


def reopened(model, folder):
    server = vbank.serve(model)
    for name in "ab":
        server.add(name, folder / name)
    return server


def test_experts_that_see_as_many_tokens_as_rows(tmp_path):
    """By chance an expert's input is as long as the batch; its tokens are not one of each row."""
    torch.manual_seed(0)
    model = Experts().eval()
    with two(model, tmp_path / "all", ["query", "0", "1"]) as server:
        answered = [right_or_refused(server, ["a", "b", None], numbers(3, 2, 8, seed=seed)) for seed in range(60)]
    assert not any(answered)
    with two(model, tmp_path / "query", ["query"]) as server:  # beside the experts all is served
        assert all(right_or_refused(server, ["a", "b", None], numbers(3, 2, 8, seed=seed)) for seed in range(5))
    for seed in range(60):  # a new server has seen nothing
        with reopened(model, tmp_path / "all") as server:
            assert not right_or_refused(server, ["a", "b", None], numbers(3, 2, 8, seed=seed))


class Sorted(Flattened):
    """Sees one vector of each row, in the order of their first number."""

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.query(x[order])[order.argsort()]


def test_rows_in_another_order(tmp_path):
    server, x = two(Sorted().eval(), tmp_path, ["query"]), numbers(3, 8).sort(0, descending=True).values
    assert not right_or_refused(server, ["a", "b", None], x)


class Turning(Flattened):
    """Has the rows first until it is told otherwise."""

    flat = False

    def forward(self, x):
        return super().forward(x) if self.flat else self.query(x)


def test_a_layer_once_seen_with_another_layout(tmp_path):
    """One batch of one adapter is enough to know better."""
    model, x = Turning().eval(), numbers(3, 5, 8)
    server = two(model, tmp_path, ["query"])
    assert right_or_refused(server, ["a", "b", None], x)
    model.flat = True
    server(["a"] * 3, x)
    model.flat = False
    assert not right_or_refused(server, ["a", "b", None], x)
    server(["a"] * 3, x)


def test_a_layer_of_another_layout_that_no_named_adapter_acts_on(tmp_path):
    """Only the adapters of a batch ask for its rows."""
    model = Experts().eval()
    server = two(model, tmp_path, ["query"])
    server.add("experts", write(model, LORA, tmp_path / "experts", ["0", "1"], seed=3))
    assert right_or_refused(server, ["a", "b", None], numbers(3, 2, 8))
    assert not right_or_refused(server, ["a", "experts", None], numbers(3, 2, 8))


def test_a_part_of_the_model_on_its_own(tmp_path):
    """A call that the server does not see shows nothing of the layers, until the model itself was called."""
    model, x = nn.Sequential(Blocks()).eval(), numbers(3, 5, 8)
    server = two(model, tmp_path, "all-linear")
    with server.rows(["a", "b", None]), torch.no_grad():
        with pytest.raises(ValueError, match="did not show whether .* call the served model itself"):
            model[0](x)
        torch.testing.assert_close(model(x), model[0](x))


def test_a_trial_run_that_fails(tmp_path):
    class Narrow(Flattened):
        def forward(self, x):
            assert len(x) == 3, "three rows"
            return self.query(x)

    server = two(Narrow().eval(), tmp_path, ["query"])
    assert not right_or_refused(server, ["a", "b", None], numbers(3, 5, 8))
    server(["a"] * 3, numbers(3, 5, 8))


class SquareHead(PositionsFirst):
    """Keeps rows first in its layer and not in its head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.query(x).transpose(0, 1)).transpose(0, 1)


def test_heads_see_rows_first_or_refuse(tmp_path):
    model = SquareHead().eval()
    server = vbank.serve(model)
    for seed, name in enumerate("ab"):
        server.add(name, write(model, LORA, tmp_path / name, ["query"], train=["head"], seed=seed))
    for length in (3, 5):
        with pytest.raises(ValueError, match="head has an input of shape .* its first dimension must be the rows"):
            server(["a", None, "b"], numbers(3, length, 8))


def test_no_rows_at_all(server, tmp_path):
    """A model whose input is no batch: a single vector."""
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    with Server(model) as server:
        for seed, name in enumerate("ab"):
            server.add(name, write(model, LORA, tmp_path / ("s" + name), ["0"], seed=seed))
        with pytest.raises(ValueError, match="the batch has 8 rows, but 2 are named"):
            server(["a", "b"], numbers(8))


class Odd(nn.Module):
    """A head that answers with something else than rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.query, self.head, self.kind = nn.Linear(8, 8), Pair(kind), kind

    def forward(self, x):
        return self.head(self.query(x))


class Pair(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(8, 2), kind

    def forward(self, x):
        y = self.linear(x)
        return {"tuple": (y, y), "mean": y.mean(0)}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "mean"])
def test_heads_that_cannot_be_split(kind, tmp_path):
    model, x = Odd(kind).eval(), numbers(3, 8)
    server = vbank.serve(model)
    server.add("a", write(model, LORA, tmp_path / "a", ["query"], train=["head"]))
    with pytest.raises(ValueError, match="head gives no tensor of 3 rows"):
        server(["a", None, "a"], x)
    one = server(["a"] * 3, x)
    vbank.load(model, tmp_path / "a")
    torch.testing.assert_close(one, model(x))


def test_a_head_whose_forward_was_replaced(tmp_path):
    model = bert().eval()
    path = write(model, LORA, tmp_path / "a", train=["classifier"])
    model.classifier.forward = lambda x: nn.functional.linear(x, model.classifier.weight)
    server = vbank.serve(model)
    with pytest.raises(ValueError, match="classifier cannot be run with other values for some rows"):
        server.add("a", path)
    assert server.names() == [] and server.nbytes.total == 0
