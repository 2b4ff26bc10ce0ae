"""A laboratory small enough for a notebook cell: a vision transformer that reads digits learns to read them turned.

The images are scikit-learn's 1,797 scanned digits of 8 x 8 pixels, which come with the package. A ViT of four layers
(hidden 64, four patches of 4 x 4 pixels, 24 linear maps in its blocks) is trained on 1,000 upright digits. The task
is to adapt it to the same digits turned by 90 degrees, with a fresh head. The 797 others measure.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbank.attachment import attach, param_groups
from vbank.counting import Count, count
from vbank.live import progress
from vbank.methods.base import Config

TRAIN_ROWS = 1000
HEAD_LR = 1e-2  # of the fresh head, for every method
WARM_UP = 0.1  # share of the steps in which the rate rises; it falls linearly after


@dataclass(frozen=True)
class Digits:
    """Images (rows, 1, 8, 8) in [-1, 1] and their labels (rows,), for training and for measuring."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass
class Adaptation:
    """What one run of `adapt` gave.

    Args:
        accuracy: share of the 797 test digits named rightly after the last epoch.
        losses: mean training loss (cross-entropy, nats) of each epoch.
        counted: trained and stored numbers; None for a baseline without a method.
        model: the adapted model, in evaluation mode.
    """

    accuracy: float
    losses: list[float] = field(repr=False)
    counted: Count | None = field(repr=False)
    model: nn.Module = field(repr=False)


def digits(turned: bool = False) -> Digits:
    """scikit-learn's digits in a fixed random order; `turned` rotates each by 90 degrees."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1)[order]  # pixels are 0 to 16
    if turned:
        images = images.rot90(1, (2, 3))
    names = torch.tensor(labels)[order]
    return Digits((images[:TRAIN_ROWS], names[:TRAIN_ROWS]), (images[TRAIN_ROWS:], names[TRAIN_ROWS:]))


def vision_transformer() -> nn.Module:
    """The untrained ViT; its weights come from torch's global generator."""
    from transformers import ViTConfig, ViTForImageClassification

    settings: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "num_labels": 10,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return ViTForImageClassification(ViTConfig(**settings))


@functools.cache
def _trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = vision_transformer()
        images, labels = digits().train
        _train(model, [{"params": list(model.parameters()), "lr": 2e-3}], images, labels, 15, 100, 0, None)
    return model.eval()


def pretrained() -> nn.Module:
    """The ViT after 15 epochs on upright digits; trained once a process (about 3 s), a fresh copy each call."""
    return copy.deepcopy(_trained())


def adapt(
    method: Config | str,
    lr: float | Mapping[str, float],
    *,
    epochs: int = 10,
    batch_size: int = 100,
    seed: int = 0,
    targets: str | Sequence[str] = "all-linear",
    weight_decay: float = 0.0,
    after_step: Callable[[int, nn.Module], Any] | None = None,
) -> Adaptation:
    """Adapt the pretrained ViT to turned digits, with AdamW and a fresh head for every method.

    Args:
        method: a configuration such as ``vbank.LoRA(4)``, or the baseline ``"full"`` or ``"head-only"``.
        lr: largest learning rate, one for all groups or one a group as for `vbank.param_groups`; the head has its own.
        epochs: passes over the 1,000 training digits.
        batch_size: digits in a step.
        seed: of the head's and the method's first values, and of the order of the digits.
        targets: as for `vbank.attach`.
        weight_decay: of the method and of the head.
        after_step: called with the number of steps done and the model, before the first step too.

    Raises:
        ValueError: an unknown baseline, or settings that `vbank.attach` or `vbank.param_groups` refuse.
    """
    if isinstance(method, str) and method not in ("full", "head-only"):
        raise ValueError(f"no baseline {method!r}; give 'full', 'head-only' or a method such as vbank.LoRA(4)")
    model = pretrained()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head: Any = model.classifier
        head.reset_parameters()
        counted = None
        if isinstance(method, Config):
            adapter = attach(model, method, targets=targets, train=["classifier"])
            rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(adapter.method.groups(), lr)
            groups = param_groups(model, lr=rates | {"head": HEAD_LR})
            counted = count(model)
        else:
            body = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
            groups = [{"params": list(head.parameters()), "lr": HEAD_LR}]
            if method == "full":
                groups.append({"params": body, "lr": lr})
            for parameter in body:
                parameter.requires_grad_(method == "full")
        groups = [group | {"weight_decay": weight_decay} for group in groups]
        data = digits(turned=True)
        losses = _train(model, groups, *data.train, epochs, batch_size, seed, after_step)
    return Adaptation(accuracy(model, *data.test), losses, counted, model.eval())


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model names rightly."""
    model.eval()
    with torch.no_grad():
        return (model(images).logits.argmax(-1) == labels).double().mean().item()


def _train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    seed: int,
    after_step: Callable[[int, nn.Module], Any] | None,
) -> list[float]:
    """AdamW with a linear rise and fall of the rate; returns the mean loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    total = epochs * -(-len(labels) // batch_size)
    rise = max(1, round(WARM_UP * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / rise, (total - t) / (total - rise)))
    model.train()
    losses, done = [], 0
    if after_step is not None:
        after_step(done, model)
    for _ in progress(range(epochs), "digits"):
        seen = 0.0
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            loss = F.cross_entropy(model(images[rows]).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            seen += loss.item() * len(rows)
            if after_step is not None:
                after_step(done, model)
        losses.append(seen / len(labels))
    return losses
