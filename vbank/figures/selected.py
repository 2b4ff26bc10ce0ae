"""What the sub-vectors of a VB-LoRA adapter selected, now or through training, and what the drawings count in it.

The letters are those of the book: h bank vectors of length b, N sub-vectors, k choices a sub-vector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vbank import selections_log
from vbank.adapters import adapter_of
from vbank.checkpoint import method_of
from vbank.methods import Method
from vbank.methods.vb_lora import VBLoRAMethod
from vbank.selections_log import Selections
from vbank.stored import read

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Log = Selections | str | os.PathLike[str]
Source = nn.Module | Log

MOST_VECTORS = 256  # of a bank, in a drawing that gives each its place
MOST_ROWS = 192  # sub-vectors side by side, as in the paper's Figure 4
USUAL_ROWS = 96  # as in its Figures 3 and 5
MOST_PANELS = 16
BLOCK = re.compile(r"(?:^|\.)\d+(?=[.:]|$)")  # the number of a transformer's block in a layer's name


@dataclass(frozen=True)
class Selected:
    """What one adapter selects at inference.

    Args:
        bank: (h, b).
        indices: (N, k), in descending order of weight.
        weights: (N, k), one in sum.
        sites: names of the adapted layers, in order.
        spans: rows of each site: A's from the first number to the second, B's from there to the third.
    """

    bank: Reals
    indices: Integers
    weights: Reals
    sites: tuple[str, ...]
    spans: tuple[tuple[int, int, int], ...]


def selected(source: Source, name: str | None, drawing: str) -> Selected:
    """Read what an adapter selects.

    Args:
        source: a model with an adapter, a folder that `vbank.save` wrote, compact or resumable, or a log, of which the
            last recording counts.
        name: the adapter on the model; None takes the active one.
        drawing: for messages: who asks.

    Raises:
        ValueError: there is no such adapter, it is of another method, or its values cannot be drawn.
        TypeError: `source` is something else.
    """
    if name is not None and not isinstance(source, nn.Module):
        raise ValueError(f"{drawing}: name is {name!r}, but only a model holds adapters by name; leave name out")
    if isinstance(source, nn.Module):
        adapter = adapter_of(source, name)[2]
        return _of_method(adapter.method, f"adapter {adapter.name!r}", drawing)
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_file():
        return _of_method(method_of(read(Path(source))), f"the adapter in {source}", drawing)
    if not isinstance(source, (Selections, str, os.PathLike)):
        raise TypeError(
            f"{drawing}: got {type(source).__name__}; give a model with an adapter, a folder that vbank.save wrote, or"
            " a log of selections"
        )
    log = _log(source)
    last = recorded(log, drawing).indices[-1]
    bank, weights = (np.asarray(values, dtype=np.float64) for values in (log.bank_after, log.weights[-1]))
    return Selected(bank, last, weights, log.sites, log.spans)


def _of_method(method: Method, whose: str, drawing: str) -> Selected:
    if not isinstance(method, VBLoRAMethod):
        raise ValueError(f"{drawing}: {whose} is {method.config.title}, which has no bank; give one of VB-LoRA")
    if method.bank.is_meta:
        raise ValueError(f"{drawing}: {whose} is on the meta device and has no values; load them first")
    with torch.no_grad():
        indices, weights = (tensor.cpu() for tensor in method.selected)
    bank = method.bank.detach().cpu().double().numpy()
    if not np.isfinite(bank).all():
        raise ValueError(f"{drawing}: the bank of {whose} is not finite everywhere; give a state from before it was so")
    sites = tuple(site.name for site in method.sites)
    return Selected(bank, indices.numpy(), weights.double().numpy(), sites, tuple(method.spans))


def _log(log: Log) -> Selections:
    return log if isinstance(log, Selections) else selections_log.read(log)


@dataclass(frozen=True)
class Recorded:
    """A log that has been checked: steps (T,) and indices (T, N, k) of a bank of h vectors."""

    steps: Integers
    indices: Integers
    h: int


def recorded(log: Log, drawing: str) -> Recorded:
    """Read and check a log.

    Args:
        log: `vbank.selections_log.Selections`, or the file of one.
        drawing: for messages: who asks.

    Raises:
        TypeError: `log` is none.
        ValueError: it is empty, its steps do not ascend, or its parts are not of one model.
    """
    if not isinstance(log, (Selections, str, os.PathLike)):
        raise TypeError(
            f"{drawing}: got {type(log).__name__}, which holds one selection at most; give a log of selections, which"
            " vbank run writes with --set train.log_selections=10"
        )
    log = _log(log)
    steps, indices = (np.asarray(values, dtype=np.int64) for values in (log.steps, log.indices))
    if not indices.size or not steps.size:
        raise ValueError(f"{drawing}: the log is empty, its indices have the shape {indices.shape}; record a step")
    if indices.ndim != 3 or steps.shape != indices.shape[:1] or tuple(log.weights.shape) != indices.shape:
        raise ValueError(
            f"{drawing}: steps, indices and weights of the log have the shapes {steps.shape}, {indices.shape} and"
            f" {tuple(log.weights.shape)}; give (T,), (T, N, k) and (T, N, k)"
        )
    if (late := np.flatnonzero(np.diff(steps) <= 0)).size:
        raise ValueError(
            f"{drawing}: step {steps[late[0] + 1]} stands after step {steps[late[0]]} in the log; give each step once,"
            " in ascending order"
        )
    if indices.max() >= log.num_vectors:
        raise ValueError(
            f"{drawing}: index {indices.max()} of the log points outside its bank of {log.num_vectors} vectors, which"
            " is another model's; give the bank that was recorded"
        )
    if log.spans[-1][-1] != indices.shape[1]:
        raise ValueError(
            f"{drawing}: the layers of the log have {log.spans[-1][-1]:,} sub-vectors and its recordings"
            f" {indices.shape[1]:,}, so they are of two models; give the layers that were recorded"
        )
    return Recorded(steps, indices, log.num_vectors)


def rows_to_draw(rows: Any, count: int, drawing: str, usual: int = USUAL_ROWS) -> Integers:
    """Numbers of the sub-vectors to draw: those of a slice or a list, or the usual number evenly spread over all."""
    if rows is None:
        return np.linspace(0, count - 1, min(count, usual)).round().astype(np.int64)
    return _numbers(rows, count, MOST_ROWS, "rows", "sub-vectors", drawing)


def vectors_to_draw(vectors: Any, count: int, drawing: str) -> Integers:
    """Numbers of the bank vectors to draw: those of a slice or a list, or all, or `MOST_VECTORS` spread evenly."""
    if vectors is None:
        return np.linspace(0, count - 1, min(count, MOST_VECTORS)).round().astype(np.int64)
    return _numbers(vectors, count, MOST_VECTORS, "vectors", "vectors", drawing)


def _numbers(chosen: Any, count: int, most: int, argument: str, things: str, drawing: str) -> Integers:
    wanted = np.arange(count)[chosen] if isinstance(chosen, slice) else np.asarray(list(chosen))
    if not wanted.size or wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= count:
        raise ValueError(
            f"{drawing}: {argument} is {chosen!r}; give a slice or a list of numbers from 0 to {count - 1:,}"
        )
    if len(wanted) > most:
        raise ValueError(
            f"{drawing}: {len(wanted):,} {things} do not fit a picture, {most} do; choose some with"
            f" {argument}=range({most}), or with a list"
        )
    return wanted


def ever(indices: Integers, h: int) -> Booleans:
    """Who has chosen whom at some time: indices (T, N, k) or (N, k) -> (N, h)."""
    indices = indices.reshape(-1, *indices.shape[-2:])
    result = np.zeros((indices.shape[1], h), dtype=bool)
    result[np.arange(indices.shape[1])[None, :, None], indices] = True
    return result


def exchanged(indices: Integers) -> Reals:
    """The share of all choices that the recording before did not have, for each recording but the first: (T - 1,)."""
    pairs = zip(indices[:-1], indices[1:], strict=True)
    return np.array([1 - (now[:, :, None] == before[:, None, :]).any(-1).mean() for before, now in pairs])


def usage_of(indices: Integers, h: int) -> Integers:
    """How many sub-vectors choose each bank vector: (N, k) -> (h,)."""
    return np.bincount(indices.ravel(), minlength=h)


def expected_usage(sub_vectors: int, k: int, h: int) -> Reals:
    """How many of h bank vectors to expect with each usage 0 to N, where N sub-vectors choose at random.

    A sub-vector draws k of h without putting back. A given bank vector is among them with the hypergeometric
    probability C(h - 1, k - 1) / C(h, k) = k / h. Sub-vectors draw independently of each other, so its usage is
    binomial, c ~ B(N, k / h), and by linearity h P(c = m) bank vectors have usage m on average. The usages of two
    vectors are not independent, for all add up to N k; an expectation does not need that. For the same reason
    sum_s (c_s - N k / h)^2 / h, the observed variance, is N k / h (1 - k / h) on average, exactly.

    Returns:
        (N + 1,), h in sum.
    """
    binomial = torch.distributions.Binomial(sub_vectors, torch.tensor(k / h, dtype=torch.float64))
    usages = torch.arange(sub_vectors + 1, dtype=torch.float64)
    return np.asarray(h * binomial.log_prob(usages).exp(), dtype=np.float64)


def summed_weights(chosen: Selected, rows: Sequence[range]) -> Reals:
    """The sum of the top-k weights that the sub-vectors of some rows give to each bank vector: (h,)."""
    which = np.concatenate([np.asarray(part) for part in rows])
    weights = chosen.weights[which].ravel()
    return np.bincount(chosen.indices[which].ravel(), weights, minlength=len(chosen.bank)).astype(np.float64)


def deviation_at_random(chosen: Selected, rows: Sequence[range]) -> float:
    """How far `summed_weights` spreads over the bank where the sub-vectors of some rows choose at random.

    Each of n sub-vectors keeps its weights w_1 to w_k and gives them to k of h vectors drawn without putting back. To a
    given vector it then gives x with E[x] = sum_i w_i / h = 1 / h and E[x^2] = sum_i w_i^2 / h. Sub-vectors draw
    independently, so a sum over n of them has the variance sum_n sum_i w_ni^2 / h - n / h^2. That is also the average
    of the observed variance over the bank, exactly, since all sums together are n. With weights k times 1 the same
    steps give the variance n k / h (1 - k / h) of a usage.

    Returns:
        The square root of that average.
    """
    which = np.concatenate([np.asarray(part) for part in rows])
    h = len(chosen.bank)
    variance = (chosen.weights[which] ** 2).sum() / h - len(which) / h**2
    return float(np.sqrt(max(variance, 0.0)))  # equal weights of a whole bank leave rounding alone


def blocks_of(sites: Sequence[str]) -> list[int]:
    """For each site the block that it stands in, counted from 0 in order of appearance.

    A block is told by a name up to its first number, such as ``encoder.layer.3``; a name without one is its own.
    """
    keys = [name[: found.end()] if (found := BLOCK.search(name)) else name for name in sites]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def kinds_of(sites: Sequence[str]) -> list[str]:
    """For each site its kind of module: what follows the block in its name, as short as tells the kinds apart."""
    kinds = [name[found.end() :].lstrip(".:") or name if (found := BLOCK.search(name)) else name for name in sites]
    return [_short(kind, set(kinds) - {kind}) for kind in kinds]


def _short(kind: str, others: set[str]) -> str:
    parts = kind.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), kind)


def edges_of(indices: Integers) -> Integers:
    """The edges of the simplices that the choices (N, k) span: pairs of bank vectors, each once, (E, 2)."""
    one, two = np.triu_indices(indices.shape[1], 1)
    return np.unique(np.sort(np.stack([indices[:, one], indices[:, two]], axis=-1).reshape(-1, 2), axis=1), axis=0)


def along_edges(points: Reals, starts: Reals, ends: Reals) -> Reals:
    """How much of the way from its start to its end each point (N, d) has gone, from 0 to 1."""
    along = ends - starts
    square = (along**2).sum(-1).clip(min=np.finfo(float).tiny)
    return np.asarray((((points - starts) * along).sum(-1) / square).clip(0, 1), dtype=np.float64)


def off_edges(points: Reals, starts: Reals, ends: Reals) -> Reals:
    """How far each point (N, d) is from the segment between its start and its end, in lengths of that segment."""
    along = ends - starts
    square = (along**2).sum(-1).clip(min=np.finfo(float).tiny)
    nearest = starts + along_edges(points, starts, ends)[:, None] * along
    return np.asarray(np.sqrt(((points - nearest) ** 2).sum(-1) / square), dtype=np.float64)
