"""What the tests of the flows hold them to: Jacobians by autograd, in float64."""

import torch


def perturbed(make, amount=0.1, dtype=torch.float64):
    """A flow with weights that are not those of the start, where conditions have no effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = make().to(dtype)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += amount * torch.randn_like(parameter)
    return flow


def normal(*shape, seed=1, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(flow, n=5, scale=1.5):
    """Points, and conditions if the flow takes any."""
    cond = normal(n, flow.cond_dim, seed=2) if flow.cond_dim else None
    return normal(n, *flow.shape, scale=scale), cond


def assert_change_of_variables(flow):
    """Forward and inverse undo each other; both log-determinants are those of the Jacobians."""
    z, cond = inputs(flow)
    x, log_det = flow(z, cond)
    back, log_det_back = flow.inverse(x, cond)
    torch.testing.assert_close(back, z, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-10, rtol=1e-10)
    for move, start, known in ((flow.forward, z, log_det), (flow.inverse, x, log_det_back)):
        # Samples do not see one another, so the sum over the batch has their own Jacobians.
        jacobian = torch.autograd.functional.jacobian(
            lambda v, move=move: move(v, cond)[0].sum(0), start
        )
        oracle = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
        torch.testing.assert_close(known, oracle, atol=1e-10, rtol=1e-10)


def assert_gradient_reaches_all(flow):
    """Every number among the parameters moves the likelihood."""
    flow.log_prob(*inputs(flow, n=32)).sum().backward()
    for name, parameter in flow.named_parameters():
        assert (parameter.grad.abs() > 0).all(), name
