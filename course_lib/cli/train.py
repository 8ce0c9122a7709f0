"""`course-lib train`: from a recipe to weights with a manifest."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_lib.cli.measuring import measure
from course_lib.cli.models import find_model
from course_lib.cli.overrides import add_flags, apply_flags
from course_lib.cli.parsing import HelpFormatter
from course_lib.cli.spaces import SampleSpace
from course_lib.cli.training import train_recipe
from course_lib.pretrained import save_pretrained
from course_lib.training.recipe import recipe_parser, recipe_path, recipes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["commit", "parser", "run"]

DESCRIPTION = """Train a recipe, and save its weights with a manifest of how they were made and
how good they are. The same command again goes on where a killed run stopped.

  course-lib train ddpm_digits
  course-lib train flow_mnist --epochs 5 --batch-size 128 --lr 1e-3 --save-dir runs/mine
  course-lib train ddpm_mnist --devices 2 --strategy ddp --precision bf16-mixed --logger tensorboard

Every field of a recipe can be set by its full path, also those that have no flag:
  course-lib train ddpm_digits --fit.ema 0.99 --model.init_args.net.init_args.heads 8"""


def parser(arguments: Sequence[str]) -> ArgumentParser:
    """The fields of the recipe that `arguments` name, with its values as defaults, and flags.

    Raises:
        ValueError: there is no such recipe.
    """
    named = arguments[:1] and not arguments[0].startswith("-")
    if not named and not {"-h", "--help"} & {*arguments}:
        raise ValueError(f"name a recipe first, one of {', '.join(recipes())} or a YAML file")
    new = recipe_parser(
        recipe_path(arguments[0]) if named else None,
        add_flags,
        description=DESCRIPTION,
        formatter_class=HelpFormatter,
        usage="course-lib train RECIPE [options]",
    )
    new.add_argument("recipe", help=f"one of {', '.join(recipes())}, or a YAML file")
    new.add_argument("--output", type=Path, help="another folder for the weights")
    return new


def run(config: Namespace) -> int:
    """Train, save, measure what was saved, and note it.

    Raises:
        ValueError: a field or a flag is out of range, or the training was interrupted.
    """
    apply_flags(config)
    name = Path(config.recipe).stem
    folder = Path(config.fit.checkpoint or Path("runs") / name)
    output, made_by = config.output or folder, commit()  # now: the code may change meanwhile
    model: Any = train_recipe(config, checkpoint=folder)
    if not _first():
        return 0  # one process of several writes and measures
    if len(model.losses) < config.fit.steps:
        raise ValueError("interrupted before the last step, so no weights were saved")
    space = SampleSpace.of(config)
    info = {
        "model": config.model.as_dict(),
        "images": space.note,
        "recipe": name,
        "commit": made_by,
        "seed": config.fit.seed,
        "steps": config.fit.steps,
        "metrics": {},
    }
    path = save_pretrained(model, name, info, output)
    # Measured with the weights as they were stored, in half precision.
    how = {"scale": config.scale, "solver": config.solver, "steps": config.solver_steps}
    stored, _ = find_model(str(path))
    metrics = measure(stored, space, **how)
    info["metrics"] = {key: value for key, value in metrics.items() if key != "seconds"}
    save_pretrained(model, name, info, output)
    print(f"{path}: {info['metrics']}")
    return 0


def _first() -> bool:
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def commit() -> str | None:
    """Commit of the package's source, or None where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
