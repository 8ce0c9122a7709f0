"""A pytest plugin that keeps what nbval ran for the book: no page runs twice.

    pytest --nbval-lax -p nbval_keep book/*.ipynb

nbval runs the cells of a notebook, compares the tagged ones and forgets the rest. This plugin
listens to what the kernel says. When a page of `book/` has come to its end without a failure, its
messages become outputs by the code that the build itself runs pages with, nbclient.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete
from nbval.plugin import IPyNbCell, IPyNbFile

from kept_runs import folder_of, write_run
from library_hash import library_hash


class Run:
    """One page while nbval runs it."""

    def __init__(self, file: IPyNbFile):
        self.file, self.root = file, file.config.rootpath
        self.library = library_hash(self.root)  # the one that the kernel is about to import
        self.client = NotebookClient(copy.deepcopy(file.nb), record_timing=False)
        self.client.reset_execution_trackers()
        self.client.kc = file.kernel.kc
        cells = enumerate(self.client.nb.cells)
        self.cells = [(i, cell) for i, cell in cells if cell.cell_type == "code"]
        self.passed, self.seconds = 0, 0.0

    def listen(self) -> list[dict[str, Any]]:
        """Return the list in which all that the kernel says from now on is written down."""
        heard: list[dict[str, Any]] = []

        def get_kernel_message(timeout: float | None = None, stream: str = "iopub") -> Any:
            heard.append(self.file.kernel.get_message(stream, timeout=timeout))
            return heard[-1]

        self.file.get_kernel_message = get_kernel_message
        return heard

    def add(self, number: int, heard: list[dict[str, Any]], seconds: float) -> None:
        """Take up a cell that passed; when all have, write the run."""
        index, cell = self.cells[number]
        cell.outputs, self.passed, self.seconds = [], self.passed + 1, self.seconds + seconds
        self.client.clear_before_next_output = False
        asked = heard[-1]["parent_header"]["msg_id"]  # the last one says that this cell is done
        for message in heard:
            if message["parent_header"].get("msg_id") == asked:
                with suppress(CellExecutionComplete):
                    self.client.process_message(message, cell, index)
        if self.passed == len(self.cells):
            self.write()

    def write(self) -> None:
        """Write what the page showed."""
        info = self.client.kc.kernel_info(reply=True, timeout=60)["content"]
        self.client.nb.metadata["language_info"] = info["language_info"]
        self.client.set_widgets_metadata()
        name = self.file.path.stem
        write_run(folder_of(self.root), name, self.client.nb, self.library, self.seconds)


RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    """Forget earlier runs, and those in the cache of the build: it shows this one, or its own."""
    if not hasattr(config, "workerinput"):
        for folder in (folder_of(config.rootpath), config.rootpath / "_build" / ".jupyter_cache"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Listen while a cell of a page runs. If it fails or is skipped, the page is not kept."""
    if not isinstance(item, IPyNbCell) or item.path.parent != item.config.rootpath / "book":
        return (yield)
    file = item.parent
    if RUN not in file.stash:
        file.stash[RUN] = Run(file)
    heard, start = file.stash[RUN].listen(), time.perf_counter()
    result = yield
    file.stash[RUN].add(item.cell_num, heard, time.perf_counter() - start)
    return result
