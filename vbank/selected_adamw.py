"""AdamW that keeps state for the logits of VB-LoRA that were ever chosen, and gives what AdamW on all of them gives.

A sub-vector chooses k of its h logits; the others have a gradient of zero. A logit that was never chosen has moments of
zero, so AdamW does not move it, but for decoupled weight decay, which shrinks all logits by one factor. One that was
chosen and no longer is keeps its moments and goes on moving, here as there. So nothing changes if the gradient is
(N, k), and if the moments are a list of the pairs (sub-vector, vector) that were ever chosen. A list also holds names,
so once many pairs are in it, all moments without names take less; the optimizer then goes over to those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vbank.adapters import WRAPPERS, adapter_of, refuse_spread
from vbank.attachment import param_groups
from vbank.methods.base import Method
from vbank.methods.vb_lora import VBLoRAMethod

MOMENTS = ("exp_avg", "exp_avg_sq")
SLACK = 8  # a list that is full grows by an eighth beyond what it needs, so that it is seldom copied
# A list may take this share of the bytes of all moments. To lengthen a larger one, a step would hold more than AdamW's.
LARGEST = 3 / 4
IN_32_BITS = 2**31  # so many pairs have names of 32 bits
SPREAD = "SelectedAdamW does not train parameters that FSDP has spread; take torch.optim.AdamW"


class SelectedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) for a VB-LoRA adapter, with gradients and moments of chosen logits alone.

    For N sub-vectors of h logits in float32, AdamW holds 4 N h bytes of gradient and 8 N h of moments. This one holds
    4 N k and 12 P, where P is the number of pairs ever chosen: 4 bytes name a pair, 8 are its moments; a list that
    grows has up to an eighth to spare. Once P exceeds N h / 2 (in half precision 3 N h / 8), it holds all moments,
    8 N h, from then on, so that neither its state nor the most that a step holds exceeds AdamW's.

    The other groups are trained by `torch.optim.adamw.adamw` as usual, and so are the P logits, gathered into a vector:
    the results are those of `torch.optim.AdamW` but for the order of summation in a norm that clips gradients.

    While it is in use, `method.logits` needs no gradient; `method.chosen.values` (N, k) does. A step uses up the
    logits' gradient: it is None afterwards. The list of pairs grows by an upper bound of its length that the device
    reports without being waited for.

    Saving sees the current logits at any time. Forwards and merging use the last choice, which is made anew by a step,
    by `load_state_dict` of the model, by moving it to another device or type, and by an eager forward whose logits are
    another tensor or were written to in place. Not noticed are a write through `.data`, and, by a compiled forward, any
    write by hand, such as `copy_` under `no_grad` or a broadcast. Call `choose()` after those; until then, outputs and
    gradients are those of the former choice, without an error.

    Wrap the model in DistributedDataParallel after this optimizer is made.

    Args:
        model: a model whose active adapter is VB-LoRA with selection "top_k".
        lr: one learning rate, or one a group (bank, logits, head), as for `vbank.param_groups`.
        betas: decay of the two moments.
        eps: added to the root of the second; above 0, for the moments of a logit that was never chosen are 0.
        weight_decay: decoupled, of all groups.
        name: the adapter; None takes the active one.

    Raises:
        ValueError: another method, a selection that needs the gradient of all logits, a model that is wrapped or spread
            over processes, or what `vbank.param_groups` refuses.

    Example:
        >>> import torch, vbank
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4, top_k=2), ["0"])
        >>> optimizer = vbank.SelectedAdamW(model, lr=dict(bank=1e-3, logits=1e-2))
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> adapter.method.logits.shape, adapter.method.chosen.values.grad.shape
        (torch.Size([8, 6]), torch.Size([8, 2]))
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | dict[str, float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        name: str | None = None,
    ) -> None:
        adapter = adapter_of(model, name)[2]
        method = adapter.method
        refuse(model, adapter.name, method)
        assert isinstance(method, VBLoRAMethod)
        if not (0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0 and eps > 0.0):
            raise ValueError(f"betas are {betas} and eps is {eps}; a beta lies in [0, 1), and eps is above 0")
        former, method.chosen = method.chosen, None  # a former optimizer stays in use if this fails
        try:
            groups = param_groups(model, lr, weight_decay, name)
        finally:
            method.chosen = former
        method.train_chosen(False)
        method.train_chosen(True)
        assert method.chosen is not None and method.logits is not None
        self.method, self.chosen = method, method.chosen
        leaves = {id(method.logits): method.chosen.values}
        groups = [group | {"params": [leaves.get(id(p), p) for p in group["params"]]} for group in groups]
        self.length = Length()
        super().__init__(groups, {"betas": betas, "eps": eps, "logits": tuple(method.logits.shape)})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along. Copy model and optimizer together, ``copy.deepcopy((model, optimizer))``."""
        own = {"method": self.method, "chosen": self.chosen, "length": Length(self.length.most)}
        return super().__getstate__() | own

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of AdamW, after which the sub-vectors choose anew.

        Raises:
            ValueError: another optimizer trains the logits now, or the parameters were spread over processes.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_released()
        refuse_spread((p for group in self.param_groups for p in group["params"]), SPREAD)
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None and p is not self.chosen.values]
            states = [self._state(p) for p in own]
            _adamw(group, own, [p.grad for p in own if p.grad is not None], states, group["weight_decay"])
            if any(p is self.chosen.values for p in group["params"]) and self.chosen.values.grad is not None:
                self._step_logits(group, self.chosen.values.grad)
        return loss

    def choose(self) -> None:
        """Choose anew from the logits as they are, after a write that is not noticed: see above.

        Raises:
            ValueError: gradients of the former choice wait for a step, or another optimizer trains the logits now.
        """
        self._refuse_released()
        self.method.choose()

    def _refuse_released(self) -> None:
        if self.method.chosen is not self.chosen:
            raise ValueError("the logits are no longer trained by this optimizer; go on with the one made last")

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, as in torch: the corrections are computed there
            state |= {key: torch.zeros_like(parameter) for key in MOMENTS}
        return state

    def _step_logits(self, group: dict[str, Any], grad: Tensor) -> None:
        """The step of the logits. grad: (N, k)."""
        logits, chosen = self.method.logits, self.chosen
        assert logits is not None
        flat = logits.detach().view(-1)  # (N h,)
        names = torch.arange(len(logits), device=flat.device)[:, None] * logits.shape[1] + chosen.indices  # (N, k)
        keys = names.flatten().to(name_type(len(flat)))
        state = self._with_places(keys, flat)
        if "pairs" in state:
            pairs = state["pairs"]  # (P,)
            grads = torch.zeros_like(state["exp_avg"]).scatter_(0, torch.searchsorted(pairs, keys), grad.flatten())
            if group["weight_decay"]:
                flat.mul_(1 - group["lr"] * group["weight_decay"])
            values = flat[pairs.clamp(max=len(flat) - 1)]
            _adamw(group, [values], [grads], [state], 0.0)
            put(values, pairs, flat)
        else:
            grads = torch.zeros_like(flat).scatter_(0, names.flatten(), grad.flatten())
            _adamw(group, [flat], [grads], [state], group["weight_decay"])
        chosen.values.grad = None  # it belongs to this choice
        chosen.choose(logits)

    def _with_places(self, keys: Tensor, flat: Tensor) -> dict[str, Tensor]:
        """The state of the logits, with a place for each of `keys` (N k,): a list of pairs, or all N h moments.

        Pairs stand in ascending order; places behind them are free and name N h. No shape depends on what was chosen,
        but through `self.length`.
        """
        state, nothing = self.state[self.chosen.values], len(flat)
        if not state:
            state |= {"step": torch.zeros(()), "pairs": keys[:1].clone()}
            state |= {key: flat.new_zeros(1) for key in MOMENTS}
            self.length = Length(1)
        if "pairs" not in state:
            return state
        pairs = state["pairs"]
        known = pairs[torch.searchsorted(pairs, keys).clamp(max=len(pairs) - 1)] == keys
        late = counts_late(keys.device)
        new = len(keys) if late else int(len(keys) - known.sum())
        most, limit = self.length.grow(new, nothing), longest(nothing, flat.itemsize)
        if most > limit:
            for key in MOMENTS:
                state[key] = put(state[key], pairs, torch.zeros_like(flat))
            del state["pairs"]
            return state
        if not new:
            return state
        room = len(pairs) if most <= len(pairs) else min(most + most // SLACK, limit)
        more = torch.where(known, nothing, keys)
        more = torch.cat([more, more.new_full((max(room - len(pairs) - len(more), 0),), nothing)])
        ordered, order = torch.cat([pairs, more]).sort()
        state["pairs"], order = ordered[:room].clone(), order[:room]
        for key in MOMENTS:
            state[key] = torch.cat([state[key], flat.new_zeros(len(more))])[order]
        if late:
            self.length.ask((state["pairs"] < nothing).sum())
        return state

    def release(self) -> None:
        """Give the logits back to autograd whole, so that another optimizer can train them."""
        if self.method.chosen is self.chosen:
            self.method.train_chosen(False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`, exactly.

        Raises:
            ValueError: it belongs to another optimizer, or to logits of another shape. Nothing is changed then.
        """
        logits = self.method.logits
        assert logits is not None
        if any(tuple(group.get("logits", ())) != logits.shape for group in state_dict["param_groups"]):
            raise ValueError(
                f"the state is not one of SelectedAdamW for logits of shape {tuple(logits.shape)}; make the optimizer"
                " that wrote it"
            )
        ours = [p for group in self.param_groups for p in group["params"]]
        theirs = [number for group in state_dict["param_groups"] for number in group["params"]]
        state = state_dict["state"].get(dict(zip(map(id, ours), theirs, strict=False)).get(id(self.chosen.values)), {})
        super().load_state_dict(state_dict)
        if "pairs" in state:  # torch gives every state the type of its parameter, which cannot hold these numbers
            pairs = state["pairs"].to(logits.device)
            self.state[self.chosen.values]["pairs"] = pairs
            self.length = Length(int((pairs < logits.numel()).sum()))


def name_type(logits: int) -> torch.dtype:
    """The type of the names of pairs: of `logits` = N h logits, and of N h itself, which stands for none."""
    return torch.int32 if logits < IN_32_BITS else torch.int64


def longest(logits: int, size: int) -> int:
    """The most pairs in a list, of `logits` = N h logits with moments of `size` bytes a number."""
    return int(LARGEST * 2 * size * logits) // (name_type(logits).itemsize + 2 * size)


def state_bytes(pairs: int, logits: int, size: int) -> int:
    """Bytes of SelectedAdamW's state of the logits, once `pairs` of `logits` = N h were chosen, spare places apart."""
    listed = pairs <= longest(logits, size)
    return pairs * (name_type(logits).itemsize + 2 * size) if listed else logits * 2 * size


def counts_late(device: torch.device) -> bool:
    """Whether a count of the device's comes later than it is asked for, unless one waits for it."""
    return device.type == "cuda"


def put(values: Tensor, pairs: Tensor, into: Tensor) -> Tensor:
    """Write values (P,) to the places of `into` (N h,) that pairs (P,) name; returns it.

    A free place, which names N h, stands in for the first pair, with its value, so that all are written at once.
    """
    free = pairs == len(into)
    return into.scatter_(0, torch.where(free, pairs[0], pairs).long(), torch.where(free, values[0], values))


class Length:
    """An upper bound of the number of pairs, tightened by counts that the device sends when it gets to them."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.since = 0  # pairs that may have come since the count was asked for
        self.answer: tuple[Tensor, torch.cuda.Event] | None = None

    def grow(self, new: int, limit: int) -> int:
        """The bound once up to `new` pairs have come; there are no more than `limit`."""
        if self.answer is not None and self.answer[1].query():
            self.most = int(self.answer[0]) + self.since
            self.answer = None
        self.since += new
        self.most = min(self.most + new, limit)
        return self.most

    def ask(self, count: Tensor) -> None:
        """Have the device send a count, unless one is on its way."""
        if self.answer is None:
            host = torch.empty((), dtype=count.dtype, pin_memory=True)
            host.copy_(count, non_blocking=True)
            sent = torch.cuda.Event()
            sent.record()
            self.answer, self.since = (host, sent), 0


def _adamw(
    group: dict[str, Any],
    parameters: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    weight_decay: float,
) -> None:
    """torch's AdamW on parameters of one group."""
    firsts, seconds, steps = ([state[key] for state in states] for key in (*MOMENTS, "step"))
    beta1, beta2 = group["betas"]
    settings = {"lr": group["lr"], "weight_decay": weight_decay, "eps": group["eps"], "beta1": beta1, "beta2": beta2}
    adamw(parameters, grads, firsts, seconds, [], steps, amsgrad=False, maximize=False, **settings)


def refuse(model: nn.Module, name: str, method: Method) -> None:
    """Refuse what SelectedAdamW cannot train.

    Raises:
        ValueError: another method, a selection that needs the gradient of all logits, or a model that is wrapped or
            spread over processes.
    """
    if not isinstance(method, VBLoRAMethod):
        raise ValueError(
            f"adapter {name!r} is {method.config.title}, which has no logits to choose from; take torch.optim.AdamW"
        )
    config = method.config
    if config.selection != "top_k":
        raise ValueError(
            f"selection {config.selection!r} gives all logits a gradient, and SelectedAdamW keeps state for chosen ones"
            " alone; take torch.optim.AdamW"
        )
    for module in model.modules():
        kind = type(module).__name__
        if kind in WRAPPERS and kind != "OptimizedModule":
            raise ValueError(f"the model is wrapped in {kind}; make the SelectedAdamW first, then wrap the model")
    refuse_spread(method.parameters(), SPREAD)
