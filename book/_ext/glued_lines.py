"""The numbers that a cell passes on stand apart from what else it printed, by an empty line."""

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx


def apart(printed: str, names: set[str]) -> str:
    """The text with an empty line before its last lines, if each of these begins with a name of `names`."""
    lines = printed.rstrip("\n").split("\n")
    first = len(lines)
    while first and lines[first - 1].partition(" ")[0] in names:
        first -= 1
    if 0 < first < len(lines) and lines[first - 1].strip():
        lines.insert(first, "")
    return "\n".join(lines)


def set_apart(app: Sphinx, doctree: nodes.document) -> None:
    names = set(
        NbMetadataCollector.get_doc_data(app.env)[app.env.docname].get("glue", ())
    )
    for block in doctree.findall(nodes.literal_block):
        if "stream" in block.get("classes", ()):
            text = apart(block.astext(), names)
            block.rawsource, block.children = text, []
            block += nodes.Text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", set_apart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
