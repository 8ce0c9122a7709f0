"""Guidance: denoisers that want a condition more, or less, than the model alone does.

Each rule takes a :class:`~course_lib.denoisers.Denoiser` and is one, so every sampler takes it.
In classifier-free guidance and with negative prompts two predictions are combined with weights
that sum to one. Such a combination is the same in every face, since all faces are affine in each
other: it does not matter whether the model predicts noise, data, v or velocity.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser, check_gradients
from course_lib.paths import Face, check_times, expand, shared_time

__all__ = [
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "NegativePrompt",
    "cosine_schedule",
    "linear_schedule",
]

Schedule = Callable[[Tensor], Tensor]
"""``schedule(t) -> (B,)``, the guidance scale at times t of shape (B,)."""


def linear_schedule(start: float, end: float) -> Schedule:
    """A scale that goes from ``start`` at t = 1, where sampling begins, to ``end`` at t = 0."""
    return lambda t: end + (start - end) * t


def cosine_schedule(start: float, end: float) -> Schedule:
    """The same from ``start`` at t = 1 to ``end`` at t = 0, along half a cosine.

    Wang et al., 2024, "Analysis of Classifier-Free Guidance Weight Schedulers".
    """
    return lambda t: end + (start - end) * (1 - torch.cos(math.pi * t)) / 2


class _Guidance(Denoiser):
    """A denoiser around another one: on its path, in its face."""

    def __init__(self, denoiser: Denoiser, scale: float | Schedule):
        super().__init__()
        check_denoiser(denoiser)
        if not isinstance(scale, Real) and not callable(scale):
            raise TypeError(
                f"scale must be a number or a function of t; got {type(scale).__name__}"
            )
        if isinstance(scale, Real) and not math.isfinite(scale):
            raise ValueError(f"scale must be finite; got {scale}")
        self.denoiser, self.path, self.predicts = denoiser, denoiser.path, denoiser.predicts
        self.scale = scale

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The guided prediction in the face of the inner denoiser, shape (B, ...)."""
        return self._face(self.predicts, xt, t, cond)

    def encode_condition(self, cond: Any) -> Any:
        """As the inner denoiser encodes it."""
        return self.denoiser.encode_condition(cond)

    def null_condition(self, cond: Any) -> Any:
        """That of the inner denoiser."""
        return self.denoiser.null_condition(cond)

    def _scale_at(self, t: Tensor) -> Tensor:
        """The scale of each sample, shape (B,)."""
        if not callable(self.scale):
            return torch.full_like(t, float(self.scale))
        scale = self.scale(t)
        if not isinstance(scale, Tensor) or scale.shape != t.shape:
            got = tuple(scale.shape) if isinstance(scale, Tensor) else type(scale).__name__
            raise ValueError(f"scale(t) must have the shape of t, {tuple(t.shape)}; got {got}")
        if not bool(scale.isfinite().all()):
            raise ValueError(f"scale(t) must be finite; got {scale.tolist()} at t = {t.tolist()}")
        return scale


class ClassifierFreeGuidance(_Guidance):
    """``D_null + s (D_cond - D_null)``: away from what the model makes without the condition.

    s = 1 is the conditional model, s = 0 the unconditional one, and s > 1 exaggerates the
    condition. Ho & Salimans (2022, eq. 6) count w = s - 1. The rule holds for every face alike.

    Both predictions come from one call of the denoiser with a batch of 2B. Where s is exactly 1
    for all samples, or exactly 0, only the one that is needed is computed, and given as it is.

    Guided predictions grow with s, and with them the contrast of images. ``rescale`` (Lin et
    al., 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 14-16) takes
    the part phi of the way back to the standard deviation that the conditional data prediction
    has over the numbers of a sample. With it the rule is no longer affine in the predictions.

    Args:
        denoiser: the model, trained with and without conditions
            (:class:`~course_lib.objectives.ConditionDropout`).
        scale: s, a number, or a function of times (B,) that gives s for each, (B,).
        null_cond: the condition that means none, made like a condition: B rows, or one for all;
            by default ``denoiser.null_condition(cond)``.
        interval: times (low, high), both included, outside of which s is 1
            (Kynkaanniemi et al., 2024, "Applying Guidance in a Limited Interval").
        rescale: phi, in [0, 1].

    Raises:
        TypeError: if ``denoiser`` is a bare network, or the scale neither number nor function.
        ValueError: if an option is out of range; and, from a face, if there is no condition, or
            shapes do not fit.
    """

    _other = "null_cond"

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Schedule,
        null_cond: Any = None,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ):
        super().__init__(denoiser, scale)
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"interval must be times 0 <= low <= high <= 1; got {interval}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1]; got {rescale}")
        self.null_cond, self.interval, self.rescale = null_cond, interval, rescale

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        _check(self, xt, t, cond)
        cond = self.encode_condition(cond)
        cond, scale = _rows(cond, cond, len(xt), "cond"), self._scale_at(t)
        if bool((scale == 1).all()):
            return getattr(self.denoiser, target)(xt, t, cond)
        null = self.denoiser.null_condition(cond) if self.null_cond is None else self.null_cond
        null = _rows(self.encode_condition(null), cond, len(xt), self._other)
        if bool((scale == 0).all()) and not self.rescale:
            return getattr(self.denoiser, target)(xt, t, null)
        face = getattr(self.denoiser, "data" if self.rescale else target)
        both = face(torch.cat([xt, xt]), _twice(t), _join(cond, null))
        with_cond, without = both.chunk(2)
        # lerp, because it is exact at 0 and 1, for samples that have another scale than others
        guided = torch.lerp(without, with_cond, expand(scale.to(both), xt))
        if not self.rescale:
            return guided
        guided = _rescaled(guided, with_cond, self.rescale)
        return self.path.convert(guided, xt, t, "data", target)

    def _scale_at(self, t: Tensor) -> Tensor:
        low, high = self.interval
        return torch.where((t >= low) & (t <= high), super()._scale_at(t), 1.0)


class NegativePrompt(ClassifierFreeGuidance):
    """``D_neg + s (D_pos - D_neg)``: towards one condition and away from another.

    Classifier-free guidance with the negative condition in the place of none. The weights s and
    1 - s sum to one; ``eps_pos - w eps_neg``, which circulates, does not keep even the scale of
    the samples.

    Args:
        denoiser: the model.
        negative: what to lead away from, made like a condition: B rows, or one for all samples.
        scale: as for :class:`ClassifierFreeGuidance`, and so are the others.
        interval: times outside of which the positive condition alone counts.
        rescale: phi, in [0, 1].

    Raises:
        TypeError: as for :class:`ClassifierFreeGuidance`.
        ValueError: likewise, and if ``negative`` is None.
    """

    _other = "negative"

    def __init__(
        self,
        denoiser: Denoiser,
        negative: Any,
        scale: float | Schedule,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ):
        if negative is None:
            raise ValueError("negative must be a condition; None: use ClassifierFreeGuidance")
        super().__init__(denoiser, scale, negative, interval=interval, rescale=rescale)


class ClassifierGuidance(_Guidance):
    """``score + s grad_x log p(c | x_t)``: led by a classifier of noisy samples.

    Dhariwal & Nichol (2021, section 4 and algorithm 1). The denoiser itself is asked without a
    condition. With the exact classifier this is, by Bayes, classifier-free guidance of scale s.

    The data prediction changes by sigma^2 / alpha times the gradient. Where alpha = 0 that factor
    is infinite and the exact gradient 0; their product is taken a hair below that time. The
    gradient of a learned classifier is not quite 0 there, and samples blow up: begin where alpha
    is well above 0, with ``ts=uniform_grid(path, steps, t_max=0.97)``, say.

    Args:
        denoiser: the model of p(x).
        log_prob: ``log_prob(xt, t, cond) -> (B,)``, log p(c | x_t), differentiable in x_t.
        scale: s, a number, or a function of times (B,) that gives s for each, (B,).

    Raises:
        TypeError: if ``denoiser`` is a bare network, ``log_prob`` no function, or the scale
            neither number nor function.
        ValueError: if the scale is not finite; and, from a face, if there is no condition,
            ``log_prob`` returns another shape than (B,) or does not depend on x_t, or the call
            stands inside ``torch.inference_mode()``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[[Tensor, Tensor, Any], Tensor],
        scale: float | Schedule,
    ):
        super().__init__(denoiser, scale)
        if not callable(log_prob):
            raise TypeError(
                f"log_prob must be a function (xt, t, cond) -> (B,); got {type(log_prob).__name__}"
            )
        self.log_prob = log_prob

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        _check(self, xt, t, cond)
        below, no_data = t, self.path.alpha(t) == 0
        if bool(no_data.any()):  # rounding in the gradient against the distance of the limit
            below = torch.where(no_data, t - torch.finfo(t.dtype).eps ** 0.5, t)
        step = expand(self._scale_at(t).to(xt), xt) * self._gradient(xt, below, cond)
        # A face is a x_t + b score: at x_t = 0 the conversion gives what the step amounts to.
        shift = self.path.convert(step, torch.zeros_like(xt), below, "score", target)
        return getattr(self.denoiser, target)(xt, t) + shift

    def _gradient(self, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The gradient of log p(c | x_t) at x_t, also where torch records no gradients."""
        check_gradients("ClassifierGuidance")
        recording = torch.is_grad_enabled()  # log_likelihood differentiates once more
        with torch.enable_grad():
            x = xt if xt.requires_grad else xt.detach().requires_grad_()
            log_prob = self.log_prob(x, t, cond)
            if log_prob.shape != t.shape or not log_prob.requires_grad:
                raise ValueError(
                    f"log_prob must return shape {tuple(t.shape)}, one number a sample, and depend "
                    f"on x_t; got {tuple(log_prob.shape)}"
                    + ("" if log_prob.requires_grad else ", without gradient")
                )
            return torch.autograd.grad(log_prob.sum(), x, create_graph=recording)[0]


def _check(guidance: Denoiser, xt: Tensor, t: Tensor, cond: Any) -> None:
    check_times(t, xt)
    if cond is None:
        name = type(guidance).__name__
        raise ValueError(f"{name} needs a condition: give cond, such as labels (B,)")


def _rescaled(guided: Tensor, with_cond: Tensor, phi: float) -> Tensor:
    """Lin et al., 2024, eq. 14-16, with standard deviations over the numbers of each sample."""
    std_cond, std_guided = (v.flatten(1).std(1, correction=0) for v in (with_cond, guided))
    factor = torch.where(std_guided > 0, std_cond / std_guided, 1.0)  # a constant stays one
    return expand(phi * factor + (1 - phi), guided) * guided


def _twice(t: Tensor) -> Tensor:
    """Each time twice, shape (2B,); expanded from one if ``t`` is, for which paths are faster."""
    return torch.cat([t, t]) if shared_time(t) is None else t[:1].expand(2 * len(t))


def _join(a: Any, b: Any) -> Any:
    """The rows of ``a``, then those of ``b``; part by part for tuples."""
    if isinstance(a, tuple):
        return tuple(torch.cat(parts) for parts in zip(a, b, strict=True))
    return torch.cat([a, b])


def _rows(value: Any, like: Any, n: int, name: str) -> Any:
    """``value`` with n rows; refuse what is not made like ``like``, a tensor or a tuple of them."""
    parts, pattern = (v if isinstance(v, tuple) else (v,) for v in (value, like))
    sizes = (n,) if value is like else (n, 1)

    def fits(part: Any, model: Any) -> bool:
        return (
            isinstance(part, Tensor)
            and isinstance(model, Tensor)
            and part.ndim == model.ndim > 0
            and (part.shape[1:], part.dtype) == (model.shape[1:], model.dtype)
            and len(part) in sizes
        )

    if len(parts) != len(pattern) or not all(map(fits, parts, pattern)):
        wanted = f"have {n} rows" if value is like else f"be like cond, {_shapes(like)}, or one row"
        raise ValueError(f"{name} must {wanted}; got {_shapes(value)}")
    rows = tuple(
        p.to(m.device).expand(n, *p.shape[1:]) for p, m in zip(parts, pattern, strict=True)
    )
    return rows if isinstance(like, tuple) else rows[0]


def _shapes(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shapes, value))})"
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
