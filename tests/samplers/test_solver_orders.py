"""Orders of convergence by slope, and solvers against their papers' formulas."""

import math
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from exact import mixture_2d

from course_lib import VP, CosineVP, Denoiser, GaussianMixture, Linear
from course_lib.samplers import (
    cosine_grid,
    ddim,
    deis,
    dopri5,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    euler,
    euler_maruyama,
    heun,
    rk4,
    uniform_grid,
    unipc,
)
from course_lib.samplers.multistep import lagrange_weights


def mixture_1d(path):
    return GaussianMixture(
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
        torch.full((2, 1, 1), 0.25, dtype=torch.float64),
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        path,
    )


POINTS = torch.linspace(-1.5, 1.5, 16, dtype=torch.float64)[:, None]


def grid(path, n, power=1):
    """From t = 0.9 to 0.1, uniform in lambda (power 1) or with short first steps (power 2)."""
    start, stop = path.log_snr_half(torch.tensor([0.9, 0.1], dtype=torch.float64))
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** power
    return path.t_of_lambda(start + (stop - start) * u)


@cache
def truth(path):
    return rk4(mixture_1d(path), POINTS, grid(path, 800))


def slope(solver, path, power=1, counts=(80, 160)):
    """The slope of log error against log steps, and both errors."""
    errors = [
        (solver(mixture_1d(path), POINTS, grid(path, n, power)) - truth(path)).abs().max().item()
        for n in counts
    ]
    return math.log2(errors[0] / errors[1]), errors


def wrong_dpm_solver_2(denoiser, x, ts, r=0.5, sign=-1):
    """Weights 1 + 1/(2r) and -1/(2r), those of the multistep rule; ``sign=1`` mends them."""
    path = denoiser.path
    for t, s in pairwise(ts):
        lam_t, lam_s = path.log_snr_half(torch.stack([t, s]))
        inner = path.t_of_lambda(lam_t + r * (lam_s - lam_t))
        eps = denoiser.noise(x, t.expand(len(x)))
        u = ddim(denoiser, x, torch.stack([t, inner]))
        eps_1 = denoiser.noise(u, inner.expand(len(x)))
        average = (1 - sign / (2 * r)) * eps + sign / (2 * r) * eps_1
        growth = torch.expm1(lam_s - lam_t)
        x = path.alpha(s) / path.alpha(t) * x - path.sigma(s) * growth * average
    return x


ORDERS = [
    (euler, 1, 1),
    (ddim, 1, 1),
    (heun, 2, 1),
    (rk4, 4, 1),
    (dpm_solver_2, 2, 1),
    (partial(dpm_solver_2, r=0.8), 2, 1),
    (dpm_solver_3, 3, 1),
    (dpm_solver_pp_2m, 2, 1),
    (dpm_solver_pp_3m, 3, 2),
    (partial(unipc, order=1), 2, 1),  # the corrector adds one to the predictor's order
    (partial(unipc, order=2), 3, 1),
    (partial(unipc, order=3), 4, 2),
    (partial(deis, order=1), 1, 1),
    (partial(deis, order=2), 2, 1),
    (partial(deis, order=3), 3, 2),
    (partial(euler_maruyama, eta=0.0), 1, 1),
    (wrong_dpm_solver_2, 1, 1),
]


def _label(value):
    if isinstance(value, partial):
        return value.func.__name__ + "-" + "-".join(f"{k}{v}" for k, v in value.keywords.items())
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=["VP", "Linear"])
@pytest.mark.parametrize(("solver", "order", "power"), ORDERS, ids=_label)
def test_order_of_convergence(path, solver, order, power):
    """On a 1-D mixture in float64. Multistep solvers of order 3 need short first steps."""
    measured, errors = slope(solver, path, power)
    # Where the step ratio changes along the grid, errors of two orders still mix at 160 steps.
    assert measured == pytest.approx(order, abs=0.15 if power == 1 else 0.5), errors


def third_multistep_solver(denoiser, x, ts, factor):
    """DPM-Solver++(3M) with its phi functions, and ``factor`` on the second difference D_2."""
    path, seen = denoiser.path, []
    lam = path.log_snr_half(ts)
    for i, (t, s) in enumerate(pairwise(ts)):
        h = lam[i + 1] - lam[i]
        seen = [(lam[i] / h, denoiser.data(x, t.expand(len(x)))), *seen][:3]
        seen = [(lam[j] / h, m) for j, (_, m) in zip(range(i, -1, -1), seen, strict=False)]
        phi_1 = torch.expm1(-h)
        phi_2 = phi_1 / h + 1
        change = -phi_1 * seen[0][1]
        if i > 0:
            d_1 = (seen[0][1] - seen[1][1]) / (seen[0][0] - seen[1][0])
        if i > 1:
            d_11 = (seen[1][1] - seen[2][1]) / (seen[1][0] - seen[2][0])
            d_2 = (d_1 - d_11) / (seen[0][0] - seen[2][0])
            d_1 = d_1 + (seen[0][0] - seen[1][0]) * d_2
            change = change - (phi_2 / h - 0.5) * factor * d_2
        change = change + phi_2 * d_1 if i > 0 else change
        x = path.sigma(s) / path.sigma(t) * x + path.alpha(s) * change
    return x


@pytest.mark.parametrize(("factor", "order"), [(1, 2), (2, 3)])
def test_half_a_second_difference_costs_an_order(factor, order):
    """phi_3 multiplies h^2 f'', twice the divided difference; the paper's code forgets the 2."""
    solver = partial(third_multistep_solver, factor=factor)
    measured, errors = slope(solver, Linear(), power=2, counts=(160, 320))
    assert measured == pytest.approx(order, abs=0.2), errors


def test_right_weights_make_the_single_step_solver():
    denoiser, ts = mixture_1d(VP()), grid(VP(), 5)
    mended = partial(wrong_dpm_solver_2, sign=1)
    torch.testing.assert_close(dpm_solver_2(denoiser, POINTS, ts), mended(denoiser, POINTS, ts))
    wrong = wrong_dpm_solver_2(denoiser, POINTS, ts)
    assert (wrong - mended(denoiser, POINTS, ts)).abs().max() > 0.01


def test_rk4_keeps_its_order_down_to_zero_noise():
    """The last step avoids the velocity at t = 0; Euler's step there would leave order 2."""
    path = Linear()
    denoiser = mixture_1d(path)
    ends = torch.tensor([0.8, 0.0], dtype=torch.float64)
    truth = dopri5(denoiser, POINTS, ends, atol=1e-12, rtol=1e-12, t_min=0.0)
    errors = [
        (rk4(denoiser, POINTS, uniform_grid(path, n, t_max=0.8)) - truth).abs().max().item()
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3), errors


def test_first_order_members_are_ddim(path):
    """DPM-Solver-1, UniP-1 and DEIS-1 are DDIM (Lu et al., 2022, section 4.1)."""
    denoiser = mixture_2d(path)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = uniform_grid(path, 7)
    expected = ddim(denoiser, x, ts)
    for solver in (partial(unipc, order=1, corrector=False), partial(deis, order=1)):
        torch.testing.assert_close(solver(denoiser, x, ts), expected)
    # One step of DPM-Solver-1 in the paper's letters, eq. 3.7.
    t, s = torch.tensor([0.7, 0.4], dtype=torch.float64)
    h = path.log_snr_half(s) - path.log_snr_half(t)
    eps = denoiser.noise(x, t.expand(5))
    step = path.alpha(s) / path.alpha(t) * x - path.sigma(s) * torch.expm1(h) * eps
    torch.testing.assert_close(ddim(denoiser, x, torch.stack([t, s])), step)


def test_predictors_of_unipc_are_the_multistep_solvers():
    denoiser = mixture_2d(CosineVP())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = cosine_grid(denoiser.path, 9)
    for order, solver in ((2, dpm_solver_pp_2m), (3, dpm_solver_pp_3m)):
        predicted = unipc(denoiser, x, ts, order=order, corrector=False)
        torch.testing.assert_close(predicted, solver(denoiser, x, ts))


def three_steps(path):
    """Four falling times, their lambdas, and data predictions that depend on t alone."""
    ts = torch.tensor([0.9, 0.7, 0.55, 0.3], dtype=torch.float64)
    values = torch.tensor([0.3, -1.1, 0.8, 2.0], dtype=torch.float64)

    class Table(Denoiser):
        predicts = "data"

        def predict(self, xt, t, cond=None):
            place = (ts - t[0]).abs().argmin()
            return values[place].expand_as(xt)

    denoiser = Table()
    denoiser.path = path
    return denoiser, ts, path.log_snr_half(ts), values


def test_third_multistep_update_by_hand():
    """Lu et al., DPM-Solver++, with their phi functions, after two steps of lower order."""
    path = VP()
    denoiser, ts, lam, m = three_steps(path)
    x = torch.ones(1, 1, dtype=torch.float64)
    after = []
    out = dpm_solver_pp_3m(denoiser, x, ts, callback=lambda i, s, x: after.append(x))
    (h_2, h_1, h), (m_2, m_1, m_0) = lam.diff(), m[:3]
    r_0, r_1 = h_1 / h, h_2 / h
    d_10, d_11 = (m_0 - m_1) / r_0, (m_1 - m_2) / r_1
    d_1 = d_10 + r_0 / (r_0 + r_1) * (d_10 - d_11)
    d_2 = (d_10 - d_11) / (r_0 + r_1)
    phi_1 = torch.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    alpha, shrink = path.alpha(ts[3]), path.sigma(ts[3]) / path.sigma(ts[2])
    change = -phi_1 * m_0 + phi_2 * d_1 - phi_3 * 2 * d_2  # h^2 f'' is twice the divided difference
    torch.testing.assert_close(out, shrink * after[1] + alpha * change)


def test_unipc_update_by_hand():
    """Zhao et al.: the system R rho = b with B_2(h) = e^h - 1, predictor and corrector, p = 2."""
    path = VP()
    denoiser, ts, lam, m = three_steps(path)
    x = torch.ones(1, 1, dtype=torch.float64)
    after = []
    out = unipc(denoiser, x, ts, order=2, callback=lambda i, s, x: after.append(x))

    def update(x, i, with_end):
        """Step i -> i+1 from predictions i-1 and i (with i+1 for the corrector)."""
        h = lam[i + 1] - lam[i]
        b_h = phi = torch.expm1(-h)
        r = torch.stack([(lam[i - 1] - lam[i]) / h, torch.ones_like(h)])
        b, factorial, phi = [], 1.0, phi / -h - 1
        for k in (1, 2):
            b.append(phi * factorial / b_h)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        differences = torch.stack([(m[i - 1] - m[i]) / r[0], m[i + 1] - m[i]])
        rho = torch.linalg.solve(torch.stack([r**0, r]), torch.stack(b))
        rho = rho if with_end else torch.tensor([0.5, 0.0], dtype=torch.float64)
        alpha, shrink = path.alpha(ts[i + 1]), path.sigma(ts[i + 1]) / path.sigma(ts[i])
        return shrink * x - alpha * b_h * (m[i] + (rho * differences).sum())

    half = path.alpha(ts[1]) * -torch.expm1(lam[0] - lam[1]) * (m[0] + m[1]) / 2
    first = path.sigma(ts[1]) / path.sigma(ts[0]) * x + half  # UniC-1: rho = 1/2
    torch.testing.assert_close(after[1], update(first, 1, with_end=False))
    torch.testing.assert_close(out, update(update(first, 1, with_end=True), 2, with_end=False))


def test_deis_integrates_polynomials_in_time_exactly(path):
    """Noise predictions that are a parabola in t: the third step has no error left."""

    class Parabola(Denoiser):
        predicts = "noise"

        def predict(self, xt, t, cond=None):
            return (2 - 3 * t + t**2)[:, None].expand_as(xt)

    denoiser = Parabola()
    denoiser.path = path
    ts = torch.tensor([0.9, 0.8, 0.55, 0.4], dtype=torch.float64)
    after = []
    out = deis(denoiser, POINTS[:1], ts, callback=lambda i, s, x: after.append(x))
    fine = torch.linspace(0.55, 0.4, 60_001, dtype=torch.float64)
    rho = path.sigma(fine) / path.alpha(fine)
    middle = (fine[1:] + fine[:-1]) / 2
    integral = ((2 - 3 * middle + middle**2) * rho.diff()).sum()
    expected = path.alpha(ts[3]) * (after[1] / path.alpha(ts[2]) + integral)
    torch.testing.assert_close(out[0], expected[0], rtol=0, atol=1e-7)


def test_lagrange_weights_reproduce_simpson():
    moments = [2.0, 0.0, 2 / 3]
    assert lagrange_weights([-1.0, 0.0, 1.0], moments) == pytest.approx([1 / 3, 4 / 3, 1 / 3])
    assert lagrange_weights([5.0], moments) == [2.0]


def test_high_order_pays_at_few_evaluations():
    """Ten evaluations, from t = 0.9 to 0.1: UniPC errs less than a fifth of DDIM."""
    path = Linear()
    error = {
        solver: (solver(mixture_1d(path), POINTS, grid(path, 10)) - truth(path)).abs().max()
        for solver in (ddim, unipc)
    }
    assert error[unipc] < error[ddim] / 5


@pytest.mark.parametrize("solver", [dpm_solver_pp_2m, dpm_solver_pp_3m, unipc, deis, dpm_solver_2])
def test_a_grid_can_be_learned(solver):
    """The gradient of the result in an inner time, against a difference quotient."""
    denoiser = mixture_2d(VP())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = torch.tensor([0.7, 0.4, 0.2], dtype=torch.float64, requires_grad=True)

    def result(inner):
        end = torch.zeros(1, dtype=torch.float64)
        return solver(denoiser, x, torch.cat([1 - end, inner, end])).sum()

    (gradient,) = torch.autograd.grad(result(inner), inner)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        quotient = [(result(inner + e) - result(inner - e)) / 2e-6 for e in step]
    torch.testing.assert_close(gradient, torch.stack(quotient), rtol=1e-5, atol=1e-6)


def test_solver_options_are_checked():
    denoiser, ts = mixture_1d(VP()), grid(VP(), 3)
    for solver in (unipc, deis):
        with pytest.raises(ValueError, match="order must be 1, 2 or 3; got 4"):
            solver(denoiser, POINTS, ts, order=4)
    with pytest.raises(ValueError, match=r"r must lie in \(0, 1\], a part of the step; got 0"):
        dpm_solver_2(denoiser, POINTS, ts, r=0)
