"""Take a picture of pages of the built book: wide and narrow, light and dark.

Usage: `python tools/screenshots.py OUTDIR [PAGE ...]`, where PAGE is a name such as `01_ddpm`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from built_book import HTML, browser_page, open_page, pages, serve

SIZES = {"wide": 1280, "narrow": 390}


def main(folder: Path, names: list[str]) -> None:
    """Write `PAGE-wide-light.png` and so on into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with serve(HTML) as address:
        for label, width in SIZES.items():
            for mode in ("light", "dark"):
                with browser_page(width, mode) as page:
                    for name in names or pages(HTML):
                        open_page(page, f"{address}/{name}.html")
                        file = f"{name.replace('/', '.')}-{label}-{mode}.png"
                        page.screenshot(path=folder / file, full_page=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
