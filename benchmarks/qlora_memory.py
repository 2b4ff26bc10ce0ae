"""Memory and time of QLoRA training steps on the shapes of Llama 2, for LoRA, VeRA, PRoLoRA and VB-LoRA.

The weights are random: memory and time do not depend on their values. They are drawn and quantised layer by layer on
the device, so that the model never exists in another form than NF4. The steps are those of `vbank run` on the papers'
recipes: bfloat16 by autocast, normalisations in float32, gradient checkpointing, the recipe's optimizer; batch 4 and
accumulation 4 for all, as VB-LoRA's Table 9 has them. Run it with ``python benchmarks/qlora_memory.py``; ``--tiny``
runs the same code on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vbank
from vbank import account, architectures, ledger, optimizers, quantised, recipes
from vbank.methods.base import Config
from vbank.targets import resolve

EPOCH = 51_760  # rows of the cleaned Alpaca data
BATCH, ACCUMULATION = 4, 4  # VB-LoRA, Table 9
STD = 0.02  # of the random weights, Llama's own initialisation


@dataclass(frozen=True)
class Case:
    """A recipe on a shape, and what a paper prints for it: MiB and hours of an epoch."""

    shape: str
    recipe: str
    mib: int | None = None
    hours: float | None = None


# VB-LoRA, Table 9; VeRA and PRoLoRA print neither for these models.
CASES = [
    Case("llama2-7b", "vb-lora-alpaca/lora-7b", 8467, 2.0),
    Case("llama2-7b", "vera-alpaca/vera-7b"),
    Case("llama2-7b", "prolora-instruct/prolora-r8-7b"),
    Case("llama2-7b", "prolora-instruct/prolora-r32-7b"),
    Case("llama2-7b", "vb-lora-alpaca/vb-lora-7b", 6872, 2.5),
    Case("llama2-13b", "vb-lora-alpaca/lora-13b", 11624, 2.6),
    Case("llama2-13b", "vera-alpaca/vera-13b"),
    Case("llama2-13b", "prolora-instruct/prolora-r8-13b"),
    Case("llama2-13b", "vb-lora-alpaca/vb-lora-13b", 11486, 3.0),
]
TINY = {  # sizes that a CPU trains in seconds, with every layer of the large ones
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_METHODS = {"vb-lora": {"num_vectors": 64, "vector_length": 64}, "vera": {"rank": 64}, "lora": {"rank": 8}}


def random_llama(configuration: Any, device: torch.device) -> nn.Module:
    """A Llama with random weights: NF4 with double quantisation in the blocks, bfloat16 elsewhere.

    One layer's weight at a time is drawn in bfloat16 on the device and quantised there.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16)
    inside = {part.module for part in resolve(model, "all-linear")}
    for name in inside:
        layer = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, random_nf4(layer.in_features, layer.out_features, device))
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                value = torch.ones_like(parameter, device=device)
                setattr(module, key, nn.Parameter(value if value.dim() < 2 else value.normal_(0.0, STD), False))
    rotary = model.model.rotary_emb  # its buffers are computed, not loaded
    with device:
        model.model.rotary_emb = type(rotary)(configuration)
    return model


def random_nf4(in_features: int, out_features: int, device: torch.device) -> nn.Linear:
    """A linear layer (out, in) with random weights in NF4, computing in bfloat16."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    layer = Linear4bit(in_features, out_features, bias=False, compute_dtype=torch.bfloat16, device="meta", **kind)
    weight = torch.empty(out_features, in_features, dtype=torch.bfloat16, device=device).normal_(0.0, STD)
    layer.weight = Params4bit(weight, requires_grad=False, module=layer, **kind).to(device)
    return layer


@contextmanager
def attached(model: nn.Module, config: Config) -> Iterator[Any]:
    """The method on all linear layers in the blocks, taken off again whatever happens."""
    adapter = vbank.attach(model, config, targets="all-linear")
    try:
        yield adapter
    finally:
        vbank.detach(model)


def forget() -> None:
    """Gives back what a case held, so that the next one's reserved memory is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(model: nn.Module, recipe: recipes.Recipe, config: Config, length: int, steps: int, warm_up: int) -> dict:
    """Trains `warm_up` and then `steps` optimizer steps on random tokens; memory and seconds of the latter."""
    device = next(model.parameters()).device
    train = recipe.train
    name = train.optimizer if device.type == "cuda" else "adamw"  # a paged optimizer needs CUDA
    with attached(model, config):
        optimizer = optimizers.build(name, vbank.param_groups(model, lr=1e-4))
        trained = [p for p in model.parameters() if p.requires_grad]
        draw = torch.Generator().manual_seed(0)
        words = model.config.vocab_size
        model.train()
        times: list[float] = []
        for step in range(warm_up + steps):
            if step == warm_up:
                memory = ledger.PeakMemory()
            begun = now(device)
            for _ in range(ACCUMULATION):
                rows = torch.randint(0, words, (BATCH, length), generator=draw).to(device)  # (batch, length)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
                (loss / ACCUMULATION).backward()
            nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            times.append(now(device) - begun)
        states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        # the driver holds paged tensors outside of PyTorch's allocator
        paged = sum(v.nbytes for v in states if getattr(v, "is_paged", False))
        found = {
            "peak_bytes": memory.read() + paged,
            "paged_bytes": paged,
            "trained": sum(p.numel() for p in trained),
            "optimizer": name,
            "loss": loss.item(),
            "seconds_a_step": statistics.median(times[warm_up:]),
            "slowest_step": max(times[warm_up:]),
        }
        if device.type == "cuda":
            found["reserved_bytes"] = torch.cuda.max_memory_reserved() + paged
    found["seconds_an_epoch"] = found["seconds_a_step"] * EPOCH / (BATCH * ACCUMULATION)
    return found


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def settings_of(case: Case, tiny: bool) -> tuple[recipes.Recipe, Config]:
    """The case's recipe at scale `gpu`, and its method, made small for the CPU."""
    recipe = recipes.load(case.recipe, scale="gpu")
    config = recipe.method.config()
    assert config is not None
    changes = TINY_METHODS.get(config.method, {}) if tiny else {}
    return recipe, type(config)(**config.settings() | changes)


def run(cases: Sequence[Case], lengths: Sequence[int], steps: int, warm_up: int, tiny: bool) -> list[dict[str, Any]]:
    """A row for each case and length; a case that runs out of memory says so."""
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    rows = []
    for shape in dict.fromkeys(case.shape for case in cases):
        configuration = architectures.build(shape, language_model=True, **(TINY if tiny else {})).config
        model = random_llama(configuration, device)
        quantised.steady_norms(model, autocast=True)
        model.activation_checkpointing_enable()
        for case in (case for case in cases if case.shape == shape):
            recipe, config = settings_of(case, tiny)
            for length in lengths:
                row = {"shape": shape, "recipe": case.recipe, "method": config.method, "settings": config.settings()}
                row |= {"batch": BATCH, "accumulation": ACCUMULATION, "length": length}
                need = account.memory(
                    configuration,
                    config,
                    batch=BATCH,
                    length=length,
                    quantise="nf4",
                    compute="bf16",
                    checkpointing=True,
                    optimizer=recipe.train.optimizer,
                )
                row["account_bytes"] = need.total
                row |= {} if tiny else {"paper_mib": case.mib, "paper_hours": case.hours}
                try:
                    row |= measure(model, recipe, config, length, steps, warm_up)
                except torch.cuda.OutOfMemoryError:
                    row["error"] = "out of memory"
                forget()  # after `measure` and its exception are gone, with all that they named
                rows.append(row)
                print(line(row), flush=True)
        del model
        forget()
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in print: measured, the account, the paper."""
    head = f"{row['shape']:10}  {row['recipe']:31}  {row['batch']} x {row['length']:<5}"
    if "error" in row:
        return f"{head}  {row['error']}; take a shorter --length, or a larger device"
    measured = f"{head}  {row['peak_bytes'] / account.MIB:>7,.0f} MiB  {row['seconds_a_step']:.3f} s a step"
    if "paper_mib" not in row:  # small sizes on a CPU, whose peak is that of the whole process
        return measured
    measured += f", {row['seconds_an_epoch'] / 3600:.2f} h an epoch; account {row['account_bytes'] / account.MIB:,.0f}"
    return measured + (f"; paper {row['paper_mib']:,} MiB, {row['paper_hours']:g} h" if row["paper_mib"] else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two layers of width 128 on the CPU, in seconds")
    parser.add_argument("--shape", nargs="+", choices=sorted({case.shape for case in CASES}), help="default: both")
    parser.add_argument("--length", nargs="+", type=int, help="tokens of every row (default: 256 512; tiny: 16)")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps measured")
    parser.add_argument("--warm-up", type=int, default=3, help="optimizer steps before")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/qlora_memory.json"))
    given = parser.parse_args(arguments)
    if min(given.steps, given.warm_up, *(given.length or [1])) < 1:
        parser.error("--steps, --warm-up and --length must be at least 1")
    if not torch.cuda.is_available() and not given.tiny:
        print(
            "no CUDA device here. On a machine with one GPU of 16 GiB or more: python benchmarks/qlora_memory.py"
            "\nHere: python benchmarks/qlora_memory.py --tiny, which runs the same code on small sizes",
            file=sys.stderr,
        )
        return 2
    cases = [case for case in CASES if given.shape is None or case.shape in given.shape]
    lengths = given.length or ([16] if given.tiny else [256, 512])
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that nothing here uses
    torch.manual_seed(0)
    rows = run(cases, lengths, given.steps, given.warm_up, given.tiny)
    report = {"machine": ledger.machine(), "versions": ledger.versions(), "tiny": given.tiny, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
