"""Flows between Gaussians whose velocity is linear in x, so that everything has a closed form."""

import torch

from course_lib import Linear
from course_lib.denoisers import Denoiser


def double(values):
    return torch.tensor(values, dtype=torch.float64)


SOURCE = torch.diag(double([4.0, 0.25]))
TARGET = double([[1.0, 0.9], [0.9, 2.0]])


def source(n, *, generator):
    """Draws from N(0, SOURCE)."""
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return z @ torch.linalg.cholesky(SOURCE).T


class LinearFlow(Denoiser):
    """The exact velocity of a Gaussian coupling: v = Cov(eps - x0, x_t) Cov(x_t)^-1 x_t.

    ``cross`` is Cov(x0, eps); zero for the independent coupling.
    """

    predicts = "velocity"

    def __init__(self, cross=None):
        super().__init__()
        self.path = Linear()
        self.register_buffer("cross", torch.zeros_like(SOURCE) if cross is None else cross)

    def rate(self, t):
        """A(t) with v = A(t) x."""
        with_x0 = (1 - t) * (self.cross.T - TARGET)  # Cov(eps - x0, (1 - t) x0)
        with_eps = t * (SOURCE - self.cross)
        total = (1 - t) ** 2 * TARGET + t**2 * SOURCE + t * (1 - t) * (self.cross + self.cross.T)
        return (with_x0 + with_eps) @ torch.linalg.inv(total)

    def predict(self, xt, t, cond=None):
        times, which = t.double().unique(return_inverse=True)
        rates = torch.stack([self.rate(time) for time in times])
        return torch.einsum("bij,bj->bi", rates[which], xt)

    def flow_map(self, steps=400):
        """M with x0 = M eps: dM/dt = A(t) M from t = 1 to 0, by the Runge-Kutta method."""
        m, h = torch.eye(2, dtype=torch.float64), -1 / steps
        for i in range(steps):
            t = double(1 + i * h)
            k1 = self.rate(t) @ m
            k2 = self.rate(t + h / 2) @ (m + h / 2 * k1)
            k3 = self.rate(t + h / 2) @ (m + h / 2 * k2)
            k4 = self.rate((t + h).clamp(min=0)) @ (m + h * k3)
            m = m + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return m


def cost(m):
    """E|eps - M eps|^2 for eps of the source."""
    gap = torch.eye(2, dtype=torch.float64) - m
    return torch.trace(gap @ SOURCE @ gap.T).item()
