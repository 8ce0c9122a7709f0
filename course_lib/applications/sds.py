"""Score distillation: a denoiser of images leads whatever an image is rendered from.

Poole et al., 2023, "DreamFusion: Text-to-3D using 2D Diffusion". The gradient goes through the
renderer and never through the denoiser.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.denoisers import Denoiser, check_denoiser
from course_lib.paths import Face, Path, expand

__all__ = [
    "Distillation",
    "ParticleDenoiser",
    "annealed_times",
    "data_weight",
    "noise_weight",
    "sds",
    "vsd",
]

Weight = Callable[[Path, Tensor], Tensor]
"""``weight(path, t) -> (B,)``, the factor w(t) of the gradient."""


class Distillation(NamedTuple):
    """A scalar to call ``backward()`` on, and the gradient in x that it stands for."""

    loss: Tensor
    """Scalar. Its value means nothing; its gradient in x is ``gradient / B``, as for a mean."""
    gradient: Tensor
    """The gradient of each image, shape (B, ...), without a graph."""


def noise_weight(path: Path, t: Tensor) -> Tensor:
    """w(t) = sigma(t)^2, DreamFusion's choice; shape (B,)."""
    return path.sigma(t) ** 2


def data_weight(path: Path, t: Tensor) -> Tensor:
    """w(t) = sigma(t) / alpha(t), which makes the gradient x minus E[x_0 | x_t]; shape (B,)."""
    return path.sigma(t) / path.alpha(t)


def sds(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Any = None,
    *,
    weight: Weight = noise_weight,
    control: float | Tensor = 1.0,
) -> Distillation:
    """Score distillation sampling, w(t) (eps_hat(x_t, t, c) - eps) (Poole et al., 2023, eq. 3).

    Its mean over eps is w(t) sigma / alpha times the gradient in x of KL(q(x_t | x) || p_t): x is
    led to a mode. eps has mean zero, so any factor of it that does not depend on eps gives the
    same mean: it is a control variate, and ``control`` is its coefficient.

    Args:
        denoiser: the model of images; any rule of guidance is one.
        x: images, shape (B, ...), such as the pictures of a renderer.
        t: times, shape (B,).
        eps: standard normal noise, of the shape of x.
        cond: condition for the denoiser, B rows.
        weight: w(path, t).
        control: coefficient of eps, a number or one for each image, shape (B,).

    Returns:
        The surrogate loss, and the gradient.

    Raises:
        TypeError: if ``denoiser`` is a bare network.
        ValueError: if shapes do not fit, times lie outside [0, 1], or w(t) is not finite.
    """
    factor = torch.as_tensor(control, dtype=x.dtype, device=x.device).expand(len(x))
    return _distil(denoiser, x, t, eps, cond, weight, lambda xt: expand(factor, x) * eps)


def vsd(
    denoiser: Denoiser,
    particles: Denoiser,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Any = None,
    *,
    weight: Weight = noise_weight,
) -> Distillation:
    """Variational score distillation, w(t) (eps_hat - eps_q).

    Wang et al., 2023, "ProlificDreamer".

    eps_q is the noise prediction for the distribution q of all images x, where SDS has that of
    one image alone, eps. The images then follow the gradient flow of KL(q_t || p_t), and rest
    where q = p and not in the modes.

    Args:
        denoiser: the model of images, p.
        particles: the denoiser of q, such as :class:`ParticleDenoiser`.
        x: images, shape (B, ...).
        t: times, shape (B,).
        eps: standard normal noise, of the shape of x.
        cond: condition for ``denoiser``, B rows.
        weight: w(path, t).

    Returns:
        The surrogate loss, and the gradient.

    Raises:
        TypeError: if one of both is a bare network.
        ValueError: as :func:`sds` does.
    """
    check_denoiser(particles)
    return _distil(denoiser, x, t, eps, cond, weight, lambda xt: particles.noise(xt, t))


def _distil(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Any,
    weight: Weight,
    baseline: Callable[[Tensor], Tensor],
) -> Distillation:
    """w(t) (eps_hat - baseline) and its surrogate."""
    check_denoiser(denoiser)
    with torch.no_grad():  # the Jacobian of the denoiser is dropped, and its graph never built
        xt = denoiser.path.sample(x, t, eps)
        w = weight(denoiser.path, t)
        if w.shape != t.shape or not bool(w.isfinite().all()):
            raise ValueError(
                f"weight(path, t) must be finite, of shape {tuple(t.shape)}; got "
                f"{tuple(w.shape)}, {w.flatten()[:3].tolist()} at t = {t[:3].tolist()}"
            )
        gradient = expand(w, x) * (denoiser.noise(xt, t, cond) - baseline(xt))
    return Distillation((gradient * x).sum() / len(x), gradient)


class ParticleDenoiser(Denoiser):
    """The exact denoiser of finitely many images, each as likely as the others.

    p_t is the mixture of N(alpha x_i, sigma^2 I); E[x_0 | x_t] is a mean of the images x_i, each
    weighted by how well it explains x_t. With a single image its noise prediction is eps itself.

    Args:
        particles: the images, shape (N, ...).
        path: the path on which x_t lies.
    """

    predicts: Face = "data"
    particles: Tensor

    def __init__(self, particles: Tensor, path: Path):
        super().__init__()
        self.path = path
        self.register_buffer("particles", particles.detach())

    def predict(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """E[x_0 | x_t], shape (B, ...); times must be above 0, unless sigma is too."""
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        known = self.particles.flatten(1)
        far = xt.flatten(1)[:, None] - alpha[..., None] * known
        return ((-0.5 * (far.norm(dim=-1) / sigma) ** 2).softmax(1) @ known).reshape(xt.shape)


def annealed_times(
    n: int,
    done: float,
    *,
    high: float = 0.98,
    low: float = 0.02,
    width: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n times near one that falls from ``high`` to ``low`` as the optimisation goes on.

    Coarse shape first, detail last (Huang et al., 2024, "DreamTime"). The falling time is linear
    in ``done`` here; theirs follows a density of times.

    Args:
        n: how many.
        done: the part of the optimisation that is over, in [0, 1].
        high: largest time.
        low: smallest time.
        width: the times are uniform in a window of this width, which slides.
        generator: source of the randomness.

    Returns:
        Shape (n,), in [low, high].

    Raises:
        ValueError: unless 0 <= done <= 1, 0 <= low < high <= 1 and 0 <= width <= high - low.
    """
    if not (0 <= done <= 1 and 0 <= low < high <= 1 and 0 <= width <= high - low):
        raise ValueError(
            "annealed_times needs 0 <= done <= 1, 0 <= low < high <= 1 and "
            f"0 <= width <= high - low; got done={done}, low={low}, high={high}, width={width}"
        )
    device = None if generator is None else generator.device
    top = high - (high - low - width) * done
    return top - width * torch.rand(n, generator=generator, device=device)
