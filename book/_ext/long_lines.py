"""Where lines may break.

Sentences that a cell prints break at the edge of the page; tables that it prints keep their columns, and scroll. A
formula in a sentence keeps what closes it: no line begins with a comma. A name in code may break after an underscore.
"""

import re

from body import on_body
from sphinx.application import Sphinx

OUTPUT = re.compile(
    r'(?s)(<div class="output (?:stream|text_plain)[^"]*"><div class="highlight"><pre>)(.*?)(</pre>)'
)
GAP = re.compile(r"(?<=\S)\s{2,}(?=\S)")  # between two columns
WORD = re.compile(r"[^\W\d_]{2,}")
ENTITY = re.compile(r"&[#\w]+;")
CLOSED = re.compile(
    r'\(?<span class="math notranslate nohighlight">[^<]*</span>(?:[.,;:?!)\]’”]+|-\w+)'
)
NAME = re.compile(r'(?<=<span class="pre">)[^<]+')
JOINT = re.compile(r"(?<=[_=])(?=\w)")
FAR_IN = 16 * " "
PHONE = 48  # letters in a line


def is_prose(line: str) -> bool:
    """Whether a printed line may break: a sentence, or a name and a sentence; what stands far in is in a column."""
    text = ENTITY.sub("_", line).strip()
    *name, sentence = GAP.split(text)
    told = len(WORD.findall(sentence)) >= 4
    told = told and 2 * sum(map(str.isdigit, text)) < len(text)
    told = told and not line.startswith(FAR_IN)
    return told and (not name or len(name) == 1 and len(text) > PHONE)


def broken(output: re.Match[str]) -> str:
    before, text, after = output.groups()
    lines = (
        f'<span class="vbank-prose">{line}</span>'
        if "<" not in line and is_prose(line)
        else line
        for line in text.removeprefix("<span></span>").split("\n")
    )
    return before + "\n".join(lines) + after


def kept(body: str) -> str:
    body = NAME.sub(lambda name: JOINT.sub("<wbr>", name[0]), body)
    return CLOSED.sub(r'<span class="vbank-closed">\g<0></span>', body)


def setup(app: Sphinx) -> dict[str, bool]:
    on_body(app, lambda body: kept(OUTPUT.sub(broken, body)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
