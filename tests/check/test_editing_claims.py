"""What the exercises on editing claim in words or numbers, measured."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from course_lib.check import editing
from course_lib.check.questions import normal
from course_lib.denoisers import GaussianMixture
from course_lib.paths import Linear

COV = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
PAIRS = GaussianMixture(torch.zeros(1, 2).double(), COV[None], torch.ones(1).double(), Linear())


def test_half_way_on_a_straight_line_noise_is_too_short_and_on_the_arc_it_is_not():
    """Exercise slerp."""
    a, b = normal(0)(2, 50, 1000)
    line, arc = torch.lerp(a, b, 0.5), editing._slerped()(a, b, 0.5)
    assert (a.norm(dim=1) / line.norm(dim=1)).mean() == pytest.approx(math.sqrt(2), rel=0.02)
    assert (arc.norm(dim=1) / a.norm(dim=1)).mean() == pytest.approx(1, rel=0.02)
    cosines = F.cosine_similarity(a, b, dim=1)
    assert cosines.std() == pytest.approx(1 / math.sqrt(1000), rel=0.3)
    quarter = math.cos(math.pi / 8) * a + math.sin(math.pi / 8) * b
    assert (editing._slerped()(a, b, 0.25) - quarter).abs().mean() < 0.03


def mended(paste, rounds=1, steps=50):
    """Mean of the second coordinate, if the first is known to be 1 and a step has rounds.

    All is linear in the noise, which has mean 0: one particle without noise is the mean.
    """
    x, ts, zero = torch.zeros(1, 2).double(), torch.linspace(1, 0, steps + 1).double(), 0.0
    for t, s in itertools.pairwise(ts):
        for k in range(rounds):
            x0 = PAIRS.data(x, t.expand(1))
            x = x0 + s / t * (x - x0)
            x[:, 0] = paste(s, zero)
            if k < rounds - 1:
                factors = (v.expand(1) for v in (1 - s, s, 1 - t, t))
                x = editing._jumped()(x, *factors, torch.zeros_like(x))
    return x[0, 1].item()


def noisy(s, eps):
    return (1 - s) + s * eps


def clean(s, eps):
    return 1.0


def test_pasting_comes_too_late_and_more_rounds_help():
    """Exercise inpaint: 0.34, and 0.74 with ten rounds in place of one; 0.8 is exact."""
    assert mended(noisy) == pytest.approx(0.34, abs=0.01)
    assert mended(noisy, steps=200) == pytest.approx(0.34, abs=0.01)
    assert mended(noisy, rounds=10) == pytest.approx(0.74, abs=0.01)


def test_clean_pixels_go_past_the_answer():
    """Exercise inpaint: 0.61, two errors that cancel in part; and 0.9 with rounds."""
    assert mended(clean) == pytest.approx(0.61, abs=0.01)
    assert mended(clean, rounds=10) == pytest.approx(0.9, abs=0.01)


def test_a_step_back_is_one_of_ddpm_on_a_preserving_path():
    """Exercise jump_back: a = sqrt(1 - beta), b = sqrt(beta)."""
    angle, beta = torch.tensor([0.4]).double(), 0.1
    a_s, s_s = torch.cos(angle), torch.sin(angle)
    a_t = math.sqrt(1 - beta) * a_s
    x, z = normal(0)(2, 1, 3)
    made = editing._jumped()(x, a_s, s_s, a_t, (1 - a_t**2).sqrt(), z)
    torch.testing.assert_close(made, math.sqrt(1 - beta) * x + math.sqrt(beta) * z)


def test_a_measurement_and_a_noisy_state_are_the_same():
    """Exercise measured_gaussian: x_t = alpha x_0 + sigma eps is a measurement with A = alpha I."""
    x, alpha, sigma = normal(0)(5, 2), 0.7, 0.3
    args = (torch.zeros(2).double(), COV, alpha * torch.eye(2).double(), x, sigma)
    mean, cov = editing._measured()(*args)
    exact = PAIRS.posterior(x, torch.full((5,), sigma).double())
    torch.testing.assert_close(mean, exact.means[:, 0])
    torch.testing.assert_close(cov.expand(5, 2, 2), exact.covs[:, 0])


def test_reconstruction_guidance_is_too_sure_of_itself():
    """Exercise measurement_score: exact if the variance of A x_0 given x_t is added."""
    t, std, x = torch.full((4,), 0.6).double(), 0.2, normal(1)(4, 2)
    y = torch.ones(4, 1).double()
    left = PAIRS.posterior(x, t).covs[0, 0, 0, 0]
    score = editing._scored()
    shown, true = (
        score(PAIRS.data, lambda v: v[:, :1], x, t, y, s) for s in (std, (std**2 + left).sqrt())
    )
    both = torch.cat([0.4 * torch.eye(2), torch.tensor([[1.0, 0.0]])]).double()
    seen = both @ COV @ both.T + torch.diag(torch.tensor([0.36, 0.36, std**2])).double()

    def log_prob(v):  # of y given x_t, from the joint normal of both
        joint, alone = torch.cat([v, y], 1), seen[:2, :2]
        return (
            -(
                (joint * torch.linalg.solve(seen, joint.T).T).sum()
                - (v * torch.linalg.solve(alone, v.T).T).sum()
            )
            / 2
        )

    torch.testing.assert_close(true, torch.func.grad(log_prob)(x))
    assert (shown / true).min() > 2


def test_the_adjoint_passes_the_test_with_two_random_images():
    """Exercise blur_adjoint, and it is the transposed convolution."""
    draw = normal(0)
    x, y, kernel = draw(1, 1, 6, 7), draw(1, 1, 6, 7), draw(3, 5)
    adjoint = editing._correlate(y, kernel.flip(0, 1))
    there, back = (editing._correlate(x, kernel) * y).sum(), (x * adjoint).sum()
    torch.testing.assert_close(there, back)
    other = F.conv_transpose2d(y, kernel[None, None], padding=(1, 2))
    torch.testing.assert_close(other, adjoint)


def test_rounds_make_a_step_up_the_exact_inverse_of_the_step_down():
    """Exercise invert_step: the error shrinks by about (t - s) du/dx in each round."""
    x, s, t = normal(0)(5, 2), torch.full((5,), 0.3).double(), torch.full((5,), 0.5).double()
    errors = []
    for rounds in range(5):
        up = editing._inverted()(PAIRS.velocity, x, s, t, rounds)
        errors.append((up - 0.2 * PAIRS.velocity(up, t) - x).abs().max().item())
    slope = (
        0.2
        * torch.linalg.eigvals(
            torch.func.jacrev(lambda v: PAIRS.velocity(v[None], t[:1])[0])(x[0])
        ).abs()
    )
    assert errors[4] < 1e-2 * errors[0]
    for one, two in itertools.pairwise(errors):
        assert two / one < 1.01 * slope.max()


def test_the_share_that_keeps_its_hill_has_a_formula():
    """Exercise sdedit_experiment: Phi((1 - t0) |g| / t0), 0.69 for g = t0 = 0.5."""
    formula = torch.special.ndtr(torch.tensor(0.5)).item()
    assert formula == pytest.approx(0.69, abs=0.005)
    case = next(iter(editing._edit_cases(0)))
    kept = case.answer[1]["kept"][editing.STARTS.index(0.5)].item()
    assert kept == pytest.approx(formula, abs=2 * math.sqrt(0.69 * 0.31 / 500))


@pytest.mark.parametrize("prediction", editing.SHARES)
def test_the_remark_holds_the_prediction_against_the_measurement(prediction):
    case = next(iter(editing._edit_cases(0)))
    said = editing._edit_remark((prediction, case.answer[1]))
    assert ("as you predicted" in said) == (prediction == "most")


def test_the_functions_of_the_checks_refuse_other_times():
    x = torch.zeros(3, 2)
    for function in (editing._Guess(), editing._Bent(), editing._Wind()):
        with pytest.raises(ValueError, match="a time for each sample"):
            function(x, torch.zeros(3, 1))
        with pytest.raises(ValueError, match="got a float"):
            function(x, 0.5)
