"""One symbol for one thing: every formula of the book is held against the tables of symbols on the notation page."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from by_path import load
from texts import BOOK, FORMULA, PAGES, code, formulas, markdown, name, paragraphs, without_code

first_use = load("book/_ext/first_use.py")

NOTATION = BOOK / "notation.md"
LETTERS = tomllib.loads((Path(__file__).parent / "letters.toml").read_text(encoding="utf-8"))
EVERYWHERE, SIGNS = LETTERS.pop("mathematics"), LETTERS.pop("signs")
FORMULA_PAGES = [path for path in PAGES if path != NOTATION]
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell"
)
LETTER = re.compile(rf"[A-Za-z]|\\(?:{'|'.join(GREEK.split())})(?: .*)?|\\(?:mathbf|boldsymbol|mathcal)\S+")
BOLD = (r"\mathbf", r"\boldsymbol")
WORD = re.compile(r"[a-z][a-z-]{2,}")
FILLERS = set("the and are for its all one two with from that this each any not other which same".split())

Symbol = tuple[str, str]


@dataclass(frozen=True)
class Entry:
    """A row of a table of symbols, or of letters.toml: what the symbol is, and the words by which it may be called."""

    symbol: Symbol
    code: str
    meaning: str
    section: str = ""

    @functools.cached_property
    def words(self) -> set[str]:
        return stems(f"{self.code.replace('_', ' ')} {self.meaning}")


def stems(text: str) -> set[str]:
    """The telling words of a text, cut so that singular and plural are one."""
    found = WORD.findall(FORMULA.sub(" ", text).lower())
    return {word[:6].rstrip("s") for word in found if word not in FILLERS}


@functools.cache
def letters(formula: str) -> list[Symbol]:
    """The symbols of a formula that are letters; a hat or a tilde makes no other letter."""
    found = [(re.sub(r"^\\(?:hat|tilde)", "", base), index) for base, index in first_use.symbols(formula)]
    return [(base, index) for base, index in found if LETTER.fullmatch(base)]


def symbol(formula: str) -> Symbol:
    return letters(formula)[0]


@functools.cache
def table() -> list[Entry]:
    """The rows of the tables whose first column is `symbol`."""
    entries, head, section = [], "", ""
    for line in markdown(NOTATION)[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            head = ""
            section = line.removeprefix("## ") if line.startswith("## ") else section
        elif not head:
            head = cells[0]
        elif head == "symbol" and not set(line) <= set("|- "):
            names, codes = re.findall(r"\$([^$]+)\$", cells[0]), re.findall(r"`([^`]+)`", cells[1])
            codes = codes if len(codes) == len(names) else [""] * len(names)
            respectively = re.search(
                r"(?:^|: )([\w ]+)(?: and |, and )([\w ]+)$", cells[2]
            )  # such as "outputs and inputs"
            said = respectively.groups() if respectively and len(names) == 2 else [cells[2]] * len(names)
            for each, own, meaning in zip(names, codes, said, strict=True):
                entries.append(Entry(symbol(each), own, meaning, section))
    return entries


def local(path: Path) -> list[Entry]:
    """The letters that a page uses in a sense of its own."""
    return [Entry(symbol(each), "", meaning) for each, meaning in LETTERS.get(name(path), {}).items()]


def matches(used: Symbol, entry: Symbol) -> bool:
    """Whether the symbol is that of the entry or a part of it.

    A subscript picks one of several or an entry of a matrix; the entries of a bold vector are not bold. Where the
    entry's own subscript belongs to its name, such as that of c_A, no other will do.
    """
    base, index = entry
    if index and not first_use.INDEX.fullmatch(index):
        return used == entry
    bare = re.sub(r"^\\(?:mathbf|boldsymbol)", "", base)
    return used[0] == base or bool(used[1] and base.startswith(BOLD) and used[0] == bare)


def of(used: Symbol, entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if matches(used, entry.symbol)]


def written(used: Symbol) -> str:
    return used[0] + (f"_{used[1]}" if used[1] else "")


each_page = pytest.mark.parametrize("path", FORMULA_PAGES, ids=lambda path: path.stem)


@each_page
def test_every_symbol_is_in_the_table_or_declared(path: Path) -> None:
    """Else: a row in book/notation.md, or, for a letter of this page alone, a line in letters.toml."""
    everywhere = [Entry(symbol(each), "", meaning) for each, meaning in EVERYWHERE.items()]
    known = [*table(), *everywhere, *local(path)]
    unknown = {
        written(used): " ".join(paragraph.split())[:200]
        for paragraph in paragraphs(path)
        for formula in formulas(paragraph)
        for used in letters(formula)
        if not of(used, known)
    }
    assert unknown == {}


def places(entry: Entry, parts: list[str]) -> list[int]:
    """The paragraphs in which the letter stands, those left out where it is part of a name, such as c in c_A."""
    named = {each.symbol for each in table() if each.symbol[1]} - {entry.symbol}
    found = [{used for formula in formulas(part) for used in letters(formula)} - named for part in parts]
    return [place for place, used in enumerate(found) if any(matches(each, entry.symbol) for each in used)]


def around(parts: list[str], place: int) -> str:
    """A paragraph with its neighbours: a formula is explained before or after it."""
    return " ".join(" ".join(parts[max(place - 1, 0) : place + 2]).split())


@each_page
def test_a_letter_of_its_own_is_introduced(path: Path) -> None:
    """A letter in letters.toml is used on the page, and the words of its meaning stand beside it."""
    parts = paragraphs(path)
    lacking = {}
    for entry in local(path):
        used = places(entry, parts)
        near = used if entry.symbol in {each.symbol for each in table()} else used[:1]
        if not any(stems(entry.meaning) <= stems(around(parts, place)) for place in near):
            where = around(parts, used[0])[:400] if used else "no formula has it"
            lacking[written(entry.symbol)] = f"{entry.meaning!r} does not stand beside it: {where}"
    assert lacking == {}


ALONE = r"\$((?:\\[a-z]+|[A-Za-z])(?:_(?:\w|\{[^}]*\}))?)\$"
COUNTED = re.compile(ALONE + r" ((?:(?!and|are|in|into|of|or|than|with)[a-z-]+ )?[a-z-]+s)\b")
CALLED = re.compile(
    ALONE + r"(?: here)?,? (?:the |(?:be|is|are|holds?|stands? for|denotes?|means?) (?:the|an?) |counts )"
    r"([a-z-]+[^.,;:$|]{0,60})"
)


def heads() -> dict[Symbol, str]:
    """The first words of what the tables say of each scalar, without articles."""
    scalars = [entry for entry in table() if re.fullmatch(r"[a-zKLNR]|\\(?:alpha|eta|ell)", entry.symbol[0])]
    said = {entry.symbol: re.sub(r"\b(?:the|an?) ", "", entry.meaning.lower()) for entry in scalars}
    return {key: " ".join(meaning.split()[:4]) for key, meaning in said.items()}


def quantities() -> set[str]:
    """The words by which the tables call what their scalars are: rank, length, scale."""
    return stems(" ".join(words.split()[0] for words in heads().values())) | stems("number set count size")


def things() -> set[str]:
    """What the tables say that there are several of: layers, ranks, vectors."""
    return stems(" ".join(word for words in heads().values() for word in re.findall(r"\b[a-z-]+s\b", words)))


def contradictions(paragraph: str, known: list[Entry]) -> Iterator[str]:
    """Phrases that say of a symbol what neither the tables nor letters.toml say of it.

    Two kinds are looked at: "$X$ is the <quantity> ..." and "$X$ <things>", with words for quantities and for things
    that the tables themselves use; of other words nothing can be said.
    """
    text = " ".join(re.sub(r"\$\$.*?\$\$", " … ", paragraph, flags=re.DOTALL).split())
    for pattern, telling, part in ((CALLED, quantities(), slice(0, 1)), (COUNTED, things(), slice(-1, None))):
        for match in pattern.finditer(text):
            used = letters(match[1])
            key = stems(" ".join(match[2].split()[part]))
            if used and key & telling:
                base = used[0][0]  # c stands for c_A and c_B where they are the same
                same = [entry for entry in known if entry.symbol[0] == base or entry in of(used[0], known)]
                if not any(stems(match[2]) & entry.words for entry in same):
                    yield match[0]


@each_page
def test_no_sentence_gives_a_symbol_another_meaning(path: Path) -> None:
    known = [*table(), *local(path)]
    assert [found for part in paragraphs(path) for found in contradictions(part, known)] == []


def twins() -> list[Entry]:
    """Symbols of one method whose bold letter stands for something else."""
    bold = {
        re.sub(r"^\\(?:mathbf|boldsymbol)", "", each.symbol[0]) for each in table() if each.symbol[0].startswith(BOLD)
    }
    return [each for each in table() if each.symbol[0] in bold and "LoRA" in each.section]


@each_page
def test_bold_or_not_makes_the_difference(path: Path) -> None:
    """A letter that is also another one in bold, such as u, first stands beside the name of its method."""
    parts, own = paragraphs(path), {entry.symbol for entry in local(path)}
    lacking = {}
    for entry in twins():
        found = [{used for formula in formulas(part) for used in letters(formula)} for part in parts]
        used = [place for place, here in enumerate(found) if entry.symbol in here - own]
        chapter = path.stem.startswith(entry.section.lower().replace("-", "_"))
        if used and not chapter and entry.section not in around(parts, used[0]):
            lacking[written(entry.symbol)] = f"no {entry.section} here: {around(parts, used[0])[:300]}"
    assert lacking == {}


@each_page
def test_one_sign_for_one_operation(path: Path) -> None:
    found = [
        f"{sign} in {formula.strip()!r}: {instead}"
        for part in paragraphs(path)
        for formula in formulas(part)
        for sign, instead in SIGNS.items()
        if re.search(re.escape(sign) + r"(?![A-Za-z_])", formula)
    ]
    assert found == []


def test_formulas_need_no_macros_of_the_book() -> None:
    """A notebook is read in Jupyter and Colab too, which know none."""
    assert "macros" not in (BOOK.parent / "_config.yml").read_text(encoding="utf-8")
    defined = [path.name for path in FORMULA_PAGES for part in paragraphs(path) if r"\newcommand" in part]
    assert defined == []


def test_letters_toml_names_pages_that_exist() -> None:
    assert LETTERS.keys() <= {name(path) for path in FORMULA_PAGES}


# Code


def bindings(source: str) -> Iterator[tuple[str, str]]:
    """Single letters with the name of the setting or attribute that they are passed as or taken from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Name) and node.arg:
            yield node.value.id, node.arg
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                pair = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                left = target.elts if pair else [target]
                right = node.value.elts if pair else [node.value]
                for each, value in zip(left, right, strict=False):
                    if isinstance(each, ast.Name) and isinstance(value, ast.Attribute):
                        yield each.id, value.attr


def misnamed(source: str) -> list[str]:
    """Bindings whose letter is the symbol of something else."""
    named = {entry.code: entry.symbol[0] for entry in table() if len(entry.code) > 1}
    return [
        f"{letter} for {setting}, which is {named[setting]}"
        for letter, setting in bindings(source)
        if len(letter) == 1 and setting in named and letter != named[setting]
    ]


@pytest.mark.parametrize("path", [p for p in PAGES if p.suffix == ".ipynb"], ids=lambda path: path.stem)
def test_code_names_things_by_their_letters(path: Path) -> None:
    assert [found for cell in code(path) for found in misnamed(cell)] == []


# The checks themselves, on made-up text.


def test_the_table_is_read() -> None:
    entries = {written(entry.symbol): entry for entry in table()}
    assert (entries["r"].code, entries["m"].meaning, entries["n"].meaning) == ("rank", "outputs", "inputs")
    assert entries["c_A"].code == "share_a" and entries["u"].section == "PRoLoRA"
    assert entries[r"\Delta W"].code == "delta"
    assert not {"o", r"\Lambda_d"} & entries.keys(), "letters of the papers, from other tables"


@pytest.mark.parametrize(
    ("formula", "row", "found"),
    [
        (r"W_{ij}", "W", True),
        (r"\hat W", "W", True),
        (r"d_k", r"\mathbf{d}", True),
        (r"d", r"\mathbf{d}", False),
        (r"\mathbf{d}", "d", False),
        (r"c_A", "c_A", True),
        (r"c_C", "c_A", False),
        (r"c", "c_A", False),
        (r"\sigma_1", r"\sigma_i", True),
        (r"\boldsymbol{\alpha}_1", r"\alpha", False),
    ],
)
def test_a_symbol_belongs_to_its_row(formula: str, row: str, found: bool) -> None:
    assert matches(symbol(formula), symbol(row)) == found


@pytest.mark.parametrize(
    "sentence",
    [
        "Let $b$ be the rank of the update.",
        "where $k$ is the number of layers",
        "with $h$ the scale of it",
        "It has $r$ layers and $m$ outputs.",
        "For $m$ inputs it is worse.",
        "Of $h$ sub-vectors one is left.",
        r"Here $\alpha$ counts sub-vectors.",
    ],
)
def test_a_contradiction_is_found(sentence: str) -> None:
    assert len(set(contradictions(sentence, table()))) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "where $r$ is the rank of the update",
        "A bank of $h$ vectors, $k$ bank vectors each, $N$ sub-vectors, $m$ outputs and $n$ inputs",
        "Let $b$ be the length of a sub-vector.",
        "$W$ is the same for all, and $A$ is a sum.",
        "$r$ times, $r$ rows",
    ],
)
def test_what_the_table_says_is_no_contradiction(sentence: str) -> None:
    assert list(contradictions(sentence, table())) == []


def test_formulas_are_found_in_every_form() -> None:
    text = "$a$\n\n$$\nb\n$$ (eq-b)\n\n```{math}\n:label: eq-c\nc\n```\n\n```python\nd = '$d$'\n```\n`$e$`\n"
    text += "```{note}\n$f$\n```"
    assert [formula.strip() for formula in formulas(without_code(text))] == ["a", "b", "c", "f"]


def test_a_letter_for_another_setting_is_found() -> None:
    assert misnamed("vbank.VBLoRA(rank=r, num_vectors=h, vector_length=b, top_k=k)") == []
    assert misnamed("vbank.VBLoRA(rank=4, num_vectors=b)") == ["b for num_vectors, which is h"]
    assert misnamed("n, m = site.out_features, site.in_features") == [
        "n for out_features, which is m",
        "m for in_features, which is n",
    ]
    assert misnamed("k = method.rank") == ["k for rank, which is r"]
