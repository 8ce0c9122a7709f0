"""A checker: runs a learner's function on cases with known answers, and says what differs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from course_lib.check.comparing import alike, difference, factor, kind
from course_lib.check.progress import note_passed
from course_lib.check.running import Outcome, call, state_kept
from course_lib.check.verdict import Verdict, show

__all__ = ["Case", "Checker", "Mistake"]

SECONDS = 10.0  # for all cases of one check together
SEEDS = (0, 1, 2)
SAMPLED = 0.01  # a case that allows such an error wants the function to draw samples


@dataclass(frozen=True)
class Case:
    """One question with its answer.

    Args:
        label: what is special about it, such as "at the last step".
        args: arguments of the learner's function.
        answer: the right result: tensor, number, string, or a tuple or dictionary of these.
        tolerance: the largest relative error that passes; None for that of the dtype.
    """

    label: str
    args: tuple[Any, ...]
    answer: Any
    tolerance: float | None = None


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer, and what to say to those who give it."""

    says: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Checker:
    """The check of one exercise; call it with the learner's function.

    Args:
        chapter: name of the module in `course_lib.check`.
        name: name of the function to write, which is the label of the exercise.
        title: title of the exercise.
        kind: what one does in it.
        difficulty: 1 to 3.
        minutes: about how long it takes.
        cases: returns the cases for a seed.
        mistakes: the known wrong answers, the most telling first.
        remark: says something about the answers of a function that passed.
    """

    chapter: str
    name: str
    title: str
    kind: Literal["derivation", "implementation", "experiment", "bug"]
    difficulty: int
    minutes: int
    cases: Callable[[int], Iterable[Case]]
    mistakes: tuple[Mistake, ...]
    remark: Callable[[Any], str] | None = None

    def __call__(self, function: Callable[..., Any]) -> None:
        """Check a function, show the verdict, and note it if it passed."""
        verdict = self.run(function)
        show(verdict)
        if verdict.passed:
            note_passed(self.chapter, self.name)

    def __repr__(self) -> str:
        return f"check.{self.chapter}.{self.name}(your_function)  # {self.title}"

    def run(
        self,
        function: Callable[..., Any],
        seeds: Iterable[int] = SEEDS,
        seconds: float = SECONDS,
    ) -> Verdict:
        """Check a function and return the verdict; nothing is shown or noted.

        Args:
            function: the learner's.
            seeds: each gives cases of its own.
            seconds: for all cases together.
        """
        if not callable(function):
            text = f"got {kind(function)}; pass the function itself: check.{self.chapter}."
            return self._verdict("failed", 0, 0, f"{text}{self.name}({self.name})")
        with state_kept():
            cases = [case for seed in seeds for case in self.cases(seed)]
            outcomes = _run_all(function, cases, seconds)
            wrong = [_judge(c, o) for c, o in zip(cases, outcomes, strict=False)]
            if not any(wrong) and len(outcomes) == len(cases):
                return self._passed(cases, outcomes)
            return self._failed(function, cases, outcomes, wrong)

    def _passed(self, cases: list[Case], outcomes: list[Outcome]) -> Verdict:
        details = []
        if self.remark:
            details.append(("What you found", self.remark(outcomes[0].value)))
        if any(o.changed for o in outcomes):
            details.append(("Mind", "your function changes its arguments in place."))
        n = len(cases)
        return self._verdict("passed", n, n, f"right in all {n} cases.", details, outcomes)

    def _failed(
        self,
        function: Callable[..., Any],
        cases: list[Case],
        outcomes: list[Outcome],
        wrong: list[str],
    ) -> Verdict:
        right, n = wrong.count(""), len(cases)
        first = next(i for i, text in enumerate(wrong) if text)
        if self._untouched(outcomes[first].error):
            text = "write the function first, then run this line again."
            return self._verdict("todo", right, n, text)
        details = [("Where", cases[first].label), ("What", wrong[first])]
        stopped = outcomes[-1].late
        ended = outcomes[:-1] if stopped else outcomes
        cause = ""
        if first < len(ended):
            cause = self._cause(cases, ended) or _guess(function, cases, ended, first)
        if cause:
            details.append(("Likely cause", cause))
        elif right and not stopped:
            details.append(("Pattern", _pattern(cases, wrong)))
        if any(o.changed for o in outcomes):
            details.append(("Mind", "your function changes its arguments in place."))
        head = "stopped, its time was up." if stopped else f"right in {right} of {n} cases."
        return self._verdict("failed", right, n, head, details, outcomes)

    def _untouched(self, error: BaseException | None) -> bool:
        """Whether this is the error of this stub, not of another one that the function calls."""
        text = str(error)
        return isinstance(error, NotImplementedError) and (
            not text or text.startswith(f"{self.name}:")
        )

    def _cause(self, cases: list[Case], outcomes: list[Outcome]) -> str:
        """What the known wrong answer says that gives the same as the learner's everywhere."""
        for mistake in self.mistakes:
            if all(
                _alike(o, call(mistake.function, c.args, SECONDS), c)
                for c, o in zip(cases, outcomes, strict=False)
            ):
                return mistake.says
        return ""

    def _verdict(
        self,
        status: Literal["passed", "failed", "todo"],
        right: int,
        n: int,
        headline: str,
        details: Iterable[tuple[str, str]] = (),
        outcomes: Iterable[Outcome] = (),
    ) -> Verdict:
        printed = next((o.printed for o in outcomes if o.printed), "")
        facts = (self.name, self.title, status, right, n)
        return Verdict(*facts, headline, tuple(details), printed)


def _run_all(function: Callable[..., Any], cases: list[Case], seconds: float) -> list[Outcome]:
    """Call the function on all cases, or until its time is up."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + seconds
    for i, case in enumerate(cases):
        torch.manual_seed(i)
        outcomes.append(call(function, case.args, end - time.monotonic()))
        if outcomes[-1].late:
            break
    return outcomes


def _judge(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome, or ""."""
    if outcome.late:
        return (
            "your function did not come back in time. Does a loop in it never end? Or is it only "
            "slow? If your computer stays busy, restart the kernel."
        )
    if outcome.error:
        where = f" in your {outcome.line}" if outcome.line else ""
        kind = type(outcome.error).__name__
        return f"your function raised {kind}{where}: {_short(outcome.error)}"
    return difference(outcome.value, case.answer, case.tolerance)


def _pattern(cases: list[Case], wrong: list[str]) -> str:
    """For which cases alone the function is right, or wrong: whichever are fewer."""
    bad = dict.fromkeys(c.label for c, w in zip(cases, wrong, strict=True) if w)
    good = dict.fromkeys(c.label for c in cases if c.label not in bad)  # with every seed
    word, labels = ("right", good) if 0 < len(good) < len(bad) else ("wrong", bad)
    return f"{word} only for: {'; '.join(labels)}."


def _guess(
    function: Callable[..., Any], cases: list[Case], outcomes: list[Outcome], first: int
) -> str:
    """A cause that needs no knowledge of the exercise."""
    if outcomes[first].value is None:
        return _guess_from_error(outcomes[first])
    if _draws(function, cases[first]):
        return "called twice with the same input, it gives two results: it draws its own noise."
    if all(alike(o.value, c.answer, 1e-5) for c, o in zip(cases, outcomes, strict=False)):
        return "right to five digits only, as if somewhere a double were turned into a float32."
    factors = [factor(o.value, c.answer) for c, o in zip(cases, outcomes, strict=False)]
    known = [c for c in factors if c is not None]
    if len(known) < len(outcomes) or max(known) - min(known) > 1e-3 * abs(known[0]):
        return ""
    if abs(known[0] + 1) < 1e-3:
        return "everywhere the right answer with the wrong sign."
    return f"everywhere {known[0]:.4g} times the right answer: a factor is missing or too much."


def _guess_from_error(outcome: Outcome) -> str:
    """What an error that learners meet often means here."""
    error, text = outcome.error, str(outcome.error)
    if "must match the size" in text or "must match the existing size" in text:
        sizes = [int(size) for size in re.findall(r"\((\d+)\)", text)]
        if len(sizes) == 2 and abs(sizes[0] - sizes[1]) == 1:
            return "two lengths differ by one: of one tensor you take an entry too many."
        return (
            "two shapes do not fit. A factor of shape (B,), one for each sample, must become "
            "(B, 1, ..., 1) before it meets samples of shape (B, ...)."
        )
    if "positional argument" in text and isinstance(error, TypeError) and not outcome.line:
        return "the arguments differ from those of the stub; keep its first line as it is."
    if type(error) is NameError:  # not UnboundLocalError, which is one too
        return "a name is not known. Is it misspelled? If not, run the cells above, imports first."
    return ""


def _draws(function: Callable[..., Any], case: Case) -> bool:
    """Whether two calls with the same input give two results, and nobody asked for that."""
    loose = case.tolerance
    if loose is not None and loose >= SAMPLED:
        return False
    once, twice = (call(function, case.args, 1.0).value for _ in range(2))
    return alike(once, once) and twice is not None and not alike(once, twice, loose)


def _alike(a: Outcome, b: Outcome, case: Case) -> bool:
    """Whether two calls went the same way."""
    if a.late or b.late:
        return False
    if a.error or b.error:
        return type(a.error) is type(b.error) and str(a.error) == str(b.error)
    one, other = (_without_choices(outcome.value, case.answer) for outcome in (a, b))
    return alike(one, other, case.tolerance)


def _without_choices(value: Any, answer: Any) -> Any:
    """A result without its free choices, such as a prediction, which explain no error."""
    if not (isinstance(value, tuple | list) and isinstance(answer, tuple)):
        return value
    if len(value) != len(answer):
        return value
    return [v for v, a in zip(value, answer, strict=True) if not isinstance(a, frozenset)]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."
