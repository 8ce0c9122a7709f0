"""Linear maps against their own matrices."""

import pytest
import torch
from jacobians import normal, perturbed

from course_lib.flows.linear import LINEAR_MAPS, OrthogonalLinear, PLULinear, find_linear

each = pytest.mark.parametrize("kind", LINEAR_MAPS.values(), ids=list(LINEAR_MAPS))


def matrix(layer, dim):
    return layer(torch.eye(dim, dtype=torch.float64)).T


@each
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_inverse_and_log_determinant(kind, dim):
    layer = perturbed(lambda: kind(dim))
    W, z = matrix(layer, dim), normal(4, dim)
    torch.testing.assert_close(layer(z), z @ W.T)
    torch.testing.assert_close(layer.inverse(z), torch.linalg.solve(W, z.T).T)
    torch.testing.assert_close(layer.log_abs_det(), torch.linalg.slogdet(W).logabsdet)


@each
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_starts_as_a_scaled_rotation(kind, dim):
    W = matrix(perturbed(lambda: kind(dim, 3.0), amount=0), dim)
    torch.testing.assert_close(W.T @ W, 9 * torch.eye(dim).double(), atol=1e-4, rtol=0)
    if dim > 1:
        assert (W / 3 - torch.eye(dim)).abs().max() > 0.1


def test_plu_is_what_its_name_says():
    layer = perturbed(lambda: PLULinear(5), amount=0.3)
    packed, unit = layer.packed.detach(), torch.eye(5).double()
    lower, upper = packed.tril(-1) + unit, packed.triu(1) + unit
    P = unit[:, layer.order].T
    W = P.T @ lower @ packed.diagonal().exp().diag() @ upper
    torch.testing.assert_close(matrix(layer, 5), W)


def test_orthogonal_is_a_product_of_reflections():
    layer = perturbed(lambda: OrthogonalLinear(5), amount=0.3)
    Q = unit = torch.eye(5).double()
    for v in layer.reflectors.detach().T:
        Q = Q @ (unit - 2 * torch.outer(v, v) / v.dot(v))
    torch.testing.assert_close(matrix(layer, 5), Q * layer.log_scale.exp())


class Way(torch.nn.Module):
    """The map, or its inverse, as a module that is called."""

    def __init__(self, layer, way):
        super().__init__()
        self.layer, self.way = layer, way

    def forward(self, x):
        return getattr(self.layer, self.way)(x)


@each
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_gradients_to_second_order(kind, way):
    layer = perturbed(lambda: kind(3))
    names, values = zip(*layer.named_parameters(), strict=True)

    def moved(x, *parameters):
        named = {f"layer.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Way(layer, way), named, x)

    x = normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(moved, (x, *values))
    assert torch.autograd.gradgradcheck(moved, (x, *values))


@each
def test_an_image_of_784_numbers_in_single_precision(kind):
    layer = perturbed(lambda: kind(784), amount=0.002, dtype=torch.float32)
    x = normal(8, 784, dtype=torch.float32)
    torch.testing.assert_close(layer(layer.inverse(x)), x, atol=1e-3, rtol=0)
    numbers = sum(parameter.numel() for parameter in layer.parameters())
    assert numbers <= 784 * 785


@each
def test_errors(kind):
    with pytest.raises(ValueError, match="dim must be at least 1; got 0"):
        kind(0)


def test_names_are_looked_up():
    assert find_linear("plu") is PLULinear
    with pytest.raises(ValueError, match="linear must be one of plu, orthogonal; got 'qr'"):
        find_linear("qr")
