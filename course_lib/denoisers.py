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

    A subclass sets ``path`` and ``predicts``, and implements :meth:`predict`. The faces must agree,
    for a solver asks whichever is cheapest: change ``predict``, not one face. Every face takes
    x_t of shape (B, ...), times ``t`` in [0, 1] of shape (B,) and an optional condition, and
    returns the shape of x_t. Every face raises ValueError for wrong shapes, for times outside
    [0, 1], and where the quantity is singular (see :meth:`course_lib.paths.Path.convert`).
    """

    path: Path
    predicts: Face

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The quantity named by ``predicts``, shape (B, ...)."""
        raise NotImplementedError

    def encode_condition(self, cond: Any) -> Any:
        """The condition as tensors with a row for each sample; here it is that already.

        A model that is asked in words encodes them. Guidance does so before it joins conditions.
        """
        return cond

    def null_condition(self, cond: Any) -> Any:
        """The condition that means none, for as many samples as ``cond`` has.

        Raises:
            ValueError: if the model has none.
        """
        raise ValueError(
            f"{type(self).__name__} has no condition that means none: give null_cond, or train "
            f"with one (UNet and DiT have it)"
        )

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

    def null_condition(self, cond: Any) -> Any:
        """The network's own condition that means none."""
        null_condition: Any = getattr(self.net, "null_condition", super().null_condition)
        return null_condition(cond)


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

    With ``classes`` the mixture has labels. A condition of labels (B,), int64, then leaves to each
    sample the components of its class, so every face is that of p(x | c). The label C, one past
    the last class, means none, and so does no condition: the whole mixture.

    Args:
        means: m_k, shape (K, D).
        covs: C_k, shape (K, D, D), symmetric and positive definite.
        weights: w_k, shape (K,), positive; scaled to sum to one.
        path: the path on which x_t lies.
        classes: the class of each component, 0 to C - 1, shape (K,), int64.

    Raises:
        ValueError: if shapes do not fit, a covariance is not symmetric positive definite, a weight
            is not positive, or a class has no component; and, where a condition is taken, if it
            holds no such labels, or there are no classes.
    """

    predicts: Face = "data"
    means: Tensor
    classes: Tensor | None
    _log_weights: Tensor
    _variances: Tensor
    _axes: Tensor

    def __init__(
        self,
        means: Tensor,
        covs: Tensor,
        weights: Tensor,
        path: Path,
        classes: Tensor | None = None,
    ):
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
        if classes is not None:
            _check_classes(classes, K)
        self.path = path
        self.register_buffer("means", means)
        self.register_buffer("classes", classes)
        self.register_buffer("_log_weights", torch.log(weights / weights.sum()))
        self.register_buffer("_variances", variances)  # (K, D), eigenvalues of C_k
        self.register_buffer("_axes", axes)  # (K, D, D), eigenvectors in columns

    @property
    def num_classes(self) -> int:
        """C, the number of classes; 0 without."""
        return 0 if self.classes is None else int(self.classes.max()) + 1

    def null_condition(self, cond: Any) -> Tensor:
        """The label C for every sample, shape (B,).

        Raises:
            ValueError: if ``cond`` is not labels (B,), or there are no classes.
        """
        return torch.full_like(self._labels(cond), self.num_classes)

    def _labels(self, cond: Any) -> Tensor:
        """``cond``, if it is labels."""
        if self.classes is None:
            raise ValueError(
                f"GaussianMixture takes no condition without classes; got cond of type {type(cond)}"
            )
        if not isinstance(cond, Tensor) or cond.ndim != 1 or cond.dtype != torch.int64:
            got = (tuple(cond.shape), cond.dtype) if isinstance(cond, Tensor) else type(cond)
            raise ValueError(f"cond must be labels (B,) int64; got {got}")
        if not bool(((cond >= 0) & (cond <= self.num_classes)).all()):
            raise ValueError(
                f"cond must be labels 0 to {self.num_classes} (the last: no label); got "
                f"{sorted(set(cond.tolist()))}"
            )
        return cond

    def _log_weights_given(self, cond: Any, n: int) -> Tensor:
        """log p(k | c) of every component, shape (n, K); -inf for those of another class."""
        if cond is None:
            return self._log_weights.expand(n, -1)
        labels = self._labels(cond)
        if len(labels) != n:
            raise ValueError(f"cond must have one label for each of {n} samples; got {len(labels)}")
        keep = (labels[:, None] == self.classes) | (labels[:, None] == self.num_classes)
        return torch.where(keep, self._log_weights, -math.inf).log_softmax(-1)

    def _look(
        self, xt: Tensor, t: Tensor, cond: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        return alpha, z, var, self._log_weights_given(cond, len(xt)).to(xt.dtype) + log_normal

    def _average(self, weights: Tensor, z: Tensor) -> Tensor:
        """sum_k w_k U_k z_k: back from the eigenbases, averaged over components; (B, D)."""
        return torch.einsum("bk,kde,bke->bd", weights, self._axes.to(z.dtype), z)

    def log_prob(self, x: Tensor, t: Tensor | None = None, cond: Any = None) -> Tensor:
        """log p_t(x), or log p_t(x | c), in nats.

        Args:
            x: points, shape (B, D).
            t: times, shape (B,); t = 0, the density of the data, when left out.
            cond: labels c, shape (B,), if there are classes.

        Returns:
            Shape (B,).
        """
        t = x.new_zeros(len(x)) if t is None else t
        *_, log_joint = self._look(x, t, cond)
        return torch.logsumexp(log_joint, dim=-1)

    def log_class_prob(self, xt: Tensor, t: Tensor) -> Tensor:
        """log p(c | x_t) of every class, the exact classifier of noisy samples, shape (B, C).

        Raises:
            ValueError: if there are no classes.
        """
        if self.classes is None:
            raise ValueError("log_class_prob needs a GaussianMixture with classes; it has none")
        *_, log_joint = self._look(xt, t)
        own = torch.arange(self.num_classes, device=self.classes.device)[:, None] == self.classes
        of_class = torch.where(own, log_joint[:, None], -math.inf)  # (B, C, K)
        return torch.logsumexp(of_class, dim=-1).log_softmax(-1)

    def score(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The gradient of log p_t at x_t, shape (B, D)."""
        _, z, var, log_joint = self._look(xt, t, cond)
        return -self._average(log_joint.softmax(-1), z / var)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t], shape (B, D)."""
        alpha, z, var, log_joint = self._look(xt, t, cond)
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

    def posterior(self, xt: Tensor, t: Tensor, cond: Any = None) -> Posterior:
        """The whole distribution q(x_0 | x_t, c), of which :meth:`Denoiser.data` is the mean.

        Given component k, x_0 and x_t are jointly Gaussian; along axis i of C_k with variance c,
        the posterior variance is c sigma^2 / (alpha^2 c + sigma^2).
        """
        alpha, z, var, log_joint = self._look(xt, t, cond)
        c, axes = self._variances.to(z.dtype), self._axes.to(z.dtype)
        means = self.means.to(z.dtype) + torch.einsum("kde,bke->bkd", axes, alpha * c / var * z)
        shrunk = c * (var - alpha**2 * c) / var
        covs = torch.einsum("kde,bke,kfe->bkdf", axes, shrunk, axes)
        return Posterior(log_joint.softmax(-1), means, covs)

    def sample(
        self,
        n: int,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        cond: Any = None,
    ) -> Tensor:
        """Draw from p_t, or from p_t(x | c).

        Args:
            n: how many.
            t: times, shape (n,); t = 0, the data, when left out.
            generator: source of the randomness.
            cond: labels c, shape (n,), if there are classes.

        Returns:
            Shape (n, D).
        """
        if cond is None:
            k = torch.multinomial(self._log_weights.exp(), n, replacement=True, generator=generator)
        else:
            weights = self._log_weights_given(cond, n).exp()
            k = torch.multinomial(weights, 1, generator=generator).squeeze(1)
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


def _check_classes(classes: Tensor, components: int) -> None:
    if classes.shape != (components,) or classes.dtype != torch.int64:
        raise ValueError(
            f"classes must have shape ({components},), one class a component, and type int64; "
            f"got {tuple(classes.shape)} {classes.dtype}"
        )
    present = classes.unique().tolist()
    if present != list(range(len(present))):
        raise ValueError(f"classes must be 0 to C - 1, each with a component; got {present}")
