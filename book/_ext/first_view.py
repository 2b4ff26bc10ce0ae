"""What a page asks for before it shows its text, and what a screen reader is told: repairs of the theme's markup."""

import re
from typing import Any

from body import on_body
from markupsafe import Markup
from sphinx.application import Sphinx

# A line in the page's head sets one of its values.
NOT_DEFERRED = "documentation_options.js"


def lighter(head: Markup) -> Markup:
    """The theme's style sheets without a chain of two, and icons as a font instead of 1.5 MB of script."""
    head = re.sub(
        r'\s*<script defer src="[^"]*/fontawesome\.js[^"]*"></script>', "", str(head)
    )
    return Markup(re.sub(r'styles/theme\.css[^"]*"', 'basic.css"', head))


def deferred(script: Any) -> Any:
    """A script that runs when the page is read; a line in the head and one of no file stay as they are."""
    name = str(getattr(script, "filename", None) or "")
    if not name or name.endswith(NOT_DEFERRED):
        return script
    return type(script)(
        script.filename,
        priority=script.priority,
        **(script.attributes | {"defer": "defer"}),
    )


def readable(body: str) -> str:
    """Entries with the role of entries, no head of an empty corner, signatures in lines that are no definitions."""
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    body = re.sub(r"<th\b([^>]*)>(?:<p></p>)?</th>", r"<td\1></td>", body)
    return re.sub(r"(?s)<dl>\n(<dd>.*?)</dl>", in_lines, body)


def in_lines(signature: re.Match[str]) -> str:
    lines = signature[1].replace("<dd>", "<span>").replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


def repair(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    context["lighter"] = lighter
    if pagename != "search":  # its index needs the others at once
        context["script_files"] = [
            deferred(script) for script in context["script_files"]
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", repair)
    on_body(app, readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
