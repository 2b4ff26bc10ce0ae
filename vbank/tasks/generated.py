"""Labelled sentences and pairs made by small grammars from a seed: the last resort where no data set can be had.

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


# A scene has five parts; each part has meanings, each meaning two wordings. The verbs' past form is their participle.
WHO = [
    "doctor physician",
    "teacher instructor",
    "lawyer attorney",
    "writer author",
    "merchant trader",
    "tourist visitor",
]
DID = [
    "bought purchased",
    "mended repaired",
    "found discovered",
    "collected gathered",
    "built constructed",
    "lost mislaid",
]
WHAT = ["car automobile", "picture image", "coat jacket", "boat ship", "cup mug", "rug carpet"]
WHERE = [
    "in the city|in the town",
    "near the woods|near the forest",
    "at the shop|at the store",
    "by the road|by the street",
]
WHEN = ["last year|a year ago", "this morning|early today", "in autumn|in the fall", "on the weekend|on Saturday"]
PARTS = [
    [[f"the {noun}" for noun in meaning.split()] for meaning in WHO],
    [meaning.split() for meaning in DID],
    [[f"the {noun}" for noun in meaning.split()] for meaning in WHAT],
    [meaning.split("|") for meaning in WHERE],
    [meaning.split("|") for meaning in WHEN],
]
Scene = list[int]  # which meaning each of the five parts has


def scene(draw: random.Random) -> Scene:
    """A meaning for every part."""
    return [draw.randrange(len(part)) for part in PARTS]


def changed(before: Scene, parts: list[int], draw: random.Random) -> Scene:
    """The scene with another meaning in each of `parts`."""
    after = list(before)
    for i in parts:
        after[i] = (before[i] + draw.randrange(1, len(PARTS[i]))) % len(PARTS[i])
    return after


def tell(told: Scene, draw: random.Random, without: tuple[int, ...] = ()) -> str:
    """A sentence for the scene in drawn words, active or passive; parts in `without` are left out, the verb never."""
    who, did, what, where, when = (draw.choice(part[meaning]) for part, meaning in zip(PARTS, told, strict=True))
    if 0 in without:
        core = f"{what} was {did}"
    elif 2 in without:
        core = f"{who} {did} something"
    else:
        core = draw.choice([f"{who} {did} {what}", f"{what} was {did} by {who}"])
    tail = [words for i, words in ((3, where), (4, when)) if i not in without]
    if len(tail) == 2 and draw.random() < 0.5:
        return f"{when} , {core} {where} ."
    return " ".join([core, *tail, "."])


def paraphrase(draw: random.Random) -> Row:
    """Two sentences and their label, 1 if both tell the same scene in other words; else one part differs."""
    label = draw.randrange(2)
    told = scene(draw)
    other = told if label else changed(told, [draw.randrange(5)], draw)
    return {"sentence1": tell(told, draw), "sentence2": tell(other, draw), "label": label}


def entailment(draw: random.Random) -> Row:
    """A text, a shorter hypothesis and their label, 0 if the text says it too; else one part of it differs."""
    label = draw.randrange(2)
    told = scene(draw)
    without = draw.choice([(3,), (4,), (3, 4)])
    kept = [i for i in range(5) if i not in without]
    other = changed(told, [draw.choice(kept)], draw) if label else told
    return {"sentence1": tell(told, draw), "sentence2": tell(other, draw, without), "label": label}


def answer(draw: random.Random) -> Row:
    """A question after one part of a scene, a sentence and their label, 0 if the sentence holds the answer.

    A sentence that does not hold it leaves that part out, or tells of another deed.
    """
    label, asked, told = draw.randrange(2), draw.choice([0, 2, 3, 4]), scene(draw)
    who, did, what, *_ = (draw.choice(part[meaning]) for part, meaning in zip(PARTS, told, strict=True))
    question = {
        0: f"who {did} {what} ?",
        2: f"what was {did} by {who} ?",
        3: f"where was {what} {did} ?",
        4: f"when was {what} {did} ?",
    }[asked]
    if not label:
        sentence = tell(told, draw)
    elif draw.random() < 0.5:
        sentence = tell(told, draw, (asked,))
    else:
        sentence = tell(changed(told, [1], draw), draw)
    return {"question": question, "sentence": sentence, "label": label}


def similarity(draw: random.Random) -> Row:
    """Two sentences and the number of the five parts on which they agree, from 0.0 to 5.0."""
    told, agree = scene(draw), draw.randrange(6)
    other = changed(told, draw.sample(range(5), 5 - agree), draw)
    return {"sentence1": tell(told, draw), "sentence2": tell(other, draw), "label": float(agree)}


GRAMMARS = {
    grammar.__name__: grammar for grammar in (sentiment, acceptability, paraphrase, entailment, answer, similarity)
}


def generate(grammar: str, train: int = 2400, validation: int = 400, seed: int = 0) -> dict[str, list[Row]]:
    """Splits train and validation of different texts, the same for the same seed on every machine."""
    draw = random.Random(f"{grammar} {seed}")
    rows: dict[object, Row] = {}
    while len(rows) < train + validation:
        row = GRAMMARS[grammar](draw)
        rows.setdefault(tuple(text for field, text in row.items() if field != "label"), row)
    ordered = list(rows.values())
    return {"train": ordered[:train], "validation": ordered[train:]}
