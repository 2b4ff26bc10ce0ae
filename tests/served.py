"""Adapters on disk for the tests of serving, and what each of them answers alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_models import logits
from torch import Tensor, nn

import vbank


def write(
    model: nn.Module,
    config: vbank.Config,
    folder: Path,
    targets: vbank.attachment.Targets = "qv",
    train: Sequence[str] = (),
    seed: int = 1,
    **save: object,
) -> Path:
    """An adapter of random values on disk; the model is as it was."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        adapter = vbank.attach(model, config, targets, train=train)
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
        for parameter in adapter.head(model).values():
            parameter.add_(torch.randn_like(parameter))
    vbank.save(model, folder, **save)
    vbank.detach(model)
    return folder


@torch.no_grad()
def alone(model: nn.Module, folder: Path | None, x: Tensor) -> Tensor:
    """The outputs of one adapter, as `vbank.load` puts it on the model; None: of the base model."""
    if folder is None:
        return logits(model, x)
    vbank.load(model, folder)
    try:
        return logits(model, x)
    finally:
        vbank.detach(model)


def assert_rows(mixed: Tensor, names: Sequence[str | None], each: dict[str | None, Tensor], **tolerance: float) -> None:
    """Row i of a mixed batch is row i of what its adapter answers alone."""
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], each[name][i], msg=lambda text, n=name: f"{n}: {text}", **tolerance)


def assert_distinct(each: dict[str | None, Tensor], least: float = 1e-3) -> None:
    """No two adapters answer alike, so that a mix-up would show in every row."""
    names = list(each)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            gap = (each[one] - each[other]).flatten(1).abs().amax(1).min()
            assert gap > least, f"{one} and {other} differ by {gap:.1e} only"
