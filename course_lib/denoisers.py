"""Denoisers: one model, five faces.

Whatever a model predicts (noise, data, v, velocity or score), the path turns it into the other
four. Samplers, losses and applications ask for the face that they need, so every one of them
works with every model.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_lib.paths import Face, Path, check_times, expand

__all__ = ["Denoiser", "GaussianMixture", "NetDenoiser", "Posterior"]


class Denoiser(nn.Module):
    """A model of what was lost between ``x_0`` and ``x_t``.

    A subclass sets ``path`` and ``predicts``, and implements :meth:`predict`. Every face takes
    x_t of shape (B, ...), times ``t`` in [0, 1] of shape (B,) and an optional condition, and
    returns the shape of x_t. Every face raises ValueError for wrong shapes, for times outside
    [0, 1], and where the quantity is singular (see :meth:`course_lib.paths.Path.convert`).
    """

    path: Path
    predicts: Face

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The quantity named by ``predicts``, shape (B, ...)."""
        raise NotImplementedError

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        check_times(t, xt)
        return self.path.convert(self.predict(xt, t, cond), xt, t, self.predicts, target)

    def noise(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[eps | x_t], the noise prediction of DDPM."""
        return self._face("noise", xt, t, cond)

    def data(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t], the denoised sample."""
        return self._face("data", xt, t, cond)

    def v(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[alpha eps - sigma x_0 | x_t] (Salimans & Ho, 2022)."""
        return self._face("v", xt, t, cond)

    def velocity(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[d x_t / dt | x_t], the right-hand side of the probability-flow ODE."""
        return self._face("velocity", xt, t, cond)

    def score(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The gradient of log p_t at x_t."""
        return self._face("score", xt, t, cond)


class NetDenoiser(Denoiser):
    """A network ``net(x, t, cond=None)`` that predicts one face.

    The input is scaled to unit variance by 1 / sqrt(alpha^2 data_std^2 + sigma^2)
    (Karras et al., 2022, "EDM", table 1); on a variance-preserving path with data_std = 1 that
    factor is 1.

    Args:
        net: maps x of shape (B, ...), t of shape (B,) and a condition to the shape of x.
        path: the path on which x_t lies.
        predicts: what the output of ``net`` means.
        data_std: standard deviation of the data, one number; above 0.

    Raises:
        TypeError: if ``path`` is no Path.
        ValueError: if ``data_std`` is not above 0; and, from a face, if the network returns
            another shape than x.
    """

    def __init__(self, net: nn.Module, path: Path, predicts: Face = "noise", data_std: float = 1.0):
        super().__init__()
        if not isinstance(path, Path):
            raise TypeError(
                f"path must be a Path (the order is net, path); got {type(path).__name__}"
            )
        if not data_std > 0:
            raise ValueError(f"data_std must be above 0; got {data_std}")
        path._row(torch.ones(1), predicts)  # refuses an unknown name now rather than in training
        self.net, self.path, self.predicts, self.data_std = net, path, predicts, data_std

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's answer, shape (B, ...)."""
        (scale,) = self.path.at("input_scale", t, xt, self.data_std)
        unchanged = isinstance(scale, float) and scale == 1
        out = self.net(xt if unchanged else scale * xt, t, cond)
        if out.shape != xt.shape:
            raise ValueError(
                f"net must return the shape of its input, {tuple(xt.shape)}; "
                f"{type(self.net).__name__} returned {tuple(out.shape)}"
            )
        return out


class Posterior(NamedTuple):
    """q(x_0 | x_t) of a Gaussian mixture: again a Gaussian mixture, one for each sample."""

    weights: Tensor
    """The probability that x_t came from component k, shape (B, K)."""
    means: Tensor
    """E[x_0 | x_t, k], shape (B, K, D)."""
    covs: Tensor
    """Cov[x_0 | x_t, k], shape (B, K, D, D)."""


class GaussianMixture(Denoiser):
    """The exact denoiser of data from a mixture of Gaussians, on any path.

    Component k of p_t is N(alpha m_k, alpha^2 C_k + sigma^2 I). In the eigenbasis of C_k this
    covariance is diagonal at every t, so one eigendecomposition serves all times. All faces are
    finite at both ends of time, since none of them divides by alpha or sigma.

    Args:
        means: m_k, shape (K, D).
        covs: C_k, shape (K, D, D), symmetric and positive definite.
        weights: w_k, shape (K,), positive; scaled to sum to one.
        path: the path on which x_t lies.

    Raises:
        ValueError: if shapes do not fit, a covariance is not symmetric positive definite, or a
            weight is not positive.
    """

    predicts: Face = "data"
    means: Tensor
    _log_weights: Tensor
    _variances: Tensor
    _axes: Tensor

    def __init__(self, means: Tensor, covs: Tensor, weights: Tensor, path: Path):
        super().__init__()
        K, D = means.shape
        if covs.shape != (K, D, D) or weights.shape != (K,):
            raise ValueError(
                f"means of shape (K, D) = {(K, D)} need covs of shape {(K, D, D)} and weights of "
                f"shape {(K,)}; got {tuple(covs.shape)} and {tuple(weights.shape)}"
            )
        variances, axes = torch.linalg.eigh(covs)
        if not torch.allclose(covs, covs.mT) or not bool((variances > 0).all()):
            raise ValueError("covs must be symmetric and positive definite; they are not")
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must be positive; got {weights.tolist()}")
        self.path = path
        self.register_buffer("means", means)
        self.register_buffer("_log_weights", torch.log(weights / weights.sum()))
        self.register_buffer("_variances", variances)  # (K, D), eigenvalues of C_k
        self.register_buffer("_axes", axes)  # (K, D, D), eigenvectors in columns

    def _look(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha (B,1,1); z = U^T (x_t - alpha m) and its variances, (B,K,D); log joint (B,K)."""
        if xt.ndim != 2 or xt.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"x must have shape (B, D) with D = {self.means.shape[1]}; got {tuple(xt.shape)}"
            )
        check_times(t, xt)
        alpha, sigma = (expand(c, xt[:, None]) for c in (self.path.alpha(t), self.path.sigma(t)))
        axes = self._axes.to(xt.dtype)
        z = torch.einsum("kde,bkd->bke", axes, xt[:, None] - alpha * self.means.to(xt.dtype))
        var = alpha**2 * self._variances.to(xt.dtype) + sigma**2
        log_normal = -0.5 * (z**2 / var + torch.log(2 * math.pi * var)).sum(-1)
        return alpha, z, var, self._log_weights.to(xt.dtype) + log_normal

    def _average(self, weights: Tensor, z: Tensor) -> Tensor:
        """sum_k w_k U_k z_k: back from the eigenbases, averaged over components; (B, D)."""
        return torch.einsum("bk,kde,bke->bd", weights, self._axes.to(z.dtype), z)

    def log_prob(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """log p_t(x) in nats.

        Args:
            x: points, shape (B, D).
            t: times, shape (B,); t = 0, the density of the data, when left out.

        Returns:
            Shape (B,).
        """
        t = x.new_zeros(len(x)) if t is None else t
        *_, log_joint = self._look(x, t)
        return torch.logsumexp(log_joint, dim=-1)

    def score(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The gradient of log p_t at x_t, shape (B, D)."""
        _refuse(cond)
        _, z, var, log_joint = self._look(xt, t)
        return -self._average(log_joint.softmax(-1), z / var)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t], shape (B, D)."""
        _refuse(cond)
        alpha, z, var, log_joint = self._look(xt, t)
        weights = log_joint.softmax(-1)
        shrink = alpha * self._variances.to(z.dtype) / var
        return weights @ self.means.to(z.dtype) + self._average(weights, shrink * z)

    def noise(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[eps | x_t] = -sigma score, shape (B, D)."""
        return -expand(self.path.sigma(t), xt) * self.score(xt, t, cond)

    def v(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[alpha eps - sigma x_0 | x_t], shape (B, D)."""
        alpha, sigma = expand(self.path.alpha(t), xt), expand(self.path.sigma(t), xt)
        return alpha * self.noise(xt, t, cond) - sigma * self.data(xt, t, cond)

    def velocity(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[d x_t / dt | x_t] = alpha' E[x_0 | x_t] - sigma sigma' score, shape (B, D).

        sigma sigma' is finite where sigma' is not, so this holds at t = 0 on every path.
        """
        d_alpha = expand(self.path.d_alpha(t), xt)
        sigma_d_sigma = expand(self.path.sigma_d_sigma(t), xt)
        return d_alpha * self.data(xt, t, cond) - sigma_d_sigma * self.score(xt, t, cond)

    def posterior(self, xt: Tensor, t: Tensor) -> Posterior:
        """The whole distribution q(x_0 | x_t), of which :meth:`Denoiser.data` is the mean.

        Given component k, x_0 and x_t are jointly Gaussian; along axis i of C_k with variance c,
        the posterior variance is c sigma^2 / (alpha^2 c + sigma^2).
        """
        alpha, z, var, log_joint = self._look(xt, t)
        c, axes = self._variances.to(z.dtype), self._axes.to(z.dtype)
        means = self.means.to(z.dtype) + torch.einsum("kde,bke->bkd", axes, alpha * c / var * z)
        shrunk = c * (var - alpha**2 * c) / var
        covs = torch.einsum("kde,bke,kfe->bkdf", axes, shrunk, axes)
        return Posterior(log_joint.softmax(-1), means, covs)

    def sample(
        self, n: int, t: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw from p_t.

        Args:
            n: how many.
            t: times, shape (n,); t = 0, the data, when left out.
            generator: source of the randomness.

        Returns:
            Shape (n, D).
        """
        k = torch.multinomial(self._log_weights.exp(), n, replacement=True, generator=generator)
        z = self.means.new_empty(n, self.means.shape[1]).normal_(generator=generator)
        x0 = self.means[k] + torch.einsum(
            "nde,ne->nd", self._axes[k], self._variances[k].sqrt() * z
        )
        if t is None:
            return x0
        return self.path.sample(x0, t, torch.empty_like(x0).normal_(generator=generator))


def check_denoiser(denoiser: Any) -> None:
    """Refuse a bare network where a Denoiser is needed.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be a Denoiser; got {type(denoiser).__name__}: a network becomes one by "
            f"NetDenoiser(net, path)"
        )


def check_gradients(name: str) -> None:
    """Refuse to differentiate where torch cannot; under ``torch.no_grad()`` it still can.

    Args:
        name: of the function that differentiates a denoiser.

    Raises:
        ValueError: inside ``torch.inference_mode()``.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} differentiates the denoiser, which torch.inference_mode() forbids; "
            f"call it outside, or use torch.no_grad()"
        )


def _refuse(cond: Any) -> None:
    if cond is not None:
        raise ValueError(f"GaussianMixture takes no condition; got cond of type {type(cond)}")
