"""Sentences that a cell prints break at the edge of the page; tables that it prints keep their columns, and scroll."""

import re

from body import on_body
from sphinx.application import Sphinx

OUTPUT = re.compile(
    r'(?s)(<div class="output (?:stream|text_plain)[^"]*"><div class="highlight"><pre>)(.*?)(</pre>)'
)
GAP = re.compile(r"(?<=\S)\s{2,}(?=\S)")  # between two columns
WORD = re.compile(r"[^\W\d_]{2,}")
ENTITY = re.compile(r"&[#\w]+;")


def is_prose(line: str) -> bool:
    """Whether a printed line may break: a sentence, or a name and a sentence."""
    text = ENTITY.sub("_", line).strip()
    *name, sentence = GAP.split(text)
    told = len(WORD.findall(sentence)) >= 4
    told = told and 2 * sum(map(str.isdigit, text)) < len(text)
    return told and (not name or len(name) == 1 and len(text) > 60)


def broken(output: re.Match[str]) -> str:
    before, text, after = output.groups()
    lines = (
        f'<span class="vbank-prose">{line}</span>'
        if "<" not in line and is_prose(line)
        else line
        for line in text.removeprefix("<span></span>").split("\n")
    )
    return before + "\n".join(lines) + after


def setup(app: Sphinx) -> dict[str, bool]:
    on_body(app, lambda body: OUTPUT.sub(broken, body))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
