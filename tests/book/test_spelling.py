"""Spelling: every word of the prose is known, British and written one way.

Known is what pyspellchecker's dictionary has, a British form of it, or a line of words.txt. The glossary's terms, the
methods' names and the lines of words.txt are spelt in no other way.
"""

import ast
import functools
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from by_path import ROOT
from spellchecker import SpellChecker
from test_appendix import terms
from texts import PAGES, alternatives, code, markdown, name, words_only

from vbank.figures.navigation import STOPS

OWN = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("benchmarks/*.md"))]
MODULES = sorted(ROOT.glob("vbank/**/*.py"))
SETTINGS = sorted(ROOT.glob("vbank/**/*.toml"))
EVERY = [*PAGES, *DOCUMENTS, *MODULES, *SETTINGS]
BOTH = set("biased practice program programs stories story writable".split())  # British as well, or in another sense
SIZES = re.compile(r"(?:\w*siz|seiz|priz)\w+|horizon\w*|citizen\w*|wizard\w*")
AMERICAN_ENDING = re.compile(r"[a-z]{3,}[iy]z(?:e|es|ed|ing|er|ers|able|ations?)")
BRITISH_ENDING = re.compile(r"([a-z]{2,}[iy])s(e|es|ed|ing|er|ers|able|ations?)")
VERB = re.compile(r"-(?:in|out|up)$")  # held-out sentences were held out
TWICE = {"had", "that"}  # which may follow upon themselves


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"# (?:fmt|noqa|type)\b", token.string):
            yield token.string


def labels(source: str) -> Iterator[str]:
    """The strings of a cell or module that look like words for people."""
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if len(re.findall(r"[A-Za-z]{2,}", text)) > 1 and not re.search(
            r"[<>{}=;\\_]|\w\(|\b(?:upper|lower) (?:left|center|right)|^center ", text
        ):
            yield text


def docstrings(source: str) -> Iterator[str]:
    """All docstrings of a module, without their examples."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = re.sub(r"^\s*>>>.*(?:\n\s*\S.*)*", "", ast.get_docstring(node) or "", flags=re.MULTILINE)
            text = re.sub(r"\n\n(?: {4,}\S.*\n?)+", "\n\n", text)
            yield re.sub(r"`+[^`]*`+|(?:https?://|\w+\.com/)\S+|<\|\w+\|>|\"[^\s\"]+/[^\s\"]+\"", " … ", text)


def identifiers(source: str) -> set[str]:
    """Names and keys of a piece of code, which its docstrings and comments may speak of."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "module"):
            found |= {getattr(node, field, None)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found |= {node.value}
    return {part for each in found if each for part in re.split(r"[\W_]+", each)}


@functools.cache
def prose(path: Path) -> list[str]:
    """The sentences of a file, without code and formulas."""
    if path.suffix == ".toml":
        told = re.findall(r'"([^"\n]*)"', path.read_text(encoding="utf-8"))
        return [text for text in told if " " in text]
    if path.suffix == ".py":
        return list(docstrings(path.read_text(encoding="utf-8")))
    return [*map(words_only, markdown(path)), *alternatives(path)]


def asides(path: Path) -> list[str]:
    """What people read in the code of a notebook and in figures: comments, labels, lines that are printed."""
    if path.suffix == ".ipynb":
        return [text for cell in code(path) for text in (*comments(cell), *labels(cell))]
    return list(labels(path.read_text(encoding="utf-8"))) if path.parent.name == "figures" else []


def named(path: Path) -> set[str]:
    """Identifiers that the words of a file may be: its own, and the names of recipes and methods."""
    cells = {".ipynb": code, ".py": lambda path: [path.read_text(encoding="utf-8")]}.get(path.suffix, lambda path: [])(
        path
    )
    keys = [settings.stem for settings in SETTINGS] + [stop.method.lower() for stop in STOPS]
    if path.parent.name == "benchmarks":
        keys += [key for each in SETTINGS for key in re.findall(r"^\[([\w.-]+)", each.read_text(), re.MULTILINE)]
    return {each for cell in cells for each in identifiers(cell)} | {
        part for key in keys for part in re.split(r"[.-]", key)
    }


def words(text: str) -> Iterator[str]:
    """The words of a text; names with capitals or digits inside, paths and identifiers are none."""
    for token in re.split(r"[\s,;:()\[\]{}\"“”|/*…–—]+", text):
        token = token.strip(".!?'’_-")
        if not re.search(r"[^\w'’-]|[\d_]", token):
            for word in token.split("-"):
                word = re.sub(r"['’]s?$", "", word)
                if re.fullmatch(r"[A-Za-z]?[a-zà-ÿ'’]+", word) and len(word) > 1:
                    yield word


@functools.cache
def dictionary() -> SpellChecker:
    return SpellChecker()


@functools.cache
def american() -> dict[str, str]:
    """American spellings with the British ones, from codespell's list."""
    listed = (files("codespell_lib") / "data/dictionary_en-GB_to_en-US.txt").read_text(encoding="utf-8")
    pairs = [line.split("->") for line in listed.splitlines()]
    return {there.strip(): here for here, each in pairs for there in each.split(",") if there.strip() not in BOTH}


@functools.cache
def mistakes() -> dict[str, str]:
    """Common misspellings with the right words, from codespell's list."""
    listed = (files("codespell_lib") / "data/dictionary.txt").read_text(encoding="utf-8")
    return dict(line.split("->") for line in listed.splitlines())


def is_known(word: str) -> bool:
    british = BRITISH_ENDING.fullmatch(word)
    forms = {word.replace("’", "'")} | ({"z".join(british.groups())} if british else set())
    return bool(forms & british_words()) or any(form in dictionary() for form in forms)


@functools.cache
def british_words() -> set[str]:
    return set(american().values())


def wrong(text: str, own: list[str]) -> dict[str, str]:
    """The words of a text that are misspelt, American or unknown, with what to write."""
    allowed = {part for line in own for part in re.split(r"[ -]", line)}
    found = {}
    for word in dict.fromkeys(words(text)):
        lower = word.lower()
        if {word, word[0].lower() + word[1:]} & allowed or {word.removesuffix("s"), lower.removesuffix("s")} & allowed:
            continue
        if lower in mistakes():
            found[word] = mistakes()[lower]
        elif lower in american():
            found[word] = american()[lower]
        elif AMERICAN_ENDING.fullmatch(lower) and not SIZES.fullmatch(lower):
            found[word] = "with an s"
        elif not is_known(lower):
            found[word] = "unknown"
    return found


each = pytest.mark.parametrize("path", EVERY, ids=name)


@each
def test_every_word_is_known_and_british(path: Path) -> None:
    """Else: mend it, or add it to words.txt if it is a word of ours."""
    names = named(path)
    found = {word: instead for text in prose(path) for word, instead in wrong(text, OWN).items()}
    aside = {word: instead for text in asides(path) for word, instead in wrong(text, OWN).items()}
    if path.suffix in (".py", ".toml") or path.parent.name == "benchmarks":
        found, aside = {}, aside | found
    assert found | {word: instead for word, instead in aside.items() if word not in names} == {}


@each
def test_no_word_stands_twice(path: Path) -> None:
    """Three times is on purpose."""
    found = []
    for text in prose(path):
        for part in re.split(r"\n\s*\n|\n(?=#)", text):
            tokens = ["", *re.findall(r"[\w'-]+|[^\w\s]", part), ""]
            for before, one, two, after in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
                if one == two and len(one) > 1 and one.isalpha() and one not in TWICE | {before, after}:
                    found.append(f"{before} {one} {two} {after}")
    assert found == []


# One spelling for one word


def chosen() -> list[str]:
    return sorted({*OWN, *terms(), *(stop.method for stop in STOPS)})


def other_spellings(text: str, term: str) -> list[str]:
    """How else the text writes the term: joined or divided otherwise, or with other capitals.

    Before a noun, words that stand apart elsewhere may have a hyphen, as in "a low-rank update".
    """
    parts = list(re.sub(r"[- ]", "", term)) if len(term) > 5 else re.split(r"[- ]", term)
    if "".join(parts).lower() not in re.sub(r"[- \n]", "", text.lower()):
        return []
    pattern = r"[- \n]?".join(map(re.escape, parts))
    found = re.findall(rf"(?<![\w./-])({pattern})(?:s|['’]s)?(?![\w/-]|\.\w)", text, flags=re.IGNORECASE)
    right = {term, term.replace(" ", "-")} | ({term.replace("-", " ")} if VERB.search(term) else set())
    right |= {each[0].upper() + each[1:] for each in right}
    return [each for each in found if each.replace("\n", " ") not in right]


READ = [*PAGES, *DOCUMENTS]


@pytest.mark.parametrize("path", READ, ids=name)
def test_terms_and_names_are_spelt_as_chosen(path: Path) -> None:
    """As the glossary, words.txt and the map of the methods have them."""
    text = "\n".join(prose(path))
    found = {term: other for term in chosen() if (other := other_spellings(text, term))}
    assert found == {}


def spellings() -> dict[str, dict[str, set[str]]]:
    """All words by their letters: how each is written, and where."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in READ:
        for text in prose(path):
            for word in re.findall(r"(?<![\w./…-])[A-Za-z][\w-]*\w(?![\w/-]|\.\w)", text):
                found[re.sub(r"[-_]", "", word.lower())][word[0].lower() + word[1:]].add(name(path))
    return found


def test_no_word_is_written_in_two_ways() -> None:
    """But a word of the dictionary may be a name as well, such as glue."""
    found = {word: dict(ways) for word, ways in spellings().items() if len(ways) > 1}
    names = {word for word, ways in found.items() if word in dictionary() and all(map(str.isalpha, ways))}
    assert {word: ways for word, ways in found.items() if word not in names} == {}


# words.txt


def test_the_list_of_words_is_sorted_and_has_none_twice() -> None:
    assert OWN == sorted(set(OWN), key=lambda word: (word.lower(), word))


def test_the_list_of_words_has_none_that_is_not_needed() -> None:
    """Each is written somewhere, and without the list it would be unknown or could be written otherwise."""
    texts = [text for path in EVERY for text in (*prose(path), *asides(path))]
    used = {word.lower().removesuffix("s") for text in texts for word in words(text)}
    phrases = "\n".join(texts).lower()
    unused = [
        line
        for line in OWN
        if (line.lower() not in phrases if re.search(r"[ -]", line) else line.lower().removesuffix("s") not in used)
    ]
    assert unused == []
    assert [word for word in OWN if not re.search(r"[ -]", word) and not wrong(f"{word} {word}s", [])] == []


# The checks themselves, on made-up text.


@pytest.mark.parametrize("word", ["color", "center", "normalize", "behavior", "recieve", "initalise", "Randomization"])
def test_a_misspelt_or_american_word_is_found(word: str) -> None:
    assert len(wrong(f"It has a {word} in it.", [])) == 1


@pytest.mark.parametrize(
    "word", ["colour", "normalise", "Initialised", "size", "prized", "quantisation", "LoRA", "x_i"]
)
def test_a_british_word_passes(word: str) -> None:
    assert wrong(f"It doesn't have a {word} in it.", []) == {}


def test_the_list_of_words_allows_them() -> None:
    assert wrong("Logits of the Kaiming softmax, a logit", ["Kaiming", "logit", "softmax"]) == {}
    assert wrong("kaiming", ["Kaiming"]) == {"kaiming": "unknown"}


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("a Lora of", "LoRA"),
        ("VBLoRA and", "VB-LoRA"),
        ("Tied LoRA's pair", "Tied-LoRA"),
        ("a subvector", "sub-vector"),
        ("two sub vectors", "sub-vector"),
        ("the Dataset", "data set"),
        ("fine tuning", "fine-tuning"),
        ("two log-its", "logits"),
        ("the top k of", "top-k"),
        ("at top-K", "top-k"),
        ("ten percent", "per cent"),
    ],
)
def test_another_spelling_is_found(text: str, term: str) -> None:
    assert len(other_spellings(text, term)) == 1


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("LoRA, LoRAs, LoRA's; LoRA-XS and QLoRA", "LoRA"),
        ("Sub-vectors, the sub-vector's", "sub-vector"),
        ("Low rank. A low-rank update, of low\nrank", "low rank"),
        ("They were held out: held-out rows", "held-out"),
        ("Top-k", "top-k"),
    ],
)
def test_the_same_spelling_passes(text: str, term: str) -> None:
    assert other_spellings(text, term) == []


def test_code_of_a_page_is_no_prose() -> None:
    code = "`colr` of\n\n```python\ncolr = 1\n```\n\n    python colr.py\n\n$colr$ "
    assert list(words(words_only(code + "{doc}`colr` [here](colr.md), {term}`colours <colr>`"))) == [
        "of",
        "here",
        "colours",
    ]
