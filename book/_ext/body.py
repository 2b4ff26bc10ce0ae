"""How an extension here changes the text of every page once it is set."""

from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx


def on_body(app: Sphinx, change: Callable[[str], str]) -> None:
    """Each page's body goes through `change`, after those that were named before."""

    def repair(
        app: Sphinx,
        pagename: str,
        templatename: str,
        context: dict[str, Any],
        doctree: Any,
    ) -> None:
        if "body" in context:
            context["body"] = change(context["body"])

    app.connect("html-page-context", repair)
