"""Execute the notebooks and render the book; what has not changed is not done again.

    python scripts/book.py                     execute copies of the notebooks, render them into _build/html
    python scripts/book.py --committed         render the outputs as committed into _build/check, warnings as errors
    python scripts/book.py --write [NOTEBOOK]  execute and store the outputs in the notebooks themselves

Every kernel runs with one thread unless OMP_NUM_THREADS says otherwise: outputs then do not depend on the number of
processors. JOBS notebooks run at a time.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
SHARED = ["vbank", "results"]  # folders that a chapter may quote files from
INPUTS = ("VBANK_DATA", "VBANK_SCALE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


def notebooks() -> list[Path]:
    """The book's notebooks in reading order, as paths relative to the repository."""
    import yaml

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    return [Path(f"{name}.ipynb") for name in files if (ROOT / f"{name}.ipynb").exists()]


def tree(*folders: str) -> list[Path]:
    """Every file under `folders` that git would keep."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts[len(ROOT.parts) :])
            if path.is_file() and not hidden:
                found.append(path)
    return found


def digest(files: list[Path], *extra: str) -> str:
    """SHA-256 over names and contents of `files`, then `extra`."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    total.update("\0".join(extra).encode())
    return total.hexdigest()


def data_listing() -> str:
    """Names, sizes and times of the files in VBANK_DATA: a cheap stand-in for their contents."""
    folder = os.environ.get("VBANK_DATA")
    if not folder:
        return ""
    entries = [(path, path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return ";".join(f"{path.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in entries)


def surroundings() -> str:
    """What an output depends on beside its own notebook: the library, the pins, the recorded results, the data."""
    files = [*tree("vbank", "results"), ROOT / "requirements.lock", Path(__file__).resolve()]
    values = [f"{name}={os.environ.get(name, '')}" for name in INPUTS]
    return digest(files, sys.version, data_listing(), *values)


def code(notebook: dict[str, Any]) -> str:
    return json.dumps([cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def execute(name: Path, on_cell: Any) -> dict[str, Any]:
    """Run a copy of notebook `name` in its own folder and return it; CellExecutionError when a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / name, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None if os.environ.get("VBANK_SCALE") == "gpu" else 900,
        resources={"metadata": {"path": str((ROOT / name).parent)}},
        record_timing=False,
        coalesce_streams=True,  # how print is cut into pieces differs from run to run
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        on_cell_executed=lambda cell, cell_index, execute_reply: on_cell(cell_index + 1),
    )
    client.execute()
    # What differs from machine to machine is not kept.
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return json.loads(nbformat.writes(notebook))


def execute_all(names: list[Path], write: bool) -> list[Path]:
    """Execute what has changed since last time, JOBS at a time; return the notebooks that failed."""
    around = surroundings()
    keys = {name: hashlib.sha256((around + code(read(ROOT / name))).encode()).hexdigest() for name in names}
    stale = [name for name in names if write or not fresh(name, keys[name])]
    if not stale:
        print(f"{len(names)} notebooks: nothing changed, nothing executed")
        return []

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    failed = []

    def run(name: Path) -> float:
        start = time.perf_counter()
        task = progress.add_task(f"  {name}", total=len(read(ROOT / name)["cells"]))
        try:
            executed = execute(name, lambda done: progress.update(task, completed=done))
        finally:
            progress.remove_task(task)
        text = json.dumps(executed, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        target = EXECUTED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.with_suffix(".key").write_text(keys[name], encoding="utf-8")
        if write:
            (ROOT / name).write_text(text, encoding="utf-8")
        return time.perf_counter() - start

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["VBANK_CONTROLS"] = "frames"  # what is stored must work with no kernel
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    jobs = max(1, int(os.environ.get("JOBS") or min(2, os.cpu_count() or 1)))
    start = time.perf_counter()
    console.print(f"{len(stale)} of {len(names)} notebooks to execute, {jobs} at a time")
    with progress, ThreadPoolExecutor(jobs) as pool:
        whole = progress.add_task("notebooks", total=len(stale))
        futures = {pool.submit(run, name): name for name in stale}
        for future in as_completed(futures):
            try:
                console.print(f"  {futures[future]}  {future.result():.0f} s", highlight=False)
            except Exception as error:
                failed.append(futures[future])
                console.print(f"  {futures[future]}  FAILED\n{error}", highlight=False, markup=False)
            progress.advance(whole)
    console.print(f"notebooks: {time.perf_counter() - start:.0f} s")
    return failed


def fresh(name: Path, key: str) -> bool:
    stored = (EXECUTED / name).with_suffix(".key")
    return stored.exists() and (EXECUTED / name).exists() and stored.read_text(encoding="utf-8") == key


def put(text: bytes, target: Path) -> None:
    """Write only what differs: Sphinx reads again what has a new time."""
    if not target.exists() or target.read_bytes() != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)


def stage(source: Path, names: list[Path], executed: bool) -> str:
    """Lay out the book's sources in `source`, outputs included, and return their digest."""
    files = {path.relative_to(ROOT): path.read_bytes() for path in [*tree("book", *SHARED)]}
    for name in ("_config.yml", "_toc.yml"):
        files[Path(name)] = (ROOT / name).read_bytes()
    for name in names if executed else []:
        notebook, done = read(ROOT / name), read(EXECUTED / name)
        cells = iter([cell for cell in done["cells"] if cell["cell_type"] == "code"])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                twin = next(cells)
                cell["outputs"], cell["execution_count"] = twin["outputs"], twin["execution_count"]
        notebook["metadata"].pop("widgets", None)
        files[name] = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True).encode()
    total = hashlib.sha256((ROOT / "requirements.lock").read_bytes())
    for name, text in sorted(files.items()):
        put(text, source / name)
        total.update(f"{name}\0".encode() + hashlib.sha256(text).digest())
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.relative_to(source) not in files and "__pycache__" not in path.parts:
            path.unlink()
    return total.hexdigest()


def render(parent: Path, source: Path, names: list[Path], executed: bool, strict: bool) -> bool:
    """Render into parent/_build/html unless the same sources were rendered before; say whether that worked."""
    built = parent / "_build"  # jupyter-book always adds this name
    stamp = built / ".rendered"
    key = stage(source, names, executed)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        print("book: nothing changed, nothing rendered")
        return True
    stamp.unlink(missing_ok=True)
    if strict:  # a page that Sphinx has read before keeps its warnings to itself
        shutil.rmtree(built, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(source), "--path-output", str(parent)]
    command += ["-W", "-n", "--keep-going"] if strict else []
    print(f"rendering {(built / 'html').relative_to(ROOT)}", flush=True)
    colours = {} if sys.stdout.isatty() else {"NO_COLOR": "1"}
    if subprocess.run(command, cwd=ROOT, env=os.environ | colours, stdin=subprocess.DEVNULL).returncode:
        return False
    stamp.write_text(key, encoding="utf-8")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--committed", action="store_true", help="render the committed outputs, warnings as errors")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks themselves")
    parser.add_argument("notebooks", nargs="*", type=Path, help="only these (with --write)")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    names = notebooks()
    if arguments.write:
        chosen = [path.resolve().relative_to(ROOT) for path in arguments.notebooks] or names
        return 1 if execute_all(chosen, write=True) else 0
    if arguments.committed:
        return 0 if render(BUILD / "check", BUILD / "check" / "src", names, executed=False, strict=True) else 1
    if failed := execute_all(names, write=False):
        print(f"error: {', '.join(map(str, failed))} did not run to the end; the book is not rendered")
        return 1
    if not render(ROOT, BUILD / "src", names, executed=True, strict=False):
        return 1
    print(f"\nThe book is ready. Open {(BUILD / 'html' / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
