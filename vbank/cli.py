"""The command line: vbank count | audit | run | results."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from vbank.audits import Row
from vbank.methods import METHODS
from vbank.methods.base import Config
from vbank.suggestions import unknown

app = typer.Typer(
    name="vbank",
    help="Count, train and compare low-rank adapters that share their parameters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Settings of the papers' main experiments, for `vbank count` with nothing but a method's name.
USUAL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8},  # VeRA, Table 2, prints 0.3M for RoBERTa-base; rank 8 gives it
    "vera": {"rank": 1024},  # VeRA, Table 8, base model
    "tied-lora": {"rank": 16},  # VB-LoRA, Table 1, base model
    # PRoLoRA, section 4.2
    "prolora": {"rank": 8, "unshared_rank": 1, "share_a": 7, "share_b": 7},
    "vb-lora": {"rank": 4},  # VB-LoRA, Table 7
}

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
EXAMPLE = "\b\nExample:\n  "
METHOD_OPTIONS = "\b\nSettings of the method, each an option of its own:\n" + "\n".join(
    f"  {name}: " + " ".join(f"--{f.name.replace('_', '-')}" for f in fields(config))
    for name, config in METHODS.items()
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
            raise ValueError(f"{unknown('option', option, ['--model', '--method', '--targets', '--json', *known])}")
        if value is None or value in known:
            raise ValueError(f"option {option} lacks a value")
        try:
            settings[known[option]] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[known[option]] = value
    return METHODS[name](**settings)


@app.command(
    context_settings=EXTRA,
    epilog=f"{METHOD_OPTIONS}\n\n{EXAMPLE}vbank count --model llama2-7b --method vb-lora --targets all-linear"
    " --num-vectors 2048",
)
def count(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="An architecture by name, such as roberta-base; nothing is downloaded.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")],
    targets: Annotated[str, typer.Option(help="qv, all-linear, or names separated by commas.")] = "qv",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count what a method trains and stores on an architecture."""
    from vbank import architectures
    from vbank.counting import count_sites

    config = method_config(method, context.args)
    named: str | list[str] = targets.split(",") if "," in targets else targets
    found = count_sites(config, architectures.sites(model, named))
    if as_json:
        report = {
            "model": model,
            "method": method,
            "targets": named,
            "settings": config.settings(),
            "sites": found.sites,
            "trainable": found.trainable,
            "stored": whole(found.stored),
            "bytes": found.bytes,
            "groups": {key: {"trained": g.trained, "bytes": g.nbytes} for key, g in found.groups.items()},
        }
        print(json.dumps(report))
        return
    settings = ", ".join(f"{key} {value}" for key, value in config.settings().items())
    table = Table(title=f"{config.title} on {model}, {targets}: {found.sites} linear maps", caption=settings)
    table.add_column("group")
    for column in ("trained", "stored (float32)", "bytes"):
        table.add_column(column, justify="right")
    for key, group in found.groups.items():
        table.add_row(key, f"{group.trained:,}", f"{whole(group.stored):,}", f"{group.nbytes:,}")
    table.add_section()
    table.add_row("all", f"{found.trainable:,}", f"{whole(found.stored):,}", f"{found.bytes:,}")
    console().print(table)


def whole(value: float) -> int | float:
    """An integer where the value is one."""
    return int(value) if value == int(value) else value


@app.command(epilog=f"{EXAMPLE}vbank audit --paper vb-lora --mismatches")
def audit(
    paper: Annotated[str | None, typer.Option(help="vera, vb-lora or prolora; default: all.")] = None,
    mismatches: Annotated[
        bool, typer.Option("--mismatches", help="Only what does not reproduce, with the notes.")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="Count on attached models too, where they fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Recompute every parameter and byte count that the papers print."""
    from vbank import audits

    if live and as_json:
        raise ValueError("--live adds a line of text; leave out --live or --json")
    rows = audits.audit(paper)
    shown = [row for row in rows if row["status"].startswith("mismatch") or not mismatches]
    if as_json:
        print(json.dumps(shown))
        return
    for name, title in audits.PAPERS.items():
        mine = [row for row in shown if row["paper"] == name]
        if mine:
            console().print(audited(mine, title, mismatches))
    table = Table(title="Totals")
    for column in ("paper", "cells", *audits.OUTCOMES):
        table.add_column(column, justify="left" if column == "paper" else "right")
    totals = audits.totals(rows)
    for name, total in totals.items():
        table.add_row(name, *(str(number) for number in total.values()))
    if len(totals) > 1:
        table.add_section()
        table.add_row("all", *(str(sum(column)) for column in zip(*(t.values() for t in totals.values()), strict=True)))
    table.caption = rests(rows)
    console().print(table)
    if mismatches:
        console().print(caused(audits.causes(paper)))
    if live:
        from vbank.audits.live import compare

        pairs = compare(paper)
        equal = sum(pair.live == pair.shapes for pair in pairs)
        print(f"live models: {equal} of {len(pairs)} counts equal those from shapes")


def audited(rows: list[Row], title: str, notes: bool) -> Table:
    """One paper's figures as a table."""
    table = Table(title=title, pad_edge=False)
    for name in ("where", "figure", "printed", "computed", "status", *(["note"] if notes else [])):
        table.add_column(name, justify="right" if name in ("printed", "computed") else "left", overflow="fold")
    for row in rows:
        line = [row["table"], row["row"], row["printed"], computed(row), row["status"]]
        table.add_row(*line, *([row["note"]] if notes else []))
    names, numbers = table.columns[1], table.columns[3]  # not broken, however narrow the screen
    names.min_width = max(len(word) for row in rows for word in row["row"].split())
    numbers.no_wrap = True
    return table


def computed(row: Row) -> str:
    """The row's exact number, empty where there is none."""
    from vbank.audits import shown

    return "" if row["computed"] is None else shown(row["computed"])


def rests(rows: list[Row]) -> str:
    """What the matches rest on, in a sentence."""
    from vbank import audits

    found = audits.grounds(rows).values()
    matches, inferred, claimed = (sum(of[key] for of in found) for key in ("match", "inferred", "claimed"))
    return f"of the {matches} matches {inferred} rest on a setting that we inferred, and {claimed} are claims in words"


def caused(found: dict[str, int]) -> Table:
    """The causes of the mismatches as a table."""
    from vbank import audits

    table = Table(title=f"{sum(found.values())} mismatches, {len(found)} causes")
    table.add_column("figures", justify="right")
    table.add_column("cause")
    for cause, number in found.items():
        table.add_row(str(number), audits.CAUSES[cause])
    return table


@app.command(epilog=f"{EXAMPLE}vbank run first-finetune/vb-lora --seeds 3 --set train.epochs=2")
def run(
    recipe: Annotated[str, typer.Argument(help="EXPERIMENT/VARIANT, or EXPERIMENT for all its variants.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.epochs=3.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run seeds 0 to N-1; default: as the recipe says.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the ledger.")] = Path("results"),
    search: Annotated[bool, typer.Option("--search", help="Try the recipe's learning rates on held-out rows.")] = False,
) -> None:
    """Train a recipe and record it. Finished runs are kept; a stopped one goes on where it was stopped.

    Two processes with the same command and the same ledger share the work.
    """
    from vbank import recipes
    from vbank.run import candidates
    from vbank.run import run as make

    chosen = [recipes.load(name, settings or ()) for name in recipes.variants(recipe)]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if search and seeds is not None:
        raise ValueError("--search tries each learning rate with seed 0 alone; leave out --seeds or --search")
    if search:
        jobs = [(each, 0) for one in chosen for each in candidates(one)]
    else:
        most = max(seeds or one.train.seeds for one in chosen)
        jobs = [(one, seed) for seed in range(most) for one in chosen if seed < (seeds or one.train.seeds)]
    from vbank.ledger import Busy, summarise

    records, elsewhere = [], 0
    for one, seed in jobs:
        try:
            records.append(make(one, seed, out, "search" if search else "final"))
        except Busy as busy:
            elsewhere += 1
            print(busy)
    rows = sorted(summarise(records), key=lambda row: (row["variant"], -row["median"]))
    show(rows, f"{recipe}: {'learning-rate search, best first' if search else 'runs'}")
    if elsewhere:
        print(f"{elsewhere} of {len(jobs)} runs are being made by another process")


@app.command(epilog=f"{EXAMPLE}vbank results first-finetune")
def results(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the ledger.")] = Path("results"),
    search: Annotated[bool, typer.Option("--search", help="Show the search runs, losing ones included.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the ledger: score with its spread over seeds, parameters, bytes, seconds."""
    from vbank import ledger

    if experiment and not (out / experiment).is_dir():
        known = [path.name for path in out.glob("[!.]*") if path.is_dir()]
        raise ValueError(f"{unknown('experiment', experiment, known)} (ledger {out})")
    records = [r for r in ledger.read(out, experiment) if (r["kind"] == "search") == search]
    rows = sorted(ledger.summarise(records), key=lambda row: (row["experiment"], row["variant"], -row["median"]))
    if as_json:
        print(json.dumps(rows))
    elif rows:
        show(rows, f"{experiment or 'all experiments'}, {'search runs' if search else 'final runs'}")
    else:
        print(f"no runs in {out}; make some with: vbank run first-finetune/lora --out {out}")


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The ledger's summary as a table."""
    if not rows:
        return
    table = Table(
        title=title,
        caption="deviation: sample standard deviation over seeds; head counted apart; s: median seconds of training",
    )
    columns = (
        "metric",
        "runs",
        "median",
        "mean",
        "deviation",
        "trained",
        "stored",
        "bytes",
        "on disk",
        "head",
        "s",
        "CPU s",
    )
    table.add_column("recipe", no_wrap=True)
    table.add_column("learning rates", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['experiment']}/{row['variant']}",
            " ".join(f"{key} {rate:g}" for key, rate in row["lr"].items()),
            row["metric"],
            str(len(row["seeds"])),
            f"{row['median']:.4f}",
            f"{row['mean']:.4f}",
            "" if row["deviation"] is None else f"{row['deviation']:.4f}",
            f"{row['trainable']:,}",
            f"{whole(row['stored']):,}",
            f"{row['bytes']:,}",
            f"{row['bytes_on_disk']:,}",
            f"{row['head']:,}",
            f"{row['train_seconds']:.0f}",
            f"{row['train_cpu_seconds']:.0f}",
        )
    console().print(table)
    sources = sorted({row["source"] for row in rows})
    print("data: " + "; ".join(sources))


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"vbank: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Mistakes of the user end in one line and exit code 2, without a traceback."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="vbank", standalone_mode=False)
    except (ValueError, FloatingPointError) as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped; the same command goes on from the last checkpoint")
    except ModuleNotFoundError as error:
        missing = (error.name or "vbank").partition(".")[0]
        if missing == "vbank":
            raise
        fail(f"{missing} is missing; pip install 'vbank[run]'")
    except Exception as error:
        shown = getattr(error, "format_message", None)  # how the parser words its own errors
        if shown is None:
            raise
        fail(shown())
    sys.exit(code if isinstance(code, int) else 0)
