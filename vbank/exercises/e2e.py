"""Checkers of the chapter *E2E with GPT-2*."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vbank.exercises.checker import Wrong, require_number, settle

Sentence = Sequence[str]

CASES = (
    (
        "marlow house serves greek food and greek wine",
        ("greek food is at marlow house", "the tin kettle serves greek wine by the river and greek food"),
    ),
    ("the the the the the the the", ("the cat is on the mat", "there is a cat on the other mat", "a the the")),
    (
        "the tin kettle is a cheap pub by the river",
        ("by the river the tin kettle is a cheap place", "the tin kettle is a pub by the river"),
    ),
    ("greek wine", ("cheap food", "a pub by the river with greek wine")),
    ("pub", ("a pub",)),
)

same = partial(math.isclose, abs_tol=1e-9)


def _grams(words: Sentence, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def clipped_precision(function: Callable[..., Any]) -> int:
    """e2e-1: BLEU's n-gram precision of one sentence against several references."""
    done = 0
    for output, references in CASES:
        words, groups = output.split(), [text.split() for text in references]
        for n in (1, 2, 3):
            if len(words) < n:
                continue
            answer = require_number(function(list(words), [list(group) for group in groups], n), "The precision")
            _compare_precision(answer, words, groups, n)
            done += 1
    return done


def _compare_precision(answer: float, words: Sentence, groups: Sequence[Sentence], n: int) -> None:
    own, refs = _grams(words, n), [_grams(group, n) for group in groups]
    total = sum(own.values())

    def share(limit: Callable[[tuple[str, ...]], float]) -> float:
        return sum(min(count, limit(gram)) for gram, count in own.items()) / total

    right = share(lambda gram: max(ref[gram] for ref in refs))
    case = f"for n = {n}, the output {' '.join(words)!r} and {len(groups)} reference{'s' * (len(groups) > 1)}"
    text = " ".join
    mistakes = (
        (share(lambda gram: math.inf if any(gram in ref for ref in refs) else 0),
         "A word that the output repeats must not score more often than a reference has it {}."),
        (share(lambda gram: sum(ref[gram] for ref in refs)),
         "You add up the counts of all references {}; take the largest."),
        (max(sum((own & ref).values()) for ref in refs) / total,
         "You score against the best single reference {}; an n-gram may come from any of them."),
        (share(lambda gram: refs[0][gram]), "Only the first reference counts {}."),
        (len([gram for gram in own if any(gram in ref for ref in refs)]) / total,
         "You count each different n-gram once {}; count its repetitions, up to the limit."),
        (share(lambda gram: max(text(group).count(text(gram)) for group in groups)),
         "You find an n-gram inside longer words {}; compare whole words."),
        (right * total, "That is the number of hits {}; divide by the number of the output's n-grams."),
        *((right * total / sum(ref.values()),
           "You divide by the n-grams of a reference {}; a precision divides by the output's.") for ref in refs if ref),
    )  # fmt: skip
    settle(answer, right, mistakes, "The precision", case, same)


def rouge_l(function: Callable[..., Any]) -> int:
    """e2e-2: ROUGE-L of one sentence against several references."""
    cases = (
        *CASES,
        ("greek food", ("cheap wine",)),
        ("greek food and wine", ("food", "wine and greek food here")),
        # the longest common block, at the far end, hides the longest common subsequence
        ("by the river the tin kettle serves food", ("the old tin black kettle never serves good food by the river",)),
    )
    for output, references in cases:
        words, groups = output.split(), [text.split() for text in references]
        answer = require_number(function(list(words), [list(group) for group in groups]), "ROUGE-L")
        _compare_rouge(answer, words, groups)
    return len(cases)


def _common(a: Sentence, b: Sentence) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        above = row[:]
        for j, other in enumerate(b):
            row[j + 1] = above[j] + 1 if word == other else max(above[j + 1], row[j])
    return row[-1]


def _f_measure(precision: float, recall: float, beta: float = 1.2) -> float:
    total = recall + beta**2 * precision
    return (1 + beta**2) * precision * recall / total if total else 0.0


def _compare_rouge(answer: float, words: Sentence, groups: Sequence[Sentence]) -> None:
    lengths = [_common(words, group) for group in groups]
    precisions = [length / len(words) for length in lengths]
    recalls = [length / len(group) for length, group in zip(lengths, groups, strict=True)]
    right = _f_measure(max(precisions), max(recalls))
    case = f"for the output {' '.join(words)!r} and {len(groups)} reference{'s' * (len(groups) > 1)}"
    pairs = list(zip(precisions, recalls, strict=True))
    bags = [sum((Counter(words) & Counter(group)).values()) for group in groups]
    sets = [len(set(words) & set(group)) for group in groups]
    longest = max(range(len(groups)), key=lengths.__getitem__)
    mistakes = (
        (_f_measure(max(sets) / len(words), max(b / len(g) for b, g in zip(sets, groups, strict=True))),
         "You count the different common words in any order {}; a subsequence keeps the order, and repetitions."),
        (_f_measure(precisions[longest], recalls[longest]),
         "You take P and R of one reference {}; take the largest P and the largest R, each on its own."),
        (_f_measure(max(precisions), max(recalls), 1.0),
         "That is the balanced F {}; recall weighs more here, beta = 1.2."),
        (max(_f_measure(*pair) for pair in pairs),
         "You take the best F of one reference {}; take the largest P and the largest R, each on its own."),
        (sum(_f_measure(*pair) for pair in pairs) / len(pairs), "You average over the references {}; take the maxima."),
        (_f_measure(max(recalls), max(precisions)),
         "P and R have changed places {}; P divides by the output's length."),
        (_f_measure(max(bags) / len(words), max(b / len(g) for b, g in zip(bags, groups, strict=True))),
         "You count common words in any order {}; a subsequence keeps the order."),
        (max(precisions), "That is the precision alone {}."),
        (max(recalls), "That is the recall alone {}."),
    )  # fmt: skip
    if right and math.isclose(answer, 100 * right, abs_tol=1e-6):
        raise Wrong(f"Give a share from 0 to 1, not a percentage {case}.")
    settle(answer, right, mistakes, "ROUGE-L", case, same)


EXERCISES = {"e2e-1": clipped_precision, "e2e-2": rouge_l}
