"""A checker for every coding exercise of the book.

    from vbank.exercises import check
    check("lora-1", my_function)

tries the function on cases that it has not seen and says what is wrong, never the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vbank.exercises import (
    ablations,
    cost,
    counting,
    e2e,
    fast,
    finetune,
    glue,
    images,
    independent,
    instruction,
    lora,
    low_rank,
    mathematics,
    more_than_one_gpu,
    prolora,
    save_merge_convert,
    seeing_the_bank,
    shootout,
    thousand_adapters,
    tied_lora,
    vb_lora_divide,
    vb_lora_share,
    vera,
)
from vbank.exercises.checker import Verdict, judge
from vbank.suggestions import unknown

EXERCISES: dict[str, Callable[[Callable[..., Any]], int]] = {
    **cost.EXERCISES,
    **low_rank.EXERCISES,
    **lora.EXERCISES,
    **vera.EXERCISES,
    **tied_lora.EXERCISES,
    **prolora.EXERCISES,
    **vb_lora_divide.EXERCISES,
    **vb_lora_share.EXERCISES,
    **counting.EXERCISES,
    **shootout.EXERCISES,
    **finetune.EXERCISES,
    **mathematics.EXERCISES,
    **instruction.EXERCISES,
    **glue.EXERCISES,
    **e2e.EXERCISES,
    **images.EXERCISES,
    **more_than_one_gpu.EXERCISES,
    **ablations.EXERCISES,
    **independent.EXERCISES,
    **save_merge_convert.EXERCISES,
    **fast.EXERCISES,
    **thousand_adapters.EXERCISES,
    **seeing_the_bank.EXERCISES,
}


def check(name: str, function: Callable[..., Any], seconds: float = 10.0) -> Verdict:
    """Tries a reader's function on unseen cases.

    Args:
        name: the exercise, such as ``"lora-1"``.
        function: the reader's function. It is called with copies; what it prints is shown where it is wrong.
        seconds: how long one call may take; all cases together may take about three times as long.

    Returns:
        A verdict that is true if the function is right and prints what is wrong if not.

    Raises:
        ValueError: there is no such exercise, the name is no text, or `seconds` is no positive number.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"check: the first argument is the exercise's name; yours is of type {type(name).__name__}."
            ' Write check("lora-1", my_function)'
        )
    if name not in EXERCISES:
        raise ValueError(unknown("exercise", name, EXERCISES))
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"check: seconds is {seconds!r}; it must be a positive number")
    return judge(name, EXERCISES[name], function, seconds)


__all__ = ["EXERCISES", "Verdict", "check"]
