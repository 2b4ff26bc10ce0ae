"""Numbers of the book: what a cell computed, printed for every reader and passed on to the prose."""

from __future__ import annotations

import importlib.util


def glued(**numbers: str) -> None:
    """Prints each name with its text, and glues it so that the page can say {glue:text}`name`.

    Outside the book, where myst-nb is not installed, the printed lines are all that happens.

    Args:
        numbers: texts as they shall stand in a sentence, by name.

    Raises:
        ValueError: a value is no text: how many digits to show is for the author to say.
    """
    for name, text in numbers.items():
        if not isinstance(text, str):
            raise ValueError(f'glued: {name} is {text!r}; give the text to print, such as {name}=f"{{value:.3f}}"')
    width = max(map(len, numbers), default=0)
    print("\n".join(f"{name:{width}}  {text}" for name, text in numbers.items()))
    if importlib.util.find_spec("myst_nb") is not None:
        from myst_nb import glue

        for name, text in numbers.items():
            glue(name, text, display=False)
