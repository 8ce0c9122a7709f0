"""What a learner has passed so far, in one small file on their own machine."""

from __future__ import annotations

import datetime
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from course_lib.training.atomic import write_atomic

__all__ = ["note_passed", "passed_exercises", "progress_path"]

VARIABLE = "COURSE_PROGRESS"


def progress_path() -> Path | None:
    """The file; None if the environment variable COURSE_PROGRESS is "off".

    The variable may also name another file. By default it lies where the system keeps data of
    programs (`platformdirs`). Nothing is ever sent anywhere.
    """
    import platformdirs

    given = os.environ.get(VARIABLE, "")
    if given.lower() in ("off", "0", "no", "false"):
        return None
    default = platformdirs.user_data_path("course-lib") / "progress.json"
    return Path(given).expanduser() if given else default


def passed_exercises() -> dict[str, str]:
    """The exercises passed so far, "chapter.name", each with the day on which it first was.

    A damaged file is set aside under another name, with a warning.
    """
    return _read(progress_path()) or {}


def note_passed(chapter: str, name: str) -> None:
    """Remember that an exercise was passed; a file that cannot be written costs a warning only."""
    path = progress_path()
    known = _read(path)
    if path is None or known is None or f"{chapter}.{name}" in known:
        return
    known[f"{chapter}.{name}"] = datetime.date.today().isoformat()
    text = json.dumps({"version": 1, "passed": known}, indent=1, sort_keys=True)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        warnings.warn(f"your progress was not saved: {error}", stacklevel=2)


def _read(path: Path | None) -> dict[str, str] | None:
    """The entries of the file; None if it cannot be read, and so must not be written anew."""
    if path is None:
        return {}
    try:
        return _entries(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _set_aside(path, error)
        return {}
    except OSError as error:
        warnings.warn(f"cannot read your progress in {path}: {error}", stacklevel=3)
        return None


def _entries(content: Any) -> dict[str, str]:
    """The entries of a progress file, if they are what they should be."""
    known = content["passed"]
    if not all(isinstance(v, str) for item in known.items() for v in item):
        raise TypeError("entries must be text")
    return known


def _set_aside(path: Path, error: Exception) -> None:
    """Rename a damaged file, so that nothing of it is lost."""
    names: Iterable[Path] = (path.with_name(f"{path.name}.damaged-{i}") for i in range(1, 10**6))
    target = next(name for name in names if not name.exists())
    try:
        path.rename(target)
    except OSError:
        target = path
    message = f"your progress file was damaged ({error}); it is now {target}, and a new one begins"
    warnings.warn(message, stacklevel=3)
