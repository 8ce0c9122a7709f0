"""Two ways to train a score flow: by the likelihood of noised data, and by score matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.flows.score_flow import ScoreFlowNetwork
from course_lib.objectives import TimeSampler, denoising_loss, snr_weight, uniform_times

__all__ = ["LikelihoodAt", "flow_likelihood", "flow_score_matching"]


def flow_likelihood(
    denoiser: ScoreFlowNetwork,
    x0: Tensor,
    cond: Any = None,
    *,
    t: Tensor | TimeSampler | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of -log p_t(x_t | c) / D, in nats a dimension, at a random time.

    Its minimiser is the density of the noised data, whose gradient is the score: the same optimum
    as score matching, found without a second derivative.

    Args:
        denoiser: the score flow.
        x0: data, shape (B, ...), D numbers each.
        cond: labels (B,), or None.
        t: times of shape (B,), or a function that draws them; uniform in (0, 1] when left out.
        eps: standard normal noise of the shape of x0; drawn when left out.
        generator: source of all randomness.

    Returns:
        The loss; a scalar.

    Raises:
        TypeError: if the denoiser is no ScoreFlowNetwork.
        ValueError: if shapes do not fit or a given time lies outside [0, 1].
    """
    if not isinstance(denoiser, ScoreFlowNetwork):
        raise TypeError(
            f"flow_likelihood needs a ScoreFlowNetwork, which has a density; got "
            f"{type(denoiser).__name__}"
        )
    path = denoiser.path
    if t is None or callable(t):
        draw = t or uniform_times
        t = path.snap(draw(len(x0), generator=generator).to(x0))
    if eps is None:
        eps = torch.empty_like(x0).normal_(generator=generator)
    xt = path.sample(x0, t, eps)
    return -denoiser.log_prob(xt, t, cond).mean() / x0[0].numel()


def flow_score_matching(
    denoiser: ScoreFlowNetwork, x0: Tensor, *args: Any, **options: Any
) -> Tensor:
    """Denoising score matching (Vincent, 2011), each noise level weighted by sigma^2.

    The squared error of the noise, as in DDPM; arguments as for
    :func:`course_lib.objectives.denoising_loss`. The score is itself a gradient, so each step
    differentiates twice.
    """
    return denoising_loss(denoiser, x0, *args, weight=snr_weight, **options)


@dataclass(frozen=True)
class LikelihoodAt:
    """`flow_likelihood` at one noise level, for a flow that knows no other.

    Args:
        t: the time, in [0, 1]. At t = 0 a path such as VE has a little noise, sigma_min.

    Raises:
        ValueError: if ``t`` lies outside [0, 1].
    """

    t: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"t must lie in [0, 1]; got {self.t}")

    def __call__(
        self, denoiser: ScoreFlowNetwork, x0: Tensor, cond: Any = None, **options: Any
    ) -> Tensor:
        """The loss; arguments as for :func:`flow_likelihood`, without times."""
        return flow_likelihood(denoiser, x0, cond, t=x0.new_full((len(x0),), self.t), **options)
