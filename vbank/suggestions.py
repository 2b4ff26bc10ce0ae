"""What to say about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, value: str, known: Iterable[str]) -> str:
    """A message that names the unknown `value` and the close known ones, or all of them where none is close."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(value, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names)}"
    return f"unknown {kind} {value!r}; {hint}"
