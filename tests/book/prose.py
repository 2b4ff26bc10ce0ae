"""Reads the prose of a notebook as its tests need it: sentences with their numbers, and what the cells computed."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

SCALES = {"%": -2, "percent": -2, "per cent": -2, "k": 3, "K": 3, "thousand": 3, "M": 6, "million": 6}
SCALES |= {"G": 9, "B": 9, "billion": 9, "T": 12, "trillion": 12}
NUMBER = re.compile(
    r"(?<![\w.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<power>e[+-]?\d+)?"
    r"(?:[ \u00a0\u202f]?(?P<unit>%|per ?cent|thousand|million|billion|trillion|(?:[kKMGT]i?)B|[kKMB]))?"
    r"(?:[x×](?!\s*\d))?(?!\w)(?!,\d{3})"
)
SOURCE = re.compile(
    r"\N{REFERENCE MARK}|[Aa]ppendix|(?:[Tt]heir|[Ii]ts|'s) abstract\b"
    r"|(?:Tables?|Figures?|Fig\.|[Ss]ections?|[Ee]quations?|[Ee]qs?\.)\s+[A-Z]?\.?\d"
)
OURS = re.compile(r"\b(?:[Oo]urs?|[Hh]ere|of this page)\b")
ABBREVIATION = re.compile(r"(?:\b(?i:eq|eqs|fig|sec|app|cf|vs|al|e\.g|i\.e)|\b[A-Z])\.$")


@dataclass(frozen=True)
class Number:
    """A number as written: its text, its value without and with its unit, and how precisely it is given."""

    text: str
    value: Decimal
    unit: int  # power of ten of its unit
    significant: int
    decimals: int

    @property
    def values(self) -> tuple[Decimal, Decimal]:
        return self.value, self.value.scaleb(self.unit)

    @property
    def precise(self) -> bool:
        """Too precise to stand in a sentence by chance: three digits, or two with a decimal point or as percent."""
        return self.significant >= 3 or (self.significant == 2 and (self.decimals > 0 or self.unit == -2))

    def repeats(self, other: "Number") -> bool:
        """Whether this round number is the other one with its unit; a single digit may stand there by chance."""
        telling = self.significant >= 2 or self.decimals > 0 or self.unit != 0
        return telling and self.value == other.value and self.unit == other.unit

    def shows(self, other: "Number", digits: int = 3) -> bool:
        """Whether this is the other number, or, given so many digits, the other rounded or cut off."""
        for shift in {0, self.unit}:
            last = Decimal(1).scaleb(shift - self.decimals)
            value = self.value.scaleb(shift)
            for exact in other.values:
                if exact == value:
                    return True
                if self.significant >= digits and other.significant > self.significant:
                    steps = exact / last
                    if value / last in {steps.quantize(Decimal(1), how) for how in (ROUND_HALF_UP, ROUND_DOWN)}:
                        return True
        return False


def numbers(text: str) -> list[Number]:
    found = []
    for match in NUMBER.finditer(text):
        digits = match["digits"].replace(",", "")
        power = int((match["power"] or "e0")[1:])
        whole, _, fraction = digits.partition(".")
        significant = (whole + fraction).lstrip("0")
        if not fraction:
            significant = significant.rstrip("0")  # 1,500 is a round number
        unit = match["unit"] or ""
        scale = SCALES.get(unit) or SCALES.get(unit.removesuffix("B").removesuffix("i"), 0)
        found.append(
            Number(match[0], Decimal(digits).scaleb(power), scale, len(significant), max(len(fraction) - power, 0))
        )
    return found


def statements(markdown: str) -> Iterator[str]:
    """Sentences, headings and table cells without code, formulas and references; a citation becomes ※.

    A table cell carries the head of its column and the first cell of its row, in which its source may stand.
    """
    paragraph: list[str] = []
    head: list[str] = []
    for line in [*_plain(markdown).splitlines(), ""]:
        if re.match(r"\s*\|", line):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                continue
            if not head:
                head = cells
                yield from cells
            else:
                yield from (f"{cells[0]} | {title} | {cell}" for title, cell in zip(head, cells, strict=False))
            continue
        head = []
        if re.match(r"\s*(?:[-*+]|\d+\.|#+)\s", line) or not line.strip():
            yield from _sentences(" ".join(paragraph))
            paragraph = []
        paragraph.append(line.strip())


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for match in re.finditer(r"(?<=[.!?])[*_\"')]*\s+", paragraph):
        if not ABBREVIATION.search(paragraph[: match.start()]):
            yield paragraph[start : match.start()]
            start = match.end()
    if paragraph[start:].strip():
        yield paragraph[start:]


def lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to code or to a fenced formula; the fences of other directives do not."""
    fence = None
    for line in markdown.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", line)
        if fence:
            yield line, True
            fence = None if line.strip() == fence else fence
        elif mark and mark[2] and (mark[2][0] != "{" or mark[2] in ("{math}", "{code-cell}", "{code-block}")):
            yield line, True
            fence = mark[1]
        else:
            yield line, False


def _plain(markdown: str) -> str:
    kept = []
    for line, code in lines(markdown):
        if not code and not re.match(r"\s*:[\w-]+:|\([\w-]+\)=\s*$", line):
            kept.append(re.sub(r"^\s*[`~]{3,}(?:\{[\w-]+\})?", "", line))
    text = "\n".join(kept)
    text = re.sub(r"\$\$.*?\$\$(?:\s*\([\w-]+\))?", "", text, flags=re.S)
    text = re.sub(r"\{cite[\w:]*\}`[^`]*`", "\N{REFERENCE MARK}", text)
    text = re.sub(r"\{[\w:]+\}`[^`]*`|https?://\S+", "", text)
    text = re.sub(r"`([^`]*)`", lambda code: code[1] if NUMBER.fullmatch(code[1].strip()) else "", text)
    text = re.sub(r"\$([^$]*)\$", _formula, text)
    return re.sub(r"(?<![\d.])\d[\d,]*\s*(?:×|x|by)\s*\d[\d,]*(?![\d,]*\.\d)", "…", text)  # the size of a matrix


def _formula(match: re.Match[str]) -> str:
    """A formula that is nothing but a number is prose; any other is left out."""
    inside = match[1].replace(r"\,", "").replace("{,}", ",").replace(r"\%", "%").strip()
    inside = re.sub(r"^(?:\\approx|\\sim|[<>=]|\\leq?|\\geq?)\s*", "", inside)
    return inside if re.fullmatch(r"-?[\d.,]+\s*%?", inside) else "…"


# What drawings say of themselves: the places on their axes, and what other cells print.
FIGURES = ("Figure:", "<Figure", "<Told")
CONTROLS = ("control (", "simplex of")  # these after their first line


@dataclass
class Computed:
    """What the cells of a notebook print and glue, and the settings that stand in their code."""

    printed: list[Number] = field(default_factory=list)
    glued: dict[str, list[Number]] = field(default_factory=dict)
    literals: set[Decimal] = field(default_factory=set)


def computed(notebook: Any) -> Computed:
    result = Computed()
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        _Settings(result.literals).visit(ast.parse("".join(cell["source"])))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name is not None:
                text = "".join(data.get("application/papermill.record/text/plain", ""))
                result.glued[name] = numbers(text)
            text = "".join(output.get("text", data.get("text/plain", "")))
            if text.startswith(CONTROLS):
                text = text.partition("\n")[0]
            if not text.startswith(FIGURES):
                result.printed += numbers(text)
    return result


class _Settings(ast.NodeVisitor):
    """Collects the constants of a cell that set something: not the bounds of an assertion, not what is glued."""

    def __init__(self, found: set[Decimal]) -> None:
        self.found = found

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_Call(self, node: ast.Call) -> None:
        glued = "glued" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
        for child in ast.iter_child_nodes(node):
            if not (glued and isinstance(getattr(child, "value", None), ast.Constant)):
                self.visit(child)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A number, or a string that is nothing but a number, such as '0.295M'."""
        if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            self.found.add(Decimal(repr(node.value)))
        elif isinstance(node.value, str):
            number = numbers(node.value)
            if len(number) == 1 and number[0].text == node.value.strip():
                self.found.update(number[0].values)


def captions(notebook: Any) -> Iterator[str]:
    """Captions and alternative texts of the figures: prose, too."""
    for cell in notebook["cells"]:
        about = cell["metadata"].get("mystnb", {})
        yield about.get("figure", {}).get("caption", "")
        yield about.get("image", {}).get("alt", "")


def shown(number: Number, other: Number, glued: bool) -> bool:
    """Whether the number repeats a computed one; of a glued one with the same unit, two digits are enough."""
    alike = glued and number.unit == other.unit
    if number.precise or (alike and number.significant == 2 and number.unit):
        return number.shows(other, digits=2 if alike else 3)
    return alike and number.repeats(other)


def quoted(statement: str, number: Number) -> bool:
    """Whether the sentence names a source, and between it and the number does not turn to what is ours."""
    before = statement[: statement.rfind(number.text)]
    named = [match.end() for match in SOURCE.finditer(before)]
    return bool(SOURCE.search(statement)) and not (named and OURS.search(before, named[-1]))


def typed_numbers(notebook: Any) -> list[str]:
    """Numbers typed by hand in the prose that a cell of the same notebook computes, each with its sentence."""
    known = computed(notebook)
    glued = [(number, f"{{glue:text}}`{name}`") for name, found in known.glued.items() for number in found]
    every = [*glued, *((number, "a printed number: glue it") for number in known.printed)]
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    typed = []
    for statement in (s for text in [*prose, *captions(notebook)] for s in statements(text)):
        for number in numbers(statement.rpartition(" | ")[2]):
            if quoted(statement, number):
                continue
            setting = known.literals & set(number.values)  # a precise value may be in the code to repeat a result
            if setting and (number.significant < 3 or all(value == value.to_integral_value() for value in setting)):
                continue
            for other, instead in glued if setting else every:
                if shown(number, other, (other, instead) in glued):
                    typed.append(f"{number.text!r} is {instead} ({other.text}), in: {statement.strip()[:200]}")
                    break
    return typed


def unknown_glue(notebook: Any) -> list[str]:
    """Names in {glue:...} roles that no cell of the notebook glues."""
    roles = r"\{glue(?::\w+)?\}`([^`]+)`"
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    texts += captions(notebook)
    named = {name.partition(":")[0].strip() for text in texts for name in re.findall(roles, text)}
    return sorted(named - set(computed(notebook).glued))


def repeated_glue(notebook: Any) -> list[str]:
    """Names that are glued twice: the page would show the last value in every place."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    names = [output.get("metadata", {}).get("scrapbook", {}).get("name") for output in outputs]
    return sorted({name for name in names if name is not None and names.count(name) > 1})


def constant_glue(notebook: Any) -> list[str]:
    """Arguments of glued() that are typed numbers, also inside an f-string or by way of a name."""
    trees = [ast.parse("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    typed = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in nodes:
        if not (
            isinstance(node, ast.Call) and "glued" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
        ):
            continue
        arguments = [(argument.arg, argument.value) for argument in node.keywords]
        for name, value in list(arguments):
            if name is None and isinstance(value, ast.Dict):
                arguments += [(ast.unparse(key), own) for key, own in zip(value.keys, value.values, strict=True) if key]
        for name, value in arguments:
            value = typed.get(value.id, value) if isinstance(value, ast.Name) else value
            parts = value.values if isinstance(value, ast.JoinedStr) else [value]
            constants = [part.value if isinstance(part, ast.FormattedValue) else part for part in parts]
            text = [part.value for part in constants if isinstance(part, ast.Constant)]
            if len(text) == len(parts) and any(number.precise for number in numbers("".join(map(str, text)))):
                found.append(f"{name}={ast.unparse(value)}")
    return found


def headings(notebook: Any) -> list[tuple[int, str]]:
    """Level and title of every heading."""
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    found = [re.match(r"(#+) (.*)", line) for text in prose for line, is_code in lines(text) if not is_code]
    return [(len(match[1]), match[2].strip()) for match in found if match]


@dataclass
class Exercise:
    """An exercise of a chapter: its heading, the markdown under it and the code cells."""

    heading: str
    markdown: str = ""
    code: str = ""
    verdicts: str = ""


def exercises(notebook: Any) -> list[Exercise]:
    """The exercises in order: from each heading '### Exercise N' to the next heading of that level or above."""
    found: list[Exercise] = []
    current: Exercise | None = None
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if current:
                current.code += source + "\n"
                for output in cell.get("outputs", []):
                    current.verdicts += "".join(output.get("data", {}).get("text/plain", ""))
            continue
        for line, is_code in lines(source):
            if re.match(r"#{1,3} ", line) and not is_code:
                current = Exercise(line.lstrip("# ")) if re.match(r"### Exercise \d+", line) else None
                found += [current] if current else []
            elif current:
                current.markdown += line + "\n"
    return found
