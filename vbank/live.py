"""A reader at a live notebook: whether there is one, and bars while a cell works."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

PATIENCE = 2.0  # seconds without a bar: most loops are done by then
WIDE = 76  # characters of a bar


def live() -> bool:
    """Whether a front end with widgets serves this kernel; a notebook that is executed by a script has none."""
    wanted = os.environ.get("VBANK_CONTROLS", "")
    if wanted not in ("", "frames", "widgets"):
        raise ValueError(f"VBANK_CONTROLS is {wanted!r}; set it to frames or widgets, or leave it unset")
    served = "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    return wanted == "widgets" or (served and wanted != "frames")


class Line:
    """A line of a cell's output, written over as one of a terminal is: tqdm's `file` in a notebook.

    tqdm's own bar for notebooks is a widget, which a saved notebook cannot show again.
    """

    def __init__(self) -> None:
        self.handle: Any = None

    def write(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text.strip()}
        if self.handle is not None:
            self.handle.update(shown, raw=True)
        elif shown["text/plain"]:
            self.handle = display(shown, raw=True, display_id=True)

    def flush(self) -> None:
        """Nothing is held back."""


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Hands on the items one by one; a loop of more than two seconds gets a bar, which is gone when the loop ends.

    Only a live front end draws it; what is stored or printed elsewhere stays as it is.

    Args:
        items: what the loop goes through.
        label: what is being done, before the bar.
        total: how many there are, where `items` cannot tell.
    """
    if not live():
        yield from items
        return
    from tqdm import tqdm

    with tqdm(items, label, total, leave=False, file=Line(), ncols=WIDE, delay=PATIENCE) as bar:
        yield from bar
