"""Matrix fitting: how close can the update s B A of one method come to a given matrix? (VeRA, appendix E, Figure 6.)

No model and no data: only what a parametrisation can express. All seeds and restarts are fitted side by side in
float64, for every method with the same optimizer and the same budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, stack_module_state, vmap

from vbank.live import progress
from vbank.methods.base import Config, Method, Site, delta
from vbank.methods.selection import SELECTIONS
from vbank.methods.vb_lora import VBLoRAMethod
from vbank.methods.vera import VeRA

Function = Callable[[Tensor, dict[str, Tensor]], Tensor]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The optimizer that every method gets: `restarts` starts, each Adam and then Levenberg-Marquardt.

    Adam leaves the zero start and crosses the kinks of VB-LoRA's top-k selection; Levenberg-Marquardt then goes to
    the bottom of the valley that Adam has found.

    Args:
        restarts: starts of each seed; the best one counts.
        noise: standard deviation of what is added to every trained number of the method's own initialisation.
        adam_steps: steps of Adam, the learning rate falling to zero along a half cosine.
        adam_lr: first learning rate of all groups but the logits.
        logits_lr: first learning rate of VB-LoRA's logits, larger than the bank's as its authors have it.
        newton_steps: at most this many steps of Levenberg-Marquardt.
        tolerance: a start is done when a step lowers its error by less than this share.
    """

    restarts: int = 4
    noise: float = 0.3
    adam_steps: int = 200
    adam_lr: float = 0.03
    logits_lr: float = 0.1
    newton_steps: int = 40
    tolerance: float = 1e-5


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Best fits of one method to several targets.

    Args:
        mse: (seeds,) the best restart's squared error, averaged over sites and entries.
        restarts: (seeds, restarts) the same for every restart.
        delta: (seeds, sites, out, in) the best restart's updates.
        trainable: scalars that the method trains for all sites of one seed.
        stored: scalars that it stores, in float32 equivalents.
    """

    mse: Tensor
    restarts: Tensor
    delta: Tensor
    trainable: int
    stored: float


def gaussian_targets(seeds: int, sites: int = 1, size: int = 10, seed: int = 0) -> Tensor:
    """Independent standard normal targets, shape (seeds, sites, size, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(seeds, sites, size, size, generator=generator, dtype=torch.float64)


def subspace_targets(seeds: int, sites: int, rank: int, size: int = 10, seed: int = 0) -> Tensor:
    """Targets W_l = U C_l V^T whose sites share a column space U and a row space V, both of dimension `rank`.

    U, V: (size, rank) with orthonormal columns; C_l: (rank, rank) normal, scaled so that an entry of W_l has variance
    one on average. Returns (seeds, sites, size, size), float64.
    """
    generator = torch.Generator().manual_seed(seed)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    U = torch.linalg.qr(torch.randn(seeds, 1, size, rank, **kind)).Q
    V = torch.linalg.qr(torch.randn(seeds, 1, size, rank, **kind)).Q
    C = torch.randn(seeds, sites, rank, rank, **kind) * (size / rank)
    return U @ C @ V.mT


def svd_floor(target: Tensor, rank: int) -> Tensor:
    """Least mean squared error of any matrix of at most `rank`: sum of sigma_i^2 for i > rank, over out * in.

    Eckart and Young 1936. target: (..., out, in); returns (...).

    Raises:
        ValueError: the rank is negative.
    """
    if rank < 0:
        raise ValueError(f"svd_floor: rank is {rank}; it must be at least 0")
    sigma = torch.linalg.svdvals(target.double())  # (..., min(out, in)), descending
    return sigma[..., rank:].square().sum(-1) / (target.shape[-2] * target.shape[-1])


def fit(config: Config, target: Tensor, seed: int = 0, budget: Budget | None = None) -> FitResult:
    """Minimise the mean squared error between s B A and the target, over several starts; keep each seed's best.

    Start j of seed i begins at the method's own initialisation plus normal noise, drawn from a generator that i and j
    fix. VeRA's frozen pair depends on i alone: trying several pairs would be one more, unstored, choice.

    Args:
        config: the method, for example ``vbank.LoRA(2)``.
        target: (out, in), or (seeds, out, in), or (seeds, sites, out, in): the sites of a seed share what the
            method shares.
        seed: number of the first seed; seed i uses ``seed + i``.
        budget: the optimizer's settings; None is ``Budget()``.

    Raises:
        ValueError: the target has another number of dimensions, holds a value that is not finite, or has a shape that
            the method cannot serve.
    """
    budget = budget or Budget()
    if target.dim() not in (2, 3, 4) or not torch.isfinite(target).all():
        raise ValueError(
            f"fit: target has shape {tuple(target.shape)} and must be finite, of shape (out, in), (seeds, out, in) or"
            " (seeds, sites, out, in)"
        )
    target = target.double()
    target = target[None, None] if target.dim() == 2 else target[:, None] if target.dim() == 3 else target
    seeds, num_sites, out_features, in_features = target.shape
    sites = [Site(f"site{i}", in_features, out_features) for i in range(num_sites)]
    with torch.random.fork_rng(devices=[]):
        starts = [
            _start(config, sites, seed + i, restart, budget.noise)
            for i in range(seeds)
            for restart in range(budget.restarts)
        ]
    one = starts[0]
    parameters, buffers = stack_module_state(starts)  # every tensor with a first axis P = seeds * restarts
    shapes = {name: parameter.shape for name, parameter in one.named_parameters()}
    theta = torch.cat([parameters[name].detach().flatten(1) for name in shapes], dim=1)  # (P, p)
    goal = target.flatten(1).repeat_interleave(budget.restarts, dim=0)  # (P, sites * out * in)

    def updates(flat: Tensor, buffers: dict[str, Tensor]) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        named = {name: piece.view(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}
        return functional_call(one, (named, buffers), ()).flatten()

    theta = _adam(vmap(updates), theta, buffers, goal, _rates(one, budget), budget.adam_steps)
    theta = _levenberg_marquardt(updates, theta, buffers, goal, budget)
    with torch.no_grad():
        fitted = vmap(updates)(theta, buffers)
    mse = (fitted - goal).square().mean(1).view(seeds, budget.restarts)
    best = mse.argmin(1)
    every = torch.arange(seeds)
    counts = config.storage(sites).values()
    return FitResult(
        mse=mse[every, best],
        restarts=mse,
        delta=fitted.view(seeds, budget.restarts, *target.shape[1:])[every, best],
        trainable=sum(count.trained for count in counts),
        stored=sum(count.stored for count in counts),
    )


class _Updates(nn.Module):
    """A method whose forward returns the updates of all its sites, (sites, out, in)."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self) -> Tensor:
        return torch.stack([delta(self.method, site.name) for site in self.method.sites])


class _Plain:
    """VB-LoRA's sub-vectors by indexing and summing: `embedding_bag` has no rule for `vmap`, and nothing is reused."""

    def rows(self, method: VBLoRAMethod, i: int) -> tuple[Tensor, Tensor]:
        assert method.logits is not None
        start, middle, end = method.spans[i]
        select = SELECTIONS[method.config.selection]
        indices, weights = select(method.logits[start:end], method.config.top_k, False)  # (N, k) both
        rows = (weights[..., None] * method.bank[indices]).sum(-2)  # (end - start, b)
        return rows[: middle - start], rows[middle - start :]


def _start(config: Config, sites: Sequence[Site], seed: int, restart: int, noise: float) -> _Updates:
    if isinstance(config, VeRA):
        config = dataclasses.replace(config, seed=seed)
    torch.manual_seed(100_003 * seed + restart)
    method = config.build(sites, dtype=torch.float64)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    if isinstance(method, VBLoRAMethod):
        method.composition = _Plain()  # type: ignore[assignment]
    return _Updates(method)


def _rates(module: _Updates, budget: Budget) -> Tensor:
    """Adam's first learning rate of every entry of theta, (p,)."""
    group = {id(p): name for name, parameters in module.method.groups().items() for p in parameters}
    rates = [
        torch.full((p.numel(),), budget.logits_lr if group[id(p)] == "logits" else budget.adam_lr)
        for p in module.parameters()
    ]
    return torch.cat(rates).double()


def _adam(f: Function, theta: Tensor, buffers: dict[str, Tensor], goal: Tensor, rates: Tensor, steps: int) -> Tensor:
    """Adam (betas 0.9 and 0.99) on P problems at once: it treats every entry of theta (P, p) alone."""
    theta = theta.clone().requires_grad_()
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in progress(range(1, steps + 1), "fitting"):
        (gradient,) = torch.autograd.grad((f(theta, buffers) - goal).square().sum(), theta)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.01)
        rate = rates * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.no_grad():
            theta -= rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-12)
    return theta.detach()


def _levenberg_marquardt(
    updates: Function, theta: Tensor, buffers: dict[str, Tensor], goal: Tensor, budget: Budget
) -> Tensor:
    """Damped Gauss-Newton, one damping a problem: a step that does not lower the error is refused and damped more.

    Solves (J^T J + damping) step = J^T residual, or the equal system in J J^T where that is smaller. A problem leaves
    the batch when it is done.
    """
    f, jacobian = vmap(updates), vmap(jacrev(updates), chunk_size=16)  # 16 at a time stay in the processor's cache
    theta, left = theta.clone(), torch.arange(len(theta))
    damping = torch.full((len(theta),), 1e-2, dtype=theta.dtype)
    error = (f(theta, buffers) - goal).square().sum(1)
    for _ in progress(range(budget.newton_steps), "fitting, to the end"):
        here, own = theta[left], {name: buffer[left] for name, buffer in buffers.items()}
        residual = (goal[left] - f(here, own))[..., None]  # (P, n, 1)
        J = jacobian(here, own)  # (P, n, p)
        wide = J.shape[2] > J.shape[1]
        gram = J @ J.mT if wide else J.mT @ J
        gram.diagonal(dim1=1, dim2=2).add_(damping[left, None])
        cholesky, failed = torch.linalg.cholesky_ex(gram)
        step = (
            J.mT @ torch.cholesky_solve(residual, cholesky) if wide else torch.cholesky_solve(J.mT @ residual, cholesky)
        )
        there = here + step[..., 0]
        before, after = error[left], (f(there, own) - goal[left]).square().sum(1)
        better = (after < before) & (failed == 0)  # False where after is NaN
        theta[left] = torch.where(better[:, None], there, here)
        error[left] = torch.where(better, after, before)
        damping[left] = (damping[left] * torch.where(better, 0.2, 4.0)).clamp(1e-9, 1e12)
        gained = torch.where(better, before - after, math.inf) > budget.tolerance * before
        open_ = gained & (damping[left] < 1e6) & (error[left] > 1e-12 * goal.shape[1])
        left = left[open_]
        if not len(left):
            break
    return theta
