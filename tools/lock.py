"""Write requirements.txt: one exact version of every package that the course's checks use.

The versions are resolved by uv from pyproject.toml, for Linux, macOS and Windows and Python 3.11
to 3.13 at once. The CUDA libraries that some builds of torch ask for are left to torch, so that a
CPU build stays small. Options are handed on to uv, for example `--upgrade`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "requirements.txt"
HEADER = """\
# The whole environment that the checks use: each package at one exact version, for Linux, macOS and
# Windows and for Python 3.11 to 3.13. Generated from pyproject.toml: do not edit. `make lock`
# resolves it again; `python tools/lock.py --upgrade` takes the newest versions.
"""
LEFT_TO_TORCH = re.compile(r"^(cuda|nvidia|triton)[\w-]*==")


def tidy(lines: str) -> str:
    """Drop comments and CUDA libraries, and the local part of a version (`+cpu`)."""
    kept = [line.split("  #")[0].rstrip() for line in lines.splitlines()]
    kept = [line for line in kept if line and not line.lstrip().startswith(("#", "-"))]
    kept = [re.sub(r"\+[a-z0-9.]+", "", line) for line in kept if not LEFT_TO_TORCH.match(line)]
    return HEADER + "\n".join(kept) + "\n"


def resolve(options: list[str]) -> str:
    """Let uv resolve the environment; return its lines."""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "uv"], check=True)
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--universal"]
    command += ["--python-version", "3.11", "--all-extras", "--group", "book", "--group", "test"]
    command += ["--no-annotate", "--no-header", "-q", "-o", str(TARGET), *options]
    subprocess.run(command, check=True, cwd=ROOT)
    return TARGET.read_text(encoding="utf-8")


if __name__ == "__main__":
    TARGET.write_text(tidy(resolve(sys.argv[1:])), encoding="utf-8", newline="\n")
