"""Find a Chromium for the tests of the built pages, or fetch one.

Looked for in this order: the environment variable COURSE_CHROMIUM, a browser on the search path,
the one that Playwright manages. If there is none, Playwright is asked to download it, and on Debian
the package is installed when the user is root. Run as a script, this prints the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HELP = (
    "The tests of the built pages need Chromium and none was found. Install it (for example "
    "`apt-get install chromium`, or `python -m playwright install chromium`), or set "
    "COURSE_CHROMIUM to the path of a Chromium or Chrome."
)


def from_environment() -> str | None:
    """Return the path in COURSE_CHROMIUM; raise FileNotFoundError if it names no file."""
    path = os.environ.get("COURSE_CHROMIUM")
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"COURSE_CHROMIUM names {path!r}, which is not a file")
    return path


def from_path() -> str | None:
    """Return the first browser on the search path."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def from_playwright() -> str | None:
    """Return the browser that Playwright has downloaded earlier."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def _run(*command: str) -> bool:
    """Run a command quietly; return whether it worked."""
    try:
        subprocess.run(command, capture_output=True, timeout=900, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def download() -> str | None:
    """Let Playwright download its browser."""
    done = _run(sys.executable, "-m", "playwright", "install", "chromium")
    return from_playwright() if done else None


def install_package() -> str | None:
    """Install Debian's package when that is possible without asking anyone."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    _run("apt-get", "update")
    _run("apt-get", "install", "-y", "--no-install-recommends", "chromium")
    return from_path()


def places() -> Iterator[Callable[[], str | None]]:
    """Yield the ways to get a browser, cheapest first."""
    yield from (from_environment, from_path, from_playwright, download, install_package)


def find_chromium() -> str:
    """Return the path of a Chromium.

    Raises:
        FileNotFoundError: if none was found or installed; the message says what to do.
    """
    for place in places():
        if path := place():
            return path
    raise FileNotFoundError(HELP)


if __name__ == "__main__":
    print(find_chromium())
