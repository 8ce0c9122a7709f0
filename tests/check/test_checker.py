"""What a checker says and does, on a small exercise of its own."""

import functools
import random
import sys
import threading
import time

import numpy as np
import pytest
import torch

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.comparing import difference, factor


def cases(seed):
    generator = torch.Generator().manual_seed(seed)
    for shape, label in (((3,), "a vector"), ((2, 4), "a matrix")):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield Case(label, (x,), 2 * x + 1)


CHECKER = Checker(
    chapter="demo",
    name="line",
    title="A line",
    kind="implementation",
    difficulty=1,
    minutes=1,
    cases=cases,
    mistakes=(Mistake("the slope is 3.", lambda x: 3 * x + 1),),
)


def details(function, **options):
    verdict = CHECKER.run(function, **options)
    assert verdict.status == "failed"
    return dict(verdict.details)


def test_right_in_all_cases():
    verdict = CHECKER.run(lambda x: 2 * x + 1)
    assert verdict.passed
    assert (verdict.passed_cases, verdict.cases) == (6, 6)
    assert verdict.headline == "right in all 6 cases."


def test_a_graph_is_no_mistake():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert CHECKER.run(lambda x: weight * x + 1).passed


def untouched(x):
    raise NotImplementedError("line: replace this line")


def test_an_untouched_stub_is_neither_right_nor_wrong():
    verdict = CHECKER.run(untouched)
    assert verdict.status == "todo"
    assert "write the function first" in verdict.headline


def test_the_stub_of_another_exercise_is_an_error_like_any_other():
    """Who builds on an exercise that they skipped must hear which one is missing."""

    def builds(x):
        return other(x)

    def other(x):
        raise NotImplementedError("other: replace this line with your answer")

    assert "NotImplementedError in your line" in details(builds)["What"]
    assert "other: replace this line" in details(builds)["What"]

    def bare(x):
        raise NotImplementedError

    assert CHECKER.run(bare).status == "todo"


def test_a_known_mistake_is_named():
    assert details(lambda x: 3 * x + 1)["Likely cause"] == "the slope is 3."


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: None, "the result is None. Is there a `return` in every branch?"),
        (lambda x: x.tolist(), "the result is a list of 3; it must be a torch.Tensor."),
        (lambda x: x.numpy(), "the result is a numpy ndarray; it must be a torch.Tensor."),
        (lambda x: (2 * x + 1)[None], "the result has shape (1, 3); (3,) is right."),
        (lambda x: (2 * x + 1).float(), "the result has dtype float32; float64 is right"),
        (lambda x: x / 0, "has 3 values that are NaN or infinite, the first at [0]"),
        (lambda x: (2 * x + 1).to_sparse(), "the result is a sparse_coo tensor; it must be dense."),
        (lambda x: (2 * x + 1).to("meta"), "the result is on meta; cpu is right"),
        (lambda x: 2 * x + 2, "wrong values: largest error 1 at [0], where yours is"),
        (lambda x: 2 * x + 1 + 1e-6, "where yours is 4.081993 and 4.081992 is right."),
        (lambda x: 3, "the result is an int; it must be a torch.Tensor."),
    ],
)
def test_what_differs_first(function, what):
    found = details(function)
    assert found["Where"] == "a vector"
    assert what in found["What"]


def test_an_error_is_told_with_the_learners_own_line():
    def wrong(x):
        y = 2 * x
        return y + undefined  # noqa: F821

    found = details(wrong)
    assert "raised NameError in your line" in found["What"]
    assert "return y + undefined" in found["What"]
    assert "run the cells above" in found["Likely cause"]


def test_an_error_inside_of_torch_is_told_with_the_learners_line():
    def wrong(x):
        return torch.cat([x, x[None]])

    assert "return torch.cat([x, x[None]])" in details(wrong)["What"]


def _fails(*args):
    raise KeyError("deep")


class Fails:
    def __call__(self, x):
        return _fails(x)


@pytest.mark.parametrize("wrap", [functools.partial, torch.no_grad(), lambda f: Fails()])
def test_the_line_is_the_learners_behind_a_wrapper_too(wrap):
    assert 'raise KeyError("deep")' in details(wrap(_fails))["What"]


def test_shapes_that_do_not_fit_and_wrong_arguments():
    assert "(B, 1, ..., 1)" in details(lambda x: x + torch.ones(7))["Likely cause"]
    assert "an entry too many" in details(lambda x: x + torch.ones(4))["Likely cause"]
    assert "keep its first line" in details(lambda: 0)["Likely cause"]
    assert "Likely cause" not in details(lambda x: untouched())  # a wrong call inside


def test_a_local_name_without_a_value_is_no_missing_cell():
    def wrong(x):
        y += x  # noqa: F821
        return y

    assert "Likely cause" not in details(wrong)


def test_sign_factor_and_pattern():
    assert details(lambda x: -2 * x - 1)["Likely cause"].endswith("the wrong sign.")
    assert "everywhere 0.5 times" in details(lambda x: x + 0.5)["Likely cause"]
    only = details(lambda x: 2 * x + 1 if x.ndim == 1 else x)
    assert only["Pattern"] == "wrong only for: a matrix."


def test_a_pattern_names_the_smaller_side():
    several = [Case(str(i), (i,), float(i)) for i in range(3)]
    checker = Checker("demo", "f", "F", "bug", 1, 1, lambda seed: several, ())
    pattern = dict(checker.run(lambda i: float(i == 1)).details)["Pattern"]
    assert pattern == "wrong only for: 2."
    pattern = dict(checker.run(lambda i: 9.0 - (i == 1) * 8).details)["Pattern"]
    assert pattern == "right only for: 1."


def test_single_precision_on_the_way_is_recognised():
    assert "float32" in details(lambda x: (2 * x.float() + 1).double())["Likely cause"]


def test_own_noise_is_recognised():
    def by_numpy(x):
        return 2 * x + torch.from_numpy(np.random.standard_normal(x.shape))  # noqa: NPY002

    for wrong in (lambda x: 2 * x + torch.randn_like(x), by_numpy):
        assert "draws its own noise" in details(wrong)["Likely cause"]
    assert "Likely cause" not in details(lambda x: x.numpy())


@pytest.mark.parametrize(("tolerance", "told"), [(None, True), (1e-6, True), (0.04, False)])
def test_own_noise_is_the_cause_unless_the_case_allows_the_errors_of_sampling(tolerance, told):
    x = torch.ones(3)
    case = Case("ones", (x,), 2 * x, tolerance)
    checker = Checker("demo", "f", "F", "experiment", 1, 1, lambda seed: [case], ())
    found = dict(checker.run(lambda x: torch.randn_like(x) - 9).details)
    assert ("draws its own noise" in found.get("Likely cause", "")) == told


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (3, "an int"),
        (0.5, "a float"),
        ([1, 2], "a list of 2"),
        (np.zeros(2), "a numpy ndarray"),
        (torch.zeros(2), "a torch.Tensor of shape (2,)"),
    ],
)
def test_a_value_is_named_in_good_english(value, words):
    assert CHECKER.run(value).headline.startswith(f"got {words}; pass the function itself")


def test_a_function_that_changes_its_arguments_is_judged_and_told():
    def changes(x):
        x *= 2
        return x + 1

    verdict = CHECKER.run(changes)
    assert verdict.passed
    assert verdict.details == (("Mind", "your function changes its arguments in place."),)


def test_every_generator_and_the_default_dtype_stay_as_they_were():
    def draws(x):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        return torch.randn(3) + np.random.rand() + random.random()  # noqa: NPY002

    def states():
        return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    details(draws)
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.get_default_dtype() == torch.float32


def loops(x):
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            continue


def test_an_endless_loop_is_stopped_and_told():
    verdict = CHECKER.run(loops, seconds=0.2)
    assert "time was up" in verdict.headline
    assert "Does a loop in it never end?" in dict(verdict.details)["What"]


def test_what_came_back_in_time_is_judged_all_the_same():
    """A function that is wrong and slow hears what is wrong; one that is slow hears no more."""

    def slow(slope):
        return lambda x: slope * x + 1 if x.ndim == 1 else loops(x)

    verdict = CHECKER.run(slow(3), seconds=0.2)
    assert "time was up" in verdict.headline
    assert dict(verdict.details)["Likely cause"] == "the slope is 3."
    assert list(dict(CHECKER.run(slow(2), seconds=0.2).details)) == ["Where", "What"]


def test_a_function_that_cannot_be_stopped_is_left_behind():
    stop = []

    def stubborn(x):
        while not stop:
            try:
                time.sleep(0.01)
            except BaseException:
                continue

    verdict = CHECKER.run(stubborn, seconds=0.1)
    stop.append(True)
    assert "restart the kernel" in dict(verdict.details)["What"]


def test_exits_are_errors_of_the_function():
    assert "raised SystemExit" in details(lambda x: sys.exit())["What"]
    assert "raised KeyboardInterrupt" in details(_interrupts)["What"]


def _interrupts(x):
    raise KeyboardInterrupt


def test_prints_are_shown_and_cut():
    def talks(x):
        print("shape", tuple(x.shape))
        print("y" * 10_000)

    printed = CHECKER.run(talks).printed
    assert printed.startswith("shape (3,)\ny")
    assert len(printed) < 700
    assert printed.endswith(" ...")


def test_numbers_texts_and_parts():
    def run(answer, value):
        checker = Checker("demo", "f", "F", "bug", 1, 1, lambda s: [Case("it", (), answer)], ())
        return dict(checker.run(lambda: value).details).get("What", "")

    assert run(1.5, torch.tensor(1.5)) == ""
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    assert run(one, nan) == "the result is nan; 1 is right."
    assert difference(one.to("meta"), one) == "the result is on meta; cpu is right, as the input."
    assert factor(one.to("meta"), one) is None
    assert run(1.5, 1.6) == "the result is 1.6; 1.5 is right."
    assert run(1.5, "1.5") == "the result is a str; it must be a number."
    assert run(1.5, float("nan")) == "the result is nan; 1.5 is right."
    assert run("up", "down") == "the result is 'down'; 'up' is right."
    assert run(frozenset(("a", "b")), [1]) == "the result is [1]; it must be one of 'a', 'b'."
    assert run((1.0, 2.0), [1.0, 2.0]) == ""
    assert run((1.0, 2.0), 1.0) == "the result is a float; it must be a tuple of 2 values."
    assert run((1.0, 2.0), (1.0, 3.0)) == "value 2 of 2 is 3; 2 is right."
    assert run((1.0, {"a": 2.0}), (1.0, {"a": 3.0})) == "the value of 'a' is 3; 2 is right."
    assert "has the keys ['b']; it must" in run({"a": 1.0}, {"b": 1.0})
    assert "is a list of 0; it must be a dictionary" in run({"a": 1.0}, [])
    assert run({"a": 1.0}, None).startswith("the result is None")


def test_ctrl_c_during_a_check_reaches_the_learner_and_ends_the_function(monkeypatch):
    pressed, turns, wait = [], [], threading.Event.wait

    def interrupted(self, timeout=None):
        if timeout is None or pressed:  # without a timeout it is a thread's start
            return wait(self, timeout)
        pressed.append(True)
        raise KeyboardInterrupt

    def endless(x):
        while True:
            turns.append(time.sleep(0.001))

    monkeypatch.setattr("threading.Event.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CHECKER.run(endless)
    seen = len(turns)
    time.sleep(0.05)
    assert len(turns) == seen


def test_a_call_shows_the_verdict_and_returns_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    assert CHECKER(lambda x: x) is None
    assert "✗ A line (line): right in 0 of 6 cases." in capsys.readouterr().out
    assert not (tmp_path / "progress.json").exists()
    CHECKER(lambda x: 2 * x + 1)
    assert "✓ A line (line): right in all 6 cases." in capsys.readouterr().out
    assert '"demo.line"' in (tmp_path / "progress.json").read_text()
    assert repr(CHECKER) == "check.demo.line(your_function)  # A line"
