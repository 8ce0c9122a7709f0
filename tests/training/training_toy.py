"""A tiny training run, shared by the tests of `fit` and by the process that they kill."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from course_lib.denoisers import NetDenoiser
from course_lib.objectives import denoising_loss
from course_lib.paths import Linear
from course_lib.training import fit

STEPS = 30


class Net(nn.Module):
    """Two layers with dropout (which draws from the global random state)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 8)
        self.outer = nn.Linear(8, 2)

    def forward(self, x, t, cond=None):
        h = torch.tanh(self.inner(torch.cat([x, t[:, None]], dim=1)))
        return self.outer(nn.functional.dropout(h, 0.1, self.training))


def denoiser(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetDenoiser(Net(), Linear(), "velocity")


def data():
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 1


def objective_that(act, at):
    """The usual loss, with something that happens at one step."""
    calls = 0

    def objective(model, x0, cond, *, generator):
        nonlocal calls
        calls += 1
        if calls == at:
            act()
        return denoising_loss(model, x0, cond, generator=generator)

    return objective


def run(model=None, x0=None, **options):
    defaults = {"steps": STEPS, "batch_size": 16, "progress": False, "save_every": 7}
    return fit(model or denoiser(), data() if x0 is None else x0, **defaults | options)


def kill_self():
    # Where there is no SIGKILL, SIGTERM to oneself ends the process just as suddenly.
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


if __name__ == "__main__":
    run(checkpoint=Path(sys.argv[1]), objective=objective_that(kill_self, int(sys.argv[2])))
