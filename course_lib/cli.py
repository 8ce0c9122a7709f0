"""The command line: `course-lib train`, `course-lib progress` and `course-lib grade`."""

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

GRADING = """Run learners' notebooks, each in a process of its own with limits of time and memory,
check their functions, and write a table to the terminal and to a CSV file. The exit status is 0 if
all could be graded, whatever their marks, 1 if one could not be graded in full, 2 after a wrong
argument, 130 after Ctrl-C. This isolates against accidents, not against an attacker."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        0, or 2 after an error, which is told in one line. `grade` adds 1 if a notebook could not
        be graded in full, and 130 after Ctrl-C.
    """
    from jsonargparse import ArgumentError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = _parser(arguments).parse_args(arguments)
        run = {"train": _train, "progress": _progress, "grade": _grade}[config.subcommand]
        return run(config[config.subcommand])
    except (ArgumentError, ValueError, TypeError, OSError, FloatingPointError) as error:
        print("course-lib: error:", *str(error).split(), file=sys.stderr)
        return 2


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="course-lib", description=__doc__, exit_on_error=False)
    commands = parser.add_subcommands()
    commands.add_subcommand(
        "train", _train_parser(arguments), help="train a recipe and save its weights"
    )
    commands.add_subcommand(
        "progress",
        ArgumentParser(exit_on_error=False),
        help="show which exercises you have passed, and which comes next",
    )
    commands.add_subcommand("grade", _grade_parser(), help="grade learners' notebooks")
    return parser


def _train_parser(arguments: Sequence[str]) -> ArgumentParser:
    """Parser of `train`, with the fields of the recipe that `arguments` name as defaults."""
    if arguments[:1] != ["train"]:  # the recipes' classes take seconds to load
        from jsonargparse import ArgumentParser

        return ArgumentParser(exit_on_error=False)
    from course_lib.training.recipe import recipe_parser, recipe_path, recipes

    named = arguments[1:2] and not arguments[1].startswith("-")
    parser = recipe_parser(recipe_path(arguments[1]) if named else None)
    parser.add_argument("recipe", help=f"one of {', '.join(recipes())}, or a YAML file")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the weights (runs/RECIPE)"
    )
    return parser


def _grade_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from course_lib.check import CHAPTERS
    from course_lib.check.grading import GIGABYTES, SECONDS

    parser = ArgumentParser(exit_on_error=False, description=GRADING)
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="notebooks to grade")
    parser.add_argument("--chapter", choices=list(CHAPTERS), help="chapter of all the notebooks")
    parser.add_argument("--csv", type=Path, default=Path("grades.csv"), help="file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--timeout", type=float, default=SECONDS, help="seconds for a notebook")
    parser.add_argument("--memory", type=float, default=GIGABYTES, help="gigabytes for a notebook")
    return parser


def _grade(config: Namespace) -> int:
    from tqdm import tqdm

    from course_lib.check.grading import find_notebooks, grade
    from course_lib.check.grading_report import grades_table, write_csv
    from course_lib.check.verdict import print_marks

    notebooks = find_notebooks(config.notebooks)
    limits = {"timeout": config.timeout, "memory": config.memory}
    grading = grade(notebooks, chapter=config.chapter, **limits)
    if config.csv.exists() and not config.force:
        raise ValueError(f"{config.csv} exists: name another file with --csv, or use --force")
    graded: list[Any] = []
    write_csv(config.csv, graded)  # whether it can be written shows now, not after an hour
    interrupted = False
    try:
        for one in tqdm(grading, total=len(notebooks), unit="notebook", disable=None):
            graded.append(one)
            write_csv(config.csv, graded)
    except KeyboardInterrupt:
        interrupted = True
    print_marks(grades_table(graded, sys.stdout.encoding))
    done = f"{len(graded)} of {len(notebooks)} notebooks"
    print_marks(f"\n{done}{' (interrupted)' * interrupted}: {config.csv}")
    return 130 if interrupted else int(any(one.trouble for one in graded))


def _progress(config: Namespace) -> int:
    from course_lib.check import progress

    progress()
    return 0


def _train(config: Namespace) -> int:
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
    return 0


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
