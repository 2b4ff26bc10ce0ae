"""Links that nobody has to write.

From a page's first use of a public name or a command to its reference: `vbank.attach`, `figures.explore` or
`vbank run ...` becomes a link where it first stands, be it in a sentence or in code. Which names there are, and where,
is what Sphinx's Python domain knows.

From an output's link to a notebook to that notebook's page.
"""

import html
import posixpath
import re
from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx

REFERENCE = "book/appendix/api"  # here every name is linked, also without "vbank."
# What is left as it is, a literal in a sentence, or a name in highlighted code.
PLACES = re.compile(
    r"(?s)<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>|<dt\b.*?</dt>"
    r'|(?P<literal><code class="(?:code )?docutils literal notranslate">(?P<text>.*?)</code>)'
    r'|(?P<code>(?:<span class="n">vbank</span><span class="o">\.</span>)?'
    r'<span class="n">(?P<first>\w+)</span>(?:<span class="o">\.</span><span class="n">(?P<second>\w+)</span>)?)'
)


def plain(literal: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", literal))


def wanted(match: re.Match[str], reference: bool) -> str | None:
    """The full name or the command that a place speaks of, which may not exist."""
    if match["literal"]:
        text = plain(match["text"])
        if found := re.match(r"(?:vbank\.)?(figures\.\w+)|vbank\.(\w+)", text):
            return f"vbank.{found[1] or found[2]}"
        if found := re.match(r"vbank (\w+)", text):
            return f"command-{found[1]}"
        if reference and (found := re.fullmatch(r"(\w+)(?:\(.*\))?", text)):
            return f"vbank.{found[1]}"
    elif match["code"]:
        if match["first"] == "figures" and match["second"]:
            return f"vbank.figures.{match['second']}"
        if match["code"].startswith('<span class="n">vbank</span>'):
            return f"vbank.{match['second'] if match['first'] == 'vbank' else match['first']}"
    return None


def link(body: str, address: Callable[[str], str | None], reference: bool) -> str:
    """The page's HTML with its links; `address` knows the names."""
    met: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        name = wanted(match, reference)
        url = address(name) if name and (reference or name not in met) else None
        if name is None or url is None:
            return match[0]
        met.add(name)
        return f'<a class="reference internal vbank-api" href="{html.escape(url)}">{match[0]}</a>'

    return PLACES.sub(replace, body)


def to_pages(body: str, address: Callable[[str], str | None]) -> str:
    """The page's HTML, in which links to notebooks of the book lead to their pages."""

    def replace(match: re.Match[str]) -> str:
        return f'{match[1]}{html.escape(address(match[2]) or match[2] + ".ipynb")}"'

    return re.sub(r'(<a href=")([\w./-]+)\.ipynb"', replace, body)


def add_links(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    if not context.get("body") or doctree is None:
        return
    objects = app.env.get_domain("py").data["objects"]
    labels = app.env.get_domain("std").data["anonlabels"]

    def address(name: str) -> str | None:
        if name in objects and not objects[name].aliased:
            page, anchor = objects[name].docname, objects[name].node_id
        elif name.startswith("command-") and name in labels:
            page, anchor = labels[name]
        else:
            return None
        return f"{app.builder.get_relative_uri(pagename, page)}#{anchor}"

    def page(notebook: str) -> str | None:
        name = posixpath.normpath(
            posixpath.join(posixpath.dirname(pagename), notebook)
        )
        known = name in app.env.found_docs
        return app.builder.get_relative_uri(pagename, name) if known else None

    context["body"] = to_pages(context["body"], page)
    context["body"] = link(context["body"], address, pagename == REFERENCE)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
