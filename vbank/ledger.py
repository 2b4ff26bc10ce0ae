"""The results ledger: one JSON file a run, written whole, and the table made of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vbank import processes

FORMAT = 1
WORK = ".work"  # checkpoints and adapters of runs, beside the ledger but not part of it

Record = dict[str, Any]


class Busy(RuntimeError):
    """Another process is making this run."""


def path_of(out: Path, record: Record) -> Path:
    """results/<experiment>/<variant>/<run>.json"""
    return out / record["experiment"] / record["variant"] / f"{record['run']}.json"


def log_of(path: Path) -> Path:
    """Where the log of selections of a run lies whose record has this path."""
    return path.with_suffix(".safetensors")


def write(out: Path, record: Record, log: Path | None = None) -> Path:
    """Adds a run to the ledger: written aside, then renamed, so that a reader never sees half a file.

    Args:
        out: the ledger's folder.
        record: of the run.
        log: its log of selections, moved beside the record.

    Raises:
        ValueError: a number of the record is not finite.
    """
    path = path_of(out, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if log is not None:
        os.replace(log, log_of(path))
    os.replace(aside, path)
    return path


def read(out: Path | str = "results", experiment: str | None = None) -> list[Record]:
    """All runs of a ledger, in the order of their names.

    Raises:
        ValueError: a file is not a run of this format; the message names it.
    """
    return [load(path) for path in sorted(Path(out).glob(f"{experiment or '*'}/*/*.json"))]


def load(path: Path) -> Record:
    """One run of a ledger.

    Raises:
        ValueError: the file is not a run of this format; the message names it.
    """
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a run of the ledger; remove it or restore it from version control") from None
    if not known:
        raise ValueError(f"{path} has format {record['format']}, this version reads {FORMAT}; update vbank")
    return record


def work_folder(out: Path, run: str) -> Path:
    """Where a run keeps its checkpoints. The parent tells git to ignore it."""
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    ignore = work / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    folder = work / run
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Holds a run for this process; the system gives it back when the process ends, however it ends.

    Raises:
        Busy: another process holds it.
        OSError: the file system has no locks, as some network file systems.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no such lock, one process at a time is up to the user
        yield
        return
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder.name} is being made by another process") from None
        except OSError as error:
            way = f"{error.strerror}; runs need file locks: choose a folder on a local disk with --out"
            raise OSError(error.errno, way, str(folder)) from None
        yield


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    found = {"python": platform.python_version()}
    for package in ("vbank", "torch", "transformers", "accelerate", "bitsandbytes"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package == "vbank":
                import vbank

                found[package] = vbank.__version__
    return found


def machine() -> dict[str, Any]:
    """What the numbers were made on; no host name, no paths."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    found: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


class PeakMemory:
    """Peak memory since its creation, in bytes: on the GPU if there is one, else of this process."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif self.STATUS.is_file():
            try:
                Path("/proc/self/clear_refs").write_text("5")  # Linux: begin a new peak
            except OSError:
                pass

    def read(self) -> int:
        """Bytes at the peak so far; 0 on a system that does not tell."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        if self.STATUS.is_file():
            for line in self.STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        try:
            import resource
        except ImportError:  # Windows
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024


def best_first(row: Record) -> tuple[Any, ...]:
    """Orders the rows of `summarise`: by experiment and variant, and there the best median first."""
    smaller_is_better = row["metric"].endswith("loss")
    return row["experiment"], row["variant"], row["median"] if smaller_is_better else -row["median"]


def summarise(records: Iterable[Record]) -> list[Record]:
    """One row for the runs that differ in nothing but their seed, with the spread of their metric.

    Runs of the same settings and rows bear the same name up to the seed, whichever version of vbank wrote them.

    `deviation` is the sample standard deviation, None for one run.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        settings = record["run"].partition("-seed")[0]
        groups.setdefault(f"{settings} {record['kind']}", []).append(record)
    rows = []
    for runs in groups.values():
        first = runs[0]
        scores = [run["metrics"][first["metric"]] for run in runs]
        rows.append(
            {
                "experiment": first["experiment"],
                "variant": first["variant"],
                "kind": first["kind"],
                "scale": first["recipe"]["scale"],
                "lr": first["recipe"]["method"]["lr"],
                "epochs": first["recipe"]["train"]["epochs"],
                "metric": first["metric"],
                "source": first["data"]["source"],
                "seeds": [run["seed"] for run in runs],
                "scores": scores,
                "median": statistics.median(scores),
                "mean": statistics.fmean(scores),
                "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                "trainable": first["parameters"]["trainable"],
                "stored": first["parameters"]["stored"],
                "head": first["parameters"]["head"],
                "bytes": first["parameters"]["bytes"],
                "bytes_on_disk": first["bytes_on_disk"],
                "train_seconds": statistics.median(run["seconds"]["train"] for run in runs),
                "train_cpu_seconds": statistics.median(run["seconds"]["train_cpu"] for run in runs),
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
            }
        )
    return rows
