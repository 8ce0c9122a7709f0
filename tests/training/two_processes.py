"""Run by two processes: the same training with split batches, and with split weights.

Lightning starts the second process with the same command line.
"""

import os
import signal
import sys

from course_lib.cli import main
from course_lib.training.batches import Batches


def train(recipe, folder, *flags):
    """Train the recipe in two processes."""
    machine = ["--accelerator", "cpu", "--devices", "2", *flags]
    return main(["train", recipe, "--save-dir", folder, "--sample-every", "6", *machine])


def interrupt_one(draw):
    """Ctrl-C, in the second process alone, within step 4."""

    def batch(self, step, *where):
        if step == 4 and os.environ["LOCAL_RANK"] == "1":
            signal.raise_signal(signal.SIGINT)
        return draw(self, step, *where)

    return batch


if __name__ == "__main__":
    recipe, folder = sys.argv[1:]
    assert train(recipe, f"{folder}/ddp", "--strategy", "ddp") == 0
    assert train(recipe, f"{folder}/fsdp", "--strategy", "fsdp", "--steps", "7") == 0
    assert train(recipe, f"{folder}/fsdp", "--strategy", "fsdp") == 0  # goes on
    Batches.batch = interrupt_one(Batches.batch)
    train(recipe, f"{folder}/interrupted", "--strategy", "ddp")
