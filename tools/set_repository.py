"""Set the address of the public repository everywhere.

Usage: `python tools/set_repository.py https://github.com/OWNER/NAME`

The address stands in `_config.yml`, and from there it goes into the launch buttons, the links and
the generated notebooks. This changes that line and writes the notebooks again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import notebooks

ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")
LINE = re.compile(r"(?<=^repository:\n  url: )\S+$", re.MULTILINE)


def set_repository(url: str, root: Path = notebooks.ROOT) -> None:
    """Write the address into `_config.yml` of `root` and generate its notebooks again.

    Raises:
        ValueError: if `url` is not of the form `https://HOST/OWNER/NAME`, or the settings hold no
            address to replace.
    """
    url = url.removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        raise ValueError(f"the address must look like https://github.com/OWNER/NAME; got {url!r}")
    path = root / "_config.yml"
    text, changes = LINE.subn(url, path.read_text(encoding="utf-8"))
    if changes != 1:
        raise ValueError(f"{path} must have one line `url:` right below `repository:`")
    path.write_text(text, encoding="utf-8", newline="\n")
    notebooks.main([], root)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    set_repository(sys.argv[1])
