"""Print what a reader's browser has to load of each page, when the text shows, and what axe-core finds.

    python tests/book/page_report.py [--rounds 3] [PART_OF_A_NAME ...]

Bytes are those that travel, compressed, but for `own`: the page and its images as they lie on the disk. `first` is the
page and what holds its text back. Seconds are the median first contentful paint of fresh visits, on lines that
Chromium slows down: slow 4G has 1.6 Mbit/s and 150 ms a request, fast 4G 9 Mbit/s and 60 ms. They depend on what else
the machine does.
"""

import argparse
import os
import statistics
from collections import Counter
from typing import Any

import rendered as book
from test_site import PAGES, SITE, test_links_and_files_exist

LINES = {"slow 4G": (1.6e6, 750e3, 150), "fast 4G": (9e6, 9e6, 60)}  # bit/s down and up, milliseconds a request
PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  for (const { name, startTime } of list.getEntries()) if (name === "first-contentful-paint") resolve(startTime);
}).observe({ type: "paint", buffered: true }))"""


def first_paint(chromium: Any, url: str, line: str) -> float:
    """Seconds from asking for a page to its first text, with nothing in the cache."""
    down, up, latency = LINES[line]
    context = chromium.new_context(viewport={"width": 390, "height": book.HEIGHT})
    tab = context.new_page()
    tab.set_default_timeout(book.PATIENCE)
    session = context.new_cdp_session(tab)
    session.send("Network.enable")
    limits = {"downloadThroughput": down / 8, "uploadThroughput": up / 8, "latency": latency, "offline": False}
    session.send("Network.emulateNetworkConditions", limits)
    tab.goto(url, wait_until="commit")
    seconds = tab.evaluate(PAINT) / 1000
    context.close()
    return seconds


def links(page: Any) -> str:
    """How many links a page has, and whether one is dead."""
    try:
        test_links_and_files_exist(page)
    except AssertionError:
        return "dead"
    return str(page.read_text(encoding="utf-8").count("<a "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="visits a page and a line")
    parser.add_argument("names", nargs="*", help="only pages whose address has one of these in it")
    arguments = parser.parse_args()
    if SITE is None:
        parser.error("the book is not rendered; run `make book` first")
    if book.chromium() is None:
        parser.error("no browser: install Debian's chromium, or name one in CHROMIUM")
    site = book.Site(SITE)
    names = {page.relative_to(SITE / "book").with_suffix("").as_posix(): page for page in PAGES}
    chosen = [name for name in names if any(part in name for part in arguments.names or [""])]
    with book.launched() as chromium:
        context = chromium.new_context()
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"Chromium {chromium.version}, {os.cpu_count()} cores, load {load}; kB, seconds\n")
        print("| page | links | own | first | all | slow 4G | fast 4G | axe, both themes |")
        print("|---|--:|--:|--:|--:|--:|--:|---|")
        for name in chosen:
            page = names[name]
            seen = book.visit(context, site, page)
            asked = {url: site.file(url) for url in set(seen.requests)}
            own = sum(file.stat().st_size for file in asked.values() if "_static" not in file.parts)
            first = len(site.sent(page)) + sum(len(site.sent(site.file(url))) for url in seen.once["blocking"])
            every = sum(len(site.sent(file)) for file in asked.values())
            seconds = [
                statistics.median(first_paint(chromium, site.url(page), line) for _ in range(arguments.rounds))
                for line in LINES
            ]
            found = Counter(finding["impact"] for theme in seen.axe.values() for finding in theme)
            figures = [links(page), *(f"{size / 1000:.0f}" for size in (own, first, every))]
            figures += [f"{one:.2f}" for one in seconds]
            print(
                f"| {name} | {' | '.join(figures)} | {', '.join(f'{n} {kind}' for kind, n in found.items())} |",
                flush=True,
            )
    site.close()


if __name__ == "__main__":
    main()
