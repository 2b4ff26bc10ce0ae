"""Time and memory of a training step: vbank's methods and PEFT's, interleaved in one process.

A step is forward, backward and AdamW. Every contestant adapts a twin of one model; all twins share its frozen weights.
In a round each contestant makes one step, in a new random order. A ratio is the median over rounds of the two times in
one round, so that a slow minute of the machine slows both. Weights and tokens are random: time does not depend on their
values. Run it with ``python benchmarks/step_time.py``; ``--tiny`` runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vbank
from vbank import architectures, ledger
from vbank.live_memory import LivePeak
from vbank.targets import resolve

RANK, VECTORS, LENGTH, TOP_K = 4, 90, 256, 2  # VB-LoRA, Table 7
SETTINGS = [(1, 16), (8, 64), (32, 128)]  # batch x length
TARGETS = {"qv": ["query", "value"], "all-linear": ["query", "key", "value", "dense"]}
RATIOS = [  # numerator, denominator
    ("vbank vb-lora", "vbank lora"),
    ("vbank vera", "vbank lora"),
    ("vbank tied-lora", "vbank lora"),
    ("vbank prolora", "vbank lora"),
    ("vbank lora", "peft lora"),
    ("peft vb-lora", "vbank vb-lora"),
    ("peft vera", "vbank vera"),
]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


def configs(length: int) -> dict[str, vbank.Config]:
    """The five methods at one rank; `length` is VB-LoRA's b."""
    return {
        "lora": vbank.LoRA(RANK, alpha=RANK),
        "vera": vbank.VeRA(RANK),
        "tied-lora": vbank.TiedLoRA(RANK),
        "prolora": vbank.PRoLoRA(RANK, unshared_rank=1, share_a=4, share_b=4, alpha=RANK),
        "vb-lora": vbank.VBLoRA(RANK, num_vectors=VECTORS, vector_length=length, top_k=TOP_K),
    }


def peft_configs(length: int, names: list[str]) -> dict[str, Any]:
    """The same with PEFT, where it has the method."""
    import peft

    kind: dict[str, Any] = {"target_modules": names}
    return {
        "lora": peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, **kind),
        "vera": peft.VeraConfig(r=RANK, vera_dropout=0.0, **kind),
        "vb-lora": peft.VBLoRAConfig(r=RANK, num_vectors=VECTORS, vector_length=length, topk=TOP_K, **kind),
    }


@dataclass
class Contestant:
    """A model with one adapter, its optimizer, and what its steps took."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def step(self, batch: dict[str, Tensor], precision: torch.dtype | None) -> None:
        """Forward, backward, AdamW."""
        device = batch["input_ids"].device
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def twin(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters and buffers, but not the modules."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def contestants(base: nn.Module, targets: str, length: int, only: Sequence[str] | None) -> Iterator[Contestant]:
    """vbank's five methods and PEFT's, each on its twin. No head is trained, so that adapters alone differ."""
    import peft

    names = [part.module for part in resolve(base, TARGETS.get(targets, targets))]
    inside = [name for name in names if ".layer." in name or ".layers." in name]
    for key, config in configs(length).items():
        if only and f"vbank {key}" not in only:
            continue
        model = twin(base)
        torch.manual_seed(0)
        vbank.attach(model, config, inside)
        yield contestant(f"vbank {key}", model)
    for key, settings in peft_configs(length, inside).items():
        if only and f"peft {key}" not in only:
            continue
        torch.manual_seed(0)
        yield contestant(f"peft {key}", peft.get_peft_model(twin(base), settings))


def contestant(name: str, model: nn.Module) -> Contestant:
    """The model in training mode with AdamW over what needs a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Contestant(name, model.train(), torch.optim.AdamW(trained, lr=1e-5))


def now(device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def peak(one: Contestant, batch: dict[str, Tensor], precision: torch.dtype | None) -> int:
    """The most bytes that a first step's tensors hold at one time: activations, gradients, AdamW's state."""
    if batch["input_ids"].device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one.step(batch, precision)
        return torch.cuda.max_memory_allocated() - before
    with LivePeak() as live:
        one.step(batch, precision)
    return live.peak


def measure(
    runners: list[Contestant], batch: dict[str, Tensor], precision: torch.dtype | None, rounds: int, draw: random.Random
) -> None:
    """A first step each, for its memory, then `rounds` rounds of one step each, in random order."""
    device = batch["input_ids"].device
    for one in runners:
        one.memory = peak(one, batch, precision)
    for _ in range(rounds):
        for one in draw.sample(runners, len(runners)):
            wall, cpu = now(device)
            one.step(batch, precision)
            wall_after, cpu_after = now(device)
            one.wall.append(wall_after - wall)
            one.cpu.append(cpu_after - cpu)


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the two times in the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def compare(runners: list[Contestant], clock: str) -> dict[str, dict[str, float]]:
    """For each pair of `RATIOS`: the ratio of times by `clock` ("wall" or "cpu"), and that of peak memory."""
    by_name = {one.name: one for one in runners}
    found = {}
    for above, below in RATIOS:
        if above in by_name and below in by_name:
            a, b = by_name[above], by_name[below]
            found[f"{above} / {below}"] = {
                "wall": ratio(a.wall, b.wall),
                "cpu": ratio(a.cpu, b.cpu),
                "time": ratio(getattr(a, clock), getattr(b, clock)),
                "memory": a.memory / b.memory,
            }
    return found


def summary(runners: list[Contestant], clock: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the report: medians of each contestant and the ratios, printed as well."""
    row["steps"] = {
        one.name: {"wall": statistics.median(one.wall), "cpu": statistics.median(one.cpu), "peak_bytes": one.memory}
        for one in runners
    }
    row["ratios"] = compare(runners, clock)
    print(
        f"{row['targets']} {row['batch']}x{row['length']}, {row['rounds']} rounds, seconds of a step by {clock} clock:"
    )
    for one in runners:
        print(f"  {one.name:16} {row['steps'][one.name][clock]:9.4f}  {one.memory / 2**20:9.1f} MiB", flush=True)
    return row


def model_of(shape: str, tiny: bool, device: torch.device) -> nn.Module:
    """The shape with random weights on the device: a classifier in float32, or Llama as a language model in NF4."""
    if shape.startswith("llama"):
        from qlora_memory import TINY as TINY_LLAMA
        from qlora_memory import random_llama

        configuration = architectures.build(shape, language_model=True, **(TINY_LLAMA if tiny else {})).config
        return random_llama(configuration, device)
    from transformers import AutoModelForSequenceClassification

    configuration = architectures.build(shape, **(TINY if tiny else {})).config
    torch.manual_seed(0)
    with device:
        model = AutoModelForSequenceClassification.from_config(configuration)
    for module in model.modules():  # a training step draws dropout masks; the same for all, and not what is measured
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(False)


def tokens(model: nn.Module, batch: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens (batch, length) with labels."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (batch, length), generator=draw).to(device)
    causal = "CausalLM" in type(model).__name__
    return {"input_ids": ids, "labels": ids if causal else torch.zeros(batch, dtype=torch.long, device=device)}


def parse(text: str, parser: argparse.ArgumentParser) -> tuple[int, int]:
    """Batch and length of a text such as 8x64."""
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        parser.error(f"--setting {text}: give batch x length, such as 8x64")
    return int(batch), int(length)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def line(pair: str, rows: list[dict[str, Any]]) -> str:
    """A pair of contestants over all settings: ratios of time, their geometric mean and the worst, and of memory."""
    cells = [row["ratios"].get(pair) for row in rows]
    shown = "  ".join(f"{cell['time']:.3f}" if cell else "    -" for cell in cells)
    times = [cell["time"] for cell in cells if cell]
    memory = max(cell["memory"] for cell in cells if cell)
    return f"{pair:32}  {shown}   mean {geometric_mean(times):.3f}  most {max(times):.3f}  memory at most {memory:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64, in seconds")
    parser.add_argument("--shape", default="roberta-base", choices=["roberta-base", "roberta-large", "llama2-7b"])
    parser.add_argument("--setting", nargs="+", metavar="BxL", help="batch x length (default: 1x16 8x64 32x128)")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help='contestants, such as "vbank lora" "peft lora"')
    parser.add_argument(
        "--rounds", type=int, help="steps of each contestant (default: 3 to 60, by the tokens of a step)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1, whose time is its own)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--profile", type=Path, help="also write a profile of a step of each into this folder")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/step_time.json"))
    given = parser.parse_args(arguments)
    settings = [parse(text, parser) for text in given.setting or ()] or ([(2, 8)] if given.tiny else SETTINGS)
    if min(given.threads, 1 if given.rounds is None else given.rounds) < 1:
        parser.error("--rounds and --threads must be at least 1")
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = "cpu" if device.type == "cpu" and given.threads == 1 else "wall"
    base = model_of(given.shape, given.tiny, device)
    rows: list[dict[str, Any]] = []
    report = {
        "machine": ledger.machine(),
        "versions": ledger.versions() | {"peft": version("peft")},
        "shape": given.shape,
        "tiny": given.tiny,
        "clock": clock,
        "autocast": "bfloat16" if given.bf16 else None,
        "rows": rows,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for batch, length in settings:
        for targets in given.targets:
            count = given.rounds or max(3, min(60, 4000 // (batch * length)))
            runners = list(contestants(base, targets, 32 if given.tiny else LENGTH, given.only))
            inputs = tokens(base, batch, length, device)
            measure(runners, inputs, torch.bfloat16 if given.bf16 else None, count, random.Random(0))
            rows.append(
                summary(runners, clock, {"targets": targets, "batch": batch, "length": length, "rounds": count})
            )
            given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")  # a stopped run keeps its rows
            if given.profile:
                profile(runners, inputs, given.profile, f"{targets}-{batch}x{length}")
            del runners
            gc.collect()
    print(f"\n{'ratios of time':32}  " + "  ".join(f"{r['targets'][:3]}{r['batch']}x{r['length']}" for r in rows))
    for above, below in RATIOS:
        pair = f"{above} / {below}"
        if any(pair in row["ratios"] for row in rows):
            print(line(pair, rows))
    print(f"written to {given.out}")
    return 0


def profile(runners: list[Contestant], batch: dict[str, Tensor], folder: Path, name: str) -> None:
    """Where a step's time goes, by operator: a table for each contestant."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    folder.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    for one in runners:
        with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
            one.step(batch, None)
        table = found.key_averages().table(
            sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=40
        )
        (folder / f"{name}-{one.name.replace(' ', '-')}.txt").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
