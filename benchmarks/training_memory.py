"""What training VB-LoRA holds in memory, and what can go: the logits' gradient, AdamW's moments, and their precision.

Three parts. `memory` trains a VB-LoRA adapter of RoBERTa-base's and Llama-2-7B's shapes without the base model, once
with `torch.optim.AdamW` and once with `vbank.SelectedAdamW`, and counts the bytes of weights, gradients and optimizer
state, and the most that live tensors hold at one time; the optimizers take turns, so that their times make a ratio.
`quality` trains the digits of scikit-learn with each way of saving memory and reports loss, accuracy and state, and how
many vectors a sub-vector ever chose. `tried` runs recipes on real sentences and counts the latter step by step. It is
made only if named: it takes some minutes a run, needs the recipes' data, and goes on after the last run that was
finished. Run all with ``python benchmarks/training_memory.py``; ``--tiny`` runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import vbank
from vbank import architectures, ledger
from vbank.live_memory import LivePeak
from vbank.recipes import Recipe, load
from vbank.run import load_data, run
from vbank.tasks import digits

MIB = 2**20
SHAPES = {  # VB-LoRA, Tables 7 and 8: rank, h, b, k
    "roberta-base": vbank.VBLoRA(4, 90, 256, 2),
    "llama2-7b": vbank.VBLoRA(4, 2048, 256, 2),
}
TINY_SHAPES = {"roberta-base": {"num_hidden_layers": 1}, "llama2-7b": {"num_hidden_layers": 1}}
PAPER_RATES = {"bank": 1e-3, "logits": 1e-2}  # VB-LoRA, Tables 7 and 8
FAST_RATES = {"bank": 1e-2, "logits": 1e-1}
PLAIN, SELECTED = "AdamW", "SelectedAdamW"
TRIED = (  # a recipe and its rates; None: its own
    ("first-finetune/vb-lora", None),
    ("minilm-sst2/vb-lora-qv", None),
    ("first-finetune/vb-lora", PAPER_RATES),
)
TINY_RUN = ("task.source=generated", "task.train_size=32", "train.batch_size=8", "train.epochs=1")
Make = Callable[[nn.Module, dict[str, float]], torch.optim.Optimizer]


# Memory and time of a step, without the base model


def bare_adapter(shape: str, config: vbank.VBLoRA, device: torch.device, **changes: Any) -> nn.Module:
    """The architecture on the meta device, with an adapter on all linear layers that is really there."""
    model = architectures.build(shape, **changes)
    adapter = vbank.attach(model, config, "all-linear")
    torch.manual_seed(0)
    adapter.method = config.build(adapter.sites, device=device)
    return model


class Case:
    """An adapter, its optimizer, and the sub-vectors (N, b) that it is to approach."""

    def __init__(self, shape: str, config: vbank.VBLoRA, kind: str, device: torch.device, changes: Any) -> None:
        self.model = bare_adapter(shape, config, device, **changes)
        self.method = self.model.vbank["default"].method
        self.weights = sum(p.nbytes for p in self.method.parameters())
        if kind == PLAIN:
            groups = vbank.param_groups(self.model, PAPER_RATES)
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
        else:
            self.optimizer = vbank.SelectedAdamW(self.model, PAPER_RATES)
        draw = torch.Generator(device).manual_seed(1)
        size = (len(self.method.logits), config.vector_length)
        self.wanted = torch.empty(size, device=device).uniform_(-0.02, 0.02, generator=draw)
        self.noise = torch.empty_like(self.wanted)
        self.gradients = 0

    def step(self) -> None:
        """Compose all sub-vectors, go back through them from a noisy difference to `wanted`, and make a step."""
        rows = self.method.compose()  # (N, b)
        torch.sub(rows.detach(), self.wanted, out=self.noise)
        rows.backward(self.noise)
        self.gradients = sum(p.grad.nbytes for p in self.method.parameters() if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad()


def tensor_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def measure_memory(shape: str, config: vbank.VBLoRA, kind: str, device: torch.device, steps: int, changes: Any) -> Any:
    """Bytes after `steps` steps, and the most at one time: weights and all that was made since."""
    case = Case(shape, config, kind, device, changes)
    live = LivePeak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with live:
        for _ in range(steps):
            case.step()
    row = {
        "shape": shape,
        "optimizer": kind,
        "sub_vectors": len(case.method.logits),
        "num_vectors": config.num_vectors,
        "steps": steps,
        "weights_bytes": case.weights,
        "gradient_bytes": case.gradients,
        "state_bytes": tensor_bytes(case.optimizer),
        "peak_bytes": case.weights + live.peak,
    }
    if device.type == "cuda":
        row["cuda_peak_bytes"] = case.weights + torch.cuda.max_memory_allocated() - before
    if kind == SELECTED:
        row["pairs"] = case.optimizer.length.most  # type: ignore[attr-defined]
    return row


def measure_time(shape: str, config: vbank.VBLoRA, device: torch.device, rounds: int, changes: Any) -> dict[str, Any]:
    """Seconds of composition, its backward and the optimizer's step; a ratio is the median over rounds."""
    cases = {kind: Case(shape, config, kind, device, changes) for kind in (PLAIN, SELECTED)}
    seconds: dict[str, list[float]] = {kind: [] for kind in cases}
    for turn in range(rounds + 2):
        for kind in (PLAIN, SELECTED) if turn % 2 else (SELECTED, PLAIN):
            begun = now(device)
            cases[kind].step()
            if turn >= 2:  # the first allocate
                seconds[kind].append(now(device) - begun)
    ratios = [ours / theirs for ours, theirs in zip(seconds[SELECTED], seconds[PLAIN], strict=True)]
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {"shape": shape, "rounds": rounds, "seconds": medians, "ratio": statistics.median(ratios)}


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# Quality on a real task


class Both:
    """AdamW for the bank and the head, and another optimizer for the logits."""

    def __init__(self, model: nn.Module, lr: dict[str, float], other: Callable[[Any], torch.optim.Optimizer]) -> None:
        groups = vbank.param_groups(model, lr)
        self.parts = [torch.optim.AdamW([g for g in groups if g["name"] != "logits"])]
        self.parts.append(other([{k: g[k] for k in ("params", "lr")} for g in groups if g["name"] == "logits"]))
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def dense(model: nn.Module, lr: dict[str, float]) -> Any:
    return torch.optim.AdamW(vbank.param_groups(model, lr))


def eight_bits(model: nn.Module, lr: dict[str, float]) -> Any:
    from bitsandbytes import optim

    return Both(model, lr, lambda groups: optim.AdamW8bit(groups, weight_decay=0.0))


def factored(model: nn.Module, lr: dict[str, float]) -> Any:
    """No first moment, and of the second the means of rows and of columns (Shazeer and Stern 2018)."""
    from transformers import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False, "weight_decay": 0.0}
    return Both(model, lr, lambda groups: Adafactor(groups, **fixed))


def bfloat16(model: nn.Module, lr: dict[str, float]) -> Any:
    logits = logits_of(model)
    logits.data = logits.data.bfloat16()
    return dense(model, lr)


WAYS: dict[str, Make] = {
    PLAIN: dense,
    SELECTED: vbank.SelectedAdamW,
    "AdamW, 8-bit moments of the logits": eight_bits,
    "Adafactor for the logits": factored,
    "AdamW, logits in bfloat16": bfloat16,
}


def logits_of(model: nn.Module) -> Tensor:
    return model.vbank["default"].method.logits


def train_digits(way: str, config: vbank.VBLoRA, rates: dict[str, float], seed: int, epochs: int) -> dict[str, Any]:
    """Digits turned by a quarter on a small ViT; the rate rises over a tenth of the steps and falls to zero."""
    model = digits.pretrained()
    torch.manual_seed(seed)
    model.classifier.reset_parameters()
    vbank.attach(model, config, "all-linear", train=["classifier"])
    optimizer = WAYS[way](model, rates | {"head": digits.HEAD_LR})
    images, labels = digits.digits(turned=True).train
    order, batch = torch.Generator().manual_seed(seed), 100
    total = epochs * -(-len(labels) // batch)
    largest = [group["lr"] for group in optimizer.param_groups]
    ever = torch.zeros_like(logits_of(model), dtype=torch.bool)  # (N, h)
    losses: list[float] = []
    model.train()
    for step in range(total):
        if step % (total // epochs) == 0:
            rows_of_epoch = iter(torch.randperm(len(labels), generator=order).split(batch))
        for group, lr in zip(optimizer.param_groups, largest, strict=True):
            group["lr"] = lr * min((step + 1) / max(1, total // 10), 1 - step / total)
        ever.scatter_(1, logits_of(model).detach().topk(config.top_k).indices, True)
        rows = next(rows_of_epoch)
        loss = F.cross_entropy(model(images[rows]).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logits = logits_of(model)
    parts = optimizer.parts if isinstance(optimizer, Both) else [optimizer]
    shapes = (logits.shape, (len(logits), config.top_k))
    kept = [part.state[p] for part in parts for p in part.state if p.shape in shapes]
    counts, share = ever.sum(1).double(), [0.0, 0.5, 0.9, 0.99, 1.0]
    quantiles = counts.quantile(torch.tensor(share).double()).tolist()
    return {
        "way": way,
        "num_vectors": config.num_vectors,
        "lr": rates,
        "seed": seed,
        "steps": total,
        "sub_vectors": len(logits),
        "loss": statistics.fmean(losses[-(total // epochs) :]),
        "accuracy": digits.accuracy(model, *digits.digits(turned=True).test),
        "logits_state_bytes": sum(v.nbytes for state in kept for v in state.values() if isinstance(v, Tensor)),
        "chosen_mean": counts.mean().item(),
        "chosen_quantiles": dict(zip(map(str, share), quantiles, strict=True)),
        "sum_of_logits": logits.detach().double().sum().item(),  # shows whether two ways are one
    }


# Vectors that a sub-vector tries in a recipe's run


class Tried:
    """Called before each step of an optimizer: which vectors each sub-vector has chosen so far, as (N, h)."""

    def __init__(self) -> None:
        self.ever = torch.empty(0, 0, dtype=torch.bool)
        self.steps = 0
        self.curve: list[dict[str, float]] = []

    def __call__(self, optimizer: torch.optim.Optimizer, *called_with: Any) -> None:
        if not isinstance(optimizer, vbank.SelectedAdamW):  # the hook is called for all
            return
        if not self.steps:
            self.ever = torch.zeros(optimizer.param_groups[0]["logits"], dtype=torch.bool)
        self.ever.scatter_(1, optimizer.chosen.indices.cpu(), True)
        self.steps += 1
        if self.steps in (1, 2, 5, 10, 20) or self.steps % 50 == 0:
            self.curve.append(self.now())

    def now(self) -> dict[str, float]:
        """The step, and over the sub-vectors how many vectors were tried; last, the share of all pairs."""
        counts = self.ever.sum(1).double()
        median, most = (counts.quantile(share).item() for share in (0.5, 0.9))
        found = {"step": self.steps, "mean": counts.mean().item(), "median": median, "90%": most}
        return found | {"max": counts.max().item(), "share": self.ever.double().mean().item()}


def count_tried(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Runs a recipe whole, as `vbank run` does, and counts."""
    tried = Tried()
    hook = register_optimizer_step_pre_hook(tried)
    begun = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as out:
            record = run(recipe, seed, out, announce=lambda line: None)
    finally:
        hook.remove()
    curve = tried.curve if tried.curve[-1]["step"] == tried.steps else [*tried.curve, tried.now()]
    return {
        "recipe": recipe.name,
        "lr": recipe.method.lr,
        "num_vectors": tried.ever.shape[1],
        "seed": seed,
        "steps": tried.steps,
        "sub_vectors": tried.ever.shape[0],
        "curve": curve,
        "metrics": record["metrics"],
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def tried_part(
    done: list[dict[str, Any]], tiny: bool, seeds: int, vectors: Sequence[int], keep: Callable[[Any], None]
) -> dict[str, Any]:
    """Every recipe with every bank, all at one seed before the next; `keep` is given the rows after each run."""
    if not tiny and load_data(load(TRIED[0][0]), None).source.startswith("generated"):
        raise SystemExit("the part tried counts on real sentences; set VBANK_DATA to a folder with glue/sst2")
    rows = list(done)
    for seed in range(seeds):
        for name, rates in TRIED:
            for h in vectors:
                changes = ["train.optimizer=selected_adamw", f"method.num_vectors={h}", *(TINY_RUN if tiny else ())]
                changes += [f"method.lr.{group}={rate}" for group, rate in (rates or {}).items()]
                recipe = load(name, changes)
                wanted = {"recipe": recipe.name, "lr": recipe.method.lr, "num_vectors": h, "seed": seed}
                if any(wanted.items() <= row.items() for row in rows):
                    continue
                rows.append(count_tried(recipe, seed))
                keep({"rows": rows})
                last = rows[-1]["curve"][-1]
                print(
                    f"{recipe.name}  logits {recipe.method.lr['logits']:<5g} h {h:4}  seed {seed}  {last['step']} steps"
                    f"  tried {last['mean']:.1f}, 90 % {last['90%']:.0f}, most {last['max']:.0f},"
                    f" {last['share']:.1%} of the pairs",
                    flush=True,
                )
    return {"rows": rows}


# The command


def memory_part(tiny: bool, steps: int, rounds: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    rows, times = [], []
    print(f"MiB of the method alone    {'weights':>9} {'gradients':>9} {'state':>9} {'peak':>9}")
    for shape, config in SHAPES.items():
        changes = TINY_SHAPES[shape] if tiny else {}
        for kind in (PLAIN, SELECTED):
            row = measure_memory(shape, config, kind, device, steps, changes)
            rows.append(row)
            numbers = [row[f"{key}_bytes"] / MIB for key in ("weights", "gradient", "state", "peak")]
            print(f"{shape:12} {kind:13} " + " ".join(f"{number:9,.1f}" for number in numbers), flush=True)
        times.append(measure_time(shape, config, device, rounds, changes))
        print(f"{shape:12} time, {SELECTED} over {PLAIN}: {times[-1]['ratio']:.2f}", flush=True)
    return {"rows": rows, "times": times}


def quality_part(seeds: int, epochs: int, h: int) -> dict[str, Any]:
    rows = []
    for rates in (PAPER_RATES, FAST_RATES):
        for way in WAYS:
            found = [train_digits(way, vbank.VBLoRA(4, h, 8, 2), rates, seed, epochs) for seed in range(seeds)]
            rows += found
            loss, accuracy, chosen = (
                statistics.fmean(row[key] for row in found) for key in ("loss", "accuracy", "chosen_mean")
            )
            print(
                f"h {h:4}  lr {rates['logits']:<4g}  {way:34}  loss {loss:.4f}  accuracy {accuracy:.4f}"
                f"  state {found[0]['logits_state_bytes'] / MIB:6.2f} MiB  ever chosen {chosen:.1f}",
                flush=True,
            )
    return {"rows": rows}


def write(out: Path, report: dict[str, Any]) -> None:
    """Writes aside and renames, so that a run that is stopped leaves what was there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".tmp")
    aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="one layer of each shape and one seed, in seconds")
    parser.add_argument("--part", nargs="+", choices=("memory", "quality", "tried"), default=["memory", "quality"])
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps whose memory is measured")
    parser.add_argument("--rounds", type=int, default=5, help="optimizer steps that are timed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--vectors", nargs="+", type=int, default=[90, 2048], help="h, in the parts quality and tried")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/training_memory.json"))
    given = parser.parse_args(arguments)
    if min(given.steps, given.rounds, given.seeds, given.epochs, *given.vectors) < 1:
        parser.error("--steps, --rounds, --seeds, --epochs and --vectors must be at least 1")
    report = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    parts = [f"quality-{h}" for h in given.vectors] if "quality" in given.part else []
    for part in ["memory"] * ("memory" in given.part) + parts + ["tried"] * ("tried" in given.part):
        begun = time.perf_counter()

        def keep(made: dict[str, Any], part: str = part, begun: float = begun) -> None:
            made = made | {"tiny": given.tiny, "machine": ledger.machine(), "versions": ledger.versions()}
            if part != "tried":  # which may have been stopped and resumed; its rows have their own
                made |= {"seconds": round(time.perf_counter() - begun, 1)}
            report[part] = made | {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
            write(given.out, report)

        seeds, epochs = (1, 1) if given.tiny else (given.seeds, given.epochs)
        if part == "memory":
            keep(memory_part(given.tiny, given.steps, given.rounds))
        elif part == "tried":
            former = report.get(part, {})
            done = former["rows"] if former and former["tiny"] == given.tiny else []
            tried_part(done, given.tiny, seeds, given.vectors, keep)
        else:
            keep(quality_part(seeds, epochs, int(part.partition("-")[2])))
    print(f"written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
