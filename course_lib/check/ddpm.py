"""Checks of the exercises on denoising diffusion.

Right answers come from elsewhere than the textbook formula wherever they can: from conditioning a
joint Gaussian, from solving linear systems, from the exact mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, SHAPES, normal, per_sample, weight, with_single
from course_lib.denoisers import GaussianMixture
from course_lib.paths import CosineVP, DiscreteVP, Linear, Path, cosine_betas, linear_betas

__all__ = ["CHECKERS"]

T = 40


def _conditional(xt: Tensor, x0: Tensor, at: Tensor, st: Tensor, a: Tensor, s: Tensor) -> Any:
    """Mean and variance of x_s given x_t and x_0, by conditioning their joint Gaussian."""
    ratio = at / a  # x_t = ratio * x_s + independent noise, so Cov(x_s, x_t | x_0) = ratio * s^2
    gain = ratio * s**2 / st**2
    return a * x0 + gain * (xt - at * x0), s**2 - gain * ratio * s**2


# 1 q_sample


def _q_sample_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    alpha_bar = (1 - linear_betas(T)).cumprod(0)
    for shape, dtype, label in SHAPES:
        x0, eps = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        n = 1 + (torch.arange(shape[0]) * 17 + 5 * seed) % T
        path = DiscreteVP(linear_betas(T))
        yield Case(label, (x0, n, eps, alpha_bar), path.sample(x0, (n.double() / T).to(dtype), eps))
    x0, eps = draw(2, 3), draw(2, 3)
    n = torch.tensor([1, T])
    right = DiscreteVP(linear_betas(T)).sample(x0, n.double() / T, eps)
    yield Case("the first and the last step", (x0, n, eps, alpha_bar), right)


def _mix(a: Callable[[Tensor], Tensor], s: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """q_sample with other factors of x0 and of eps, as functions of alpha_bar_n."""

    def wrong(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        ab = per_sample(alpha_bar[n - 1], x0)
        return a(ab) * x0 + s(ab) * eps

    return wrong


def _q_sample_off_by_one(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    ab = per_sample(alpha_bar[n], x0)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def _q_sample_wrong_axis(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    ab = alpha_bar[n - 1].to(x0)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def _q_sample_double(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    ab = alpha_bar[n - 1].reshape(-1, *[1] * (x0.ndim - 1))
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def _q_sample_one_step(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    before = torch.cat([torch.ones(1).to(alpha_bar), alpha_bar[:-1]])
    keep = per_sample((alpha_bar / before)[n - 1], x0)
    return keep.sqrt() * x0 + (1 - keep).sqrt() * eps


def _q_sample_of_first(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return _mix(torch.sqrt, lambda ab: (1 - ab).sqrt())(x0, n[0].expand(len(n)), eps, alpha_bar)


def _q_sample_product_twice(x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return _mix(torch.sqrt, lambda ab: (1 - ab).sqrt())(x0, n, eps, alpha_bar.cumprod(0))


q_sample = Checker(
    chapter="ddpm",
    name="q_sample",
    title="Noise in one jump",
    kind="implementation",
    difficulty=1,
    minutes=5,
    cases=_q_sample_cases,
    mistakes=(
        Mistake(
            "this is what you get with sigma squared where sigma belongs: eps is multiplied by "
            "a standard deviation, not by a variance.",
            _mix(torch.sqrt, lambda ab: 1 - ab),
        ),
        Mistake(
            "this is what you get with alpha squared where alpha belongs: alpha_bar is the "
            "square of the factor of x0.",
            _mix(lambda ab: ab, lambda ab: (1 - ab).sqrt()),
        ),
        Mistake(
            "both roots are missing: alpha_bar and 1 - alpha_bar are the squares of the factors.",
            _mix(lambda ab: ab, lambda ab: 1 - ab),
        ),
        Mistake(
            "the two factors are exchanged: with n = 1 almost all of x0 must be left.",
            _mix(lambda ab: (1 - ab).sqrt(), torch.sqrt),
        ),
        Mistake(
            "you are one step too late: steps count from 1, entries of a tensor from 0.",
            _q_sample_off_by_one,
        ),
        Mistake(
            "the factors meet the wrong axis. They have shape (B,), one for each sample: give "
            "them as many further axes of length 1 as x0 has.",
            _q_sample_wrong_axis,
        ),
        Mistake(
            "alpha_bar is in double precision and draws the result with it. Bring the factors "
            "to the dtype of x0.",
            _q_sample_double,
        ),
        Mistake("this adds the noise of step n alone, not of all n steps.", _q_sample_one_step),
        Mistake(
            "all samples are taken to the step of the first. Each has a step of its own.",
            _q_sample_of_first,
        ),
        Mistake(
            "alpha_bar is multiplied up once more. It is the product already.",
            _q_sample_product_twice,
        ),
        Mistake(
            "sigma is not 1 - alpha: it is their squares that add up to 1.",
            _mix(torch.sqrt, lambda ab: 1 - ab.sqrt()),
        ),
        Mistake(
            "sigma holds the square of alpha_bar, which is the square of alpha already.",
            _mix(torch.sqrt, lambda ab: (1 - ab**2).sqrt()),
        ),
    ),
)

# 2 simple_loss


def _simple_loss_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    alpha_bar = (1 - cosine_betas(T)).cumprod(0)
    for shape, dtype, label in SHAPES[:2]:
        x0, eps = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
        n = 1 + (torch.arange(shape[0]) * 11 + 3 * seed) % T
        for name, of in (("depends on its input", _soft), ("depends on n", _by_step)):
            predict = _network(of)
            xt = DiscreteVP(cosine_betas(T)).sample(x0, (n.double() / T).to(dtype), eps)
            right = (predict(xt, n) - eps).square().flatten().sum() / eps.numel()
            args = (predict, x0, n, eps, alpha_bar)
            yield Case(f"{label}; a network that {name}", args, right)


def _network(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that takes one step for each sample and refuses all else, as real ones do."""

    def predict(xt: Tensor, n: Tensor) -> Tensor:
        if n.shape != xt.shape[:1]:
            came, right = tuple(n.shape), tuple(xt.shape[:1])
            raise ValueError(f"predict got steps of shape {came}; {right} is right, as n came")
        return of(xt, n)

    return predict


def _soft(xt: Tensor, n: Tensor) -> Tensor:
    return torch.tanh(weight(0.7, xt) * xt) + 0.1


def _by_step(xt: Tensor, n: Tensor) -> Tensor:
    return weight(0.5, xt) * xt + per_sample(n / T, xt)


def _loss(error: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """simple_loss with another error, a function of (predict, x0, xt, n, eps)."""

    def wrong(predict: Any, x0: Tensor, n: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        xt = _mix(torch.sqrt, lambda ab: (1 - ab).sqrt())(x0, n, eps, alpha_bar)
        return error(predict, x0, xt, n, eps)

    return wrong


simple_loss = Checker(
    chapter="ddpm",
    name="simple_loss",
    title="The loss in four lines",
    kind="implementation",
    difficulty=1,
    minutes=5,
    cases=_simple_loss_cases,
    mistakes=(
        Mistake(
            "this is the sum of the squares. Take the mean, so that the loss does not grow with "
            "batch and image.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n) - eps).square().sum()),
        ),
        Mistake(
            "this is the sum over the coordinates, averaged over the batch only. Take the mean "
            "over everything.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n) - eps).square().flatten(1).sum(1).mean()),
        ),
        Mistake(
            "the prediction is compared with the clean data. This network predicts the noise.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n) - x0).square().mean()),
        ),
        Mistake(
            "the network sees the clean data. It must see the noised ones: what else is there "
            "to predict?",
            _loss(lambda f, x0, xt, n, eps: (f(x0, n) - eps).square().mean()),
        ),
        Mistake(
            "the absolute error was averaged, not the square. The minimiser would be the median "
            "of the noise, which is no score.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n) - eps).abs().mean()),
        ),
        Mistake(
            "the network is told n - 1. It counts steps as the text does, from 1.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n - 1) - eps).square().mean()),
        ),
        Mistake(
            "the network is told the time n / T. This one wants the step n.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n / T) - eps).square().mean()),
        ),
        Mistake(
            "an error for each coordinate came out; the loss is one number, their mean.",
            _loss(lambda f, x0, xt, n, eps: (f(xt, n) - eps).square()),
        ),
    ),
)

# 3 reverse_posterior


def _reverse_posterior_cases(seed: int) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(seed)
    for path, name in ((CosineVP(), "cosine path"), (Linear(), "straight path")):
        s, t = (0.05 + 0.9 * torch.rand(2, generator=generator, dtype=torch.float64)).sort()[0]
        yield _posterior_case(path, s, t, f"{name}, from t = {t:.2f} to s = {s:.2f}")
    zero, t = torch.tensor([0.0, 0.3 + 0.2 * seed / 10], dtype=torch.float64)
    yield _posterior_case(CosineVP(), zero, t, f"the last step, from t = {t:.2f} to s = 0")


def _posterior_case(path: Path, s: Tensor, t: Tensor, label: str) -> Case:
    at, st, a, sig = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    weight_xt, variance = _conditional(one, zero, at, st, a, sig)
    weight_x0, _ = _conditional(zero, one, at, st, a, sig)
    return Case(label, (at, st, a, sig), (weight_xt, weight_x0, variance))


def _posterior(at: Tensor, st: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wx, variance = _conditional(torch.ones_like(s), torch.zeros_like(s), at, st, a, s)
    w0, _ = _conditional(torch.zeros_like(s), torch.ones_like(s), at, st, a, s)
    return wx, w0, variance


def _added(at: Tensor, st: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The variance that the forward path adds between s and t."""
    return st**2 - (at / a * s) ** 2


def _posterior_of_precisions(
    at: Tensor, st: Tensor, a: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    ratio, added = at / a, _added(at, st, a, s)
    variance = 1 / (ratio**2 / added + 1 / s**2)
    return variance * ratio / added, variance * a / s**2, variance


reverse_posterior = Checker(
    chapter="ddpm",
    name="reverse_posterior",
    title="The way back, between any two times",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=with_single(_reverse_posterior_cases),
    mistakes=(
        Mistake(
            "the variance is that of the forward step from s to t. The posterior also knows x0, "
            "so its variance is smaller.",
            lambda *p: (*_posterior(*p)[:2], _added(*p)),
        ),
        Mistake(
            "the third value is a standard deviation; the variance is its square.",
            lambda *p: (*_posterior(*p)[:2], _posterior(*p)[2].sqrt()),
        ),
        Mistake(
            "these are the weights of DDIM, which keeps all of the predicted noise. The posterior "
            "forgets a part of it and has a variance instead.",
            lambda at, st, a, s: (s / st, a - at * s / st, torch.zeros_like(s)),
        ),
        Mistake(
            "the weights of x_t and x_0 are exchanged.",
            lambda *p: (_posterior(*p)[1], _posterior(*p)[0], _posterior(*p)[2]),
        ),
        Mistake(
            "this is right on variance-preserving paths only. Do not use alpha^2 + sigma^2 = 1.",
            lambda at, st, a, s: _posterior(at, (1 - at**2).sqrt(), a, (1 - a**2).sqrt()),
        ),
        Mistake(
            "the precisions were added, but the last inversion is missing: the third value is one "
            "over the variance.",
            lambda *p: (*_posterior(*p)[:2], 1 / _posterior(*p)[2]),
        ),
        Mistake(
            "right, but not at s = 0: there sigma_s is 0, and you divide by it. Multiply the "
            "fractions out.",
            _posterior_of_precisions,
        ),
        Mistake(
            "you took 1 - r^2 for the variance of the noise between s and t. That holds on "
            "variance-preserving paths only; the exercise gives it for any path.",
            lambda at, st, a, s: (
                at / a * s**2 / st**2,
                a * (1 - (at / a) ** 2) / st**2,
                s**2 * (1 - (at / a) ** 2) / st**2,
            ),
        ),
        Mistake(
            "the weight of x_0 holds alpha at t; it is alpha at s that scales x_0 in the mean of "
            "x_s.",
            lambda at, st, a, s: (
                _posterior(at, st, a, s)[0],
                _posterior(at, st, a, s)[1] * at / a,
                _posterior(at, st, a, s)[2],
            ),
        ),
    ),
)

# 4 best_noise


def _best_noise_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for i, (path, name) in enumerate(((CosineVP(), "cosine path"), (Linear(), "straight path"))):
        t = torch.tensor((0.2, 0.5, 0.9)[(seed + i) % 3], dtype=torch.float64)
        mean, std = 1.5 * draw(1)[0], 0.3 + draw(1)[0].abs()
        xt = 2 * draw(6)
        one = GaussianMixture(
            mean.reshape(1, 1), std.square().reshape(1, 1, 1), torch.ones(1).double(), path
        )
        right = one.noise(xt[:, None], t.expand(6))[:, 0]
        label = f"{name} at t = {t:.1f}, data N({mean:.2f}, {std:.2f}^2)"
        yield Case(label, (xt, path.alpha(t), path.sigma(t), mean, std), right)


def _noise_formula(xt: Tensor, a: Tensor, s: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return s * (xt - a * mean) / (a**2 * std**2 + s**2)


best_noise = Checker(
    chapter="ddpm",
    name="best_noise",
    title="The best denoiser of a Gaussian",
    kind="derivation",
    difficulty=2,
    minutes=15,
    cases=with_single(_best_noise_cases),
    mistakes=(
        Mistake(
            "this is the score with its sign turned, without the factor sigma: see Tweedie's "
            "formula.",
            lambda x, a, s, m, d: _noise_formula(x, a, s, m, d) / s,
        ),
        Mistake(
            "this is the score. The best noise is -sigma times it.",
            lambda x, a, s, m, d: -_noise_formula(x, a, s, m, d) / s,
        ),
        Mistake(
            "this is the best guess of x0, not of the noise.",
            lambda x, a, s, m, d: (x - s * _noise_formula(x, a, s, m, d)) / a,
        ),
        Mistake(
            "the variance of x_t is right for data of standard deviation 1 only.",
            lambda x, a, s, m, d: _noise_formula(x, a, s, m, torch.ones_like(d)),
        ),
        Mistake(
            "you divide by the standard deviation of x_t where its variance belongs.",
            lambda x, a, s, m, d: _noise_formula(x, a, s, m, d) * (a**2 * d**2 + s**2).sqrt(),
        ),
        Mistake(
            "the mean of x_t is alpha times the mean of the data.",
            lambda x, a, s, m, d: s * (x - m) / (a**2 * d**2 + s**2),
        ),
        Mistake(
            "this undoes the noise for one known clean sample, the mean. All clean samples that "
            "could have led to x_t count.",
            lambda x, a, s, m, d: (x - a * m) / s,
        ),
        Mistake(
            "this is right on variance-preserving paths only: sigma^2 need not be 1 - alpha^2.",
            lambda x, a, s, m, d: s * (x - a * m) / (a**2 * d**2 + 1 - a**2),
        ),
        Mistake(
            "the mean of the data is left out: x_t does not have mean 0.",
            lambda x, a, s, m, d: s * x / (a**2 * d**2 + s**2),
        ),
        Mistake(
            "this is the answer for data N(0, 1) on a variance-preserving path.",
            lambda x, a, s, m, d: s * x,
        ),
        Mistake(
            "standard deviations do not add up; variances do.",
            lambda x, a, s, m, d: s * (x - a * m) / (a * d + s) ** 2,
        ),
        Mistake(
            "in the variance of x_t, the standard deviation of the data is not squared.",
            lambda x, a, s, m, d: s * (x - a * m) / (a**2 * d + s**2),
        ),
        Mistake(
            "in the variance of x_t, alpha is not squared.",
            lambda x, a, s, m, d: s * (x - a * m) / (a * d**2 + s**2),
        ),
    ),
)

# 5 faces_from_v


def _faces_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    paths = ((CosineVP(), "cosine path"), (Linear(), "straight path, where a^2 + s^2 is not 1"))
    for path, name in paths:
        for shape, dtype, label in SHAPES[:2]:
            x0, eps = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
            t = ((torch.arange(shape[0]) + 0.5 + 0.1 * seed) / (shape[0] + 1)).to(dtype)
            alpha, sigma = path.alpha(t), path.sigma(t)
            a, s = per_sample(alpha, x0), per_sample(sigma, x0)
            args = (a * eps - s * x0, a * x0 + s * eps, alpha, sigma)
            yield Case(f"{name}; {label}", args, (x0, eps))


def _faces(signs: tuple[float, float], whole: bool = True, turn: bool = False) -> Any:
    """faces_from_v with other signs, without the determinant, or in the other order."""

    def wrong(v: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        a, s = per_sample(alpha, v), per_sample(sigma, v)
        size = a**2 + s**2 if whole else torch.ones_like(a)
        x0, eps = (a * xt - signs[0] * s * v) / size, (a * v + signs[1] * s * xt) / size
        return (eps, x0) if turn else (x0, eps)

    return wrong


def _faces_wrong_axis(v: Tensor, xt: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return (a * xt - s * v) / (a**2 + s**2), (a * v + s * xt) / (a**2 + s**2)


faces_from_v = Checker(
    chapter="ddpm",
    name="faces_from_v",
    title="Data and noise out of v",
    kind="implementation",
    difficulty=2,
    minutes=10,
    cases=_faces_cases,
    mistakes=(
        Mistake(
            "this holds on variance-preserving paths only. In general the 2x2 system has the "
            "determinant alpha^2 + sigma^2.",
            _faces((1, 1), whole=False),
        ),
        Mistake("noise and data are exchanged: return the data first.", _faces((1, 1), turn=True)),
        Mistake(
            "the sign of v in the data is wrong: v points from data to noise.", _faces((-1, 1))
        ),
        Mistake("the sign of x_t in the noise is wrong.", _faces((1, -1))),
        Mistake(
            "alpha and sigma have shape (B,): give them as many further axes of length 1 as v has.",
            _faces_wrong_axis,
        ),
    ),
)

# 6 ancestral_step


def _ancestral_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    betas = linear_betas(200)
    alpha_bar = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    names = {200: "the first step back, n = T", 2: "n = 2", 1: "the last step, n = 1"}
    for n, shape in ((90 + seed, (4, 3)), (200, IMAGES), (2, (4, 3)), (1, (5,))):
        xn, eps, z = (draw(*shape) for _ in range(3))
        (a, at), one = alpha_bar[[n - 1, n]].sqrt(), torch.ones(()).double()
        s, st = (one - a**2).sqrt(), (one - at**2).sqrt()
        mean, variance = _conditional(xn, (xn - st * eps) / at, at, st, a, s)
        label = names.get(n, f"a step in the middle, n = {n}")
        yield Case(label, (xn, n, eps, z, betas), mean + variance.sqrt() * z)


def _step(
    mean: Callable[..., Tensor] | None = None, std: Callable[..., Tensor] | None = None
) -> Callable[..., Tensor]:
    """ancestral_step with another mean (of xn, eps, b, sigma) or noise (of b, b tilde)."""

    def wrong(xn: Tensor, n: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
        alpha_bar = torch.cat([torch.ones(1).to(betas), (1 - betas).cumprod(0)])
        b, sigma = betas[n - 1], (1 - alpha_bar[n]).sqrt()
        right = (xn - b / sigma * eps_hat) / (1 - b).sqrt()
        tilde = b * (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n])
        noise = std(b, tilde) if std else tilde.sqrt()
        return (mean(xn, eps_hat, b, sigma) if mean else right) + noise * z

    return wrong


def _ancestral_off_by_one(xn: Tensor, n: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = (1 - betas).cumprod(0)
    b, before, ab = betas[n], alpha_bar[n - 1], alpha_bar[n]
    mean = (xn - b / (1 - ab).sqrt() * eps_hat) / (1 - b).sqrt()
    return mean + (b * (1 - before) / (1 - ab)).sqrt() * z


def _ancestral_wraps(xn: Tensor, n: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = (1 - betas).cumprod(0)
    b, before, ab = betas[n - 1], alpha_bar[n - 2], alpha_bar[n - 1]
    mean = (xn - b / (1 - ab).sqrt() * eps_hat) / (1 - b).sqrt()
    return mean + (b * (1 - before) / (1 - ab)).sqrt() * z


ancestral_step = Checker(
    chapter="ddpm",
    name="ancestral_step",
    title="One step back",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=with_single(_ancestral_cases),
    mistakes=(
        Mistake(
            "the noise has variance beta_n. That is DDPM's other choice; here beta tilde is asked "
            "for, which is zero at n = 1.",
            _step(std=lambda b, tilde: b.sqrt()),
        ),
        Mistake(
            "the noise has variance beta_n, and none is added at n = 1, as in the first cells of "
            "the chapter. Here beta tilde is asked for.",
            _step(std=lambda b, tilde: b.sqrt() * (tilde > 0)),
        ),
        Mistake(
            "the mean is divided by alpha_n, which undoes all n steps at once. One step back is "
            "the root of 1 - beta_n.",
            _step(mean=lambda x, e, b, s: (x - b / s * e) / (1 - s**2).sqrt()),
        ),
        Mistake(
            "the mean is the guess of x0 itself, all n steps back; it should be one step back.",
            _step(mean=lambda x, e, b, s: (x - s * e) / (1 - s**2).sqrt()),
        ),
        Mistake(
            "z is multiplied by the variance. It must be multiplied by its root.",
            _step(std=lambda b, tilde: tilde),
        ),
        Mistake(
            "the noise z is not used. The mean of the posterior alone is not DDIM either: "
            "samples shrink.",
            _step(std=lambda b, tilde: torch.zeros_like(b)),
        ),
        Mistake(
            "the mean is not divided by the root of 1 - beta_n.",
            _step(mean=lambda x, e, b, s: x - b / s * e),
        ),
        Mistake(
            "beta_n times the noise was taken away; it is beta_n / sigma_n times the noise.",
            _step(mean=lambda x, e, b, s: (x - b * e) / (1 - b).sqrt()),
        ),
        Mistake(
            "you divide by sigma_n squared where sigma_n belongs.",
            _step(mean=lambda x, e, b, s: (x - b / s**2 * e) / (1 - b).sqrt()),
        ),
        Mistake("you are one step too late: beta_n is betas[n - 1].", _ancestral_off_by_one),
        Mistake(
            "at n = 1, alpha_bar[n - 2] is alpha_bar[-1], the last entry: nothing raises an error, "
            "and noise is added where none belongs. Before the first step alpha_bar is 1.",
            _ancestral_wraps,
        ),
    ),
)

# 7 ddim_invert


def _invert_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for steps, path, name in ((1, CosineVP(), "one step"), (7, Linear(), "seven steps")):
        ts = torch.linspace(0.02, 0.95, steps + 1, dtype=torch.float64)
        alphas, sigmas = path.alpha(ts), path.sigma(ts)
        predict = _mixture_noise(path, ts)
        x = alphas[0] * draw(6, 2)
        ratio, y = sigmas / alphas, x / alphas[0]
        for i in range(steps):  # DDIM is Euler's method for x / alpha in sigma / alpha
            y = y + (ratio[i + 1] - ratio[i]) * predict(alphas[i] * y, i)
        yield Case(f"{name} up", (predict, x, alphas, sigmas), alphas[-1] * y)


def _mixture_noise(path: Path, ts: Tensor) -> Callable[[Tensor, int], Tensor]:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5]], dtype=torch.float64)
    covs = 0.2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    exact = GaussianMixture(means, covs, torch.tensor([0.4, 0.6], dtype=torch.float64), path)

    def predict(x: Tensor, i: int) -> Tensor:
        return exact.noise(x, ts[i].to(x).expand(len(x)))

    return predict


def _invert(
    step: Callable[..., Tensor], predict_at: Callable[[int], int] = lambda i: i, skip: int = 0
) -> Callable[..., Tensor]:
    """ddim_invert with another step, or a prediction at another level."""

    def wrong(predict: Any, x: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
        for i in range(len(alphas) - 1 - skip):
            eps = predict(x, predict_at(i))
            x = step(x, eps, alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])
        return x

    return wrong


def _ddim_up(x: Tensor, eps: Tensor, a: Tensor, s: Tensor, b: Tensor, r: Tensor) -> Tensor:
    return b * (x - s * eps) / a + r * eps


def _invert_fixed(predict: Any, x: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    eps = predict(x, 0)
    return _ddim_up(x, eps, alphas[0], sigmas[0], alphas[-1], sigmas[-1])


def _invert_forward(predict: Any, x: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    eps = predict(x, len(alphas) - 1)
    return alphas[-1] * x + sigmas[-1] * eps


def _invert_down(predict: Any, x: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    for i in reversed(range(1, len(alphas))):
        eps = predict(x, i)
        x = _ddim_up(x, eps, alphas[i], sigmas[i], alphas[i - 1], sigmas[i - 1])
    return x


ddim_invert = Checker(
    chapter="ddpm",
    name="ddim_invert",
    title="Which noise makes this picture?",
    kind="implementation",
    difficulty=3,
    minutes=25,
    cases=with_single(_invert_cases),
    mistakes=(
        Mistake(
            "the noise is predicted at the level where you are going. You are still at level i, "
            "and that is where x belongs.",
            _invert(_ddim_up, predict_at=lambda i: i + 1),
        ),
        Mistake(
            "the noise is predicted only once, at the start. Ask again at every level.",
            _invert_fixed,
        ),
        Mistake(
            "the guess of x0 is not divided by alpha_i.",
            _invert(lambda x, eps, a, s, b, r: b * (x - s * eps) + r * eps),
        ),
        Mistake("the loop goes down, from noise to data. Turn it round.", _invert_down),
        Mistake(
            "x itself is scaled and noised again; first take out the noise that is in it.",
            _invert(lambda x, eps, a, s, b, r: b * x + r * eps),
        ),
        Mistake(
            "alphas holds the factors of the data themselves, not their squares: no root of them "
            "belongs here.",
            _invert(lambda x, eps, a, s, b, r: _ddim_up(x, eps, a.sqrt(), s, b.sqrt(), r)),
        ),
        Mistake(
            "the loop stops one level too early: there is one step fewer than there are levels, "
            "and `range` already leaves the end out.",
            _invert(_ddim_up, skip=1),
        ),
        Mistake(
            "the picture was noised to the last level in one jump, as in training. That uses one "
            "prediction at one level; walk through all levels.",
            _invert_forward,
        ),
    ),
)

# 8 v_weight


def _v_weight_cases(seed: int) -> Iterator[Case]:
    for schedule, name in ((linear_betas, "linear betas"), (cosine_betas, "cosine betas")):
        betas = schedule(30 + 10 * seed)
        yield Case(f"{name}, T = {len(betas)}", (betas,), _kl_per_v_error(betas))


def _kl_per_v_error(betas: Tensor) -> Tensor:
    """KL(q(x_{n-1} | x_n, x0) || p) / (v - v_hat)^2 for one guess of v, n = 2, ..., T."""
    alpha_bar = (1 - betas).cumprod(0)
    a, at = alpha_bar[:-1].sqrt(), alpha_bar[1:].sqrt()
    s, st = (1 - a**2).sqrt(), (1 - at**2).sqrt()
    xt, v, guess = torch.tensor([0.3, 0.9, -0.4]).to(betas)
    mean, variance = _conditional(xt, at * xt - st * v, at, st, a, s)
    mean_guess, _ = _conditional(xt, at * xt - st * guess, at, st, a, s)
    normal = torch.distributions.Normal
    p, q = normal(mean, variance.sqrt()), normal(mean_guess, variance.sqrt())
    return torch.distributions.kl_divergence(p, q) / (v - guess) ** 2


def _weights(factor: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The weight of the squared error of x0, times a factor of alpha_bar before and at n."""

    def wrong(betas: Tensor) -> Tensor:
        before, now = (ab := (1 - betas).cumprod(0))[:-1], ab[1:]
        return 0.5 * (before / (1 - before) - now / (1 - now)) * factor(before, now)

    return wrong


v_weight = Checker(
    chapter="ddpm",
    name="v_weight",
    title="The bound in units of v",
    kind="derivation",
    difficulty=3,
    minutes=20,
    cases=_v_weight_cases,
    mistakes=(
        Mistake(
            "this is the weight of the squared error of x0. How large is that error when the "
            "error of v is 1?",
            _weights(lambda before, now: torch.ones_like(now)),
        ),
        Mistake(
            "this is the weight of the squared error of the noise.",
            _weights(lambda before, now: (1 - now) / now),
        ),
        Mistake(
            "this is what you get with sigma_n where sigma_n squared belongs: the error enters "
            "squared.",
            _weights(lambda before, now: (1 - now).sqrt()),
        ),
        Mistake(
            "the error of x0 is sigma_n times that of v, not the other way round.",
            _weights(lambda before, now: 1 / (1 - now)),
        ),
        Mistake(
            "sigma is taken at step n - 1. The prediction is made at step n.",
            _weights(lambda before, now: 1 - before),
        ),
        Mistake(
            "alpha_n squared where sigma_n squared belongs: solve x_t and v for x0 again.",
            _weights(lambda before, now: now),
        ),
    ),
)

# 9 variance_experiment

NAMES = ("beta", "beta_tilde")


def _variance_cases(seed: int) -> Iterator[Case]:
    predictions = frozenset(NAMES)
    for betas, std in ((cosine_betas(20), 0.25), (cosine_betas(20), 1.0), (linear_betas(50), 0.25)):
        label = f"{len(betas)} steps, data of standard deviation {std}"
        right = _spread(betas, std, lambda b, tilde, n: (b * (n > 1), tilde))
        # of 15,000 samples the spread is known to 0.6 %
        yield Case(label, (betas, std, 15_000), (predictions, right), tolerance=0.03)


def _spread(betas: Tensor, data_std: float, noise: Callable[..., Any]) -> dict[str, float]:
    """Standard deviation after ancestral sampling with the exact denoiser of N(0, data_std^2).

    Every step is linear, so the variance follows a recursion; no sample is drawn.
    """
    alpha_bar = torch.cat([torch.ones(1).to(betas), (1 - betas).cumprod(0)])
    variances = torch.ones(2, dtype=torch.float64)
    for n in reversed(range(1, len(betas) + 1)):
        b, ab, before = betas[n - 1], alpha_bar[n], alpha_bar[n - 1]
        shrink = (1 - b / (ab * data_std**2 + 1 - ab)) / (1 - b).sqrt()
        added = noise(b, b * (1 - before) / (1 - ab), n)
        variances = shrink**2 * variances + torch.stack([torch.as_tensor(a) for a in added])
    return dict(zip(NAMES, variances.sqrt().tolist(), strict=True))


def _measured(change: Callable[[dict[str, float]], dict[str, float]]) -> Callable[..., Any]:
    def wrong(betas: Tensor, data_std: float, samples: int) -> tuple[str, dict[str, float]]:
        return NAMES[0], change(_spread(betas, data_std, lambda b, tilde, n: (b * (n > 1), tilde)))

    return wrong


def _spread_with(noise: Callable[..., Any]) -> Callable[..., Any]:
    return lambda betas, data_std, samples: (NAMES[0], _spread(betas, data_std, noise))


def _variance_remark(value: tuple[str, dict[str, float]]) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, measured = value
    best = min(measured, key=lambda name: abs(measured[name] - 0.25))
    verb = "as you predicted" if prediction == best else f"you predicted {prediction}"
    values = ", ".join(f"{name} gives {measured[name]:.3f}" for name in NAMES)
    return f"in 20 steps {values}; 0.25 is true. {best} comes closer ({verb})."


variance_experiment = Checker(
    chapter="ddpm",
    name="variance_experiment",
    title="Which variance?",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_variance_cases,
    mistakes=(
        Mistake(
            "the two values are exchanged.",
            _measured(lambda m: dict(zip(NAMES, reversed(m.values()), strict=True))),
        ),
        Mistake(
            "these are variances; measure standard deviations.",
            _measured(lambda m: {name: value**2 for name, value in m.items()}),
        ),
        Mistake(
            "noise is added after the last step too. At n = 1 add none.",
            _spread_with(lambda b, tilde, n: (b, tilde)),
        ),
        Mistake(
            "z is multiplied by the variance. It must be multiplied by its root.",
            _spread_with(lambda b, tilde, n: (b**2 * (n > 1), tilde**2)),
        ),
        Mistake(
            "both values are the spread of the data. Measure the spread of the samples.",
            lambda betas, std, samples: (NAMES[0], dict.fromkeys(NAMES, float(std))),
        ),
    ),
    remark=_variance_remark,
)

# 10 ve_euler_step


def _ve_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for s, s_next, shape in ((80.0, 60.0, (5, 2)), (2.0 + seed, 1.5, IMAGES), (0.7, 0.0, (5,))):
        x, (now, later) = s * draw(*shape), torch.tensor([s, s_next], dtype=torch.float64)
        score = -x / (1 + s**2)  # data N(0, I)
        noise = s * x / (1 + s**2)  # E[eps | x], and dx/ds = E[eps | x] as x = x0 + s * eps
        label = f"from s = {s:g} to {s_next:g}, data N(0, 1)"
        yield Case(label, (x, now, later, score), x + (later - now) * noise)


ve_euler_step = Checker(
    chapter="ddpm",
    name="ve_euler_step",
    title="Spot the bug: a step that circulates",
    kind="bug",
    difficulty=1,
    minutes=10,
    cases=with_single(_ve_cases),
    mistakes=(
        Mistake(
            "this is still the step with the bug. What is dx/ds, if x = x0 + s * eps and the "
            "score is -E[eps | x] / s?",
            lambda x, s, s_next, score: x + (s - s_next) * score,
        ),
        Mistake(
            "the sign is wrong: the score points to the data, and you walk to the data.",
            lambda x, s, s_next, score: x + (s_next - s) * s * score,
        ),
        Mistake(
            "the factor is taken at the end of the step. Euler's method looks at the start.",
            lambda x, s, s_next, score: x + (s - s_next) * s_next * score,
        ),
        Mistake(
            "this factor belongs to sigma squared as the time: d(s^2) = 2 s ds.",
            lambda x, s, s_next, score: x + (s - s_next) * 2 * s * score,
        ),
        Mistake(
            "s squared where s belongs: the score is -E[eps | x] / s, and dx/ds = E[eps | x].",
            lambda x, s, s_next, score: x + (s - s_next) * s**2 * score,
        ),
        Mistake(
            "half of it is missing: 1/2 g^2 with g^2 = d(s^2)/ds = 2 s.",
            lambda x, s, s_next, score: x + (s - s_next) * 0.5 * s * score,
        ),
    ),
)

CHECKERS = (
    q_sample,
    simple_loss,
    best_noise,
    faces_from_v,
    reverse_posterior,
    ancestral_step,
    v_weight,
    variance_experiment,
    ddim_invert,
    ve_euler_step,
)
