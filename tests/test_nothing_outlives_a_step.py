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


@every_method
@pytest.mark.parametrize("way", WAYS)
def test_as_many_tensors_after_each_step(config, way):
    model = Blocks()
    vbank.attach(model, config, targets="all-linear")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    counts = []
    for _ in range(4):
        step(model, optimizer, way)
        counts.append(tensors())
    assert counts[1] == counts[2] == counts[3], counts  # the first makes the optimizer's state


def test_as_many_tensors_where_chosen_logits_alone_are_trained():
    model = Blocks()
    vbank.attach(model, vbank.VBLoRA(2, num_vectors=9, vector_length=8), targets="all-linear")
    optimizer = vbank.SelectedAdamW(model, RATES)
    counts = []
    for _ in range(4):
        step(model, optimizer, "plain")
        counts.append(tensors())
    assert counts[1] == counts[2] == counts[3], counts


@every_method
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_nobody_holds_is_gone(config, way):
    model = Blocks()
    vbank.attach(model, config, targets="all-linear")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    step(model, optimizer, way)
    weight = weakref.ref(model.head.weight)
    del model, optimizer
    gc.collect()
    assert weight() is None
