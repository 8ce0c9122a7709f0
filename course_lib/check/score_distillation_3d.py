"""Checks of the exercises on score distillation.

Right answers come from known axes, from derivatives by hand, from log-densities that torch
differentiates, from rays walked voxel by voxel and from solids of known volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_lib.applications.mesh import voxel_mesh
from course_lib.check.checker import Case, Checker, Mistake
from course_lib.check.questions import IMAGES, SHAPES, foretold, normal, per_sample

__all__ = ["CHECKERS"]

BATCHES = (*SHAPES[:2], (IMAGES, torch.float64, "two images, double precision"))
CLOUDS = (
    ((4, 2), torch.float32, "two coordinates, single precision"),
    ((3, 3), torch.float64, "as many samples as coordinates"),
    ((5, 1), torch.float64, "one coordinate"),
)


def _times(draw: Callable[..., Tensor], count: int) -> Tensor:
    """Times in (0.2, 0.9), one for each sample, in double precision."""
    return 0.2 + 0.7 * draw(count).sigmoid()


# 1 one_step_pull


def _pull_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        x, eps, u = (draw(*shape).to(dtype) for _ in range(3))
        t = _times(draw, shape[0]).to(dtype)
        yield Case(label, (x, eps, u, t), per_sample(t, x) * (u - (eps - x)))


def _pull(
    result: Callable[..., Tensor] = lambda x, xt, x0, eps, t: x - x0,
    state: Callable[..., Tensor] = lambda x, eps, t: (1 - t) * x + t * eps,
    data: Callable[..., Tensor] = lambda x, xt, u, t: xt - t * u,
    axes: Callable[[Tensor, Tensor], Tensor] = per_sample,
) -> Callable[..., Tensor]:
    """one_step_pull with another state, another denoised image or another difference."""

    def wrong(x: Tensor, eps: Tensor, u: Tensor, t: Tensor) -> Tensor:
        t = axes(t, x)
        xt = state(x, eps, t)
        return result(x, xt, data(x, xt, u, t), eps, t)

    return wrong


one_step_pull = Checker(
    chapter="score_distillation_3d",
    name="one_step_pull",
    title="Noise, denoise, and go there",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_pull_cases,
    mistakes=(
        Mistake(
            "the sign is turned. A gradient points away from where one wants to go: descent "
            "subtracts it.",
            _pull(lambda x, xt, x0, eps, t: x0 - x),
        ),
        Mistake(
            "this is the denoised image itself. The difference to x is asked for.",
            _pull(lambda x, xt, x0, eps, t: x0),
        ),
        Mistake(
            "the noisy state and x are mixed up: only x minus its own denoised image is asked "
            "for, and the noise must be added before it is removed.",
            _pull(lambda x, xt, x0, eps, t: xt - x0),
        ),
        Mistake(
            "the velocity leads from data to noise. To come back to the data, go against it.",
            _pull(data=lambda x, xt, u, t: xt + t * u),
        ),
        Mistake(
            "the way back to the data has the length t, for the data are at time 0.",
            _pull(data=lambda x, xt, u, t: xt - (1 - t) * u),
        ),
        Mistake(
            "the whole velocity is subtracted. The way back to the data has the length t.",
            _pull(data=lambda x, xt, u, t: xt - u),
        ),
        Mistake(
            "time is turned round: at t = 1 the state is pure noise.",
            _pull(state=lambda x, eps, t: t * x + (1 - t) * eps),
        ),
        Mistake(
            "this is the difference of the noises, predicted minus drawn. That of the images is "
            "asked for, a factor of t / (1 - t) away.",
            _pull(lambda x, xt, x0, eps, t: (1 - t) / t * (x - x0)),
        ),
        Mistake(
            "this is the difference of the velocities, predicted minus drawn. That of the images "
            "is asked for, a factor of t away.",
            _pull(lambda x, xt, x0, eps, t: (x - x0) / t),
        ),
        Mistake(
            "all images take the time of the first. Each has its own.",
            _pull(axes=lambda t, x: t[0]),
        ),
        Mistake(
            "the times of shape (B,) met the last axis. They belong to the first.",
            _pull(axes=lambda t, x: t),
        ),
    ),
)

# 2 expected_gradient


def _expected_cases(seed: int) -> Iterator[Case]:
    """Data with known axes and variances along them, so nothing has to be inverted."""
    draw = normal(seed)
    for shape, dtype, label in CLOUDS:
        t, x, mean = _times(draw, shape[0]), draw(*shape), draw(shape[1])
        axes = torch.linalg.qr(draw(shape[1], shape[1]))[0]
        variances = 2.0 * 0.3 ** torch.arange(shape[1]).double()
        for alpha, sigma, name in ((1 - t, t, "straight"), (t.cos(), t.sin(), "VP")):
            along = (x - mean) @ axes
            noisy = alpha[:, None] ** 2 * variances + sigma[:, None] ** 2
            right = (alpha * sigma)[:, None] * (along / noisy) @ axes.T
            cov = axes * variances @ axes.T
            args = tuple(v.to(dtype) for v in (x, alpha, sigma, mean, cov))
            yield Case(f"{name} path; {label}", args, right.to(dtype))
    point = mean.expand(5, 1)
    yield Case("at the mode", (point, alpha, sigma, mean, cov), torch.zeros(5, 1).double())


def _expected(
    factor: Callable[..., Tensor] = lambda a, s: a * s,
    noisy: Callable[..., Tensor] = lambda a, s, c, eye: a**2 * c + s**2 * eye,
    apart: Callable[..., Tensor] = lambda x, m, a: x - m,
    divide: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve,
) -> Callable[..., Tensor]:
    """expected_gradient with another factor, covariance or distance."""

    def wrong(x: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        a, s = alpha[:, None, None], sigma[:, None, None]
        matrix = noisy(a, s, cov, torch.eye(len(cov)).to(cov))
        away = apart(x, mean, alpha[:, None])[..., None]
        return (factor(a, s) * divide(matrix.expand(len(x), *cov.shape), away))[..., 0]

    return wrong


expected_gradient = Checker(
    chapter="score_distillation_3d",
    name="expected_gradient",
    title="The mean gradient of correlated data",
    kind="derivation",
    difficulty=2,
    minutes=20,
    cases=_expected_cases,
    mistakes=(
        Mistake(
            "the sign is turned: descent along your gradient leads away from the mode.",
            _expected(lambda a, s: -a * s),
        ),
        Mistake(
            "a factor of alpha is missing. The mean of the noisy state minus that of the noisy "
            "data has it.",
            _expected(lambda a, s: s),
        ),
        Mistake(
            "a factor of sigma is missing: this is minus the mean score, not the mean noise.",
            _expected(lambda a, s: a),
        ),
        Mistake("alpha and sigma are both missing as factors.", _expected(lambda a, s: 0 * a + 1)),
        Mistake(
            "only the variances of the coordinates are used. They are correlated.",
            _expected(noisy=lambda a, s, c, eye: a**2 * c * eye + s**2 * eye),
        ),
        Mistake(
            "the covariance is that of the data. The state is noisy.",
            _expected(noisy=lambda a, s, c, eye: c + 0 * a),
        ),
        Mistake(
            "the covariance of the data has lost its factor of alpha squared.",
            _expected(noisy=lambda a, s, c, eye: c + s**2 * eye),
        ),
        Mistake(
            "the standard deviation alpha stands where its square belongs.",
            _expected(noisy=lambda a, s, c, eye: a * c + s**2 * eye),
        ),
        Mistake(
            "sigma stands in the covariance where its square belongs.",
            _expected(noisy=lambda a, s, c, eye: a**2 * c + s * eye),
        ),
        Mistake(
            "the covariance multiplies. A score divides by it.",
            _expected(divide=torch.matmul),
        ),
        Mistake(
            "x is compared with the mean of the noisy data. But x is clean: both have the "
            "factor alpha, or none.",
            _expected(apart=lambda x, m, a: x - a * m),
        ),
        Mistake(
            "the noisy x is compared with the mean of the clean data: both have the factor alpha, "
            "or none.",
            _expected(apart=lambda x, m, a: a * x - m),
        ),
        Mistake(
            "one alpha is too many: it is in the factor in front, and in x and the mean again.",
            _expected(apart=lambda x, m, a: a * x - a * m),
        ),
        Mistake(
            "alpha and sigma are exchanged in the covariance.",
            _expected(noisy=lambda a, s, c, eye: s**2 * c + a**2 * eye),
        ),
        Mistake(
            "sigma squared is added to every entry of the covariance. The noise is independent in "
            "each coordinate, so it belongs on the diagonal alone.",
            _expected(noisy=lambda a, s, c, eye: a**2 * c + s**2),
        ),
        Mistake(
            "all samples take the time of the first. Each has its own.",
            lambda x, a, s, m, c: _expected()(x, a[:1].expand_as(a), s[:1].expand_as(s), m, c),
        ),
    ),
)

# 3 distil_views

PATTERN = 5.0


class _Views:
    """Two or more views of two parameters, with derivatives known by hand."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel()
        self.first = torch.linspace(-1, 1, size, dtype=dtype).reshape(shape)
        self.second = torch.cos(PATTERN * self.first)

    def __call__(self, theta: Tensor) -> Tensor:
        return torch.tanh(theta[0]) * self.first + theta[1] * self.second

    def slopes(self, theta: Tensor) -> Tensor:
        """The derivatives, shape (2, V, ...)."""
        return torch.stack([(1 - torch.tanh(theta[0]) ** 2) * self.first, self.second])


def _predict(xt: Tensor, labels: Tensor) -> Tensor:
    if not isinstance(labels, Tensor) or labels.shape != xt.shape[:1]:
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"predict wants a label for each image, (N,); got {got}")
    return torch.sin(xt) + per_sample(labels, xt) * xt / 2


def _distil_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, noises, dtype, label in (
        ((2, 3), 3, torch.float32, "two views of three pixels, three noises, single precision"),
        ((3, 1, 2, 2), 2, torch.float64, "three small images, two noises"),
        ((2, 1, 4, 4), 2, torch.float64, "two small images, two noises"),
    ):
        views, count = _Views(shape, dtype), noises * shape[0]
        theta, eps = draw(2).to(dtype), draw(count, *shape[1:]).to(dtype)
        t, labels = _times(draw, count).to(dtype), torch.arange(1, shape[0] + 1)
        x = views(theta).repeat_interleave(noises, 0)
        of_each = labels.repeat_interleave(noises)
        a, s = per_sample(t.cos(), x), per_sample(t.sin(), x)
        pull = _predict(a * x + s * eps, of_each) - eps
        slopes = views.slopes(theta).repeat_interleave(noises, 1)
        right = (slopes * pull).flatten(1).sum(1) / count
        yield Case(label, (theta, views, _predict, labels, eps, t.cos(), t.sin()), right)


def _distilled(
    loss: Callable[..., Tensor] = lambda x, xt, out, eps: ((out - eps).detach() * x).sum(),
    repeat: Callable[[Tensor, int], Tensor] = lambda x, n: x.repeat_interleave(n, 0),
    mix: Callable[..., Tensor] = lambda x, eps, a, s: a * x + s * eps,
    total: Callable[[Tensor, Tensor], Tensor] = lambda loss, x: loss / len(x),
    tell: Callable[[Tensor, int], Tensor] = lambda labels, n: labels.repeat_interleave(n),
) -> Callable[..., Tensor]:
    """distil_views with another loss, another order of views or labels, or another state."""

    def wrong(
        theta: Tensor, draw: Any, predict: Any, labels: Tensor, eps: Tensor, a: Tensor, s: Tensor
    ) -> Tensor:
        theta = theta.detach().clone().requires_grad_()
        views = draw(theta)
        noises = len(eps) // len(views)
        x, cond = repeat(views, noises), tell(labels, noises)
        xt = mix(x, eps, per_sample(a, x), per_sample(s, x))
        value = total(loss(x, xt, predict(xt, cond), eps), x)
        return torch.autograd.grad(value, theta)[0]

    return wrong


def _through(x: Tensor, xt: Tensor, out: Tensor, eps: Tensor) -> Tensor:
    return (out - eps).square().sum() / 2


def _other_order(x: Tensor, n: int) -> Tensor:
    return x.repeat(n, *[1] * (x.ndim - 1))


distil_views = Checker(
    chapter="score_distillation_3d",
    name="distil_views",
    title="Spot the bug: through the network",
    kind="bug",
    difficulty=2,
    minutes=20,
    cases=_distil_cases,
    mistakes=(
        Mistake("this is still the code with the bugs.", _distilled(_through, _other_order)),
        Mistake(
            "one of two bugs is left: the gradient still runs through the network, so its "
            "Jacobian is in it.",
            _distilled(_through),
        ),
        Mistake(
            "one of two bugs is left: views and labels are repeated in different orders, so an "
            "image gets the label of another view.",
            _distilled(repeat=_other_order),
        ),
        Mistake(
            "views and labels agree with each other now, but not with the noises: these are "
            "listed view by view.",
            _distilled(repeat=_other_order, tell=_other_order),
        ),
        Mistake(
            "the views are in the right order, but the labels are not: those of one view belong "
            "together.",
            _distilled(tell=_other_order),
        ),
        Mistake(
            "the difference is not held fixed, so a part of the gradient still runs through the "
            "network.",
            _distilled(lambda x, xt, out, eps: ((out - eps) * x).sum()),
        ),
        Mistake(
            "the noisy images stand in the surrogate in place of the clean ones. So alpha is once "
            "too often in the gradient.",
            _distilled(lambda x, xt, out, eps: ((out - eps).detach() * xt).sum()),
        ),
        Mistake(
            "this is a sum over the images. Divide by their number.",
            _distilled(total=lambda loss, x: loss),
        ),
        Mistake(
            "the sum over the images is divided by the number of views. Each view is used several "
            "times: divide by the number of images.",
            _distilled(total=lambda loss, x: loss / x.unique(dim=0).shape[0]),
        ),
        Mistake(
            "the pixels are averaged too. Divide by the number of images alone.",
            _distilled(total=lambda loss, x: loss / x.numel()),
        ),
        Mistake(
            "the noise is not subtracted. On average over the noise that is the same gradient; "
            "for this noise it is not.",
            _distilled(lambda x, xt, out, eps: (out.detach() * x).sum()),
        ),
        Mistake(
            "the sign is turned: it is the prediction minus the noise.",
            _distilled(lambda x, xt, out, eps: ((eps - out).detach() * x).sum()),
        ),
        Mistake(
            "there is a half in front. The surrogate is linear in the images, so none is needed.",
            _distilled(lambda x, xt, out, eps: ((out - eps).detach() * x).sum() / 2),
        ),
        Mistake(
            "alpha and sigma are exchanged.",
            _distilled(mix=lambda x, eps, a, s: s * x + a * eps),
        ),
    ),
)

# 4 particle_noise


def _particle_cases(seed: int) -> Iterator[Case]:
    """The score by differentiation of the log-density."""
    draw = normal(seed)
    for (count, size), dtype, label in CLOUDS:
        t = _times(draw, count)
        for n, name in ((4, "four particles"), (1, "one particle")):
            xt, known = draw(count, size).requires_grad_(), draw(n, size)
            gaps = xt[:, None] - t.cos()[:, None, None] * known
            logs = (-0.5 * gaps.square().sum(2) / t.sin()[:, None] ** 2).logsumexp(1)
            (score,) = torch.autograd.grad(logs.sum(), xt)
            args = (xt.detach(), known, t.cos(), t.sin())
            right = -t.sin()[:, None] * score
            yield Case(f"{name}; {label}", tuple(v.to(dtype) for v in args), right.to(dtype))
    known, t = draw(3, 2), torch.full((2,), 0.02).double()
    xt = 3 + known[:2]  # far away from all, so the nearest takes all of the weight
    gaps = xt[:, None] - t.cos()[:, None, None] * known
    right = gaps[range(2), gaps.norm(dim=2).argmin(1)] / t.sin()[:, None]
    yield Case("little noise, far from all particles", (xt, known, t.cos(), t.sin()), right)


def _of_particles(
    logits: Callable[..., Tensor] = lambda far, s: -far.square() / (2 * s**2),
    weigh: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(1),
    result: Callable[..., Tensor] = lambda mean, xt, a, s: (xt - a * mean) / s,
    near: Callable[..., Tensor] = lambda known, a: a[:, None] * known,
) -> Callable[..., Tensor]:
    """particle_noise with other weights, or another result of the weighted mean."""

    def wrong(xt: Tensor, particles: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        a, s = alpha[:, None], sigma[:, None]
        far = (xt[:, None] - near(particles, a)).norm(dim=2)
        return result(weigh(logits(far, s)) @ particles, xt, a, s)

    return wrong


particle_noise = Checker(
    chapter="score_distillation_3d",
    name="particle_noise",
    title="The score of finitely many particles",
    kind="implementation",
    difficulty=2,
    minutes=20,
    cases=_particle_cases,
    mistakes=(
        Mistake(
            "this is the mean of the particles, the prediction of the data. Turn it into the "
            "noise.",
            _of_particles(result=lambda mean, xt, a, s: mean),
        ),
        Mistake(
            "this is the score. The noise is minus sigma times as much.",
            _of_particles(result=lambda mean, xt, a, s: (a * mean - xt) / s**2),
        ),
        Mistake(
            "the sign of the noise is turned.",
            _of_particles(result=lambda mean, xt, a, s: (a * mean - xt) / s),
        ),
        Mistake(
            "the noise is not divided by sigma.",
            _of_particles(result=lambda mean, xt, a, s: xt - a * mean),
        ),
        Mistake(
            "this is minus the score. The noise is sigma times as much.",
            _of_particles(result=lambda mean, xt, a, s: (xt - a * mean) / s**2),
        ),
        Mistake(
            "far from all particles every weight becomes 0, and 0 / 0 is no number. Only the "
            "differences of the exponents matter, so the largest can be taken off first, as a "
            "softmax does.",
            _of_particles(weigh=lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True)),
        ),
        Mistake(
            "in the noise the particles have lost their factor alpha.",
            _of_particles(result=lambda mean, xt, a, s: (xt - mean) / s),
        ),
        Mistake(
            "in the weights the particles have lost their factor alpha.",
            _of_particles(near=lambda known, a: known.expand(len(a), *known.shape)),
        ),
        Mistake(
            "in the weights a half is missing before the squared distance.",
            _of_particles(lambda far, s: -far.square() / s**2),
        ),
        Mistake(
            "the squared distance is divided by sigma. Its square belongs there.",
            _of_particles(lambda far, s: -far.square() / (2 * s)),
        ),
        Mistake(
            "the squares of the coordinates are averaged in the weights. A squared distance is "
            "their sum.",
            lambda xt, known, a, s: _of_particles(
                lambda far, s: -far.square() / (2 * s**2 * known.shape[1])
            )(xt, known, a, s),
        ),
        Mistake(
            "the distance in the weights is not squared.",
            _of_particles(lambda far, s: -far / (2 * s**2)),
        ),
        Mistake(
            "alpha and sigma are exchanged.",
            lambda xt, particles, alpha, sigma: _of_particles()(xt, particles, sigma, alpha),
        ),
        Mistake(
            "all states take the time of the first. Each has its own.",
            lambda xt, particles, a, s: _of_particles()(
                xt, particles, a[:1].expand_as(a), s[:1].expand_as(s)
            ),
        ),
        Mistake(
            "the weights are taken over the samples. For each sample those of the particles sum "
            "to one.",
            _of_particles(weigh=lambda logits: logits.softmax(0)),
        ),
        Mistake(
            "every particle counts alike. Those that explain the state better count more.",
            _of_particles(weigh=lambda logits: torch.ones_like(logits) / logits.shape[1]),
        ),
        Mistake(
            "only the nearest particle counts. The others may have led to the state, too.",
            _of_particles(weigh=lambda logits: (logits == logits.amax(1, True)).to(logits)),
        ),
    ),
)

# 5 best_control


def _control_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    for shape, dtype, label in BATCHES:
        eps = draw(*shape)
        predicted = 0.6 * eps + 0.4 * draw(*shape) + 1
        kappa = torch.linalg.lstsq(eps.reshape(-1, 1), predicted.reshape(-1, 1)).solution[0, 0]
        mean = predicted.mean(0) - kappa * eps.mean(0)
        yield Case(label, (predicted.to(dtype), eps.to(dtype)), (kappa.to(dtype), mean.to(dtype)))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (b * b).sum()


def _controlled(
    kappa: Callable[[Tensor, Tensor], Tensor] = _ratio,
    mean: Callable[..., Tensor] = lambda p, e, k: (p - k * e).mean(0),
) -> Callable[..., tuple[Tensor, Tensor]]:
    """best_control with another coefficient, or another mean."""

    def wrong(predicted: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        k = kappa(predicted, eps)
        return k, mean(predicted, eps, k)

    return wrong


best_control = Checker(
    chapter="score_distillation_3d",
    name="best_control",
    title="The best control variate",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_control_cases,
    mistakes=(
        Mistake(
            "the coefficient is 1, as in score distillation. The best one is asked for.",
            _controlled(lambda p, e: torch.ones_like(p.sum())),
        ),
        Mistake(
            "the fraction is upside down.",
            _controlled(lambda p, e: 1 / _ratio(p, e)),
        ),
        Mistake(
            "nothing is subtracted: the coefficient is 0.",
            _controlled(lambda p, e: torch.zeros_like(p.sum())),
        ),
        Mistake(
            "the square of the noise is taken for 1, as it is in the mean over all noise. Take "
            "the squares of these draws: numerator and denominator then vary together.",
            _controlled(lambda p, e: (p * e).mean()),
        ),
        Mistake(
            "the mean over the draws is taken off first. The line goes through the origin, for "
            "the mean of the noise is known to be zero.",
            _controlled(lambda p, e: _ratio(p - p.mean(0), e - e.mean(0))),
        ),
        Mistake(
            "the mean over draws and pixels is taken off first. The line goes through the origin, "
            "for the mean of the noise is known to be zero.",
            _controlled(lambda p, e: _ratio(p - p.mean(), e - e.mean())),
        ),
        Mistake(
            "the product is divided by the square of the prediction. The noise is what is "
            "subtracted, so its square belongs below.",
            _controlled(lambda p, e: _ratio(e, p)),
        ),
        Mistake(
            "this is a correlation: the root of both squares stands below.",
            _controlled(lambda p, e: (p * e).sum() / (p.square().sum() * e.square().sum()).sqrt()),
        ),
        Mistake(
            "the fractions are averaged. Average above and below first, then divide.",
            _controlled(
                lambda p, e: ((p * e).flatten(1).sum(1) / e.square().flatten(1).sum(1)).mean()
            ),
        ),
        Mistake(
            "the coefficient is right. The mean is that of the predictions alone.",
            _controlled(mean=lambda p, e, k: p.mean(0)),
        ),
        Mistake(
            "the coefficient is right. In the mean the whole noise is subtracted.",
            _controlled(mean=lambda p, e, k: (p - e).mean(0)),
        ),
        Mistake(
            "the coefficient is right. In the mean the noise is added.",
            _controlled(mean=lambda p, e, k: (p + k * e).mean(0)),
        ),
        Mistake(
            "the coefficient is right. The draws are added: divide by their number.",
            _controlled(mean=lambda p, e, k: (p - k * e).sum(0)),
        ),
        Mistake(
            "the mean runs over pixels too. One image is asked for.",
            _controlled(mean=lambda p, e, k: (p - k * e).mean()),
        ),
    ),
)

# 6 composite


def _composite_cases(seed: int) -> Iterator[Case]:
    """Rays walked piece by piece."""
    draw = normal(seed)
    for shape, dtype, label in (
        ((4, 6), torch.float32, "four rays of six pieces, single precision"),
        ((3, 3), torch.float64, "as many rays as pieces"),
        ((2, 9), torch.float64, "two rays of nine pieces"),
    ):
        density, colour = draw(*shape).exp(), draw(*shape).sigmoid()
        step, light = 0.3 + 0.1 * seed, torch.ones(shape[0]).double()
        seen = torch.zeros_like(light)
        for rho, c in zip(density.T, colour.T, strict=True):
            kept = torch.exp(-rho * step)
            seen = seen + light * (1 - kept) * c
            light = light * kept
        yield Case(label, (density.to(dtype), colour.to(dtype), step), seen.to(dtype))


def _composed(
    before: Callable[[Tensor], Tensor] = lambda tau: tau.cumsum(1) - tau,
    share: Callable[[Tensor], Tensor] = lambda tau: 1 - torch.exp(-tau),
    depth: Callable[[Tensor, float], Tensor] = lambda rho, step: rho * step,
    total: Callable[[Tensor], Tensor] = lambda light: light.sum(1),
) -> Callable[..., Tensor]:
    """composite with another depth before a piece, or another share of light there."""

    def wrong(density: Tensor, colour: Tensor, step: float) -> Tensor:
        tau = depth(density, step)
        return total(torch.exp(-before(tau)) * share(tau) * colour)

    return wrong


composite = Checker(
    chapter="score_distillation_3d",
    name="composite",
    title="A ray through coloured matter",
    kind="implementation",
    difficulty=2,
    minutes=15,
    cases=_composite_cases,
    mistakes=(
        Mistake(
            "a piece hides itself: its own depth is in the transmittance. Only what lies before "
            "it counts.",
            _composed(lambda tau: tau.cumsum(1)),
        ),
        Mistake(
            "the ray is walked from the far end. The first piece is the nearest.",
            _composed(lambda tau: tau.flip(1).cumsum(1).flip(1) - tau),
        ),
        Mistake(
            "nothing hides anything: the transmittance is missing.",
            _composed(lambda tau: torch.zeros_like(tau)),
        ),
        Mistake(
            "only the piece just before hides anything. All those before do.",
            _composed(lambda tau: tau.roll(1, 1).index_fill(1, torch.tensor([0]), 0.0)),
        ),
        Mistake(
            "the depths are added over the rays. Add them along each ray.",
            _composed(lambda tau: tau.cumsum(0) - tau),
        ),
        Mistake(
            "the length of a piece is missing in the transmittance alone.",
            lambda density, colour, step: _composed(lambda tau: (tau.cumsum(1) - tau) / step)(
                density, colour, step
            ),
        ),
        Mistake(
            "the length of a piece is missing in the share of light alone.",
            lambda density, colour, step: _composed(share=lambda tau: 1 - torch.exp(-tau / step))(
                density, colour, step
            ),
        ),
        Mistake(
            "the colours are missing.",
            lambda density, colour, step: _composed()(density, torch.ones_like(colour), step),
        ),
        Mistake(
            "the share of light of a piece is its depth. That holds for thin matter only.",
            _composed(share=lambda tau: tau),
        ),
        Mistake(
            "the share of light that a piece sends is exchanged for what it lets pass.",
            _composed(share=lambda tau: torch.exp(-tau)),
        ),
        Mistake(
            "every piece sends all of the light that reaches it, however thin it is.",
            _composed(share=lambda tau: torch.ones_like(tau)),
        ),
        Mistake(
            "the length of a piece is missing.",
            _composed(depth=lambda rho, step: rho),
        ),
        Mistake(
            "the density is divided by the length. Depth is density times length.",
            _composed(depth=lambda rho, step: rho / step),
        ),
        Mistake(
            "this is a mean over the pieces. Light adds up.",
            _composed(total=lambda light: light.mean(1)),
        ),
    ),
)

# 7 enclosed_volume

TETRAHEDRON = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))


def _volume_cases(seed: int) -> Iterator[Case]:
    draw = normal(seed)
    sides, shift = draw(3).exp(), 3 * draw(3)
    cube, triangles = voxel_mesh(torch.ones(1, 1, 1, dtype=torch.bool), size=1.0)
    box = cube * sides
    volume = sides.prod()
    yield Case("a box with a corner at the origin", (box, triangles), volume)
    yield Case("a box far from the origin", (box + shift, triangles), volume)
    yield Case("a box that is inside out", (box + shift, triangles.flip(1)), -volume)
    points = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double() * sides + shift
    yield Case("a tetrahedron", (points, torch.tensor(TETRAHEDRON)), volume / 6)
    single = (box + shift).float(), triangles
    yield Case("a box, single precision", single, volume.float(), 1e-3)


def _enclosed(
    value: Callable[..., Tensor] = lambda a, b, c: (a * torch.linalg.cross(b, c)).sum(1),
    total: Callable[[Tensor], Tensor] = lambda parts: parts.sum() / 6,
) -> Callable[..., Tensor]:
    """enclosed_volume with another part for each triangle, or another total."""

    def wrong(vertices: Tensor, triangles: Tensor) -> Tensor:
        return total(value(*vertices[triangles].unbind(1)))

    return wrong


def _area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.linalg.cross(b - a, c - a).norm(dim=1)


enclosed_volume = Checker(
    chapter="score_distillation_3d",
    name="enclosed_volume",
    title="The volume inside a surface",
    kind="implementation",
    difficulty=1,
    minutes=10,
    cases=_volume_cases,
    mistakes=(
        Mistake(
            "each part is made positive. Parts that the origin sees from outside must count "
            "negative.",
            _enclosed(total=lambda parts: parts.abs().sum() / 6),
        ),
        Mistake(
            "the result is made positive. A surface that is inside out should show by its sign.",
            _enclosed(total=lambda parts: (parts.sum() / 6).abs()),
        ),
        Mistake(
            "divided by 3, as if the product were the volume over an area. It is that of a "
            "parallelepiped, six times a tetrahedron.",
            _enclosed(total=lambda parts: parts.sum() / 3),
        ),
        Mistake(
            "the factor of one sixth is missing.",
            _enclosed(total=lambda parts: parts.sum()),
        ),
        Mistake("this is a mean over the triangles.", _enclosed(total=lambda p: p.mean() / 6)),
        Mistake(
            "this is the area of the surface.",
            _enclosed(_area, lambda parts: parts.sum() / 2),
        ),
        Mistake(
            "the sign is turned: two of the corners are exchanged in the product.",
            _enclosed(lambda a, b, c: (a * torch.linalg.cross(c, b)).sum(1)),
        ),
    ),
)

# 8 spread_experiment

OUTCOMES = ("nothing", "half", "all")
Spread = tuple[str, dict[str, Tensor]]


def _spread_cases(seed: int) -> Iterator[Case]:
    """Along a line, where mean and deviation of the particles follow a recursion of their own."""
    draw = normal(seed)
    for mean, std, alpha, sigma, steps, label in (
        (0.5, 1.0, 0.8, 0.6, 400, "data of deviation 1"),
        (0.5, 1.0, 0.8, 0.6, 5, "data of deviation 1, five steps"),
        (-1.0, 0.4, 0.6, 0.8, 10, "narrow data, much noise, ten steps"),
        (2.0, 2.0, 0.9, 0.3, 20, "wide data, little noise, twenty steps"),
    ):
        x, rate = 1.5 * draw(50), 0.5
        left, centre, wide = x.std(correction=0), x.mean(), x.std(correction=0)
        pull = alpha * sigma / (alpha**2 * std**2 + sigma**2)
        for _ in range(steps):
            push = alpha * sigma / (alpha**2 * wide**2 + sigma**2)
            left = left * (1 - rate * pull)
            wide = wide * (1 - rate * (pull - push))
            centre = centre - rate * pull * (centre - mean)
        answer = (frozenset(OUTCOMES), {"sds": left, "vsd": wide})
        yield Case(label, (x, mean, std, alpha, sigma, rate, steps), answer, tolerance=1e-6)


def _spreading(
    near: Callable[[Tensor], Tensor] = lambda x: x.mean(),
    variance: Callable[[Tensor], Tensor] = lambda x: x.var(correction=0),
    gradient: Callable[..., Tensor] = lambda p, q: p - q,
    measure: Callable[[Tensor], Tensor] = lambda x: x.std(correction=0),
    more: int = 0,
    alone: Callable[[Tensor, Tensor], Tensor] = lambda p, q: p,
    noisy: Callable[..., Any] = lambda v, a, s: a**2 * v + s**2,
    fresh: bool = True,
) -> Callable[..., Spread]:
    """spread_experiment with another fit of the particles, gradient, measure or start."""

    def wrong(
        x: Tensor, mean: float, std: float, a: float, s: float, rate: float, steps: int
    ) -> Spread:
        found, y = {}, x
        for name, rule in (("sds", alone), ("vsd", gradient)):
            y = x if fresh else y
            for _ in range(steps + more):
                p = a * s * (y - mean) / noisy(std**2, a, s)
                q = a * s * (y - near(y)) / noisy(variance(y), a, s)
                y = y - rate * rule(p, q)
            found[name] = measure(y)
        return OUTCOMES[0], found

    return wrong


def _spread_remark(value: Spread) -> str:
    """Hold the prediction against the measurement; a wrong prediction is no failure."""
    prediction, found = value
    verb = foretold(prediction, "nothing")
    return (
        f"the data have deviation 1. Score distillation leaves {found['sds']:.3f} ({verb}), the "
        f"variational form {found['vsd']:.3f}."
    )


spread_experiment = Checker(
    chapter="score_distillation_3d",
    name="spread_experiment",
    title="What is left of the spread",
    kind="experiment",
    difficulty=2,
    minutes=20,
    cases=_spread_cases,
    mistakes=(
        Mistake(
            "these are variances. The standard deviation is asked for.",
            _spreading(measure=lambda x: x.var(correction=0)),
        ),
        Mistake(
            "the standard deviation divides by N - 1 here. Divide by N.",
            _spreading(measure=lambda x: x.std()),
        ),
        Mistake(
            "the fit of the particles divides by N - 1. Divide by N.",
            _spreading(variance=lambda x: x.var()),
        ),
        Mistake(
            "the fit of the particles and the deviation both divide by N - 1. Divide by N.",
            _spreading(variance=lambda x: x.var(), measure=lambda x: x.std()),
        ),
        Mistake(
            "there is one step too few.",
            _spreading(more=-1),
        ),
        Mistake(
            "there is one step too many.",
            _spreading(more=1),
        ),
        Mistake(
            "there are always 400 steps. Their number is an argument.",
            lambda x, m, std, a, s, rate, steps: _spreading()(x, m, std, a, s, rate, 400),
        ),
        Mistake(
            "the variational form starts where score distillation ended. Both start from the "
            "given particles.",
            _spreading(fresh=False),
        ),
        Mistake(
            "alpha and sigma are exchanged.",
            lambda x, m, std, a, s, rate, steps: _spreading()(x, m, std, s, a, rate, steps),
        ),
        Mistake(
            "the factor alpha sigma in front is missing.",
            lambda x, m, std, a, s, rate, steps: _spreading()(
                x, m, std, a, s, rate / (a * s), steps
            ),
        ),
        Mistake(
            "in the noisy variances alpha has lost its square.",
            _spreading(noisy=lambda v, a, s: a * v + s**2),
        ),
        Mistake(
            "in the noisy variances the factor of alpha squared is missing.",
            _spreading(noisy=lambda v, a, s: v + s**2),
        ),
        Mistake(
            "the values of the two rules are exchanged.",
            _spreading(gradient=lambda p, q: p, alone=lambda p, q: p - q),
        ),
        Mistake(
            "the particles are fitted once, at the start. They move, so fit them in each step.",
            lambda x, *args: _spreading(
                near=lambda y: x.mean(), variance=lambda y: x.var(correction=0)
            )(x, *args),
        ),
        Mistake(
            "the score of the particles is added. It is subtracted, and so pushes them apart.",
            _spreading(gradient=lambda p, q: p + q),
        ),
        Mistake(
            "the values of score distillation are right. In the variational form only the score "
            "of the particles is left.",
            _spreading(gradient=lambda p, q: -q),
        ),
        Mistake(
            "both rules are the same here: the variational form subtracts the score of the "
            "particles.",
            _spreading(gradient=lambda p, q: p),
        ),
        Mistake(
            "both rules are the same here: score distillation knows nothing of the other "
            "particles.",
            _spreading(alone=lambda p, q: p - q),
        ),
        Mistake(
            "the deviation of the particles is where their variance belongs.",
            _spreading(variance=lambda x: x.std(correction=0)),
        ),
        Mistake(
            "the particles are clean here: add noise to both distributions, alpha and sigma say "
            "how much.",
            _spreading(noisy=lambda v, a, s: v),
        ),
    ),
    remark=_spread_remark,
)

CHECKERS = (
    one_step_pull,
    expected_gradient,
    distil_views,
    particle_noise,
    best_control,
    composite,
    enclosed_volume,
    spread_experiment,
)
