"""The rendered book in a browser: a server for it, Chromium, and what is looked at on a page."""

from __future__ import annotations

import functools
import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

WIDTHS = (1440, 768, 390)
THEMES = ("light", "dark")
HEIGHT = 900
PATIENCE = 120_000  # milliseconds; a busy machine is no finding
LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8")


def chromium() -> str | None:
    """The browser: what CHROMIUM names, or Debian's, or another system's."""
    named = os.environ.get("CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    return next(filter(None, map(shutil.which, names)), None)


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A tab that is closed hangs up in the middle of a word."""


class Site:
    """The book behind a web server that compresses text, as those do that serve static pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        site = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = Path(self.translate_path(self.path))
                if not path.is_file():
                    self.send_error(404)
                    return
                body = site.sent(path)
                self.send_response(200)
                self.send_header("Content-Type", self.guess_type(str(path)))
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "max-age=600")
                if compressed(path):
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @functools.cache  # noqa: B019  (one site a process)
    def sent(self, path: Path) -> bytes:
        """What travels for a file."""
        body = path.read_bytes()
        return gzip.compress(body, 6) if compressed(path) else body

    def file(self, url: str) -> Path:
        """The file behind an address of this site."""
        return self.folder / url.removeprefix(self.address).lstrip("/").partition("?")[0].partition("#")[0]

    def url(self, page: Path) -> str:
        return f"{self.address}/{page.relative_to(self.folder).as_posix()}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def compressed(path: Path) -> bool:
    return path.suffix in (".html", ".css", ".js", ".svg", ".json", ".map")


@contextmanager
def launched() -> Iterator[Any]:
    """Chromium, with no other server within its reach."""
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=arguments, chromium_sandbox=not as_root, timeout=PATIENCE
        )
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page showed, asked for and complained of."""

    complaints: list[str] = field(default_factory=list)  # errors and warnings in the console, requests that failed
    elsewhere: list[str] = field(default_factory=list)  # requests to another server
    requests: list[str] = field(default_factory=list)
    looks: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # (theme, width) -> what look.js finds
    once: dict[str, Any] = field(default_factory=dict)  # what depends on neither
    axe: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # theme -> findings


def listen(tab: Any, site: Site, seen: Seen) -> None:
    """Note what the tab complains of and asks for from now on."""

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            seen.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def on_request(request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")):
            (seen.requests if request.url.startswith(site.address + "/") else seen.elsewhere).append(request.url)

    tab.on("console", on_console)
    tab.on("pageerror", lambda error: seen.complaints.append(f"exception: {error}"))
    tab.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url}"))
    tab.on("request", on_request)


def open_page(tab: Any, url: str) -> None:
    """Load a page and wait until its formulas and controls stand."""
    tab.goto(url, wait_until="load")
    tab.wait_for_function("!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)")
    tab.wait_for_function("[...document.querySelectorAll('.vbank-sliders')].every((sliders) => !sliders.hidden)")


def resize(tab: Any, theme: str, width: int) -> None:
    """Show the page so; the theme's script waits 300 ms after a new size or a change of the text before it looks."""
    tab.emulate_media(color_scheme=theme)
    if tab.viewport_size["width"] != width:
        tab.evaluate(
            """() => { window.looked = new Promise((done) => {
              let timer;
              const later = () => { clearTimeout(timer); timer = setTimeout(end, 350); };
              const changes = new MutationObserver(later);
              const end = () => { changes.disconnect(); done(); };
              addEventListener("resize", () => {
                changes.observe(document.querySelector("#main-content"), { subtree: true, childList: true });
                later();
              }, { once: true });
            }); }"""
        )
        tab.set_viewport_size({"width": width, "height": HEIGHT})
        tab.evaluate("() => window.looked")
    tab.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)


def visit(context: Any, site: Site, page: Path) -> Seen:
    """Load a page once, look at it at every width in both themes, move its controls, and ask axe."""
    seen = Seen()
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    listen(tab, site, seen)
    tab.emulate_media(color_scheme="light")
    tab.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    open_page(tab, site.url(page))
    tab.evaluate(LOOK)
    seen.once = tab.evaluate("book.once()")
    for turn, width in enumerate(WIDTHS):
        for theme in THEMES[:: -1 if turn % 2 else 1]:  # a new theme costs more than a new width
            resize(tab, theme, width)
            seen.looks[theme, width] = tab.evaluate("book.look()")
    seen.once["dead controls"] = tab.evaluate("book.deadControls()")
    tab.evaluate("book.thin()")
    inject_axe(tab)
    for theme, width in (("light", WIDTHS[0]), ("dark", WIDTHS[-1])):
        resize(tab, theme, width)
        seen.axe[theme] = axe(tab)
    tab.close()
    return seen


def inject_axe(tab: Any) -> None:
    tab.evaluate(LOOK)
    tab.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    tab.evaluate("axe.configure({ rules: [{ id: 'color-contrast', selector: '[data-first-of-its-colour]' }] })")


def axe(tab: Any, part: str = "html") -> list[dict[str, Any]]:
    """axe-core's findings on the page, or a part of it, once nothing fades any more; `inject_axe` comes first."""
    tab.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
    tab.evaluate("book.markColours()")
    return tab.evaluate(
        """part => axe.run(part, { resultTypes: ["violations"], preload: false }).then((result) =>
          result.violations.map(({ id, impact, nodes }) => ({ id, impact, count: nodes.length,
            where: nodes.slice(0, 3).map((node) => node.target.join(" ") + ": " + node.failureSummary) })))""",
        part,
    )


def grave(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that keep a reader from something."""
    return [finding for finding in findings if finding["impact"] in ("serious", "critical")]
