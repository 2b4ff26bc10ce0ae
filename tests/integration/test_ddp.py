"""DistributedDataParallel: two processes on the halves of a batch train as one process on the whole."""

from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, Blocks, move, numbers
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import vbank

STEPS = 4
X, Y = numbers(8, 8), numbers(8, 4, seed=8)


def adapted(config: vbank.Config) -> nn.Module:
    torch.manual_seed(0)
    model = Blocks()
    vbank.attach(model, config, "all-linear", train=["head"])
    return move(model)


def train(model: nn.Module, rows: slice, mean) -> list[float]:
    """Losses over the whole batch, step by step; `mean` averages over the processes."""
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr=0.02))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(X[rows]) - Y[rows]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(mean(loss.detach()))
    return losses


def average(loss: torch.Tensor) -> float:
    distributed.all_reduce(loss)
    return float(loss) / 2


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for config in CONFIGS:
        model = DistributedDataParallel(adapted(config))
        found[config.method] = train(model, slice(4 * rank, 4 * rank + 4), average)
        if rank == 0 and config.method == "vb-lora":
            vbank.save(model, Path(folder) / "adapter", form="resumable")
    torch.save(found, Path(folder) / f"losses-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, free_port):
    multiprocessing.spawn(process, (free_port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"losses-{rank}.pt") for rank in range(2)]
    assert found[0] == found[1] and set(found[0]) == {config.method for config in CONFIGS}
    for config in CONFIGS:
        model = adapted(config)
        expected = train(model, slice(0, 8), float)
        assert expected[-1] < 0.9 * expected[0]
        torch.testing.assert_close(found[0][config.method], expected, rtol=0.0, atol=1e-5)
    torch.manual_seed(0)
    loaded = Blocks()
    vbank.load(loaded, tmp_path / "adapter")
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-4)
