"""Give every notebook the cell that lets it run on its own, as in Colab; a clone of the book does not need it.

python scripts/install_cell.py             put the cell into new notebooks
python scripts/install_cell.py ADDRESS     and tell all of them where the book's repository is
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CELL = """\
# For a page on its own, as in Colab; in a clone of the book this does nothing.
import os
import subprocess
import sys

if not os.path.isdir("{up}vbank"):
    BOOK = "{address}"  # the address of the book's repository
    assert BOOK, "give BOOK the address of the book's repository, and run again"
    clone = ["git", "clone", "--depth", "1", BOOK, "vbank-book"]
    install = [sys.executable, "-m", "pip", "install", "-q"]
    needs = ["./vbank-book[notebooks]", "torchvision"]  # that of the torch installed
    if not os.path.isdir("vbank-book"):
        subprocess.run(clone, check=True)
    subprocess.run(install + needs, check=True)
    os.chdir("vbank-book/{folder}")"""
FIRST = CELL.partition("\n")[0]


def install_cell(folder: str, address: str) -> str:
    """The cell of a notebook in `folder`, relative to the repository."""
    return CELL.format(folder=folder, up="../" * len(Path(folder).parts), address=address)


def put(path: Path, folder: str, address: str | None) -> str:
    """Put the cell before the first other code cell; returns the address in it. None keeps the one that is there."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = notebook["cells"]
    place = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code")
    text = "".join(cells[place]["source"])
    found = re.search(r'BOOK = "(.*)"', text) if text.startswith(FIRST) else None
    if found is None:
        for cell in cells:
            for counted in (cell, *cell.get("outputs", [])):
                if counted.get("execution_count"):
                    counted["execution_count"] += 1
        name = hashlib.sha256(f"{folder}/{path.name}".encode()).hexdigest()[:8]
        tags = {"tags": ["remove-cell"]}
        cell = {"cell_type": "code", "execution_count": 1, "id": name, "metadata": tags, "outputs": []}
        cells.insert(place, cell)
    address = (found[1] if found else "") if address is None else address
    cells[place]["source"] = install_cell(folder, address).splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return address


def put_all(root: Path, address: str | None = None) -> list[str]:
    """Put the cell into every notebook of the book under `root`; returns their addresses."""
    notebooks = sorted(path for path in (root / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return [put(path, path.parent.relative_to(root).as_posix(), address) for path in notebooks]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", help="what `git clone` takes, such as https://github.com/OWNER/NAME")
    address = parser.parse_args().address
    if address is not None and not re.fullmatch(r"\w+://[\w.:/@~-]+", address):
        print(f"error: {address!r} is no address such as https://github.com/OWNER/NAME")
        return 1
    addresses = put_all(ROOT, address)
    print(f"{len(addresses)} notebooks; address: {', '.join(sorted({each or 'none yet' for each in addresses}))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
