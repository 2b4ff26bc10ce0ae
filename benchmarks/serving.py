"""A thousand adapters on one model: memory, and the time of batches whose rows name different ones.

RoBERTa-base's shapes with random weights, query and value adapted, float32, no task heads: nothing is downloaded, and
time does not depend on the values. All cases of a batch shape run in turn in one process, so that what else the machine
does falls on all of them; the figure to compare is the CPU time of the process. ``python benchmarks/serving.py`` runs
all parts, ``--tiny`` the same code in seconds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vbank
from vbank import architectures, ledger
from vbank.serving import Server

METHODS: dict[str, vbank.Config] = {
    "vb-lora": vbank.VBLoRA(rank=4, num_vectors=90, vector_length=256, top_k=2),  # VB-LoRA, Table 7
    "lora": vbank.LoRA(rank=8),
    "vera": vbank.VeRA(rank=1024),  # VeRA, Table 8
    "tied-lora": vbank.TiedLoRA(rank=16),  # VB-LoRA, Table 1, by its counts
    "prolora": vbank.PRoLoRA(rank=8, unshared_rank=1, share_a=8, share_b=8),
}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
TINY_METHODS = {"vb-lora": {"vector_length": 16}, "vera": {"rank": 16}}
DISTINCT = 32  # folders on disk, and the most adapters in one batch
STD = 0.02  # of the drawn numbers at width 768; larger on smaller layers, so that every adapter shows
OUT = Path("results/benchmarks/serving.json")
PARTS = ("memory", "time", "peft")
SHAPE = re.compile(r"[1-9]\d*x[1-9]\d*")


def roberta(tiny: bool) -> nn.Module:
    """The encoder with random weights, in evaluation mode."""
    from transformers import RobertaModel

    configuration = architectures.build("roberta-base", **(TINY if tiny else {})).config
    return RobertaModel(configuration, add_pooling_layer=False).eval().requires_grad_(False)


def settings_of(method: str, tiny: bool) -> vbank.Config:
    config = METHODS[method]
    return type(config)(**config.settings() | (TINY_METHODS.get(method, {}) if tiny else {}))


def write_adapters(model: nn.Module, config: vbank.Config, folder: Path, number: int) -> list[Path]:
    """Folders of adapters whose every number is drawn, as after training; the model is left as it was."""
    paths = []
    for i in range(number):
        adapter = vbank.attach(model, config, targets="qv")
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=STD * 768 / model.config.hidden_size)
        vbank.save(model, folder / f"{config.method}-{i}")
        vbank.detach(model)
        paths.append(folder / f"{config.method}-{i}")
    return paths


def tokens(model: nn.Module, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(5, model.config.vocab_size, (rows, length), generator=generator)  # (rows, length)


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process")


class Clock:
    """Wall and CPU seconds of cases that run in turn."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    @contextmanager
    def running(self, case: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.setdefault(case, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(case, []).append(time.process_time() - cpu)

    def joined(self, other: Clock) -> Clock:
        """The cases of both."""
        both = Clock()
        both.wall, both.cpu = self.wall | other.wall, self.cpu | other.cpu
        return both

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            case: {"wall_seconds": statistics.median(self.wall[case]), "cpu_seconds": statistics.median(self.cpu[case])}
            for case in self.wall
        }


def interleaved(cases: dict[str, Callable[[], Any]], rounds: int) -> Clock:
    """Every case once to warm up, then `rounds` times in turn, each round in another order."""
    clock, names = Clock(), list(cases)
    for case in names:
        cases[case]()
    for i in range(rounds):
        for case in names[i % len(names) :] + names[: i % len(names)]:
            with clock.running(case):
                cases[case]()
    return clock


def memory(model: nn.Module, folder: Path, adapters: int, tiny: bool) -> dict[str, Any]:
    """Adds many VB-LoRA adapters, each read from its files, and compares the process with the formula."""
    config = settings_of("vb-lora", tiny)
    paths = write_adapters(model, config, folder, DISTINCT)
    server = vbank.serve(model)
    with torch.inference_mode():
        server.add("warm-up", paths[0])
        server(["warm-up"], input_ids=tokens(model, 1, 16))
        server.remove("warm-up")
    before, wall, cpu = resident(), time.perf_counter(), time.process_time()
    for i, path in zip(range(adapters), itertools.cycle(paths), strict=False):
        server.add(f"user-{i}", path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = resident() - before
    held = server.nbytes
    assert held.heads == held.shared == 0 and held.adapters == held.total
    found = {"adapters": adapters, "rss_growth_bytes": grown, "payload_bytes": held.adapters}
    found |= {"rss_bytes_each": grown / adapters, "payload_bytes_each": held.adapters // adapters}
    found |= {"add_wall_seconds_each": wall / adapters, "add_cpu_seconds_each": cpu / adapters}
    server.close()
    return found


def largest_difference(model: nn.Module, server: Server, paths: dict[str, Path], x: Tensor) -> dict[str, float]:
    """Between the rows of one mixed batch and each row's adapter alone, put on the model by `vbank.load`."""
    names, base = list(paths)[: len(x)], model(input_ids=x).last_hidden_state
    mixed = server(names, input_ids=x).last_hidden_state
    wrong, moved = 0.0, []
    for i, name in enumerate(names):
        vbank.load(model, paths[name])
        alone = model(input_ids=x[i : i + 1]).last_hidden_state[0]
        vbank.detach(model)
        wrong = max(wrong, (mixed[i] - alone).abs().max().item())
        moved.append((base[i] - alone).abs().max().item())
    return {"largest_difference": wrong, "smallest_effect": min(moved)}


def forwards(model: nn.Module, folder: Path, method: str, rows: int, length: int, rounds: int, tiny: bool) -> dict:
    """Batches of one shape: the base model, one adapter for all rows, one for each row, and what a switch costs."""
    config = settings_of(method, tiny)
    paths = {path.name: path for path in write_adapters(model, config, folder, rows)}
    x, names = tokens(model, rows, length), list(paths)
    found: dict[str, Any] = {"method": method, "settings": config.settings(), "rows": rows, "length": length}
    with vbank.serve(model, cache_bytes=2**32) as server:
        for name, path in paths.items():
            server.add(name, path)
        found |= largest_difference(model, server, paths, x)
        mixed = [name if i % 2 else None for i, name in enumerate(names)]
        clock = interleaved(
            {
                "base": lambda: server([None] * rows, input_ids=x),
                "one": lambda: server(names[:1] * rows, input_ids=x),
                "different": lambda: server(names, input_ids=x),
                "every other row base": lambda: server(mixed, input_ids=x),
            },
            rounds,
        )
        found |= {"cache_bytes": server.nbytes.cache, "shared_bytes": server.nbytes.shared}
        found |= {"adapter_bytes_each": server.nbytes.adapters // rows}
    with vbank.serve(model, cache_bytes=0) as server:  # every batch makes its factors anew
        for name, path in paths.items():
            server.add(name, path)
        turn = itertools.cycle(names)

        def begin(named: list[str]) -> None:
            with server.rows(named):
                pass

        making = {"make one": lambda: begin([next(turn)] * rows), "make all": lambda: begin(names)}
        clock = clock.joined(interleaved(making, 4 * rounds))
    found["seconds"] = clock.medians()
    cpu = {case: seconds["cpu_seconds"] for case, seconds in found["seconds"].items()}
    found |= {"different_over_one": cpu["different"] / cpu["one"], "one_over_base": cpu["one"] / cpu["base"]}
    found |= {"switch_share": cpu["make one"] / cpu["one"], "make_all_share": cpu["make all"] / cpu["one"]}
    return found


def beside_peft(model: nn.Module, folder: Path, rows: int, length: int, rounds: int, tiny: bool) -> dict[str, Any]:
    """Mixed batches of plain LoRA, here and by PEFT's `adapter_names`, on two models with the same weights."""
    import copy

    from peft import LoraConfig, get_peft_model

    rank, x = 8, tokens(model, rows, length)
    names = [f"user-{i}" for i in range(rows)]
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"], init_lora_weights=False)
    theirs = get_peft_model(copy.deepcopy(model), settings, adapter_name=names[0])
    for name in names[1:]:
        theirs.add_adapter(name, settings)
    theirs.eval()
    server = vbank.serve(model)
    values = dict(theirs.named_parameters())
    for name in names:
        adapter = vbank.attach(model, vbank.LoRA(rank=rank), targets="qv")
        with torch.no_grad():
            for site in adapter.sites:
                for letter, factor in zip("AB", adapter.method.factors(site.name), strict=True):
                    factor.copy_(values[f"base_model.model.{site.name}.lora_{letter}.{name}.weight"])
        vbank.save(model, folder / name)
        vbank.detach(model)
        server.add(name, folder / name)
    ours = server(names, input_ids=x).last_hidden_state
    difference = (ours - theirs(input_ids=x, adapter_names=names).last_hidden_state).abs().max().item()
    clock = interleaved(
        {
            "one": lambda: server(names[:1] * rows, input_ids=x),
            "different": lambda: server(names, input_ids=x),
            "PEFT one": lambda: theirs(input_ids=x, adapter_names=names[:1] * rows),
            "PEFT different": lambda: theirs(input_ids=x, adapter_names=names),
        },
        rounds,
    )
    server.close()
    found: dict[str, Any] = {"method": "lora", "rank": rank, "rows": rows, "length": length}
    found |= {"largest_difference": difference, "seconds": clock.medians()}
    cpu = {case: seconds["cpu_seconds"] for case, seconds in found["seconds"].items()}
    return found | {"peft_over_ours": cpu["PEFT different"] / cpu["different"]}


def measure(part: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one part of the report."""
    tiny = given.tiny
    model = roberta(tiny)
    rows = []
    for case in [None] if part == "memory" else [tuple(map(int, shape.split("x"))) for shape in given.shape]:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            if case is None:
                rows.append(memory(model, Path(folder), given.adapters, tiny))
            elif part == "peft":
                rows.append(beside_peft(model, Path(folder), *case, given.rounds, tiny))
            else:
                rows += [forwards(model, Path(folder), m, *case, given.rounds, tiny) for m in given.method]
    return rows


def line(part: str, row: dict[str, Any]) -> str:
    """A row in print."""
    if part == "memory":
        grown, payload, each = row["rss_growth_bytes"], row["payload_bytes"], row["add_cpu_seconds_each"]
        return (
            f"{row['adapters']:,} adapters: the process grew by {grown / 1e6:,.0f} MB, {payload / 1e6:,.0f} MB of it"
            f" tensors; {each * 1e3:.2f} ms CPU to add one"
        )
    cpu = {case: seconds["cpu_seconds"] for case, seconds in row["seconds"].items()}
    head = f"{row['method']:9}  {row['rows']:>2} x {row['length']:<3}  one {cpu['one']:.3f} s CPU"
    if part == "peft":
        theirs = f"PEFT's {cpu['PEFT different']:.3f}, over ours {row['peft_over_ours']:.2f}"
        return f"{head}, different {cpu['different']:.3f}, {theirs}; off by {row['largest_difference']:.1e}"
    return (
        f"{head}; different over one {row['different_over_one']:.3f}; one over base {row['one_over_base']:.3f};"
        f" a switch {row['switch_share']:.2%}, all anew {row['make_all_share']:.2%};"
        f" off by {row['largest_difference']:.1e}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two layers of width 32, in seconds")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=["vb-lora"], help="of the part `time`")
    parser.add_argument("--shape", nargs="+", default=["32x16", "8x64"], help="rows x tokens")
    parser.add_argument("--adapters", type=int, default=10_000, help="of the part `memory`")
    parser.add_argument("--rounds", type=int, default=5, help="of each case, in turn with the others")
    parser.add_argument("--out", type=Path, default=OUT, help="what is not run stays there")
    given = parser.parse_args(arguments)
    if min(given.adapters, given.rounds) < 1 or not all(SHAPE.fullmatch(shape) for shape in given.shape):
        parser.error("--adapters and --rounds must be at least 1, and --shape like 32x16")
    torch.manual_seed(0)
    report = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for part in given.part:
        former = report.get(part, {})
        if any(former[name] != value for name, value in setting(part, given).items() if former):
            parser.error(
                f"{given.out} holds rows of `{part}` from another machine, versions or size; give another --out"
            )
    for part in given.part:
        former, rows = report.get(part, {}), measure(part, given)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        kept = [row for row in former.get("rows", []) if key(row) not in map(key, rows)]
        kept = [{"time": former.get("time")} | row for row in kept]  # the part's own, where rows have none
        report[part] = setting(part, given) | {"rows": kept + [{"time": now} | row for row in rows]}
        for row in rows:
            print(line(part, row), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {given.out}")
    return 0


def setting(part: str, given: argparse.Namespace) -> dict[str, Any]:
    """What all rows of a part have in common."""
    versions = ledger.versions()
    if part == "peft":
        versions["peft"] = importlib.metadata.version("peft")
    return {"machine": ledger.machine(), "versions": versions, "tiny": given.tiny}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row measures: a later one of the same takes its place."""
    return row.get("method"), row.get("rows"), row.get("length")


if __name__ == "__main__":
    sys.exit(main())
