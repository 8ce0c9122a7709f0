"""Serve the built book on this machine and open its pages in Chromium, with no other network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, Route, sync_playwright

from find_chromium import find_chromium

__all__ = ["HTML", "browser_page", "open_page", "pages", "serve"]

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The theme looks its mode up here; MathJax is done when its start-up promise is kept.
SET_MODE = "localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}');"
MATH_IS_DONE = (
    "() => !window.MathJax || (MathJax.startup?.promise ?? Promise.resolve()).then(() => 1)"
)


class _Quiet(SimpleHTTPRequestHandler):
    """A file server that does not write a line for each request."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def pages(folder: Path) -> list[str]:
    """Return the names of all pages, without `.html`; `index` only leads on to the first."""
    found = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.html"))
    return sorted(name for name in found if name != "index" and not name.startswith("_static"))


def _only_local(route: Route) -> None:
    """Let requests to this machine through and stop all others."""
    local = route.request.url.startswith(("http://127.0.0.1", "data:", "blob:"))
    route.continue_() if local else route.abort()


@contextmanager
def browser_page(width: int, mode: str, height: int = 900) -> Iterator[Page]:
    """Open a browser window of this width in light or dark mode; yield its page."""
    chromium = find_chromium()  # may start Playwright itself, which cannot be nested
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=mode,
            reduced_motion="reduce",
        )
        context.route("**/*", _only_local)
        context.add_init_script(SET_MODE.format(mode=mode))
        try:
            yield context.new_page()
        finally:
            browser.close()


def open_page(page: Page, address: str) -> None:
    """Open a page and wait until it is loaded and its formulas are set."""
    page.goto(address, wait_until="load")
    page.evaluate(MATH_IS_DONE)
    page.wait_for_timeout(150)
