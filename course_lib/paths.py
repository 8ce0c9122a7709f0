"""Paths from data to noise: ``x_t = alpha(t) x0 + sigma(t) eps``.

Time runs from ``t = 0`` (data) to ``t = 1`` (noise) on every path. A path is two scalar
functions and their derivatives; all that the field calls "parametrisation" (predict the
noise, the data, v, the velocity or the score) is one 2x2 linear system, solved once, in
:meth:`Path.coefficients`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = [
    "VE",
    "VP",
    "CosineVP",
    "DiscreteVP",
    "Face",
    "Linear",
    "Path",
    "cosine_betas",
    "expand",
    "linear_betas",
]

Face = Literal["noise", "data", "v", "velocity", "score"]
"""The five quantities that a denoiser may predict; any one gives the other four."""
_FACES = get_args(Face)


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Give ``t`` of shape (B,) the shape (B, 1, ..., 1), so that it multiplies ``x`` sample-wise.

    This is the only place in the package where time meets data. Plain broadcasting would be
    silently wrong whenever B equals the last dimension of ``x``.

    Args:
        t: one number per sample, shape (B,).
        x: a batch, shape (B, ...).

    Returns:
        ``t`` with shape (B, 1, ..., 1), as many dimensions as ``x``.

    Raises:
        TypeError: if ``t`` is no tensor.
        ValueError: if ``t`` does not have the shape (B,).
    """
    _check_shape(t, x)
    return t.reshape(-1, *[1] * (x.ndim - 1))


def check_times(t: Tensor, x: Tensor) -> None:
    """Refuse times outside [0, 1], or not one for each sample of ``x``.

    Raises:
        TypeError: if ``t`` is no tensor.
        ValueError: if ``t`` has another shape than (B,), or an entry outside [0, 1].
    """
    _check_shape(t, x)
    check_time(t)


def _check_shape(t: Tensor, x: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(
            f"t must be a tensor of shape (B,), one time per sample; got {type(t).__name__}: "
            f"write torch.full((B,), t)"
        )
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t must have shape (B,) = ({x.shape[0] if x.ndim else '?'},), one time per sample "
            f"of x with shape {tuple(x.shape)}; got {tuple(t.shape)}"
        )


def combine(a: Tensor | float, b: Tensor | float, x: Tensor, y: Tensor) -> Tensor:
    """``a x + b y``; in two passes over memory, not three, where b is a number."""
    return torch.add(a * x, y, alpha=b) if isinstance(b, float) else a * x + b * y


def check_time(t: Tensor) -> None:
    """Refuse times outside [0, 1].

    Raises:
        ValueError: if any entry of ``t`` is below 0, above 1 or NaN.
    """
    one = shared_time(t)
    if not (bool(((t >= 0) & (t <= 1)).all()) if one is None else 0 <= one <= 1):
        raise ValueError(
            f"t must lie in [0, 1] (0 is data, 1 is noise; step n of T is n / T); got "
            f"values from {t.min().item():.6g} to {t.max().item():.6g}"
        )


def shared_time(t: Tensor) -> float | None:
    """The time that all samples have if it was expanded from one, as solvers do; else None.

    None also where a derivative in t is asked for, which a number cannot carry. A tensor that
    never changes may carry its number in the attribute ``shared``; asking it costs nothing.
    """
    if t.requires_grad:
        return None
    if (known := getattr(t, "shared", None)) is not None:
        return known
    if t.shape != (1,) and t.stride() != (0,):
        return None
    if unpack_dual(t).tangent is not None:
        return None
    return t[0].item() if len(t) else None


@lru_cache(maxsize=8192)
def _numbers(path: "Path", method: str, t: float, *args: object) -> tuple[float, ...]:
    values = getattr(path, method)(torch.tensor([t], dtype=torch.float64), *args)
    return tuple(value.item() for value in values)


class Path:
    """A Gaussian path ``x_t = alpha(t) x0 + sigma(t) eps`` with ``eps ~ N(0, I)``.

    A subclass gives :meth:`alpha`, :meth:`sigma`, their derivatives and :meth:`t_of_lambda`.
    Every method of time maps a tensor of shape (B,) to a tensor of shape (B,).
    """

    fixed: ClassVar[bool] = False
    """Whether nothing of the path ever changes, so that what it gives at a time may be kept."""

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data, shape (B,); 1 at t = 0."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, shape (B,)."""
        raise NotImplementedError

    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of alpha, shape (B,)."""
        raise NotImplementedError

    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of sigma, shape (B,); infinite at t = 0 where sigma grows as sqrt(t)."""
        return self.sigma_d_sigma(t) / self.sigma(t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        """sigma sigma', half the derivative of the noise variance; finite on all of [0, 1]."""
        raise NotImplementedError

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        """Inverse of :meth:`log_snr_half`: the time at which log(alpha / sigma) is ``lam``."""
        raise NotImplementedError

    def log_snr_half(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma), shape (B,); +inf where sigma = 0, -inf where alpha = 0.

        Half the log signal-to-noise ratio, as in DPM-Solver (Lu et al., 2022).
        """
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def snap(self, t: Tensor) -> Tensor:
        """The first time at or after ``t`` that the path knows: ``t`` itself if continuous."""
        return t

    def sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise the data to time t: ``x_t = alpha(t) x0 + sigma(t) eps``.

        Args:
            x0: data, shape (B, ...).
            t: times in [0, 1], shape (B,).
            eps: standard normal noise, shape (B, ...).

        Returns:
            x_t, shape (B, ...).

        Raises:
            ValueError: if the shapes differ or a time lies outside [0, 1].
        """
        self._check(x0, t, eps, "eps")
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The conditional velocity ``d x_t / dt = alpha'(t) x0 + sigma'(t) eps``, shape (B, ...).

        Raises:
            ValueError: if the shapes differ, a time lies outside [0, 1], or sigma' is infinite
                there (t = 0 on a variance-preserving path).
        """
        return self.target(x0, eps, t, "velocity")

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, face: Face) -> Tensor:
        """What a network that predicts ``face`` should answer at x_t, had it seen x0 and eps.

        Args:
            x0: data, shape (B, ...).
            eps: standard normal noise, shape (B, ...).
            t: times in [0, 1], shape (B,).
            face: one of "noise", "data", "v", "velocity", "score".

        Returns:
            Shape (B, ...).

        Raises:
            ValueError: if the name is unknown, the shapes differ, a time lies outside [0, 1], or
                the quantity is infinite there.
        """
        self._check(x0, t, eps, "eps")
        p, q, scale = self._row(t, face)
        p, q = p / scale, q / scale
        self._refuse_singular(t, p, q, what=f"the target {face!r}")
        return expand(p, x0) * x0 + expand(q, x0) * eps

    def drift_diffusion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f(t) and g(t)^2 of the forward SDE ``dx = f x dt + g dw`` with the same marginals.

        f = alpha'/alpha and g^2 = 2 sigma sigma' - 2 f sigma^2
        (Kingma et al., 2021, "Variational Diffusion Models"; Song et al., 2021).

        Raises:
            ValueError: if a time lies outside [0, 1], or alpha = 0 there, where f is infinite.
        """
        check_time(t)
        f = self.d_alpha(t) / self.alpha(t)
        g2 = 2 * (self.sigma_d_sigma(t) - f * self.sigma(t) ** 2)
        self._refuse_singular(t, f, g2, what="the drift alpha'/alpha")
        return f, g2

    def convert(self, value: Tensor, xt: Tensor, t: Tensor, source: Face, target: Face) -> Tensor:
        """Turn one prediction into another, given where the sample is.

        Args:
            value: the quantity ``source``, shape (B, ...).
            xt: the noisy sample, shape (B, ...).
            t: times in [0, 1], shape (B,).
            source: one of "noise", "data", "v", "velocity", "score".
            target: likewise.

        Returns:
            The quantity ``target``, shape (B, ...).

        Raises:
            ValueError: if a name is unknown, shapes differ, a time lies outside [0, 1], or the
                conversion is singular at one of the times (the score of clean data, say).
        """
        self._check(xt, t, value, "value")
        if source == target and source in _FACES:
            return value
        a, b = self.at("coefficients", t, xt, source, target)
        return combine(a, b, xt, value)

    def at(self, method: str, t: Tensor, x: Tensor, *args: object) -> tuple[Tensor | float, ...]:
        """The results of a method of time, in a form that multiplies ``x`` sample-wise.

        Where all samples share a time, as in a solver, these are numbers, worked out only once.
        """
        one = shared_time(t) if self.fixed else None
        if one is not None:
            return _numbers(self, method, one, *args)
        return tuple(expand(value, x) for value in getattr(self, method)(t, *args))

    def input_scale(self, t: Tensor, data_std: float) -> tuple[Tensor]:
        """1 / sqrt(alpha^2 data_std^2 + sigma^2), which gives x_t unit variance, shape (B,)."""
        variance = self.alpha(t) ** 2 * data_std**2 + self.sigma(t) ** 2
        return (variance.rsqrt(),)

    def coefficients(self, t: Tensor, source: Face, target: Face) -> tuple[Tensor, Tensor]:
        """The numbers a(t), b(t) with ``target = a x_t + b source``, each of shape (B,).

        Each quantity is a row (p, q): it equals ``p x0 + q eps``. The pair (x_t, source) is
        then a 2x2 system in (x0, eps); Cramer's rule solves it, and the row of ``target``
        reads the answer off.

        Raises:
            ValueError: if a name is unknown or a coefficient is not finite.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        p, q, scale = self._row(t, source)
        p_out, q_out, scale_out = self._row(t, target)
        det = alpha * q - sigma * p
        a = (p_out * q - q_out * p) / det / scale_out
        b = (q_out * alpha - p_out * sigma) / det * scale / scale_out
        self._refuse_singular(t, a, b, what=f"converting {source} to {target}")
        return a, b

    def _row(self, t: Tensor, face: Face) -> tuple[Tensor, Tensor, Tensor]:
        """(p, q, scale) such that ``scale * face = p x0 + q eps``."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        match face:
            case "noise":
                return zero, one, one
            case "data":
                return one, zero, one
            case "v":  # Salimans & Ho, 2022, appendix D
                return -sigma, alpha, one
            case "velocity":
                return self.d_alpha(t), self.d_sigma(t), one
            case "score":  # score = -eps / sigma; the scale keeps sigma = 0 out of the row
                return zero, one, -sigma
        raise ValueError(f"a prediction must be one of {', '.join(_FACES)}; got {face!r}")

    @staticmethod
    def _check(x: Tensor, t: Tensor, other: Tensor, name: str) -> None:
        if other.shape != x.shape:
            raise ValueError(
                f"{name} must have the shape of the samples, {tuple(x.shape)}; "
                f"got {tuple(other.shape)}"
            )
        check_times(t, x)

    def _refuse_singular(self, t: Tensor, *values: Tensor, what: str) -> None:
        for value in values:
            if not bool(torch.isfinite(value).all()):
                bad = t[~torch.isfinite(value)][0].item()
                alpha, sigma = (f(t.new_full((1,), bad)).item() for f in (self.alpha, self.sigma))
                raise ValueError(
                    f"{what} is singular on {self} at t = {bad:.6g}, where alpha = {alpha:.3g} "
                    f"and sigma = {sigma:.3g}; keep t away from that end, or predict a quantity "
                    f"that is finite there"
                )


class _VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1, hence sigma sigma' = -alpha alpha'."""

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t)

    def input_scale(self, t: Tensor, data_std: float) -> tuple[Tensor]:
        variance = 1 + self.alpha(t) ** 2 * (data_std**2 - 1)  # 1 to the last bit if data_std is
        return (variance.rsqrt(),)


@dataclass(frozen=True)
class VP(_VariancePreserving):
    """The variance-preserving path of a linear noise rate beta(t) (Song et al., 2021, eq. 32-33).

    alpha(t) = exp(-1/2 int_0^t beta) with beta(t) = beta_min + t (beta_max - beta_min).

    Args:
        beta_min: noise rate at t = 0, per unit of time; above 0.
        beta_max: noise rate at t = 1; above ``beta_min``.

    Raises:
        ValueError: if not 0 < beta_min < beta_max.
    """

    fixed = True

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"VP needs 0 < beta_min < beta_max; got {self}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min)) * self.alpha(t)

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        # alpha^2 = sigmoid(2 lambda); the integral of beta is c = -log alpha^2, quadratic in t.
        c = F.softplus(-2 * lam)
        slope = self.beta_max - self.beta_min
        return 2 * c / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * c))


@dataclass(frozen=True)
class CosineVP(_VariancePreserving):
    """The cosine path (Nichol & Dhariwal, 2021, eq. 17), in continuous time and without clipping.

    alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)). It is written with sines of the
    time left, so that alpha(1) is 0 and sigma(0) is 0 to the last bit.

    Args:
        s: offset that keeps the first steps from being too small; above 0.

    Raises:
        ValueError: if ``s`` is not above 0.
    """

    fixed = True

    s: float = 0.008

    def __post_init__(self) -> None:
        if self.s <= 0:
            raise ValueError(f"CosineVP needs s > 0; got {self}")

    @property
    def _rate(self) -> float:
        """Angle per unit of time, which is also the angle left at t = 0."""
        return math.pi / 2 / (1 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._rate * (1 - t)) / math.sin(self._rate)

    def sigma(self, t: Tensor) -> Tensor:
        # sin^2 a - sin^2 b = sin(a - b) sin(a + b): no cancellation near t = 0.
        variance = torch.sin(self._rate * t) * torch.sin(self._rate * (2 - t))
        return torch.sqrt(variance) / math.sin(self._rate)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._rate * torch.cos(self._rate * (1 - t)) / math.sin(self._rate)

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        alpha = torch.sqrt(torch.sigmoid(2 * lam))
        left = torch.asin(alpha * math.sin(self._rate)) / self._rate
        return (1 - left).clamp(min=0)  # rounding


@dataclass(frozen=True)
class VE(Path):
    """The variance-exploding path (Song et al., 2021, eq. 30): alpha = 1, sigma geometric in t.

    sigma(0) is ``sigma_min``, small but not zero: "data" on this path is data plus that noise.

    Args:
        sigma_min: noise at t = 0, in units of the data; above 0.
        sigma_max: noise at t = 1; above ``sigma_min``.

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max.
    """

    fixed = True

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max; got {self}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return self._log_ratio * self.sigma(t) ** 2

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class Linear(Path):
    """The straight path x_t = (1 - t) x0 + t eps of rectified flow (Liu et al., 2023).

    Lipman et al. (2023) call it the optimal-transport path and let time run the other way.
    """

    fixed = True

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


class DiscreteVP(_VariancePreserving):
    """DDPM's T noising steps (Ho et al., 2020, eq. 2 and 4), on the same clock as every other path.

    Step n = 1..T sits at t = n/T, with alpha(n/T)^2 = prod_{m<=n} (1 - beta_m). In between,
    log alpha^2 is linear: this is the VP path whose noise rate is the constant
    -T log(1 - beta_n) during step n, so that both have the same marginals at all T + 1 knots.

    Args:
        betas: variance added at each step, shape (T,), each in (0, 1).

    Raises:
        ValueError: if ``betas`` is not one-dimensional or a value lies outside (0, 1).
    """

    fixed = True

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas must be a 1-D tensor with values in (0, 1); got shape {tuple(betas.shape)}"
                + (f", values {betas.min():.4g} to {betas.max():.4g}" if betas.numel() else "")
            )
        self.num_steps = len(betas)
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])
        self._knots = knots  # log alpha^2 at t = 0, 1/T, ..., 1: falling; float64 whatever x is

    @property
    def betas(self) -> Tensor:
        """beta_1..beta_T, shape (T,), float64."""
        return -torch.expm1(self._knots.diff())

    @property
    def alpha_bars(self) -> Tensor:
        """DDPM's alpha-bar, alpha(n/T)^2 for n = 1..T, shape (T,), float64."""
        return self._knots[1:].exp()

    def __repr__(self) -> str:
        return f"DiscreteVP(T={self.num_steps}, alpha_bar_T={self.alpha_bars[-1]:.3g})"

    def snap(self, t: Tensor) -> Tensor:
        """The first n/T at or after ``t``, so that uniform t in (0, 1] makes n uniform in 1..T."""
        return (self._position(t).ceil() / self.num_steps).to(t.dtype)

    def _position(self, t: Tensor) -> Tensor:
        """T t in float64, where a float32 t that means n/T gives n and not n + 1e-5."""
        position = t.double() * self.num_steps
        nearest = position.round()
        return torch.where((position - nearest).abs() < 1e-4, nearest, position)

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha^2 at the start of the step that holds t, its change, and the part passed."""
        knots = self._knots.to(t.device)
        position = self._position(t)
        n = (position.ceil().long() - 1).clamp(0, self.num_steps - 1)
        return knots[n], knots[n + 1] - knots[n], position - n

    def _log_alpha2(self, t: Tensor) -> Tensor:
        start, slope, passed = self._interval(t)
        return start + slope * passed

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self._log_alpha2(t)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._log_alpha2(t))).to(t.dtype)

    def d_alpha(self, t: Tensor) -> Tensor:
        _, slope, _ = self._interval(t)
        return 0.5 * self.num_steps * slope.to(t.dtype) * self.alpha(t)

    def t_of_lambda(self, lam: Tensor) -> Tensor:
        log_alpha2 = -F.softplus(-2 * lam.double())
        knots = self._knots.to(lam.device)
        n = torch.searchsorted(-knots, -log_alpha2).clamp(1, self.num_steps)
        passed = (log_alpha2 - knots[n - 1]) / (knots[n] - knots[n - 1])
        return ((n - 1 + passed) / self.num_steps).to(lam.dtype)


def linear_betas(T: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's schedule: T variances rising linearly (Ho et al., 2020, section 4).

    ``first`` and ``last`` are meant for T = 1000. For another T they are scaled by 1000 / T, so
    that the path ends equally noisy.

    Returns:
        Shape (T,), float64.

    Raises:
        ValueError: if T is too small for the scaled variances to stay below 1.
    """
    scale = 1000 / max(T, 1)
    if T < 1 or last * scale >= 1:
        raise ValueError(
            f"linear_betas needs T with 1000 / T * last < 1; got T={T}, last={last}: "
            f"take more steps, or cosine_betas"
        )
    return torch.linspace(first * scale, last * scale, T, dtype=torch.float64)


def cosine_betas(T: int = 1000, s: float = 0.008, clip: float = 0.999) -> Tensor:
    """The cosine schedule (Nichol & Dhariwal, 2021, eq. 17), each beta clipped at ``clip``.

    Returns:
        Shape (T,), float64.

    Raises:
        ValueError: if T < 1.
    """
    if T < 1:
        raise ValueError(f"cosine_betas needs T >= 1; got {T}")
    t = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=clip)
