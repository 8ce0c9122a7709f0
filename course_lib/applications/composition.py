"""Composition: products, mixtures and negations of models, each a Denoiser again.

At t = 0 the score of p1^a p2^b is a s1 + b s2. At t > 0 it is not: noise and products do not
commute. So the rules here give *annealed targets*, not the diffused product; what the products
lack is brought by the samplers of :mod:`course_lib.applications.mcmc` and
:mod:`course_lib.applications.particles`.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.denoisers import Denoiser, GaussianMixture, check_denoiser
from course_lib.guidance import ClassifierGuidance
from course_lib.paths import Face, check_times, expand

__all__ = ["Asked", "MixtureOfExperts", "ProductOfExperts", "all_of", "exact_product"]


class Asked(Denoiser):
    """A denoiser whose condition is fixed: p(x | c) as an expert of its own.

    Args:
        denoiser: the model.
        cond: c, one row for all samples, such as ``["a seven"]`` or a label of shape (1,); None:
            the model without a condition.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
    """

    def __init__(self, denoiser: Denoiser, cond: Any) -> None:
        super().__init__()
        check_denoiser(denoiser)
        self.denoiser, self.path, self.predicts = denoiser, denoiser.path, denoiser.predicts
        self.cond = denoiser.encode_condition(cond)

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The denoiser's prediction given c, shape (B, ...); ``cond`` is not used."""
        return self._face(self.predicts, xt, t, cond)

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        return getattr(self.denoiser, target)(xt, t, self._rows(len(xt)))

    def log_prob(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p_t(x_t | c), shape (B,).

        Raises:
            TypeError: if the denoiser has no density.
        """
        return log_density(self.denoiser, xt, t, self._rows(len(xt)))

    def _rows(self, n: int) -> Any:
        """The condition with a row for each of n samples."""
        if isinstance(self.cond, tuple):
            return tuple(part.expand(n, *part.shape[1:]) for part in self.cond)
        return None if self.cond is None else self.cond.expand(n, *self.cond.shape[1:])


class _Experts(Denoiser):
    """Several denoisers on one path, with a weight each."""

    predicts: Face = "noise"

    def __init__(self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None) -> None:
        super().__init__()
        weights = [1.0] * len(denoisers) if weights is None else [float(w) for w in weights]
        for denoiser in denoisers:
            check_denoiser(denoiser)
        if not denoisers or len(weights) != len(denoisers):
            raise ValueError(
                f"denoisers must be at least one, with a weight each; got {len(denoisers)} and "
                f"{len(weights)} weights"
            )
        if not all(map(math.isfinite, weights)):
            raise ValueError(f"weights must be finite; got {weights}")
        paths = {str(denoiser.path): denoiser.path for denoiser in denoisers}
        if len(paths) > 1:
            raise ValueError(f"denoisers must lie on one path; got {', '.join(paths)}")
        self.members = nn.ModuleList(denoisers)
        self.weights, self.path = tuple(weights), denoisers[0].path

    @property
    def experts(self) -> list[Denoiser]:
        """The denoisers, in their order."""
        return [*self.members]

    @property
    def has_density(self) -> bool:
        """Whether all experts know their densities."""
        return all(map(has_density, self.experts))

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The noise prediction, shape (B, ...)."""
        return self._face("noise", xt, t, cond)

    def encode_condition(self, cond: Any) -> Any:
        """As the first expert encodes it."""
        return self.experts[0].encode_condition(cond)

    def null_condition(self, cond: Any) -> Any:
        """That of the first expert."""
        return self.experts[0].null_condition(cond)

    def log_probs(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p_t of each of E experts, shape (E, B).

        Raises:
            TypeError: if an expert has no density.
        """
        return torch.stack([log_density(expert, xt, t, cond) for expert in self.experts])


class ProductOfExperts(_Experts):
    """``score = sum_i w_i score_i``: the annealed target q_t ~ prod_i p_i,t^w_i at every time.

    At t = 0 this is the product itself. At t > 0 it is *not* the product with noise added, so an
    ODE or SDE solver alone samples something else; use ``annealed_langevin`` or ``feynman_kac``.
    Weights above 0 ask for an expert (AND), weights below 0 for its opposite (NOT). Weights that
    sum to one keep the scale of the noise (Liu et al., 2022, "Compositional Visual Generation with
    Composable Diffusion Models", eq. 11 and 13); :func:`all_of` makes them so.

    Args:
        denoisers: the experts, on one path. A condition given to the product is given to all; an
            expert that has its own is an :class:`Asked`.
        weights: w_i, by default 1 each.

    Raises:
        TypeError: if an expert is a bare network.
        ValueError: if there is no expert, weights do not fit, or paths differ; and, from a face,
            where it is singular: at alpha = 0, unless the weights sum to one.
    """

    def __init__(
        self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(denoisers, weights)

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        check_times(t, xt)
        faces = [getattr(expert, target)(xt, t, cond) for expert in self.experts]
        total = reduce(torch.add, (w * y for w, y in zip(self.weights, faces, strict=True)))
        rest = 1 - math.fsum(self.weights)
        if abs(rest) < 1e-12:
            return total
        # A face is a x_t + b score; the weighted sum has a x_t sum(w) times and needs it once.
        return total + rest * self.path.convert(torch.zeros_like(xt), xt, t, "score", target)

    def scores(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The score of each of E experts, shape (E, B, ...)."""
        return torch.stack([expert.score(xt, t, cond) for expert in self.experts])

    def log_prob(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log q_t(x_t) up to a constant, sum_i w_i log p_i,t(x_t), shape (B,).

        Raises:
            TypeError: if an expert has no density.
        """
        log_probs = self.log_probs(xt, t, cond)
        return log_probs.new_tensor(self.weights) @ log_probs


class MixtureOfExperts(_Experts):
    """``p = sum_i w_i p_i`` (OR), exact at every time: noise and mixtures do commute.

    Every face is an average of the experts' faces, weighted by the probability that x_t came from
    expert i, r_i = w_i p_i,t(x_t) / p_t(x_t). So the experts must know their densities.

    Args:
        denoisers: the experts, on one path, with normalised densities. A ProductOfExperts has none:
            it knows its density up to a factor only, which changes with t.
        weights: w_i, positive, scaled to sum to one; by default all equal.

    Raises:
        TypeError: if an expert has no density (a ``GaussianMixture`` and a ``ScoreFlowNetwork``
            have one), is a ProductOfExperts, or is a bare network.
        ValueError: as for :class:`ProductOfExperts`, and if a weight is not positive.
    """

    def __init__(
        self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(denoisers, weights)
        for expert in self.experts:
            _check_density(expert)
            if isinstance(expert, ProductOfExperts):
                raise TypeError(
                    "denoisers of a mixture must have normalised densities; a ProductOfExperts "
                    "knows its own up to a factor only, which changes with t"
                )
        if min(self.weights) <= 0:
            raise ValueError(f"weights must be positive; got {list(self.weights)}")

    def responsibilities(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """r_i, the probability of each of E experts given x_t, shape (E, B)."""
        return self._log_joint(xt, t, cond).softmax(0)

    def log_prob(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p_t(x_t), shape (B,)."""
        return self._log_joint(xt, t, cond).logsumexp(0)

    def _log_joint(self, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        log_probs = self.log_probs(xt, t, cond)
        return log_probs + log_probs.new_tensor(self.weights).log().log_softmax(0)[:, None]

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        shares = self.responsibilities(xt, t, cond)
        faces = [getattr(expert, target)(xt, t, cond) for expert in self.experts]
        pairs = zip(shares, faces, strict=True)
        return reduce(torch.add, (expand(r, xt) * y for r, y in pairs))


def all_of(
    denoiser: Denoiser, conds: Sequence[Any], weights: Sequence[float] | None = None
) -> ProductOfExperts:
    """Several conditions of one model at once: p(x) prod_i (p(x | c_i) / p(x))^w_i.

    The model without a condition gets the weight 1 - sum(w), so all weights sum to one. A negative
    w_i leads away from c_i. With one condition this is classifier-free guidance of scale w.
    Liu et al., 2022, "Compositional Visual Generation with Composable Diffusion Models", eq. 11.

    Args:
        denoiser: the model, trained with and without conditions.
        conds: one row each, such as ``[["a seven"], ["a bold digit"]]``.
        weights: w_i, by default 1 each.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if there is no condition, or not a weight for each.
    """
    check_denoiser(denoiser)
    weights = [1.0] * len(conds) if weights is None else list(weights)
    if len(conds) == 0 or len(weights) != len(conds):
        raise ValueError(
            f"conds must be at least one, with a weight each; got {len(conds)} and "
            f"{len(weights)} weights"
        )
    rest = 1 - math.fsum(weights)
    experts = [Asked(denoiser, cond) for cond in conds]
    if abs(rest) > 1e-12:
        null = denoiser.null_condition(experts[0].cond)
        experts, weights = [Asked(denoiser, null), *experts], [rest, *weights]
    return ProductOfExperts(experts, weights)


def exact_product(
    mixtures: Sequence[GaussianMixture], weights: Sequence[float] | None = None
) -> GaussianMixture:
    """The normalised product prod_i p_i^w_i of Gaussian mixtures, which is one again.

    A component of it takes one component from each factor: precisions add with the weights, and so
    do precisions times means. Powers other than 1 have this form for single Gaussians alone; for a
    whole power give a mixture several times.

    Args:
        mixtures: the factors, on one path.
        weights: w_i, by default 1 each; any real number for a factor with one component.

    Raises:
        ValueError: if weights do not fit, a factor with several components has another weight than
            1, or a precision of the product is not positive definite: nothing to normalise.
    """
    experts = ProductOfExperts(mixtures, weights)  # checks types, numbers and paths
    log_w, eta, precision = mixtures[0].means.new_zeros(1), None, None
    for mixture, w in zip(mixtures, experts.weights, strict=True):
        if w != 1 and len(mixture.means) > 1:
            raise ValueError(f"a mixture's weight must be 1 in an exact product; got {w}")
        inverse = torch.einsum(
            "kde,ke,kfe->kdf", mixture._axes, 1 / mixture._variances, mixture._axes
        )
        a, b = w * inverse, w * torch.einsum("kde,ke->kd", inverse, mixture.means)
        log_at_0 = w * _log_at_zero(mixture, b / w if w else b)
        log_w = (log_w[:, None] + log_at_0).flatten()
        precision = a if precision is None else (precision[:, None] + a).flatten(0, 1)
        eta = b if eta is None else (eta[:, None] + b).flatten(0, 1)
    return _from_natural(log_w, eta, precision, experts.path)


def _log_at_zero(mixture: GaussianMixture, eta: Tensor) -> Tensor:
    """log w_k N(0; m_k, C_k) of each component, shape (K,)."""
    logdet = torch.log(2 * math.pi * mixture._variances).sum(-1)
    return mixture._log_weights - 0.5 * (logdet + (eta * mixture.means).sum(-1))


def _from_natural(log_w: Tensor, eta: Any, precision: Any, path: Any) -> GaussianMixture:
    """The mixture of exp(log_w + eta x - x precision x / 2), component by component."""
    smallest = torch.linalg.eigvalsh(precision).min().item()
    if not smallest > 0:
        raise ValueError(
            f"the product cannot be normalised: its smallest precision is {smallest:.4g}, and it "
            f"must be above 0; take a smaller negative weight"
        )
    covs = torch.linalg.inv(precision)
    means = torch.einsum("kde,ke->kd", covs, eta)
    logdet = torch.logdet(2 * math.pi * covs)
    weights = (log_w + 0.5 * (logdet + (eta * means).sum(-1))).softmax(0)
    alive = weights > 0  # the others are 0 in floating point
    covs = (covs + covs.mT) / 2
    return GaussianMixture(means[alive], covs[alive], weights[alive], path)


def has_density(denoiser: Denoiser) -> bool:
    """Whether ``log_prob(x, t, cond)`` of a denoiser is the log of its density."""
    if isinstance(denoiser, Asked):
        return has_density(denoiser.denoiser)
    if isinstance(denoiser, _Experts):
        return denoiser.has_density
    return hasattr(denoiser, "log_prob") and not isinstance(denoiser, ClassifierGuidance)


def log_density(denoiser: Denoiser, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
    """log p_t(x_t | c) of a denoiser that knows it, shape (B,).

    Raises:
        TypeError: if it does not.
    """
    _check_density(denoiser)
    known: Any = denoiser
    log_prob: Tensor = known.log_prob(xt, t, cond)
    return log_prob


def _check_density(denoiser: Any) -> None:
    if not has_density(denoiser):
        raise TypeError(
            f"{type(denoiser).__name__} knows its score but no density, which is needed here; "
            f"GaussianMixture and ScoreFlowNetwork know theirs"
        )
