"""A normalizing flow as a denoiser: its score is the gradient of a density it knows exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib.denoisers import Denoiser, check_gradients
from course_lib.flows.flow import Flow
from course_lib.nets.embeddings import Condition, ConditionEmbedding
from course_lib.paths import Face, Path, check_times, expand

__all__ = ["ScoreFlowNetwork", "direct"]


class ScoreFlowNetwork(Denoiser):
    """One flow for all noise levels: log p_t(x_t | c) exactly, and its gradient as the score.

    Tweedie's formula then gives the denoised sample, E[x_0 | x_t] = (x_t + sigma^2 score) / alpha
    (Efron, 2011). As everywhere in the course, time and class enter as one embedding, and the flow
    sees x_t scaled to unit variance (Karras et al., 2022).

    Args:
        flow: a flow with a condition (`cond_dim` above 0). Images are flattened for one that is of
            vectors.
        path: the path on which x_t lies.
        num_classes: number of classes, if the condition is to be labels (B,) int64. The label
            `num_classes` means none, and so does no condition.
        data_std: standard deviation of the data, one number; above 0.

    Raises:
        ValueError: if the flow takes no condition, or `data_std` is not above 0.
        TypeError: if `flow` is no Flow or `path` no Path.
    """

    predicts: Face = "score"

    def __init__(
        self, flow: Flow, path: Path, *, num_classes: int | None = None, data_std: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(flow, Flow) or not isinstance(path, Path):
            raise TypeError(
                f"ScoreFlowNetwork takes a Flow and a Path; got {type(flow).__name__} and "
                f"{type(path).__name__}"
            )
        if not flow.cond_dim:
            raise ValueError("flow must have cond_dim above 0, to be told the noise level; got 0")
        if not data_std > 0:
            raise ValueError(f"data_std must be above 0; got {data_std}")
        self.flow, self.path, self.data_std = flow, path, data_std
        self.embedding = ConditionEmbedding(flow.cond_dim, num_classes)

    def log_prob(self, xt: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """log p_t(x_t | c) in nats.

        Args:
            xt: noisy samples, shape (B, ...).
            t: times, shape (B,).
            cond: labels (B,), or None.

        Returns:
            Shape (B,).

        Raises:
            ValueError: if shapes do not fit, or a time lies outside [0, 1].
        """
        check_times(t, xt)
        (scale,) = self.path.input_scale(t, self.data_std)
        x = (expand(scale, xt) * xt).reshape(self._flow_shape(xt))
        features = self.embedding(t, cond).vector
        return self.flow.log_prob(x, features) + xt[0].numel() * scale.log()

    def predict(self, xt: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The score, by autograd; also under ``torch.no_grad()``, and differentiable without it.

        Raises:
            ValueError: inside ``torch.inference_mode()``.
        """
        check_gradients("ScoreFlowNetwork")
        recording = torch.is_grad_enabled()  # training by score matching differentiates once more
        with torch.enable_grad(), _twice_differentiable(recording):
            x = xt if xt.requires_grad else xt.detach().requires_grad_()
            log_prob = self.log_prob(x, t, cond)
            (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=recording)
        return score

    def null_condition(self, cond: Condition) -> Condition:
        """The label that means none, for as many samples as `cond` has."""
        return self.embedding.null_condition(cond)

    @torch.no_grad()
    def from_noise(self, z: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Samples of p_t(x_t | c) in one pass of the flow.

        Args:
            z: draws from N(0, I), shape (B, ...).
            t: times, shape (B,).
            cond: labels (B,), or None.

        Returns:
            x_t, shape of `z`.

        Raises:
            ValueError: if shapes do not fit, or a time lies outside [0, 1].
        """
        check_times(t, z)
        (scale,) = self.path.input_scale(t, self.data_std)
        features = self.embedding(t, cond).vector
        x, _ = self.flow.forward_with_base_samples(z.reshape(self._flow_shape(z)), features)
        return x.reshape(z.shape) / expand(scale, z)

    def _flow_shape(self, x: Tensor) -> tuple[int, ...]:
        shape = self.flow.shape
        if x[:1].numel() != torch.Size(shape).numel():
            raise ValueError(f"x must have shape (B, ...) with {shape} numbers; got {x.shape}")
        return len(x), *shape


@contextmanager
def _twice_differentiable(needed: bool) -> Iterator[None]:
    """Attention by plain operations where its gradient is differentiated: fused, it cannot be."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


@torch.no_grad()
def direct(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    cond: Any = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """A solver for score flows alone: one pass of the flow, then one step of denoising.

    The flow makes of the noise a sample at the last time of the grid; where there is noise left
    in it, on VE for instance, Tweedie's formula takes it out (Zhai et al., 2024, section 2.5).

    Args:
        denoiser: a `ScoreFlowNetwork`.
        x: the noise of a solver's start, sigma(ts[0]) eps, shape (B, ...).
        ts: times, of which the last is used.
        cond: labels (B,), or None.
        generator: not used; solvers have it.
        callback: called once, with the last step, its time and the sample.

    Returns:
        Samples, shape of `x`.

    Raises:
        TypeError: if the denoiser is no ScoreFlowNetwork: guidance, for instance, has no flow.
    """
    if not isinstance(denoiser, ScoreFlowNetwork):
        raise TypeError(
            f"direct needs a ScoreFlowNetwork, without guidance; got {type(denoiser).__name__}"
        )
    z = x / denoiser.path.sigma(ts[:1].to(x))
    t = ts[-1:].to(x).expand(len(x))
    x = denoiser.data(denoiser.from_noise(z, t, cond), t, cond)
    if callback is not None:
        callback(len(ts) - 1, ts[-1], x)
    return x
