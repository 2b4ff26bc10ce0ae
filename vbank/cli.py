"""The command line: vbank count | audit | run | results | convert."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from vbank import tasks
from vbank.audits import Row
from vbank.cli_convert import EPILOG as CONVERTED
from vbank.cli_convert import convert
from vbank.cli_count import EPILOG, EXTRA, console, count
from vbank.suggestions import unknown
from vbank.tasks.weights import MODELS

app = typer.Typer(
    name="vbank",
    help="Count, train and compare low-rank adapters that share their parameters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EXAMPLE = "\b\nExample:\n  "
app.command(context_settings=EXTRA, epilog=EPILOG)(count)
app.command(epilog=CONVERTED)(convert)


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


RUN_NAMES = "\b\nTasks (--set task.name=):\n" + "\n".join(
    f"  {', '.join(tasks.names()[start : start + 7])}" for start in range(0, len(tasks.names()), 7)
)
RUN_NAMES += "\n\n\b\nModels (--set model.name=), or any other Hub id or folder:\n" + "\n".join(
    f"  {name}: {what}" for name, what in MODELS.items()
)
RUN_NAMES += "\n\n\b\nOn several GPUs:\n  accelerate launch --multi_gpu -m vbank run RECIPE"


@app.command(epilog=f"{RUN_NAMES}\n\n{EXAMPLE}vbank run first-finetune/vb-lora --seeds 3 --set train.epochs=2")
def run(
    recipe: Annotated[
        str, typer.Argument(help="EXPERIMENT/VARIANT, 'EXPERIMENT/top-*', or EXPERIMENT for all variants.")
    ],
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
    from vbank import processes
    from vbank.ledger import Busy, best_first, summarise

    records, elsewhere = [], 0
    for one, seed in jobs:
        try:
            records.append(make(one, seed, out, "search" if search else "final"))
        except Busy as busy:
            elsewhere += 1
            if processes.rank() == 0:
                print(busy)
    if processes.rank() > 0:  # the main process speaks for all
        return
    rows = sorted(summarise(records), key=best_first)
    show(rows, f"{recipe}: {'learning-rate search, best first' if search else 'runs'}")
    for row in [] if search else rows:  # a narrow screen cuts the table's figures short
        seeds_of = ", ".join(map(str, row["seeds"]))
        print(f"{row['variant']}: {row['metric']} {row['median']:.4f}, the median of seeds {seeds_of}")
    if elsewhere:
        print(f"{elsewhere} of {len(jobs)} runs are being made by another process")


@app.command(epilog=f"{EXAMPLE}vbank judge predictions.jsonl --judge gpt-4-0613 --out verdicts.jsonl")
def judge(
    answers: Annotated[Path, typer.Argument(help="Answers to MT-Bench, as `vbank run` leaves them for task alpaca.")],
    model: Annotated[str, typer.Option("--judge", help="The judge, as the endpoint calls it.")] = "",
    url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; default: OPENAI_BASE_URL.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of verdicts; default: beside the answers.")] = None,
    dry_run: Annotated[Path | None, typer.Option(help="Write the judge's prompts to this file, ask nobody.")] = None,
    turn: Annotated[int, typer.Option(min=1, max=2, help="The papers report the first.")] = 1,
    per_minute: Annotated[float, typer.Option(help="Requests a minute at most; 0: no limit.")] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds for one reply.")] = 120.0,
    record: Annotated[Path | None, typer.Option(help="Run of the ledger to write the score into.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Let a judge score answers to MT-Bench; it goes on where it was stopped. Its key is read from OPENAI_API_KEY."""
    from vbank.tasks import judging, mt_bench

    said: list[str] = []
    benchmark = mt_bench.load(announce=said.append)
    run_name = judging.load_record(record)["run"] if record else None  # whose answers these must be
    asked = judging.requests(benchmark, mt_bench.read_answers(answers, run_name), turn)
    if record:
        judging.refuse_incomparable(asked)
    if dry_run:
        judging.write_requests(dry_run, asked)
        print(*said, f"{len(asked)} prompts in {dry_run}; nobody was asked", sep="\n")
        return
    if not model:
        raise ValueError("name the judge with --judge, such as gpt-4-0613, or use --dry-run")
    verdicts = out or answers.with_suffix(".judged.jsonl")
    endpoint = judging.Endpoint(model, url, timeout, per_minute=per_minute)
    found = judging.judge(asked, model, endpoint.ask, verdicts, said.append)
    summary = judging.summarise(found, len(benchmark.questions))
    if record:
        judging.add_to_record(record, asked, summary, model)
    print(json.dumps(asdict(summary)) if as_json else "\n".join((*said, judging.report(summary))))


@app.command(epilog=f"{EXAMPLE}vbank results first-finetune\n  vbank results --table vb-lora-1 --plot table.svg")
def results(
    experiment: Annotated[str | None, typer.Argument(help="One experiment; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the ledger.")] = Path("results"),
    search: Annotated[bool, typer.Option("--search", help="Show the search runs, losing ones included.")] = False,
    table: Annotated[
        str | None, typer.Option(help="A paper's table beside the ledger: vb-lora-1 to prolora-4.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw that table into this file: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the ledger: score with its spread over seeds, parameters, bytes, seconds. Or a paper's table beside it."""
    from vbank import ledger

    if table is not None:
        if experiment or search:
            raise ValueError(
                f"--table {table} shows the final runs of its own experiments; leave out EXPERIMENT and --search"
            )
        from vbank.tables.shown import report

        return report(table, out, plot, as_json, console())
    if plot is not None:
        raise ValueError("--plot draws a paper's table; name it with --table, such as vb-lora-1")
    if experiment and not (out / experiment).is_dir():
        known = [path.name for path in out.glob("[!.]*") if path.is_dir()]
        raise ValueError(f"{unknown('experiment', experiment, known)} (ledger {out})")
    records = [r for r in ledger.read(out, experiment) if (r["kind"] == "search") == search]
    rows = sorted(ledger.summarise(records), key=ledger.best_first)
    if as_json:
        print(json.dumps(rows))
    elif rows:
        show(rows, f"{experiment or 'all experiments'}, {'search runs' if search else 'final runs'}")
    else:
        print(f"no runs in {out}; make some with: vbank run first-finetune/lora --out {out}")


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The ledger's summary as a table."""
    if rows:
        from vbank.tables.shown import of_ledger

        console().print(of_ledger(rows, title))
        print("data: " + "; ".join(sorted({row["source"] for row in rows})))


# The extra of pyproject.toml that brings a package; of all others it is "run".
EXTRAS = {
    "math_verify": "math",
    "openai": "judge",
    **dict.fromkeys(("sacrebleu", "nltk", "pycocoevalcap"), "nlg"),
    "bitsandbytes": "qlora",
    **dict.fromkeys(("matplotlib", "sklearn", "PIL"), "book"),
}


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
    except OSError as error:
        if error.filename is None:  # the disk's own, or a library's
            fail(str(error) or type(error).__name__)
        way = "" if ";" in str(error.strerror) else "; choose a path that can be read and written, or make room"
        fail(f"{error.filename}: {error.strerror}{way}")
    except ModuleNotFoundError as error:
        missing = (error.name or "vbank").partition(".")[0]
        if missing == "vbank":
            raise
        fail(f"{missing} is missing; pip install 'vbank[{EXTRAS.get(missing, 'run')}]'")
    except Exception as error:
        shown = getattr(error, "format_message", None)  # how the parser words its own errors
        if shown is None:
            raise
        fail(shown())
    sys.exit(code if isinstance(code, int) else 0)
