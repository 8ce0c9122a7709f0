"""Couplings: which noise goes with which data while a flow is trained.

A coupling is a rule ``(x0, eps, cond, *, generator=None) -> (x0, eps, cond)`` on a batch. Any
coupling whose noise is standard normal, and whose data is the data, trains a flow from one to the
other; it decides how much the paths cross, and so how straight the flow is. Give it to the loss:
``functools.partial(denoising_loss, coupling=MinibatchOT())`` is an objective for ``fit``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.objectives import Coupling
from course_lib.transport.sinkhorn import sinkhorn
from course_lib.transport.wasserstein import optimal_permutation, squared_distances

__all__ = ["MinibatchOT", "SinkhornCoupling", "chain", "fixed_pairs", "independent"]

Coupled = tuple[Tensor, Tensor, Any]


def independent(
    x0: Tensor, eps: Tensor, cond: Any, *, generator: torch.Generator | None = None
) -> Coupled:
    """Data and noise as they came: the coupling of plain flow matching."""
    return x0, eps, cond


@dataclass(frozen=True)
class MinibatchOT:
    """Permute the noise of each batch so that ``sum_i |x0_i - eps_i|^2`` is least, exactly.

    Pooladian et al., 2023, and Tong et al., 2024. The optimum of a batch is not that of the whole
    distributions: it comes closer as the batch grows. Data and labels keep their order.

    Without ``within_labels`` the noise comes to depend on the label: a sampler that draws it
    without looking at the label then starts from the wrong noise (Cheng and Schwing, 2025).

    Args:
        within_labels: match inside each label alone, so that the noise stays independent of the
            label. The condition must then be labels (B,), int64.
    """

    within_labels: bool = False

    def __call__(
        self, x0: Tensor, eps: Tensor, cond: Any, *, generator: torch.Generator | None = None
    ) -> Coupled:
        """The same data and conditions, the noise in another order.

        Raises:
            ValueError: if noise and data differ in shape, a value is not finite, or labels are
                needed and ``cond`` holds none.
        """
        a, b = _rows(x0, eps)
        if not self.within_labels:
            return x0, eps[_matching(a, b)], cond
        if not isinstance(cond, Tensor) or cond.shape != (len(x0),) or cond.dtype != torch.int64:
            got = (tuple(cond.shape), cond.dtype) if isinstance(cond, Tensor) else type(cond)
            raise ValueError(
                f"within_labels needs cond of labels ({len(x0)},) int64; got {got}: one label a "
                f"sample, or MinibatchOT() without labels"
            )
        order = torch.arange(len(x0), device=x0.device)
        for label in cond.unique():
            members = (cond == label).nonzero().squeeze(1).to(x0.device)
            order[members] = members[_matching(a[members], b[members])]
        return x0, eps[order], cond


@dataclass(frozen=True)
class SinkhornCoupling:
    """Draw each sample's noise from its row of the entropic plan of the batch.

    Pooladian et al., 2023, and Tong et al., 2024. A small ``epsilon`` gives the permutation of
    :class:`MinibatchOT`, a large one independent noise. Rows are drawn one by one, so the same
    noise may be drawn twice; on average each is drawn once.

    Args:
        epsilon: strength of the entropy term of ``sinkhorn``, above 0.
        relative: count ``epsilon`` in units of the mean of ``|x0_i - eps_j|^2`` over the batch.

    Raises:
        ValueError: if ``epsilon`` is not above 0.
    """

    epsilon: float
    relative: bool = True

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0; got {self.epsilon}")

    def __call__(
        self, x0: Tensor, eps: Tensor, cond: Any, *, generator: torch.Generator | None = None
    ) -> Coupled:
        """The same data and conditions, with noise drawn from the batch.

        Raises:
            ValueError: if noise and data differ in shape, or a value is not finite.
        """
        cost = squared_distances(*_rows(x0, eps))
        epsilon = self.epsilon * float(cost.mean()) if self.relative else self.epsilon
        drawn = sinkhorn(None, None, cost, epsilon).sample_targets(generator)
        return x0, eps[drawn.to(eps.device)], cond


def fixed_pairs(
    x0: Tensor, eps: Tensor, cond: Any, *, generator: torch.Generator | None = None
) -> Coupled:
    """Take the noise that comes with the data instead of the one that was drawn.

    Args:
        x0: data, shape (B, ...).
        eps: noise that the loss has drawn; it is not used.
        cond: the pair (eps, cond): noise of the shape of ``x0``, and the condition or None. Data
            for ``fit`` is then ``(x0, (eps, cond))``.
        generator: not used; every coupling has the same signature.

    Returns:
        x0, the noise of ``cond``, and the condition.

    Raises:
        ValueError: if ``cond`` is no such pair.
    """
    if not isinstance(cond, tuple) or len(cond) != 2 or not isinstance(cond[0], Tensor):
        raise ValueError(
            f"fixed_pairs needs data (x0, (eps, cond)), with cond None where there is none; the "
            f"condition it got is {type(cond).__name__}"
        )
    mine, rest = cond
    if mine.shape != x0.shape:
        raise ValueError(
            f"the eps of a pair must have the shape of x0, {tuple(x0.shape)}; "
            f"got {tuple(mine.shape)}"
        )
    return x0, mine.to(x0), rest


@dataclass(frozen=True)
class _Chain:
    rules: tuple[Coupling, ...]

    def __call__(
        self, x0: Tensor, eps: Tensor, cond: Any, *, generator: torch.Generator | None = None
    ) -> Coupled:
        for rule in self.rules:
            x0, eps, cond = rule(x0, eps, cond, generator=generator)
        return x0, eps, cond


def chain(*rules: Coupling) -> Coupling:
    """One rule after the other.

    ``chain(fixed_pairs, MinibatchOT())`` matches data with noise of another source than the
    normal, which then comes with the data.

    Args:
        rules: couplings, the first one first; without any, the result is :func:`independent`.
    """
    return _Chain(rules)


def _rows(x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Both as rows (B, D) of float64, without gradient."""
    if x0.shape != eps.shape or x0.ndim < 2:
        raise ValueError(
            f"x0 and eps must have one shape (B, ...); got {tuple(x0.shape)} and {tuple(eps.shape)}"
        )
    for name, value in (("x0", x0), ("eps", eps)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite; it contains NaN or infinity")
    return x0.detach().double().flatten(1), eps.detach().double().flatten(1)


def _matching(a: Tensor, b: Tensor) -> Tensor:
    """The permutation p that makes sum_i |a_i - b_p(i)|^2 least."""
    # The squares are the same under every permutation; what is left is -2 <a_i, b_j>.
    return optimal_permutation(-a @ b.T)
