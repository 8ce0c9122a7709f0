import pytest
import torch

from course_lib.nets import MLP


def filled(**kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(3, width=16, depth=2, **kwargs).double()
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def points(batch=6):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, dtype=torch.float64, generator=g)
    return x, torch.rand(batch, dtype=torch.float64, generator=g)


LABELS = torch.tensor([0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_output_is_zero_at_initialisation(dim):
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(0))
    out = MLP(dim)(x, torch.rand(5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(out, torch.zeros(5, dim))


def test_gradient_reaches_every_parameter():
    net, (x, t) = filled(num_classes=4), points()
    net(x, t, LABELS).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


def test_a_point_depends_on_itself_alone():
    net, (x, t) = filled(num_classes=4), points()
    together = net(x, t, LABELS)
    for i in range(len(x)):
        one = slice(i, i + 1)
        torch.testing.assert_close(
            together[one], net(x[one], t[one], LABELS[one]), atol=1e-10, rtol=0
        )


def test_depends_on_x_t_and_cond():
    net, (x, t) = filled(num_classes=4), points()
    out = net(x, t, LABELS)
    for other in (net(x + 0.1, t, LABELS), net(x, t + 0.1, LABELS), net(x, t, (LABELS + 1) % 5)):
        assert (other - out).abs().amax(1).min() > 1e-4


def test_no_label_is_the_last_label():
    net, (x, t) = filled(num_classes=4), points()
    torch.testing.assert_close(net(x, t), net(x, t, torch.full((6,), 4)), rtol=0, atol=0)


def test_batch_as_large_as_the_dimension():
    net, (x, t) = filled(), points(3)
    want = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), want, atol=1e-10, rtol=0)


def test_errors_name_the_argument():
    net, (x, t) = filled(), points()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\), got \(6, 2\)"):
        net(x[:, :2], t)
    with pytest.raises(ValueError, match="t must have shape"):
        net(x, t[:, None])
    with pytest.raises(ValueError, match="cond must be None"):
        net(x, t, LABELS)
