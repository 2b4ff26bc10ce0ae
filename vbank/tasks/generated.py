"""Labelled sentences made by small grammars from a seed: the last resort where no data set can be had.

They stand in for a data set so that code runs; a score on them says nothing about the real benchmark.
"""

from __future__ import annotations

import random

from vbank.tasks.sources import Row

GOOD = "moving funny clever warm gripping charming graceful inventive honest radiant tender witty".split()
BAD = "dull clumsy hollow tedious lifeless shallow noisy muddled bland grating stale lazy".split()
THINGS = "acting script dialogue camera work score pacing ending plot cast direction editing story".split()
FILMS = ["film", "movie", "picture", "comedy", "drama", "thriller", "documentary", "debut"]
ADVERBS = ["", "", "rather ", "deeply ", "often ", "truly ", "surprisingly "]
SUBJECTS = {"the child": "s", "a dog": "s", "the teacher": "s", "my friends": "", "the workers": "", "two birds": ""}
VERBS = "see like hear follow watch remember need admire".split()
OBJECTS = ["the river", "a red house", "the music", "some letters", "the long road", "an open door", "her brother"]
ENDINGS = ["", " today", " every morning", " after lunch", " in the garden", " with great care"]


def sentiment(draw: random.Random) -> Row:
    """One film sentence and its label, 1 for praise; negation and contrast turn single words over."""
    label = draw.randrange(2)
    praise, blame = (GOOD, BAD) if label else (BAD, GOOD)  # words that point to the label, and away from it
    film, thing, other, adverb = draw.choice(FILMS), draw.choice(THINGS), draw.choice(THINGS), draw.choice(ADVERBS)
    one, two, against = draw.choice(praise), draw.choice(praise), draw.choice(blame)
    sentence = draw.choice(
        [
            f"a {adverb}{one} {film}",
            f"the {thing} is {adverb}{one} and the {other} {two}",
            f"this {film} is {adverb}{one} from its {thing} to its {other}",
            f"the {film} is never {against}",
            f"not a {against} {film} but a {adverb}{one} one",
            f"though the {thing} is {against} , the {film} as a whole is {adverb}{one}",
            f"what could have been a {against} {film} turns out {one}",
            f"its {thing} is {adverb}{one} , its {other} even {two}",
        ]
    )
    return {"sentence": sentence, "label": label}


def acceptability(draw: random.Random) -> Row:
    """One plain sentence and its label, 1 for well formed; the others break agreement or word order."""
    label = draw.randrange(2)
    subject, verb, thing, ending = (draw.choice(list(part)) for part in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
    suffix = SUBJECTS[subject]
    article, _, rest = thing.partition(" ")
    sentence = f"{subject} {verb}{suffix} {thing}{ending} ."
    if not label:
        sentence = draw.choice(
            [
                f"{subject} {verb}{'' if suffix else 's'} {thing}{ending} .",
                f"{subject} {verb}{suffix} {rest} {article}{ending} .",
                f"{verb}{suffix} {thing} {subject}{ending} .",
                f"{subject} {thing}{ending} .",
            ]
        )
    return {"sentence": sentence, "label": label}


GRAMMARS = {"sentiment": sentiment, "acceptability": acceptability}


def generate(grammar: str, train: int = 2400, validation: int = 400, seed: int = 0) -> dict[str, list[Row]]:
    """Splits train and validation of different sentences, the same for the same seed on every machine."""
    draw = random.Random(f"{grammar} {seed}")
    rows: dict[object, Row] = {}
    while len(rows) < train + validation:
        row = GRAMMARS[grammar](draw)
        rows.setdefault(row["sentence"], row)
    ordered = list(rows.values())
    return {"train": ordered[:train], "validation": ordered[train:]}
