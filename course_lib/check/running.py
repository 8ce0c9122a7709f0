"""Call a learner's function safely: with a time limit, and without a trace left behind."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import inspect
import io
import linecache
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

__all__ = ["Outcome", "call", "state_kept"]

SHOWN = 600  # characters of a learner's own prints that are shown


class TimeUp(BaseException):
    """Ends a function that runs too long; no `except Exception` of the learner stops it."""


@dataclass(frozen=True)
class Outcome:
    """What one call did.

    Args:
        value: what it returned; None after an error.
        error: the exception that it raised, if any.
        line: the learner's own line in which the error arose, such as "line 3: return x / 0".
        changed: numbers of the arguments, tensors, that it changed in place.
        printed: what it printed, cut at a bound.
        late: it was stopped because its time was up.
    """

    value: Any = None
    error: BaseException | None = None
    line: str = ""
    changed: tuple[int, ...] = ()
    printed: str = ""
    late: bool = False


class Bounded(io.TextIOBase):
    """Takes any amount of text and keeps the beginning."""

    def __init__(self) -> None:
        self.kept = ""

    def write(self, text: str) -> int:
        """Keep the text while there is room."""
        if len(self.kept) < SHOWN:
            self.kept += text[: SHOWN - len(self.kept)]
            self.kept += " ..." if len(self.kept) == SHOWN else ""
        return len(text)


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """Leave every global random generator, and torch's default dtype, as they were."""
    numpy = sys.modules.get("numpy")
    python_state, dtype = random.getstate(), torch.get_default_dtype()
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python_state)
        torch.set_default_dtype(dtype)
        if numpy:
            numpy.random.set_state(numpy_state)


def call(function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Outcome:
    """Call ``function`` with copies of ``args``, for at most ``seconds``.

    A thread does the work, so that this returns also where signals do not exist (Windows) or a
    notebook's main thread is not ours. A function that cannot even be stopped is left behind.
    """
    given = tuple(_copied(arg) for arg in args)
    box: list[Outcome] = []
    text, done = Bounded(), threading.Event()
    thread = threading.Thread(target=_work, args=(function, given, box, done), daemon=True)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            thread.start()
            late = not done.wait(max(seconds, 0.0))
            _stop(thread, done)
    except KeyboardInterrupt:
        _stop(thread, done)
        raise
    outcome = box[0] if box and not late else Outcome(late=True)
    changed = tuple(i for i, arg in enumerate(args) if _differs(arg, given[i]))
    return Outcome(outcome.value, outcome.error, outcome.line, changed, text.kept, outcome.late)


def _work(
    function: Callable[..., Any], args: tuple[Any, ...], box: list[Outcome], done: threading.Event
) -> None:
    try:
        box.append(Outcome(_plain(function(*args))))
    except TimeUp:
        box.append(Outcome(late=True))
    except BaseException as error:  # SystemExit and the like: a learner's, not ours
        box.append(Outcome(error=error, line=_own_line(function, error.__traceback__)))
    finally:
        done.set()


def _stop(thread: threading.Thread, done: threading.Event) -> None:
    """Raise TimeUp inside of the thread until it is done, or for a second.

    An event tells when it is: after Ctrl-C in a ``join``, Python 3.11 takes a thread that runs for
    one that has ended.
    """
    deadline = time.monotonic() + 1.0
    while not done.is_set() and time.monotonic() < deadline:
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(TimeUp))
        done.wait(0.05)


def _copied(arg: Any) -> Any:
    """A copy of data; functions and models go as they are."""
    if isinstance(arg, Tensor):
        return arg.detach().clone()
    return copy.deepcopy(arg) if isinstance(arg, list | dict | tuple) else arg


def _plain(value: Any) -> Any:
    """The value without its graph, and safe from a learner who changes it later.

    It still says whether it had a graph: a loss without one cannot train.
    """
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_plain(v) for v in value)
    return {k: _plain(v) for k, v in value.items()} if type(value) is dict else value


def _differs(before: Any, after: Any) -> bool:
    if not isinstance(before, Tensor):
        return False
    same_kind = before.shape == after.shape and before.dtype == after.dtype
    return not (same_kind and torch.equal(before.nan_to_num(), after.nan_to_num()))


def _own_line(function: Callable[..., Any], traceback: TracebackType | None) -> str:
    """The last line in the learner's file (or cell) on the way to an error."""
    file, found = _file(function), ""
    while traceback:
        if traceback.tb_frame.f_code.co_filename == file:
            source = linecache.getline(file, traceback.tb_lineno).strip()
            found = f"line {traceback.tb_lineno}" + (f": {source}" if source else "")
        traceback = traceback.tb_next
    return found


def _file(function: Callable[..., Any]) -> str | None:
    """The file, or the cell, in which a function was written, also behind a wrapper."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    own = function if hasattr(function, "__code__") else type(function).__call__
    return getattr(getattr(own, "__code__", None), "co_filename", None)
