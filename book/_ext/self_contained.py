"""Serve every script of the book from the book itself, so that it reads the same with no network.

MathJax comes from the PyPI package sphinx-mathjax-offline. Only what a page can ask for is copied: the renderer,
its fonts, and the TeX extensions and accessibility parts that load on demand.
"""

import importlib.util
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

PARTS = [
    "tex-chtml.js",
    "input/tex/extensions",
    "output/chtml/fonts/woff-v2",
    "a11y",
    "sre",
    "ui",
]
# MathJax names this server for browsers without XPath, and where nobody has said where its files lie.
ELSEWHERE = "https://cdn.jsdelivr.net/npm/"


def mathjax_folder() -> Path:
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "MathJax is missing: run `pip install sphinx-mathjax-offline`"
        )
    return Path(spec.origin).parent / "static" / "mathjax"


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in PARTS:
        source = mathjax_folder() / part
        copy_asset(
            source, target / part if source.is_dir() else (target / part).parent
        )
    for script in target.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        if ELSEWHERE in text:
            script.write_text(text.replace(ELSEWHERE, "./"), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.add_config_value(
        "comments_config", {}, "html"
    )  # jupyter-book sets it; sphinx_comments is left out
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
