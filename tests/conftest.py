"""What every test relies on: no network, one thread, a fixed seed, the same examples each time."""

import os
import socket
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Derandomised: the same commit gives the same verdict. No deadline: machines differ.
hypothesis.settings.register_profile("vbank", derandomize=True, deadline=None)
hypothesis.settings.load_profile("vbank")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data sets at hand."""
    monkeypatch.delenv("VBANK_DATA", raising=False)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of tiny_task with its model, made once."""
    import tiny_task

    folder = tmp_path_factory.mktemp("tiny")
    return Path(tiny_task.write_recipe(folder, tiny_task.save_llama(folder / "llama")))


@pytest.fixture
def recipe_file(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, its task registered while the test runs."""
    from vbank import tasks

    monkeypatch.setitem(tasks.TABLE, "backwards", "tiny_task:BACKWARDS")
    return str(tiny_recipe)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module")
def bert():
    """A tiny BERT classifier, for evaluation; a test that changes it takes a copy."""
    import tiny_models

    torch.manual_seed(7)
    return tiny_models.bert().eval()


@pytest.fixture(scope="module")
def gpt2():
    """A tiny GPT-2, likewise."""
    import tiny_models

    torch.manual_seed(7)
    return tiny_models.gpt2().eval()


@pytest.fixture
def free_port() -> int:
    """A port at which processes can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
