"""Mean flows: a network of the average velocity between two times, so that one step is exact.

Geng et al., 2025, "Mean Flows for One-step Generative Modeling". Their time is ours: t = 1 is
noise. From z_t the ODE leads to ``z_r = z_t - (t - r) u(z_t, r, t)``, where u is the average of
the velocity over [r, t]. Differentiated along the path this is the identity that trains u:
``u = v - (t - r) du/dt``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib.denoisers import Denoiser, NetDenoiser
from course_lib.distillation.consistency import check_path
from course_lib.distillation.teachers import asked, described
from course_lib.nets.embeddings import ConditionEmbedding, Embedded, sinusoidal, zero_init
from course_lib.objectives import logit_normal_times, uniform_times
from course_lib.paths import Path, expand
from course_lib.samplers.grids import uniform_grid, walk
from course_lib.samplers.ode import Callback

__all__ = ["IntervalDenoiser", "MeanFlowLoss", "mean_flow", "mean_flow_sample"]


RATE = 30.0
"""Highest frequency of the features of times. The network's derivative in t is part of the target,
and at the usual 1000 it would be larger than everything else (Lu and Song, 2025, section 4.1)."""


class IntervalEmbedding(nn.Module):
    """A network's embedding of time and condition, and of the length of an interval.

    The length enters as the time does, through features and two layers, of which the last starts
    at zero: at first the network does not see it. Both have gentle features (`RATE`).

    Args:
        inner: the embedding of a UNet, DiT or MLP.
    """

    def __init__(self, inner: ConditionEmbedding) -> None:
        super().__init__()
        last: Any = inner.time[-1]
        self.inner, dim = inner, last.out_features
        inner.rate = RATE
        self.length = nn.Sequential(nn.Linear(inner.features, dim), nn.SiLU(), nn.Linear(dim, dim))
        zero_init(self.length[-1])

    def forward(self, t: Tensor, cond: tuple[Tensor, Any]) -> Embedded:
        """Embed t (B,), given the pair of r (B,) and the network's own condition."""
        r, cond = cond
        embedded = self.inner(t, cond)
        features = sinusoidal(t - r, self.inner.features, rate=RATE).to(embedded.vector)
        return embedded._replace(vector=embedded.vector + self.length(features))

    def null_condition(self, cond: Any) -> Any:
        """That of the inner embedding."""
        return self.inner.null_condition(cond)


class IntervalDenoiser(NetDenoiser):
    """A network of the average velocity u(z, r, t) between r and t.

    Any network of the course will do; it is given a second time, the length t - r. As a Denoiser it
    is the flow itself: its velocity is u(z, t, t), so the solvers of the ODE take it. Those of
    mean flows are :func:`mean_flow` and :func:`mean_flow_sample`.

    Args:
        net: a UNet, DiT or MLP. Its embedding is replaced.
        path: the path on which z lies.
        data_std: standard deviation of the data, one number; above 0.

    Raises:
        TypeError: if ``net`` has no embedding of the course's, or ``path`` is no Path.
        ValueError: if ``data_std`` is not above 0.
    """

    def __init__(self, net: nn.Module, path: Path, data_std: float = 1.0) -> None:
        super().__init__(net, path, "velocity", data_std)
        embedding = getattr(net, "condition", None)
        if not isinstance(embedding, ConditionEmbedding):
            raise TypeError(f"net must be a UNet, DiT or MLP; got {type(net).__name__}")
        net.condition = IntervalEmbedding(embedding)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None, r: Tensor | None = None) -> Tensor:
        """The average velocity between r and t, shape (B, ...); without r, the velocity at t."""
        return super().predict(xt, t, (t if r is None else r, cond))

    def average(self, z: Tensor, r: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """u(z, r, t), the average velocity on the path through z_t.

        Args:
            z: samples at t, shape (B, ...).
            r: where the interval ends, shape (B,), at most t.
            t: where it begins, shape (B,).
            cond: what the network takes.

        Returns:
            Shape of ``z``.
        """
        return self.predict(z, t, cond, r)

    @torch.no_grad()
    def begin_with(self, flow: Denoiser) -> None:
        """Take the weights of a flow with the same network: at first u is nearly its velocity.

        Only the time is embedded by other features. Their last layer is the one that comes nearest
        to the flow's embedding, in least squares over [0, 1].

        Raises:
            RuntimeError: if the weights do not fit.
        """
        old, new = "net.condition.", "net.condition.inner."
        weights = {name.replace(old, new): w for name, w in flow.state_dict().items()}
        own = {n: w for n, w in self.state_dict().items() if ".time." in n or ".length." in n}
        self.load_state_dict({**weights, **own})
        embedding: Any = self.net.condition
        source: Any = flow
        _imitate(embedding.inner, source.net.condition)


def _imitate(new: ConditionEmbedding, old: ConditionEmbedding, n: int = 1001) -> None:
    """Solve for the last layer with which `new` embeds times as nearly as it can like `old`."""
    last: Any = new.time[-1]
    t = torch.linspace(0, 1, n, dtype=last.weight.dtype, device=last.weight.device)
    wanted = old.time(sinusoidal(t, old.features, rate=old.rate))
    seen = new.time[:-1](sinusoidal(t, new.features, rate=new.rate))
    seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).double()
    # Gentle features are nearly dependent: what stands out less than 1e-4 is left out.
    weight = torch.linalg.lstsq(seen.cpu(), wanted.double().cpu(), rcond=1e-4, driver="gelsd")
    last.weight.copy_(weight.solution[:-1].T)
    last.bias.copy_(weight.solution[-1])


@dataclass
class MeanFlowLoss:
    """``|u - sg(v - (t - r) du/dt)|^2``, weighted; an objective for ``fit``.

    du/dt is the derivative along the path, ``v dz u + dt u``: one forward-mode derivative with
    the tangents (v, 0, 1) for (z, r, t) (Geng et al., 2025, algorithm 1). The velocity v is that
    of the pair (x0, eps), as in flow matching; with a teacher, the teacher's. The squared error e
    of a sample counts ``1 / (e + c)^p`` (ibid., section 4.3), so with p = 1 the loss itself is
    near 1 and says little.

    Args:
        teacher: the flow whose velocity is averaged, on the student's path; None: flow matching.
        instant: share of samples with r = t, in [0, 1]; these learn the velocity.
        mean: of logit t and logit r; the larger is t.
        std: their standard deviation.
        p: power of the weight; 0 for no weight.
        c: keeps the weight finite, above 0.

    Raises:
        TypeError: if ``teacher`` is a bare network; and, when called, if the model is no
            IntervalDenoiser.
        ValueError: if an option is out of range, or the teacher is on another path.
    """

    teacher: Denoiser | None = field(default=None, repr=False)
    instant: float = 0.75
    mean: float = -0.4
    std: float = 1.0
    p: float = 1.0
    c: float = 1e-3
    taught_by: str = field(init=False)

    def __post_init__(self) -> None:
        self.taught_by = described(self.teacher)
        if not 0 <= self.instant <= 1:
            raise ValueError(f"instant must lie in [0, 1]; got {self.instant}")
        for name, value in (("std", self.std), ("c", self.c)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")

    def __call__(
        self,
        denoiser: IntervalDenoiser,
        x0: Tensor,
        cond: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss, a scalar; arguments as for ``denoising_loss``."""
        check_interval(denoiser, "MeanFlowLoss")
        r, t = self.times(len(x0), generator=generator).to(x0)
        eps = torch.empty_like(x0).normal_(generator=generator)
        z = denoiser.path.sample(x0, t, eps)
        v = self._velocity(denoiser, x0, eps, z, t, cond)
        u, slope = self.slope(denoiser, z, r, t, v, cond)
        target = v - expand(t - r, z) * slope
        error = (u - target.detach()).square().flatten(1).sum(1)
        return (error / (error.detach() + self.c) ** self.p).mean()

    def times(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """r <= t of n samples, shape (2, n)."""
        law: dict[str, Any] = {"mean": self.mean, "std": self.std, "generator": generator}
        a, b = logit_normal_times(n, **law), logit_normal_times(n, **law)
        t, same = torch.maximum(a, b), uniform_times(n, generator=generator) <= self.instant
        return torch.stack([torch.where(same, t, torch.minimum(a, b)), t])

    def slope(
        self, denoiser: IntervalDenoiser, z: Tensor, r: Tensor, t: Tensor, v: Tensor, cond: Any
    ) -> tuple[Tensor, Tensor]:
        """u(z, r, t), and its derivative along the path, of one call of the network."""
        tangents = v, torch.zeros_like(r), torch.ones_like(t)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
            pair: Any = jvp(lambda z, r, t: denoiser.average(z, r, t, cond), (z, r, t), tangents)
        return pair

    @torch.no_grad()
    def _velocity(
        self, denoiser: Denoiser, x0: Tensor, eps: Tensor, z: Tensor, t: Tensor, cond: Any
    ) -> Tensor:
        if self.teacher is None:
            return denoiser.path.velocity(x0, eps, t)
        check_path(self.teacher, denoiser.path)
        return asked(self.teacher, z).velocity(z, t, cond)


@torch.no_grad()
def mean_flow(
    denoiser: IntervalDenoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """A solver for mean flows: ``x_s = x_t - (t - s) u(x_t, s, t)``, exact for the exact u.

    Arguments and result as for :func:`course_lib.samplers.euler`.

    Raises:
        TypeError: if ``denoiser`` is no IntervalDenoiser: guidance, for instance, has no average.
        ValueError: if the grid does not fall or leaves [0, 1], or shapes do not fit.
    """
    check_interval(denoiser, "mean_flow")
    for i, t, s in walk(denoiser.path, x, ts):
        x = x - (t.time - s.time) * denoiser.average(x, s.times, t.times, cond)
        if callback:
            callback(i, s.time, x)
    return x


def mean_flow_sample(
    denoiser: IntervalDenoiser, eps: Tensor, steps: int = 1, cond: Any = None
) -> Tensor:
    """Samples from standard noise, in one step ``eps - u(eps, 0, 1)`` or in several.

    Args:
        denoiser: a mean flow.
        eps: standard normal noise, shape (B, ...).
        steps: number of steps of equal length, at least 1.
        cond: what the network takes.

    Returns:
        Samples, shape of ``eps``.

    Raises:
        TypeError: if ``denoiser`` is no IntervalDenoiser.
        ValueError: if ``steps`` is below 1, or shapes do not fit.
    """
    check_interval(denoiser, "mean_flow_sample")
    ts = uniform_grid(denoiser.path, steps)
    return mean_flow(denoiser, denoiser.path.sigma(ts[:1].to(eps)) * eps, ts, cond=cond)


def check_interval(denoiser: Any, name: str) -> None:
    """Refuse a model without an average velocity.

    Raises:
        TypeError: if it has none.
    """
    if not isinstance(denoiser, IntervalDenoiser):
        raise TypeError(
            f"{name} needs an IntervalDenoiser, without guidance; got {type(denoiser).__name__}"
        )
