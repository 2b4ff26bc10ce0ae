"""Checkers of the chapter *Instruction tuning: QLoRA on Llama 2*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vbank.exercises.checker import Wrong, require_integer, require_number, settle


def bits_a_weight(function: Callable[..., Any]) -> int:
    """instruction-1: bits of a blockwise quantised weight, scales and double quantisation included."""
    cases = ((4, 64, 0), (4, 64, 256), (4, 32, 0), (4, 128, 256), (3, 64, 64), (8, 4096, 0), (2, 16, 32))
    for bits, block, scales in cases:
        answer = require_number(function(bits, block, scales), "The number of bits")
        right = bits + (8 / block + 32 / (block * scales) if scales else 32 / block)
        case = f"for {bits} bits, blocks of {block}" + (f", groups of {scales} scales" if scales else "")
        mistakes = [(float(bits), "That is the level alone {}; each block also has its scale.")]
        if scales:
            mistakes += [
                (bits + 32 / block, "The scales are quantised themselves {}; you count each as a float32."),
                (bits + 8 / block, "Quantised scales have a scale of their own {}."),
                (
                    bits + 8 / block + 32 / scales,
                    "A group of scales spans many weights {}; share its float32 among all of them.",
                ),
            ]
        mistakes += [(bits + 16 / block, "The scale is a float32, not of 16 bits {}.")]
        settle(answer, right, mistakes, "The number of bits", case, math.isclose)
    return len(cases)


def answer_labels(function: Callable[..., Any]) -> int:
    """instruction-2: token ids and labels of a row with the loss on the answer alone."""
    cases = (
        ([1, 5, 6], [7, 8], 2, 10),
        ([1, 5, 6, 7, 8], [9], 2, 10),
        ([1], [4, 4, 2], 2, 4),
        ([1, 3], [4, 5, 6, 7], 2, 5),
        ([1, 3], [4, 5, 6], 2, 5),
        ([1, 3, 3, 3], [4], 0, 6),
        ([1, 5, 6], [5, 7], 2, 10),  # a token in both
        ([1, 5, 6, 7, 8], [9], 2, 3),  # the prompt alone is too long
    )
    for prompt, answer, end, length in cases:
        given = function(list(prompt), list(answer), end, length)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise Wrong("Return two lists: the ids, then the labels.")
        if not all(isinstance(part, (tuple, list)) for part in given):
            raise Wrong("Ids and labels should be lists of integers.")
        ids, labels = (list(part) for part in given)
        case = f"for prompt {prompt}, answer {answer}, end {end}, max_length {length}"
        whole = [*prompt, *answer, end]
        if len(ids) > length:
            raise Wrong(f"The row is longer than max_length {case}.")
        if ids != whole[:length]:
            if ids == [*prompt, *answer][:length]:
                raise Wrong(f"The end of text is missing {case}; the model would never learn to stop.")
            if len(whole) > length and ids == [*whole[: length - 1], end]:
                raise Wrong(f"You put an end of text where the answer was cut {case}; that teaches to stop too early.")
            raise Wrong(f"The ids are {ids}, not prompt, answer and end of text {case}.")
        if len(labels) != len(ids):
            raise Wrong(f"There must be a label for each of the row's tokens {case}; the loss shifts them itself.")
        right = ([-100] * len(prompt) + whole[len(prompt) :])[:length]
        if labels == right:
            continue
        if labels == ids:
            raise Wrong(f"The loss is on the prompt too {case}.")
        if labels == [-100 if token in prompt else token for token in ids]:
            raise Wrong(f"Mask the prompt by position {case}; the answer may repeat a token of it.")
        if [label for label in labels if label != -100] == right[len(prompt) + 1 :]:
            raise Wrong(f"The first token of the answer must be learned too {case}; no shift is needed here.")
        if labels[-1:] == [-100]:
            raise Wrong(f"The last token of the row must be learned too {case}.")
        if any(label in (0, -1) for label in labels[: len(prompt)]):
            raise Wrong(f"The label that counts in no loss is -100 {case}.")
        raise Wrong(f"The labels are {labels} {case}.")
    return len(cases)


def mean_score(function: Callable[..., Any]) -> int:
    """instruction-3: mean score of a judge's texts and the number of those without a score."""
    cases: tuple[tuple[list[str], float | None, int, str], ...] = (
        (["Clear. Rating: [[8]]", "[[6]]"], 7.0, 0, "one rating each"),
        (["Rating: [[8.5]]", "Rating: [[7]]"], 7.75, 0, "a rating with a decimal"),
        (["[[10]]", "[[9]]"], 9.5, 0, "a rating of two digits"),
        (["I rate this [[7]]. To repeat: [[7]].", "[[5]]"], 6.0, 0, "the same rating twice in one text"),
        (["A gets [[3]] and B gets [[9]].", "[[5]]"], 5.0, 1, "two different ratings in one text"),
        (["Rating: [[11]]", "[[4]]"], 4.0, 1, "a rating above 10"),
        (["Rating: [[0]]", "[[4]]"], 4.0, 1, "a rating below 1"),
        (["Rating: [[10.5]]", "[[4]]"], 4.0, 1, "a rating between 10 and 11"),
        (["Rating: [[0.5]]", "[[4]]"], 4.0, 1, "a rating between 0 and 1"),
        (["[[8]], that is [[8.0]]", "[[6]]"], 7.0, 0, "one rating written in two ways"),
        (["8 out of 10", "The code x[3] is fine.", "", "[[2]]"], 2.0, 3, "texts without a rating in double brackets"),
        (["Very good."], None, 1, "no score at all"),
    )
    for texts, mean, unscored, what in cases:
        answer = function(list(texts))
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Wrong("Return two numbers: the mean, and how many texts have no score.")
        missing, case = require_integer(answer[1], "The number without a score"), f"the case has {what}: {texts}"
        if missing < unscored:
            raise Wrong(f"You scored a text that has no score, which is a guess; {case}.")
        if missing > unscored:
            raise Wrong(f"You missed a score; {case}.")
        if mean is None:
            if answer[0] is not None:
                raise Wrong(f"There is no mean of nothing; return None for it. For {case}.")
            continue
        found = require_number(answer[0], "The mean")
        if unscored and math.isclose(found, mean * (len(texts) - unscored) / len(texts)):
            raise Wrong(f"A text without a score is not a score of 0; leave it out of the mean. For {case}.")
        if not math.isclose(found, mean):
            raise Wrong(f"The mean is not {found:g}; {case}.")
    return len(cases)


EXERCISES = {"instruction-1": bits_a_weight, "instruction-2": answer_labels, "instruction-3": mean_score}
