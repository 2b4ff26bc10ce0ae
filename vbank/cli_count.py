"""`vbank count`: what a method trains and stores on an architecture, and what a training step needs."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vbank.methods import METHODS
from vbank.methods.base import Config
from vbank.recipes import BASELINES
from vbank.suggestions import unknown

if TYPE_CHECKING:
    from vbank.counting import Count

# Settings of the papers' main experiments, for `vbank count` with nothing but a method's name.
USUAL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8},  # VeRA, Table 2, prints 0.3M for RoBERTa-base; rank 8 gives it
    "vera": {"rank": 1024},  # VeRA, Table 8, base model
    "tied-lora": {"rank": 16},  # VB-LoRA, Table 1, base model
    # PRoLoRA, section 4.2
    "prolora": {"rank": 8, "unshared_rank": 1, "share_a": 7, "share_b": 7},
    "vb-lora": {"rank": 4},  # VB-LoRA, Table 7
}

KEYWORDS = ("qv", "all-linear")  # of --targets

# Options that say something only beside another.
OF_MEMORY = ("batch", "quantise", "optimizer", "gib")
OF_BOTH = ("length", "compute", "checkpointing")
OF_TIME = ("device", "share")
OPTIONS = [f"--{name}" for name in ("model", "method", "targets", "memory", "tokens", "json")]
OPTIONS += [f"--{name}" for name in (*OF_MEMORY, *OF_BOTH, *OF_TIME)]
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
EPILOG = "\b\nSettings of the method, each an option of its own:\n" + "\n".join(
    f"  {name}: " + " ".join(f"--{f.name.replace('_', '-')}" for f in fields(config))
    for name, config in METHODS.items()
)
EPILOG += (
    "\n\n\b\nExample:\n  vbank count --model llama2-7b --method vb-lora --targets all-linear --num-vectors 2048"
    "\n    --memory --batch 4 --length 512 --quantise nf4 --compute bf16 --checkpointing --tokens 10000000"
)


def console() -> Console:
    """Where tables go; wide enough for a row when the output is a file."""
    return Console() if sys.stdout.isatty() else Console(width=190)


def method_config(name: str, arguments: list[str]) -> Config:
    """A method's configuration from its name and options such as ["--vector-length", "128"].

    Raises:
        ValueError: unknown method or option, an option without a value, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    known = {f"--{f.name.replace('_', '-')}": f.name for f in fields(METHODS[name])}
    settings = dict(USUAL[name])
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in zip(words[::2], [*words[1::2], None], strict=False):
        if option not in known:
            raise ValueError(f"{unknown('option', option, [*OPTIONS, *known])}")
        if value is None or value in known:
            raise ValueError(f"option {option} lacks a value")
        try:
            settings[known[option]] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[known[option]] = value
    return METHODS[name](**settings)


def count(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="An architecture by name, such as roberta-base; nothing is downloaded.")],
    method: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(METHODS)}; with --memory or --tokens also {', '.join(BASELINES)}."),
    ],
    targets: Annotated[
        str, typer.Option(help="qv, all-linear, names separated by commas, or a regular expression for whole names.")
    ] = "qv",
    memory: Annotated[bool, typer.Option("--memory", help="Memory of a training step too; further options:")] = False,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 512,
    quantise: Annotated[str, typer.Option(help="none, nf4 or int8.")] = "none",
    compute: Annotated[str, typer.Option(help="Type of weights and activations: fp32, bf16 or fp16.")] = "fp32",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Keep each layer's input alone.")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, paged_adamw_32bit, adamw_8bit or selected_adamw.")] = "adamw",
    gib: Annotated[float | None, typer.Option(help="Memory of the device: does the step fit?")] = None,
    tokens: Annotated[int | None, typer.Option(help="Time to train on so many tokens too; further options:")] = None,
    device: Annotated[str, typer.Option(help="A100, H100 or H200.")] = "A100",
    share: Annotated[float, typer.Option(help="Of the device's peak that is reached.")] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count what a method trains and stores on an architecture; with --memory and --tokens what training it needs."""
    from vbank import account, architectures
    from vbank.counting import count_sites

    if method not in (*METHODS, *BASELINES):
        raise ValueError(unknown("method", method, [*METHODS, *BASELINES]))
    refuse_idle(context, memory, tokens is not None)
    if gib is not None and not gib > 0:
        raise ValueError(f"--gib is {gib:g}; give the device's memory, above 0")
    own = method_config(method, context.args) if method in METHODS else None
    if own is None:
        refuse_of_baseline(context, method, memory or tokens is not None)
    named = chosen(targets, model)
    config: Config | str = own or method
    found = count_sites(own, architectures.sites(model, named)) if own else None
    need: account.Account | None = None
    work: dict[str, Any] = {}
    if memory:
        need = account.memory(model, config, named, batch, length, quantise, compute, checkpointing, optimizer)
    if tokens is not None:
        operations = account.flops(model, config, named, tokens, length, checkpointing)
        duration = account.seconds(operations, device, compute, share)
        work = {"tokens": tokens, "length": length, "device": device, "compute": compute, "share": share}
        work |= {"operations": operations, "seconds": duration}
    if as_json:
        report: dict[str, Any] = {"model": model, "method": method}
        if own and found:
            report |= {"targets": named, "settings": own.settings()} | counted(found)
        if need:
            report["memory"] = need.as_dict() | ({"fits": need.fits(gib)} if gib is not None else {})
        print(json.dumps(report | ({"time": work} if work else {})))
        return
    if own and found:
        console().print(table(found, own, f"{own.title} on {model}, {targets}: {found.sites} linear maps"))
    if need:
        print(need)
        if gib is not None:
            print(f"{'fits' if need.fits(gib) else 'does not fit'} {gib:g} GiB, 1 GiB of them kept free")
    if work:
        minutes = work["seconds"] / 60
        time = f"{minutes / 60:,.1f} hours" if minutes >= 120 else f"{minutes:,.1f} minutes"
        print(f"{tokens:,} tokens: {work['operations']:.3g} operations, {time} on an {device}", end=" ")
        print(f"at {share:g} of its {compute} peak; a bound, no forecast")


def chosen(targets: str, model: str) -> str | list[str]:
    """What `--targets` says, as `vbank.attach` takes it. Words without the characters of an expression are names.

    Raises:
        ValueError: a word that is no keyword and ends no linear layer's name, or an expression that matches none.
    """
    from vbank import architectures

    if targets in KEYWORDS:
        return targets
    names = [name.strip() for name in targets.split(",")]
    plain = all(re.fullmatch(r"[\w.-]*", name) for name in names)
    layers = [site.name for site in architectures.sites(model, ".*")]
    ends = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    if plain and (len(names) > 1 or any(f".{layer}".endswith(f".{targets}") for layer in layers)):
        return names
    if plain:
        raise ValueError(unknown("--targets", targets, [*KEYWORDS, *ends]))
    try:
        expression = re.compile(targets)
    except re.error as error:
        raise ValueError(f"--targets {targets!r} is no regular expression: {error}") from error
    if not any(expression.fullmatch(layer) for layer in layers):
        raise ValueError(
            f"--targets {targets!r}, a regular expression for whole names such as {layers[0]!r}, matches no linear"
            f" layer of {model}; give names separated by commas, such as {','.join(ends[:3])}"
        )
    return targets


def refuse_idle(context: typer.Context, memory: bool, time: bool) -> None:
    """Refuses an option that would be ignored.

    Raises:
        ValueError: an option of the account of memory or of time, without that account.
    """
    for names, wanted, there in (
        (OF_MEMORY, "--memory", memory),
        (OF_BOTH, "--memory or --tokens", memory or time),
        (OF_TIME, "--tokens", time),
    ):
        for name in names:
            if not there and given(context, name):
                raise ValueError(f"--{name} does nothing without {wanted}; add that, or leave out --{name}")


def refuse_of_baseline(context: typer.Context, method: str, accounted: bool) -> None:
    """Refuses what a baseline has not: a count of its own, layers to choose, settings.

    Raises:
        ValueError: neither --memory nor --tokens, or an option of a method.
    """
    if not accounted:
        raise ValueError(f"{method} attaches nothing to count; add --memory or --tokens for what training it needs")
    if given(context, "targets"):
        raise ValueError(f"{method} chooses its own layers; leave out --targets")
    if context.args:
        raise ValueError(unknown("option", context.args[0], OPTIONS))


def given(context: typer.Context, name: str) -> bool:
    """Whether an option was typed."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def counted(found: Count) -> dict[str, Any]:
    """A count as plain JSON values."""
    return {
        "sites": found.sites,
        "trainable": found.trainable,
        "stored": whole(found.stored),
        "bytes": found.bytes,
        "groups": {key: {"trained": g.trained, "bytes": g.nbytes} for key, g in found.groups.items()},
    }


def table(found: Count, config: Config, title: str) -> Table:
    """A count by group of tensors."""
    settings = ", ".join(f"{key} {value}" for key, value in config.settings().items())
    shown = Table(title=title, caption=settings)
    shown.add_column("group")
    for column in ("trained", "stored (float32)", "bytes"):
        shown.add_column(column, justify="right")
    for key, group in found.groups.items():
        shown.add_row(key, f"{group.trained:,}", f"{whole(group.stored):,}", f"{group.nbytes:,}")
    shown.add_section()
    shown.add_row("all", f"{found.trainable:,}", f"{whole(found.stored):,}", f"{found.bytes:,}")
    return shown


def whole(value: float) -> int | float:
    """An integer where the value is one."""
    return int(value) if value == int(value) else value
