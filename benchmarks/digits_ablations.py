"""The ablations in the digits laboratory, where a run takes seconds and many seeds are to be had.

`vbank.tasks.digits.adapt` adapts a small vision transformer to turned digits. Each group of settings has a file of its
own, results/benchmarks/digits_<group>.json, so that two processes can make two groups. What a file has is kept: a
stopped command goes on, and more seeds are added. Seeds count from 1, for the laboratory's rates were searched on
seed 0. Run it with ``python benchmarks/digits_ablations.py vb-lora vera --seeds 10``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vbank
from vbank import ledger
from vbank.adapters import adapter_of
from vbank.tasks import digits

RESULTS = Path("results/benchmarks")
Rates = Mapping[str, float] | float


@dataclass(frozen=True)
class Setting:
    """One variant: what `digits.adapt` is called with.

    Args:
        method: as there.
        lr: as there.
        epochs, batch_size, targets, weight_decay: as there.
        fixed_choice: VB-LoRA: each sub-vector keeps the vectors of its random start; their weights are trained.
    """

    method: vbank.Config | str
    lr: Rates
    epochs: int = 7
    batch_size: int = 100
    targets: str = "all-linear"
    weight_decay: float = 0.0
    fixed_choice: bool = False

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        name = self.method if isinstance(self.method, str) else self.method.method
        settings = {} if isinstance(self.method, str) else self.method.settings()
        return {"method": name, "settings": settings} | {k: v for k, v in asdict(self).items() if k != "method"}


VB = vbank.VBLoRA(rank=4, num_vectors=24, vector_length=16, top_k=2)  # as in the chapter VB-LoRA II
VB_RATES = {"bank": 3e-2, "logits": 3e-1}  # the same
VERA = vbank.VeRA(rank=64)  # as in the chapter VeRA
LONG: dict[str, Any] = {"epochs": 20, "batch_size": 4}  # 5,000 steps of batch 4, as in PEFT's comparison


def vb(bank: float | None = None, logits: float | None = None, **changes: Any) -> Setting:
    """VB-LoRA with other rates or settings."""
    rates = {"bank": bank or VB_RATES["bank"], "logits": logits or VB_RATES["logits"]}
    return Setting(replace(VB, **changes), rates)


def vb_lora() -> dict[str, Setting]:
    """Tables 5 and 6 of VB-LoRA, the ratio of the two rates, and the scale at the start."""
    noisy, gumbel, straight = ({"selection": name} for name in ("noisy_top_k", "gumbel_softmax", "straight_through"))
    return {
        "head": Setting("head-only", 0.0),
        **{f"top-{k}": vb(top_k=k) for k in (1, 2, 3, 6)},
        "top-2-fixed": replace(vb(), fixed_choice=True),
        "select-all": vb(selection="select_all"),
        **{f"noisy-top-{k}": vb(top_k=k, **noisy) for k in (1, 2)},
        **{f"gumbel-top-{k}": vb(top_k=k, **gumbel) for k in (1, 2)},
        **{f"straight-top-{k}": vb(top_k=k, **straight) for k in (1, 2)},
        "fast-top-2": vb(logits=3.0),
        "fast-noisy-top-2": vb(logits=3.0, **noisy),
        "fast-gumbel-top-2": vb(logits=3.0, **gumbel),
        "fast-straight-top-2": vb(logits=3.0, **straight),
        **{f"length-{b}": vb(vector_length=b, num_vectors=384 // b) for b in (4, 8, 32, 64)},  # h b as in top-2
        "ratio-1": vb(logits=3e-2),
        "ratio-3": vb(logits=1e-1),
        "ratio-33": vb(logits=1.0),
        **{f"one-rate-{rate}": vb(rate, rate) for rate in (0.01, 0.1, 0.3)},  # ratio-1 has 0.03
        "logits-std-10x": vb(logits_std=0.1),
        "logits-std-100x": vb(logits_std=1.0),
        "bank-tenth": vb(bank_bound=0.002),
        "bank-10x": vb(bank_bound=0.2),
    }


def peft() -> dict[str, Setting]:
    """From the authors' settings to those of PEFT's comparison, at its number of steps and its rates.

    Its bank of 256 is an eighth of the authors' 2,048; here 3 vectors of 24. Its pull request 3546 reports the rates
    and banks of the rows "pr", in these proportions.
    """
    theirs = {"bank": 1e-4, "logits": 1e-4}

    def of(rates: Rates, weight_decay: float = 0.0, targets: str = "all-linear", **changes: Any) -> Setting:
        return Setting(replace(VB, **changes), rates, targets=targets, weight_decay=weight_decay, **LONG)

    authors = {"bank": 1e-3, "logits": 1e-2}
    every: dict[str, Any] = {"weight_decay": 0.1, "targets": "qv", "logits_std": 0.1}
    return {
        "head": Setting("head-only", 0.0, **LONG),
        "authors": of(authors),
        "rates": of(theirs),
        "decay": of(authors, weight_decay=0.1),
        "std": of(authors, logits_std=0.1),
        "qv": of(authors, targets="qv"),
        "bank": of(authors, num_vectors=3),
        "all-but-rates": of(authors, num_vectors=3, **every),
        "all": of(theirs, num_vectors=3, **every),
        "pr-3e-4-double": of({"bank": 3e-4, "logits": 3e-4}, num_vectors=6, **every),
        "pr-3e-4-fourfold": of({"bank": 3e-4, "logits": 3e-4}, num_vectors=12, **every),
        "pr-5e-4-double": of({"bank": 5e-4, "logits": 5e-4}, num_vectors=6, **every),
        "pr-5e-4-fourfold": of({"bank": 5e-4, "logits": 5e-4}, num_vectors=12, **every),
        "laboratory": of(VB_RATES),
        "lora-same-rate": Setting(vbank.LoRA(4), 1e-4, targets="qv", weight_decay=0.1, **LONG),
    }


def vera() -> dict[str, Setting]:
    """Tables 6 and 7 of VeRA."""
    base = Setting(VERA, 0.2, epochs=3, batch_size=40, targets="qv")
    changes: dict[str, dict[str, Any]] = {
        "default": {},
        "only-d": {"train_b": False},
        "only-b": {"train_d": False},
        "normal": {"init": "kaiming_normal"},
        "uniform": {"init": "uniform"},
        "d-tiny": {"d_init": 1e-7},
        "d-one": {"d_init": 1.0},
        "unique": {"shared": False},
    }
    return {
        "head": replace(base, method="head-only", lr=0.0),
        **{name: replace(base, method=replace(VERA, **change)) for name, change in changes.items()},
    }


def prolora() -> dict[str, Setting]:
    """Figure 4 of PRoLoRA, rank 16 at the budget of a LoRA of rank 4; -r and -i of its Table 2."""
    methods: dict[str, vbank.Config] = {
        f"unshared-{u}": vbank.PRoLoRA(16, u, (16 - u) // (4 - u), (16 - u) // (4 - u)) for u in range(4)
    }
    methods |= {
        "unshared-4": vbank.PRoLoRA(4, 4),
        "unshared-4-alpha": vbank.PRoLoRA(4, 4, alpha=16),  # one alpha for all, as A.2 has it
        "no-rotation": vbank.PRoLoRA(16, 2, 7, 7, rotate=False),
        "not-rectified": vbank.PRoLoRA(16, 2, 7, 7, rectified=False),
    }
    rates = (0.0025, 0.005, 0.01, 0.02, 0.04)
    return {f"{name} {rate}": Setting(method, rate, epochs=4) for name, method in methods.items() for rate in rates}


GROUPS: dict[str, Callable[[], dict[str, Setting]]] = {
    "vb-lora": vb_lora,
    "peft": peft,
    "vera": vera,
    "prolora": prolora,
}


def hold_choice(step: int, model: nn.Module) -> None:
    """Puts every logit but the k chosen out of reach, at the start."""
    if step == 0:
        method = adapter_of(model)[2].method
        kept = torch.zeros_like(method.logits, dtype=torch.bool).scatter_(1, method.selected[0], True)
        with torch.no_grad():
            method.logits.masked_fill_(~kept, -1e4)


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Accuracy on the test digits, training loss of the last epoch (None if it is no number), CPU seconds."""
    method = setting.method
    if isinstance(method, vbank.VeRA):
        method = replace(method, seed=seed)  # another seed, another pair
    begun = time.process_time()
    found = digits.adapt(
        method,
        setting.lr,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        seed=seed,
        targets=setting.targets,
        weight_decay=setting.weight_decay,
        after_step=hold_choice if setting.fixed_choice else None,
    )
    loss, seconds = found.losses[-1], time.process_time() - begun
    return {
        "accuracy": round(found.accuracy, 6),
        "loss": round(loss, 6) if math.isfinite(loss) else None,
        "cpu_seconds": round(seconds, 2),
        "counted": None
        if found.counted is None
        else {
            "trainable": found.counted.trainable,
            "stored": found.counted.stored,
            "bytes": found.counted.bytes,
        },
    }


def complete(group: str, seeds: Sequence[int], folder: Path, settings: Mapping[str, Setting] | None = None) -> Path:
    """Makes the runs of a group that its file lacks, seed by seed, and writes the file after each.

    Raises:
        ValueError: the file holds runs of other settings.
    """
    settings = settings or GROUPS[group]()
    path = folder / f"digits_{group.replace('-', '_')}.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"variants": {}}
    for name, setting in settings.items():
        kept = report["variants"].setdefault(name, {"setting": setting.told(), "runs": {}})
        if kept["setting"] != json.loads(json.dumps(setting.told())):
            raise ValueError(f"{path} has {name!r} with other settings; remove it from the file and run again")
    digits.pretrained()  # not on the clock of the first run
    for seed in seeds:
        for name, setting in settings.items():
            kept = report["variants"][name]
            if str(seed) in kept["runs"]:
                continue
            found = run(setting, seed)
            kept["counted"] = found.pop("counted")  # the same for all seeds
            kept["runs"][str(seed)] = found
            report |= {"machine": ledger.machine(), "versions": ledger.versions()}
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
            os.replace(aside, path)
            print(f"{group} {name} seed {seed}: {found['accuracy']:.4f}, {found['cpu_seconds']:.1f} s", flush=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="+", choices=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=10, help="run seeds 1 to N")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for group in chosen.groups:
        print(complete(group, range(1, chosen.seeds + 1), chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
