"""The transformer flow against its own Jacobian, and against what a causal order promises."""

import pytest
import torch

from course_lib.flows import CausalTransformerBlock, TransformerFlow


def random_flow(cond_dim=0, seed=0, **options):
    """A small flow with weights that are not those of the start, where it is the identity."""
    torch.manual_seed(seed)
    sizes = {"image_size": 4, "channels": 2, "patch": 2, "dim": 8, "depth": 2, "heads": 2}
    flow = TransformerFlow(**{**sizes, "n_blocks": 3, "cond_dim": cond_dim, **options}).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return flow


def images(n=3, seed=1, channels=2, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("cond_dim", [0, 5])
def test_forward_and_inverse_undo_each_other(cond_dim):
    flow, z = random_flow(cond_dim), images()
    cond = torch.randn(3, cond_dim, dtype=torch.float64) if cond_dim else None
    x, log_det = flow(z, cond)
    back, log_det_back = flow.inverse(x, cond)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, -log_det)
    assert (x - z).abs().max() > 0.1


@pytest.mark.parametrize("cond_dim", [0, 5])
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_log_determinant_is_that_of_the_jacobian(way, cond_dim):
    flow, x = random_flow(cond_dim), images(1)
    cond = torch.randn(1, cond_dim, dtype=torch.float64) if cond_dim else None
    move = getattr(flow, way)
    jacobian = torch.autograd.functional.jacobian(lambda y: move(y, cond)[0], x).reshape(32, 32)
    torch.testing.assert_close(move(x, cond)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_token_depends_on_those_before_it_alone(backwards):
    torch.manual_seed(0)
    block = CausalTransformerBlock(5, 3, 8, 1, 2, backwards=backwards).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda y: block.inverse(y)[0], x)[0, :, :, 0]
    reached = jacobian.abs().amax(dim=(1, 3)) > 0  # of token i on token j
    triangle = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(reached, triangle.T if backwards else triangle)


def test_it_starts_as_the_identity():
    flow, x = TransformerFlow(4, patch=2, dim=8), images(channels=1).float()
    z, log_det = flow.inverse(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros(3))


def test_the_class_reaches_the_first_token():
    flow = random_flow(cond_dim=5, n_blocks=1)
    z, cond = torch.zeros(2, 2, 4, 4, dtype=torch.float64), torch.eye(2, 5, dtype=torch.float64)
    x, _ = flow(z, cond)
    assert (x[0] - x[1])[:, :2, :2].abs().min() > 0


def test_every_parameter_gets_a_gradient():
    flow = random_flow(cond_dim=5)
    flow.log_prob(images(), torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert all((p.grad is not None) and p.grad.abs().max() > 0 for p in flow.parameters())
    unconditional = random_flow()
    unconditional.log_prob(images()).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in unconditional.parameters())


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_extreme_images_stay_finite(size):
    flow = random_flow().float()
    x = (size * images().float()).requires_grad_()
    flow.log_prob(x).sum().backward()
    assert x.grad.isfinite().all()
    sample, log_prob = flow.forward_with_base_samples(size * images().float())
    assert sample.isfinite().all()
    assert log_prob.isfinite().all()


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="patch must divide image_size 28, got 3"):
        TransformerFlow(28, patch=3)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2, 4, 4\); got \(3, 1, 4, 4\)"):
        random_flow().log_prob(images(channels=1))
    with pytest.raises(ValueError, match=r"cond must be of shape \(3, 5\); got None"):
        random_flow(cond_dim=5).log_prob(images())
    with pytest.raises(ValueError, match=r"cond must be None; got of shape \(3, 5\)"):
        random_flow().log_prob(images(), torch.zeros(3, 5))


def test_samples_follow_the_density():
    """Stein's identity, E[x score^T] = -I under p, holds only if samples and density agree."""
    flow = random_flow()
    x = flow.sample(4000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    products = (x * score).detach().flatten(1)
    deviation = products.std(0) / 4000**0.5
    assert ((products.mean(0) + 1).abs() < 5 * deviation).all()
    z = images()
    x, log_prob = flow.forward_with_base_samples(z)
    torch.testing.assert_close(log_prob, flow.log_prob(x))
