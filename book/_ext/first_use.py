"""A further column in the tables of symbols: where the book first uses each symbol, found when the book is rendered.

The chapters are searched in reading order, from the first one that the symbol's row links to, else the first one that
its section links to, else from the beginning. A symbol that no formula has is a warning, which `make test` takes for an
error.
"""

import functools
import re
from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PAGE = "book/notation"
HEAD = "first used in"
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[^\s\\]")
SAID = tuple(
    "\\text \\textrm \\mathrm \\operatorname \\begin \\end".split()
)  # words, not symbols
STYLED = (r"\mathbf", r"\boldsymbol", r"\mathcal", r"\mathbb", r"\hat", r"\tilde")
INDEX = re.compile(
    r"[a-z]|\\ell"
)  # a subscript that counts; any other belongs to the name

Symbol = tuple[str, str]  # base and subscript, such as ("c", "A")


def symbols(formula: str) -> list[Symbol]:
    """The symbols of a formula in order; what stands in a subscript is no symbol of its own."""
    tokens = TOKEN.findall(formula)
    found: list[Symbol] = []
    place = 0

    def group() -> str:
        """The next token or braced group, as one string."""
        nonlocal place
        start, depth = place, 0
        while place < len(tokens):
            depth += (tokens[place] == "{") - (tokens[place] == "}")
            place += 1
            if depth <= 0:
                break
        inside = tokens[start:place]
        if inside[:1] == ["{"]:
            inside = inside[1:-1]
        elif inside and inside[0] in SAID + STYLED:  # a subscript such as \text{in}
            return inside[0] + group()
        return "".join(inside)

    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token in SAID:
            group()
        elif token == "_":
            subscript = group()
            if found:
                found[-1] = found[-1][0], subscript
        elif token == r"\Delta":
            found.append((f"{token} {group()}", ""))
        else:
            found.append((token + group() if token in STYLED else token, ""))
    return found


def uses(formula: str, symbol: Symbol) -> bool:
    """Whether the symbol stands in the formula; an index in its subscript may be another one there."""
    base, subscript = symbol
    if subscript and INDEX.fullmatch(subscript):
        return any(each == base for each, _ in symbols(formula))
    return symbol in symbols(formula)


def formulas(tree: nodes.document) -> list[tuple[str, str]]:
    """The formulas of a chapter in order, each with its section, which is "" for what stands below the title alone."""
    found = []
    for node in tree.findall(
        lambda node: isinstance(node, (nodes.math, nodes.math_block))
    ):
        section = section_of(node)
        inner = isinstance(section.parent, nodes.section)
        found.append((node.astext(), section["ids"][0] if inner else ""))
    return found


def section_of(node: nodes.Node) -> nodes.section:
    while not isinstance(node, nodes.section):
        node = node.parent
    return node


class Places:
    """The cells of the further column: in which chapter, and where in it, a symbol first stands."""

    def __init__(self, app: Sphinx) -> None:
        order = list(app.env.collect_relations())
        self.app = app
        self.chapters = order[order.index(PAGE) + 1 :]
        self.formulas = functools.cache(
            lambda name: formulas(app.env.get_doctree(name))
        )

    def uri(self, chapter: str) -> str:
        return self.app.builder.get_relative_uri(PAGE, chapter)

    def linked(self, parts: Iterable[nodes.Node]) -> list[str]:
        """The chapters that parts of the page link to, in order."""
        chapters = {self.uri(name): name for name in self.chapters}
        links = [each for part in parts for each in part.findall(nodes.reference)]
        targets = [each.get("refuri", "").partition("#")[0] for each in links]
        return [chapters[target] for target in targets if target in chapters]

    def first(self, symbol: Symbol, start: str) -> tuple[str, str] | None:
        for name in self.chapters[self.chapters.index(start) :]:
            for formula, section in self.formulas(name):
                if uses(formula, symbol):
                    return name, section
        return None

    def cell(self, row: nodes.row, beyond: list[str]) -> nodes.entry:
        """A link for each place where symbols of the row first stand."""
        start = (self.linked([row]) or beyond or self.chapters)[0]
        found: dict[tuple[str, str], None] = {}
        for formula in row[0].findall(nodes.math):
            place = self.first(symbols(formula.astext())[0], start)
            if place is None:
                said = "no chapter uses $%s$"
                logging.getLogger(__name__).warning(
                    said, formula.astext(), location=row
                )
            else:
                found[place] = None
        cell = nodes.paragraph()
        for page, anchor in found:
            uri, title = self.uri(page), self.app.env.titles[page].astext()
            uri += f"#{anchor}" if anchor else ""
            cell += [nodes.Text(" · ")] if len(cell) else []
            cell += nodes.reference("", title, internal=True, refuri=uri)
        return nodes.entry("", cell)


def add_column(app: Sphinx, tree: nodes.document, docname: str) -> None:
    if docname != PAGE:
        return
    places = Places(app)
    for table in list(tree.findall(nodes.table)):
        group = table.next_node(nodes.tgroup)
        head, body = group.next_node(nodes.thead), group.next_node(nodes.tbody)
        if head.next_node(nodes.entry).astext() != "symbol":
            continue
        around = [part for part in section_of(table) if part is not table]
        beyond = places.linked(around)
        group["cols"] += 1
        group.insert(group.index(head), nodes.colspec(colwidth=20))
        head[0] += nodes.entry("", nodes.paragraph(HEAD, HEAD))
        for row in body:
            row += places.cell(row, beyond)


def always(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The page is written whenever another one changes."""
    return [PAGE] if PAGE in env.found_docs else []


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", add_column)
    app.connect("env-updated", always)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
