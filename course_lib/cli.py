"""The command line: `course-lib train RECIPE`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["main", "measure"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        0, or 2 after an error, which is told in one line.
    """
    from jsonargparse import ArgumentError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = _parser(arguments).parse_args(arguments)
        _train(config.train)
    except (ArgumentError, ValueError, TypeError, OSError, FloatingPointError) as error:
        print("course-lib: error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="course-lib", description=__doc__, exit_on_error=False)
    commands = parser.add_subcommands()
    commands.add_subcommand(
        "train", _train_parser(arguments), help="train a recipe and save its weights"
    )
    return parser


def _train_parser(arguments: Sequence[str]) -> ArgumentParser:
    """Parser of `train`, with the fields of the recipe that `arguments` name as defaults."""
    from course_lib.training.recipe import recipe_parser, recipe_path, recipes

    given = [*arguments, "", ""]
    named = given[0] == "train" and given[1] and not given[1].startswith("-")
    parser = recipe_parser(recipe_path(given[1]) if named else None)
    parser.add_argument("recipe", help=f"one of {', '.join(recipes())}, or a YAML file")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the weights (runs/RECIPE)"
    )
    return parser


def _train(config: Namespace) -> None:
    from course_lib.pretrained import load_pretrained, save_pretrained
    from course_lib.training.recipe import train

    name = Path(config.recipe).stem
    commit = _commit()  # before the training: the code may change meanwhile
    output = config.output or Path("runs") / name
    model: Any = train(config, checkpoint=config.fit.checkpoint or Path("runs") / name)
    if len(model.losses) < config.fit.steps:
        raise ValueError("interrupted before the last step, so no weights were saved")
    info = {
        "model": config.model.as_dict(),
        "recipe": name,
        "commit": commit,
        "seed": config.fit.seed,
        "steps": config.fit.steps,
        "metrics": {},
    }
    save_pretrained(model, name, info, output)
    # Measured with the weights as they were stored, in half precision.
    info["metrics"] = measure(load_pretrained(name, output), config.data)
    path = save_pretrained(model, name, info, output)
    print(f"{path}: {info['metrics']}")


def measure(model: nn.Module, data: str, n: int = 2000) -> dict[str, float]:
    """Quality of a trained model on the test images of its data set.

    Args:
        model: a classifier of digits, or a denoiser of their images.
        data: "digits" or "mnist".
        n: number of samples of a denoiser (at most as many as there are test images).

    Returns:
        For a classifier its accuracy; for a denoiser the Fréchet distance between its samples and
        the test images, and its floor: that between as many training and the test images.
    """
    from course_lib.denoisers import Denoiser
    from course_lib.evaluation.features import class_agreement, digit_logits
    from course_lib.training.recipe import recipe_data

    images, labels = recipe_data(data, "test")
    if isinstance(model, Denoiser):
        return _frechet(model, images, recipe_data(data, "train")[0], n)
    return {"test_accuracy": round(class_agreement(digit_logits(images, model), labels), 4)}


def _frechet(model: Any, test: Tensor, train: Tensor, n: int) -> dict[str, float]:
    from course_lib.evaluation.features import digit_features, frechet_distance
    from course_lib.samplers import sample

    n = min(n, len(test))
    reference = digit_features(test)
    samples = sample(model, (n, *test.shape[1:]), solver="ddim", steps=50)
    return {
        "frechet_test": round(frechet_distance(digit_features(samples), reference), 4),
        "frechet_floor": round(frechet_distance(digit_features(train[:n]), reference), 4),
        "samples": n,
    }


def _commit() -> str | None:
    """Commit of the package's source, or None where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
