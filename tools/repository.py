"""The settings of the book, and the addresses that follow from the one that they hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

import yaml

__all__ = ["Repository", "config"]


@dataclass(frozen=True)
class Repository:
    """Addresses that follow from the one in `_config.yml`."""

    url: str
    branch: str
    folder: str

    @classmethod
    def read(cls, root: Path) -> Repository:
        """Read the repository's address from `_config.yml`."""
        entry = config(root)["repository"]
        return cls(entry["url"].rstrip("/"), entry["branch"], entry["path_to_book"])

    def at(self, folder: str) -> Repository:
        """Return the same addresses for another folder of the repository."""
        return replace(self, folder=folder)

    @property
    def pages(self) -> str:
        """Web address of the folder."""
        return f"{self.url}/blob/{self.branch}/{self.folder}"

    @property
    def colab(self) -> str:
        """Web address under which Colab opens a notebook of that folder."""
        path = f"{urlparse(self.url).path}/blob/{self.branch}/{self.folder}"
        return f"https://colab.research.google.com/github{path}"

    @property
    def pip(self) -> str:
        """The line that installs the package on Colab."""
        return f'%pip install -q "git+{self.url}@{self.branch}"'


def config(root: Path) -> dict:
    """Return the settings of the book."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
