"""Batches in many threads at once, while adapters come and go."""

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from served import alone, assert_distinct, assert_rows, write
from tiny_models import CONFIGS, bert, logits, tokens

import vbank

EVERY = {config.method: config for config in CONFIGS}


@pytest.fixture
def fleet(tmp_path):
    """A server of five adapters with heads, their folders, an input, and what each answers alone."""
    model, x = bert().eval(), tokens(4)
    paths = {
        name: write(model, EVERY[name], tmp_path / name, train=["classifier"] * (i % 2), seed=i)
        for i, name in enumerate(EVERY)
    }
    each = {name: alone(model, path, x) for name, path in ({None: None} | paths).items()}
    assert_distinct(each)
    server = vbank.serve(model, cache_bytes=6000)
    for name, path in paths.items():
        server.add(name, path)
    return server, paths, x, each


def in_threads(work, number=6):
    """Run `work(i)` in threads that start together; the first error of any is raised."""
    gate = threading.Barrier(number)

    def run(i):
        gate.wait()
        return work(i)

    with ThreadPoolExecutor(number) as pool:
        return [future.result() for future in [pool.submit(run, i) for i in range(number)]]


def test_threads_answer_with_their_own_names(fleet):
    server, paths, x, each = fleet
    known = [None, *paths]

    def work(i):
        for step in range(25):
            names = [known[(i + step * (row + 1)) % len(known)] for row in range(4)]
            with torch.no_grad(), server.rows(names):
                assert_rows(logits(server.model, x), names, each)
            torch.testing.assert_close(alone(server.model, None, x), each[None])

    in_threads(work)


def test_adapters_come_and_go_under_load(fleet, tmp_path):
    """Every answer is that of the old adapter or of the new one, whole; nobody else's; nothing is lost."""
    server, paths, x, each = fleet
    other = bert().eval()
    other.load_state_dict(server.model.state_dict())
    path = write(other, vbank.LoRA(rank=4), tmp_path / "new", "all-linear", train=["pooler"], seed=9)
    with vbank.serve(other) as fresh:
        fresh.add("new", path)
        with torch.no_grad():
            new = fresh(["new"] * 4, input_ids=x).logits
    stop = threading.Event()

    def work(i):
        if i == 0:  # layers and heads that no adapter had are hooked while others run
            for step in range(30):
                server.replace("lora", path if step % 2 == 0 else paths["lora"])
                server.add(f"guest-{step}", path)
                server.remove(f"guest-{step}")
                server.remove("vera")
                server.add("vera", paths["vera"])
            stop.set()
            return 0
        seen = 0
        while not stop.is_set():
            names = ["lora", "vb-lora", "lora", None]
            with torch.no_grad():
                out = server(names, input_ids=x).logits
                try:
                    vera = server(["vera"] * 4, input_ids=x).logits
                    torch.testing.assert_close(vera, each["vera"], rtol=1e-5, atol=1e-5)
                except ValueError as error:
                    assert "no adapter is served under the name 'vera'" in str(error)
            for row in (0, 2):
                old, now = ((out[row] - value[row]).abs().max() for value in (each["lora"], new))
                assert min(old, now) < 1e-4
                seen += int(now < old)
            assert ((out[0] - each["lora"][0]).abs().max() < 1e-4) == ((out[2] - each["lora"][2]).abs().max() < 1e-4)
            torch.testing.assert_close(out[1], each["vb-lora"][1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(out[3], each[None][3], rtol=1e-5, atol=1e-5)
        return seen

    assert sum(in_threads(work)) > 0
    assert server.names() == [name for name in paths if name != "vera"] + ["vera"]


def test_a_batch_that_has_begun_keeps_its_adapters(fleet):
    server, paths, x, each = fleet
    names = ["lora", "vb-lora", "tied-lora", "prolora"]
    with torch.no_grad(), server.rows(names):
        server.replace("lora", paths["vera"])
        for name in names[1:]:
            server.remove(name)
        assert_rows(logits(server.model, x), names, each)
    assert server.nbytes.cache == 0
    with torch.no_grad():
        torch.testing.assert_close(server(["lora"] * 4, input_ids=x).logits, each["vera"], rtol=1e-5, atol=1e-5)


def test_an_error_ends_the_batch(fleet):
    server, _, x, each = fleet
    with pytest.raises(RuntimeError, match="stop"), server.rows(["lora"] * 4):
        raise RuntimeError("stop")
    torch.testing.assert_close(alone(server.model, None, x), each[None])


def test_a_thread_started_inside_answers_without(fleet):
    """The names hold for one thread or task; a task takes those of its creator with it."""
    server, _, x, each = fleet
    with server.rows(["lora"] * 4), ThreadPoolExecutor(1) as pool:
        torch.testing.assert_close(pool.submit(alone, server.model, None, x).result(), each[None])

    async def answer(name):
        with server.rows([name] * 4):
            await asyncio.sleep(0.01)
            here = logits(server.model, x)
            there = await asyncio.to_thread(alone, server.model, None, x)
        for out in (here, there):
            torch.testing.assert_close(out, each[name], rtol=1e-5, atol=1e-5)

    async def together():
        await asyncio.gather(*(answer(name) for name in each))

    with torch.no_grad():  # outside: tasks that take turns would restore each other's mode
        asyncio.run(together())


def test_one_of_two_adds_of_a_name_wins(fleet):
    server, paths, _, _ = fleet

    def work(i):
        try:
            server.add("new", paths["lora"])
        except ValueError as error:
            assert "already" in str(error)
            return 0
        return 1

    assert sum(in_threads(work)) == 1
    assert server.names().count("new") == 1


@pytest.mark.parametrize("layer", ["bert.encoder.layer.0.attention.self.value", "classifier"])
def test_a_layer_is_passed_while_its_hook_is_registered(layer, tmp_path):
    """torch enters a hook first and then that it takes keywords; a batch may come in between."""
    model, x = bert().eval(), tokens(2)
    one = write(model, EVERY["lora"], tmp_path / "one", ["query"], seed=1)
    other = write(model, EVERY["lora"], tmp_path / "other", ["value"], train=["classifier"], seed=2)
    each, found = {"one": alone(model, one, x)}, []
    server = vbank.serve(model)
    server.add("one", one)

    class Between(OrderedDict):
        def __setitem__(self, key, value):
            found.append(logits(model, x))
            super().__setitem__(key, value)

    model.get_submodule(layer)._forward_hooks_with_kwargs = Between()
    with torch.no_grad(), server.rows(["one", "one"]):
        server.add("other", other)
    (out,) = found
    torch.testing.assert_close(out, each["one"], rtol=1e-5, atol=1e-5)


def test_an_adapter_added_while_the_server_closes(fleet, monkeypatch):
    """The folder was read when the server is closed: nothing is hooked after that."""
    server, paths, x, each = fleet
    read = server._reader.read

    def slow(path):
        adapter = read(path)
        server.close()
        return adapter

    monkeypatch.setattr(server._reader, "read", slow)
    for change in (lambda: server.add("new", paths["lora"]), lambda: server.replace("lora", paths["vera"])):
        server._open = True
        server._adapters["lora"] = read(paths["lora"])
        with pytest.raises(ValueError, match="the server is closed"):
            change()
        assert server.names() == [] and server.nbytes.total == 0
    vbank.serve(server.model).close()
    torch.testing.assert_close(alone(server.model, None, x), each[None])


def test_an_adapter_removed_while_the_server_closes(fleet, monkeypatch):
    server, *_ = fleet
    names = server.names

    def slow():
        found = names()
        if "lora" in found:
            server.remove("lora")
        return found

    monkeypatch.setattr(server, "names", slow)
    server.close()
    assert names() == [] and server.nbytes.total == 0
