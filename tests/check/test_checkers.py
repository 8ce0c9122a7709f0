"""Every checker of every chapter, tested by mutation."""

import ast
import inspect

import pytest
import torch

from course_lib import check
from course_lib.check import CHAPTERS

ALL = [checker for checkers in CHAPTERS.values() for checker in checkers]
MUTANTS = [(c, m) for c in ALL for m in c.mistakes]
NAMES = [f"{c.chapter}.{c.name}-{i}" for i, (c, _) in enumerate(MUTANTS)]
each_checker = pytest.mark.parametrize("checker", ALL, ids=lambda c: f"{c.chapter}.{c.name}")


@pytest.mark.parametrize(("checker", "mistake"), MUTANTS, ids=NAMES)
def test_each_known_mistake_fails_with_its_own_message(checker, mistake):
    verdict = checker.run(mistake.function)
    assert verdict.status == "failed"
    assert dict(verdict.details)["Likely cause"] == mistake.says


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m[0].kind == "experiment"])
def test_a_cause_is_found_whatever_was_predicted(mutant):
    checker, mistake = mutant
    for prediction in next(iter(checker.cases(0))).answer[0]:
        verdict = checker.run(lambda *args, p=prediction: (p, *mistake.function(*args)[1:]))
        assert dict(verdict.details)["Likely cause"] == mistake.says


@each_checker
def test_there_are_at_least_three_mistakes_and_each_says_something_else(checker):
    says = [m.says for m in checker.mistakes]
    assert len(set(says)) == len(says) >= 3
    assert all(text[0].islower() and text[-1] in ".?!" for text in says)


@each_checker
def test_an_experiment_answers_with_what_was_measured(checker):
    assert (checker.kind == "experiment") == (checker.remark is not None)


@each_checker
def test_none_and_a_function_without_return_fail(checker):
    assert "pass the function itself" in checker.run(None).headline
    empty = checker.run(lambda *args: None)
    assert empty.status == "failed"
    assert "None" in dict(empty.details)["What"]


@each_checker
def test_a_check_asks_about_several_seeds_and_edge_cases(checker):
    first, second = (list(checker.cases(seed)) for seed in (0, 1))
    assert len(first) >= 2
    assert len({case.label for case in first}) == len(first)
    numbers = [[a for a in case.args if isinstance(a, torch.Tensor | float)]
               for case in (first[0], second[0])]  # fmt: skip
    tensors = [torch.cat([torch.as_tensor(a).flatten().double() for a in (0.0, *row)])
               for row in numbers]  # fmt: skip
    fixed = checker.kind == "experiment"  # measures; the learner draws the samples
    assert fixed or tensors[0].shape != tensors[1].shape or not torch.equal(*tensors)


@each_checker
def test_the_answer_is_not_among_the_arguments_and_cases_repeat(checker):
    """The same seed asks the same question, so that a verdict can be repeated."""
    for one, two in zip(checker.cases(3), checker.cases(3), strict=True):
        tensors = [(a, b) for a, b in zip(one.args, two.args, strict=True) if torch.is_tensor(a)]
        assert all(torch.equal(a, b) for a, b in tensors)
        assert not any(a is one.answer for a in one.args)


def test_names_are_unique_over_all_chapters():
    names = [checker.name for checker in ALL]
    assert len(set(names)) == len(names)  # grading finds functions by name


def test_no_message_shows_code_of_a_solution():
    """Whatever a checker says, it is no line of Python that assigns or returns."""
    for _, mistake in MUTANTS:
        for sentence in mistake.says.split(". "):
            with pytest.raises(SyntaxError):
                ast.parse(sentence)


def test_checkers_take_no_more_than_a_function():
    assert list(inspect.signature(type(ALL[0]).__call__).parameters) == ["self", "function"]


def test_the_network_of_the_loss_takes_one_step_for_each_sample():
    """A real network would fail, or broadcast in silence, so the one of the check refuses."""

    def wrong(predict, x0, n, eps, alpha_bar):
        return predict(x0, n[:, None])

    (loss,) = (checker for checker in ALL if checker.name == "simple_loss")
    assert (
        "predict got steps of shape (4, 1); (4,) is right" in dict(loss.run(wrong).details)["What"]
    )


def test_the_tasks_of_a_flow_score_want_the_shape_of_x():
    flow_score = check.score_flows.flow_score
    verdict = flow_score.run(lambda log_prob, task, x: task(log_prob, x))
    assert "must be a tensor of shape (4, 2), as x; got (4,)" in dict(verdict.details)["What"]
    verdict = flow_score.run(lambda log_prob, task, x: task(lambda x, sigma: None, x))
    assert "got None" in dict(verdict.details)["What"]


def test_the_network_of_a_coupling_wants_half_of_the_coordinates():
    verdict = check.score_flows.affine_coupling.run(lambda x, net, inverse: net(x))
    assert "net wants half of the coordinates, (B, 3); got (4, 6)" in dict(verdict.details)["What"]


def test_a_loss_that_cannot_train_is_refused():
    loss = torch.no_grad()(check.ddpm.simple_loss.mistakes[0].function)
    verdict = check.ddpm.simple_loss.run(loss)
    assert "has no gradient" in dict(verdict.details)["What"]


@pytest.mark.parametrize("prediction", ["ODE", "SDE", "Langevin"])
def test_three_walks_are_held_against_the_prediction(prediction):
    walks = check.composition.walks_experiment
    answer = next(iter(walks.cases(0))).answer[1]
    said = walks.remark((prediction, answer))
    assert min(answer, key=lambda name: abs(answer[name] - 0.5)) == "Langevin"
    assert ("as you predicted" in said) == (prediction == "Langevin")
    assert ("you predicted 'SDE'" in said) == (prediction == "SDE")


def _tensors(case):
    return [a for a in case.args if torch.is_tensor(a)]


# These take no samples: a table of betas in double precision; plain numbers; steps of training.
NO_SAMPLES = ("v_weight", "next_step_size", "doubling_curriculum", "summed_variances")


@each_checker
def test_a_check_asks_in_two_precisions_where_there_are_samples(checker):
    kinds = {a.dtype for case in checker.cases(0) for a in _tensors(case) if a.is_floating_point()}
    samples = checker.name not in NO_SAMPLES and checker.kind != "experiment"
    assert samples == (kinds >= {torch.float32, torch.float64})


SCALARS = ("reverse_posterior", "best_noise", "marginal_velocity", "stability_factor")


@each_checker
def test_a_check_asks_with_several_shapes_where_the_shape_is_free(checker):
    shapes = {tuple(a.shape) for case in checker.cases(0) for a in _tensors(case)}
    if checker.kind != "experiment" and checker.name not in (*SCALARS, *NO_SAMPLES):
        assert len({shape for shape in shapes if len(shape) > 1 or shape > (5,)}) >= 2
