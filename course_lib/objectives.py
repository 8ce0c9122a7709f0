"""One loss for all of diffusion.

DDPM, v-prediction, denoising score matching and flow matching are the same regression: noise
the data to a random time, ask the denoiser for what it predicts, and compare with the answer
that knows x0 and eps. They differ in the face predicted, the weight and the distribution of t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import Face, Path, expand

__all__ = [
    "ConditionDropout",
    "denoising_loss",
    "logit_normal_times",
    "low_discrepancy_times",
    "min_snr_weight",
    "snr_weight",
    "uniform_times",
]

TimeSampler = Callable[..., Tensor]
"""``sampler(n, *, generator) -> (n,)``, values in (0, 1]."""
Weight = Callable[[Path, Tensor, Face], Tensor]
"""``weight(path, t, predicts) -> (B,)``, the factor of the squared error of ``predicts``."""
Coupling = Callable[..., tuple[Tensor, Tensor, Any]]
"""``coupling(x0, eps, cond, *, generator) -> (x0, eps, cond)``, paired anew."""


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Any = None,
    *,
    t: Tensor | TimeSampler | None = None,
    eps: Tensor | None = None,
    weight: Weight | None = None,
    coupling: Coupling | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the denoiser's own prediction at a random time.

    With a noise prediction on DiscreteVP this is L_simple (Ho et al., 2020, eq. 14); with a
    velocity prediction, conditional flow matching (Lipman et al., 2023, eq. 9); with a score
    prediction, denoising score matching (Vincent, 2011).

    Args:
        denoiser: the model; its ``predicts`` names the target.
        x0: data, shape (B, ...).
        cond: what the denoiser takes as condition, B rows.
        t: times of shape (B,), or a function that draws them; uniform in (0, 1] when left out.
            On a path with discrete steps, drawn times are moved to the next step.
        eps: standard normal noise of the shape of x0; drawn when left out.
        weight: factor of each sample's squared error; 1 when left out ("simple").
        coupling: pairs x0 and eps in another way than independently; see
            :mod:`course_lib.transport`.
        generator: source of all randomness.

    Returns:
        The loss, averaged over samples and dimensions; a scalar.

    Raises:
        TypeError: if ``denoiser`` is a bare network, or x0 is not floating point.
        ValueError: if shapes do not fit or a given time lies outside [0, 1].
    """
    check_denoiser(denoiser)
    if not x0.is_floating_point():
        raise TypeError(f"x0 must be floating point (images in [-1, 1]); got {x0.dtype}")
    path = denoiser.path
    if t is None or callable(t):
        draw = t or uniform_times
        t = path.snap(draw(len(x0), generator=generator).to(x0))
    if eps is None:
        eps = torch.empty_like(x0).normal_(generator=generator)
    if coupling is not None:
        x0, eps, cond = coupling(x0, eps, cond, generator=generator)
    xt = path.sample(x0, t, eps)
    target = path.target(x0, eps, t, denoiser.predicts)
    prediction = getattr(denoiser, denoiser.predicts)(xt, t, cond)
    error = (prediction - target).square().flatten(1).mean(1)
    if weight is not None:
        error = weight(path, t, denoiser.predicts) * error
    return error.mean()


@dataclass(frozen=True)
class ConditionDropout:
    """An objective that hides the condition of some samples, so that the model learns both.

    With probability ``p`` a sample's condition becomes the one that means none; this is all the
    training that classifier-free guidance asks for (Ho & Salimans, 2022, algorithm 1).

    Args:
        p: probability of hiding, in [0, 1].
        objective: what is called with the conditions that are left.

    Raises:
        ValueError: if ``p`` lies outside [0, 1].
    """

    p: float = 0.1
    objective: Callable[..., Any] = denoising_loss  # not Tensor: a recipe may name a class

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must lie in [0, 1]; got {self.p}")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """The objective's loss; arguments as for :func:`denoising_loss`.

        Raises:
            ValueError: if there is no condition, or the denoiser has none that means none.
        """
        if cond is None:
            raise ValueError("ConditionDropout needs a condition to hide; got cond=None")
        hidden = (_rand(len(x0), generator) < self.p).to(x0.device)
        encode: Any = getattr(denoiser, "encode_condition", None)  # a flow has none
        cond = cond if encode is None else encode(cond)
        cond = _where(hidden, denoiser.null_condition(cond), cond)
        return self.objective(denoiser, x0, cond, generator=generator, **options)


def _where(chosen: Tensor, a: Any, b: Any) -> Any:
    """Rows of ``a`` where ``chosen``, of ``b`` elsewhere; part by part for tuples."""
    if isinstance(b, tuple):
        return tuple(_where(chosen, *parts) for parts in zip(a, b, strict=True))
    return torch.where(expand(chosen, b), a, b)


def uniform_times(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """n times, uniform in (0, 1]; shape (n,)."""
    return 1 - _rand(n, generator)


def logit_normal_times(
    n: int, *, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """n times with logit(t) ~ N(mean, std^2), shape (n,) (Esser et al., 2024, eq. 19)."""
    z = torch.randn(n, generator=generator, device=_device(generator))
    return torch.sigmoid(mean + std * z)


def low_discrepancy_times(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """n times in (0, 1], evenly spaced from one random offset (Kingma et al., 2021, appendix I.1).

    Each time alone is uniform, but a batch covers the interval evenly, which lowers the variance
    of the loss. Shape (n,).
    """
    offset = _rand(1, generator)
    return 1 - (offset + torch.arange(n, device=offset.device) / n) % 1


def snr_weight(path: Path, t: Tensor, predicts: Face) -> Tensor:
    """Count every prediction as the noise error it amounts to; shape (B,).

    The squared error of the noise is SNR = alpha^2 / sigma^2 times that of the data
    (Salimans & Ho, 2022, section 4), so this makes L_simple of any network.
    """
    _, per_unit = path.coefficients(t, predicts, "noise")
    return per_unit**2


def min_snr_weight(path: Path, t: Tensor, predicts: Face, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) times the squared error of the data (Hang et al., 2023); (B,)."""
    snr = torch.exp(2 * path.log_snr_half(t))
    return snr_weight(path, t, predicts) * (gamma / snr).clamp(max=1)


def _rand(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, device=_device(generator))


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
