"""What a step made is gone when the next one has been: a circle through autograd would keep it for ever."""

import gc
import warnings
import weakref

import pytest
import torch
from tiny_models import Blocks, every_method
from torch.utils.checkpoint import checkpoint

import vbank

RATES = {"bank": 1e-2, "logits": 1e-1}
WAYS = ["plain", "checkpointed", "reentrant", "twice", "no backward"]


def tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes deprecated names of torch
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def step(model: Blocks, optimizer: torch.optim.Optimizer, way: str) -> None:
    x = torch.ones(2, 8, requires_grad=True)
    if way in ("checkpointed", "reentrant"):
        y = checkpoint(model, x, use_reentrant=way == "reentrant")
    else:
        y = model(x)
    if way != "no backward":
        loss = y.square().sum()
        loss.backward(retain_graph=way == "twice")
        if way == "twice":
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapted(config: vbank.Config) -> Blocks:
    model = Blocks()
    vbank.attach(model, config, targets="all-linear")
    return model


def adamw(model: Blocks) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def require_as_many_after_each_step(model: Blocks, optimizer: torch.optim.Optimizer, way: str) -> None:
    counts = []
    for _ in range(4):
        step(model, optimizer, way)
        counts.append(tensors())
    assert counts[1] == counts[2] == counts[3], counts  # the first makes the optimizer's state


@every_method
@pytest.mark.parametrize("way", WAYS)
def test_as_many_tensors_after_each_step(config, way):
    model = adapted(config)
    require_as_many_after_each_step(model, adamw(model), way)


def test_as_many_tensors_where_chosen_logits_alone_are_trained():
    model = adapted(vbank.VBLoRA(2, num_vectors=9, vector_length=8))
    require_as_many_after_each_step(model, vbank.SelectedAdamW(model, RATES), "plain")


@every_method
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_nobody_holds_is_gone(config, way):
    model = adapted(config)
    optimizer = adamw(model)
    step(model, optimizer, way)
    weight = weakref.ref(model.head.weight)
    del model, optimizer
    gc.collect()
    assert weight() is None
