"""Linear inverse problems: y = A x_0 + noise, solved with a denoiser as the prior.

Any linear function of a batch is an operator A. Bayes' rule adds one term to the score,
grad log p(y | x_t); the approximations of it differ in the covariance that they take for
x_0 given x_t.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.applications.inputs import check_mask
from course_lib.denoisers import Denoiser, check_denoiser, check_gradients
from course_lib.guidance import Schedule, _Guidance
from course_lib.paths import Face, expand

__all__ = [
    "ReconstructionGuidance",
    "blur",
    "conjugate_gradients",
    "downsample",
    "mask_operator",
    "matrix_operator",
    "transpose",
]

Operator = Callable[[Tensor], Tensor]
"""A linear function of a batch: (B, ...) -> (B, ...), sample by sample."""
Covariance = Literal["isotropic", "tweedie", "point"]


def mask_operator(mask: Tensor) -> Operator:
    """The known numbers of each sample: (B, ...) -> (B, m).

    Args:
        mask: 1 = known; broadcasts to one sample.

    Raises:
        TypeError: if the mask is no tensor.
        ValueError: if it is not 0/1; and, from a call, if it does not broadcast to a sample.
    """
    check_mask(mask, mask.shape if isinstance(mask, Tensor) else ())
    return lambda x: x[:, check_mask(mask.to(x.device), x.shape[1:])]


def downsample(factor: int) -> Operator:
    """The mean over squares of factor x factor pixels: (B, C, H, W) -> (B, C, H/f, W/f).

    Raises:
        ValueError: if ``factor`` < 1; and, from a call, if it does not divide the image.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1; got {factor}")

    def apply(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"x must be images whose sides are multiples of {factor}; got {tuple(x.shape)}"
            )
        return F.avg_pool2d(x, factor)

    return apply


def blur(std: float) -> Operator:
    """A Gaussian blur with a reflected border: (B, C, H, W) -> the same shape.

    Args:
        std: standard deviation in pixels, above 0; the kernel ends at three of them.

    Raises:
        ValueError: if ``std`` is not above 0; and, from a call, if images are too small for it.
    """
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"std must be above 0; got {std}")
    reach = math.ceil(3 * std)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / std) ** 2)
    kernel = kernel / kernel.sum()

    def apply(x: Tensor) -> Tensor:
        if x.ndim != 4 or min(x.shape[2:]) <= reach:
            raise ValueError(
                f"x must be images with sides above {reach}, three deviations of the blur; got "
                f"{tuple(x.shape)}"
            )
        k = kernel.to(x).expand(x.shape[1], 1, 1, -1)
        padded = F.pad(x, (reach,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(padded, k, groups=len(k)), k.mT, groups=len(k))

    return apply


def matrix_operator(matrix: Tensor) -> Operator:
    """A matrix of shape (M, D) on points: (B, D) -> (B, M).

    Raises:
        ValueError: if ``matrix`` has not two dimensions.
    """
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have shape (M, D); got {tuple(matrix.shape)}")
    return lambda x: x @ matrix.to(x).T


def transpose(operator: Operator, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A^T y, of the given shape (B, ...): the gradient of <A x, y>, the same at every x."""
    with torch.enable_grad():
        x = y.new_zeros(shape, requires_grad=True)
        return torch.autograd.grad(operator(x), x, y)[0]


class ReconstructionGuidance(_Guidance):
    """``score + s grad_x log p(y | x_t)`` for y = A x_0 + noise_std z, with the network's Jacobian.

    p(y | x_t) is taken for a Gaussian around A x0_hat(x_t), of covariance S = A C A^T +
    noise_std^2 I, where C stands for the covariance of x_0 given x_t. Then the gradient is
    ``J^T A^T S^-1 (y - A x0_hat)`` with the Jacobian J of x0_hat, and S^-1 by conjugate gradients.
    Three choices of C:

    - "isotropic": r_t^2 I with r_t^2 = s0^2 sigma^2 / (alpha^2 s0^2 + sigma^2), as PiGDM (Song et
      al., 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", where s0 = 1).
      Exact for Gaussian data of covariance s0^2 I.
    - "tweedie": sigma^2 / alpha J, the covariance itself by the second-order Tweedie formula (Boys
      et al., 2024, "Tweedie Moment Projected Diffusions"). Exact for all Gaussian data; each
      iteration of the solver differentiates the network once more.
    - "point": 0, as if x_0 were known to be x0_hat, the approximation of diffusion posterior
      sampling (Chung et al., 2023, theorem 1). Needs noise_std > 0. The change of x0_hat grows as
      sigma^2 / (alpha noise_std)^2, too steep for most solvers unless s falls with the noise.

    None is exact for data that is not Gaussian. ``jacobian=False`` takes for J what it is for
    isotropic Gaussian data, r_t^2 alpha / sigma^2 I: no derivative of the network, which is what
    makes guidance dear, and unstable where alpha is small. The measurement then acts on the pixels
    that it saw, and on the others by way of the next look (as in Wang et al., 2023, "DDNM").

    With a Jacobian that was learned begin where alpha is well above 0, with
    ``ts=uniform_grid(path, steps, t_max=0.95)``, say: the term divides by alpha. Where alpha = 0
    it is taken a hair below that time, as in ClassifierGuidance.

    Args:
        denoiser: the model of p(x_0), with its conditions.
        operator: A, a linear function of a batch (B, ...).
        y: the measurement, of the shape of A x; one row serves all samples.
        noise_std: standard deviation of its noise, at least 0.
        scale: s, a number, or a function of times (B,) that gives s for each, (B,).
        covariance: C, see above.
        data_std: s0, standard deviation of the data, above 0; for "isotropic".
        jacobian: whether to differentiate the network; without, ``covariance`` is "isotropic".

    Raises:
        TypeError: if ``denoiser`` is a bare network, ``operator`` no function, or the scale
            neither number nor function.
        ValueError: if an option is out of range; and, from a face, if y does not fit A x, or the
            call stands inside ``torch.inference_mode()``.
    """

    y: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        scale: float | Schedule = 1.0,
        *,
        covariance: Covariance = "isotropic",
        data_std: float = 1.0,
        jacobian: bool = True,
    ):
        check_denoiser(denoiser)
        super().__init__(denoiser, scale)
        if not callable(operator):
            raise TypeError(f"operator must be a function; got {type(operator).__name__}")
        if covariance not in get_args(Covariance):
            names = ", ".join(get_args(Covariance))
            raise ValueError(f"covariance must be one of {names}; got {covariance!r}")
        if not jacobian and covariance != "isotropic":
            raise ValueError(f"covariance must be isotropic without jacobian; got {covariance!r}")
        if not noise_std >= 0 or not data_std > 0 or (covariance == "point" and noise_std == 0):
            raise ValueError(
                f"noise_std must be at least 0 (above, for 'point') and data_std above 0; got "
                f"{noise_std} and {data_std}"
            )
        self.operator, self.noise_std = operator, noise_std
        self.covariance, self.data_std, self.predicts = covariance, data_std, "data"
        self.jacobian = jacobian
        self.register_buffer("y", y)

    def _face(self, target: Face, xt: Tensor, t: Tensor, cond: Any) -> Tensor:
        below, no_data = t, self.path.alpha(t) == 0
        if bool(no_data.any()):  # rounding in the gradient against the distance of the limit
            below = torch.where(no_data, t - torch.finfo(t.dtype).eps ** 0.5, t)
        x0, gradient = self._likelihood(xt, below, cond)
        step = expand(self._scale_at(t).to(xt), xt) * gradient
        # A face is a x_t + b score: at x_t = 0 the conversion gives what the step amounts to.
        shift = self.path.convert(step, torch.zeros_like(xt), below, "score", target)
        if target == "data" and below is t:
            return x0 + shift
        return getattr(self.denoiser, target)(xt, t, cond) + shift

    def _likelihood(self, xt: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """x0_hat, and J^T A^T S^-1 (y - A x0_hat), also where torch records no gradients."""
        check_gradients("ReconstructionGuidance")
        recording = torch.is_grad_enabled()
        with torch.set_grad_enabled(recording or self.jacobian):
            x = xt if xt.requires_grad else xt.detach().requires_grad_()
            x0 = self.denoiser.data(x, t, cond)
        with torch.enable_grad():
            at = x0 if x0.requires_grad else x0.requires_grad_()
            seen = self._seen(at)
            back = _pullback(seen, at, recording)  # v -> A^T v
            pull = _pullback(seen, x, recording) if self.jacobian else self._flat(t, x, back)
            r2 = self._r2(t, x) if self.covariance != "point" else 0.0

            def S(v: Tensor) -> Tensor:  # (A C A^T + noise_std^2) v; J is symmetric
                tweedie = self.covariance == "tweedie"
                spread = self._gain(t, x) * pull(v) if tweedie else r2 * back(v)
                return self.operator(spread) + self.noise_std**2 * v

            residual = self.y.to(seen) - seen
            gradient = pull(conjugate_gradients(S, residual if recording else residual.detach()))
        return (x0, gradient) if recording else (x0.detach(), gradient.detach())

    def _seen(self, x0: Tensor) -> Tensor:
        """A x0_hat, of the shape of y."""
        seen = self.operator(x0)
        if self.y.shape[1:] != seen.shape[1:] or len(self.y) not in (1, len(seen)):
            raise ValueError(
                f"y must have the shape of A x, {tuple(seen.shape)}, or one row of it; got "
                f"{tuple(self.y.shape)}"
            )
        return seen

    def _gain(self, t: Tensor, x: Tensor) -> Tensor:
        """sigma^2 / alpha, by which the data prediction follows the score."""
        return expand(self.path.sigma(t) ** 2 / self.path.alpha(t), x)

    def _r2(self, t: Tensor, x: Tensor) -> Tensor:
        """r_t^2, the variance of x_0 given x_t for Gaussian data of variance s0^2."""
        alpha, sigma, var = self.path.alpha(t), self.path.sigma(t), self.data_std**2
        return expand(var * sigma**2 / (alpha**2 * var + sigma**2), x)

    def _flat(self, t: Tensor, x: Tensor, back: Operator) -> Operator:
        """v -> J^T A^T v with J = alpha s0^2 / (alpha^2 s0^2 + sigma^2) I."""
        alpha, sigma, var = self.path.alpha(t), self.path.sigma(t), self.data_std**2
        J = expand(alpha * var / (alpha**2 * var + sigma**2), x)
        return lambda v: J * back(v)


def conjugate_gradients(
    apply: Operator, b: Tensor, *, iterations: int = 50, tol: float | None = None
) -> Tensor:
    """Solve ``apply(v) = b`` for a symmetric positive definite map, for each sample by itself.

    Hestenes & Stiefel, 1952. A sample stands still where ``apply`` shows it no curvature.

    Args:
        apply: the map, (B, ...) -> (B, ...).
        b: the right side, shape (B, ...).
        iterations: at most so many.
        tol: stop when the residual of every sample is below tol times that of v = 0; by default
            eps^0.6, which is 1e-4 in single precision.

    Returns:
        v, shape (B, ...).
    """
    v, r = torch.zeros_like(b), b
    p, rr = r, _dot(r, r)
    goal = (torch.finfo(b.dtype).eps ** 0.6 if tol is None else tol) ** 2 * rr
    for _ in range(min(iterations, b[0].numel())):
        if bool((rr <= goal).all()):
            break
        Ap = apply(p)
        step = expand(_ratio(rr, _dot(p, Ap)), b)
        v, r = v + step * p, r - step * Ap
        rr, before = _dot(r, r), rr
        p = r + expand(_ratio(rr, before), b) * p
    return v


def _pullback(out: Tensor, x: Tensor, recording: bool) -> Operator:
    """v -> v^T d out / d x, as often as one likes."""
    return lambda v: torch.autograd.grad(out, x, v, retain_graph=True, create_graph=recording)[0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, shape (B,)."""
    return (a * b).flatten(1).sum(1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not above 0."""
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, 1.0), 0.0)
