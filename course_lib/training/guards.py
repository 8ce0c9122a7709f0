"""What surrounds a run: the caller's state is given back, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from course_lib.training.engine import Engine

__all__ = ["stop_at_interrupt", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Give back, at the end, the global random state, the mode and the device of the model."""
    import lightning.pytorch  # noqa: F401  (its import sets the level of its logger)

    training, device = model.training, next(model.parameters()).device
    chatter = logging.getLogger("lightning.pytorch")
    level = chatter.level
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(warnings.catch_warnings())
        # Hints on data loaders, which are not used here.
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        stack.callback(chatter.setLevel, level)
        stack.callback(lambda: model.to(device).train(training))
        chatter.setLevel(logging.ERROR)
        model.train()
        yield


@contextmanager
def stop_at_interrupt(engine: Engine) -> Iterator[None]:
    """Let the first Ctrl-C end the training after the step it is in; a second one is not caught.

    The engine tells the other processes, so that all of them stop after the same step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        engine.interrupted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except SystemExit as leave:  # Lightning's answer to the second Ctrl-C
        raise KeyboardInterrupt from leave
    finally:
        signal.signal(signal.SIGINT, before)
