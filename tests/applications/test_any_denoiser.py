"""Every application takes any Denoiser: the same model in other guises gives the same result."""

import pytest
import torch
from torch import nn

from course_lib import (
    VP,
    ClassifierFreeGuidance,
    GaussianMixture,
    NegativePrompt,
    NetDenoiser,
    sample,
)
from course_lib.applications import (
    MixtureOfExperts,
    ParticleDenoiser,
    ProductOfExperts,
    ReconstructionGuidance,
    all_of,
    annealed_langevin,
    feynman_kac,
    filtered,
    invert,
    mask_operator,
    paste,
    repaint,
    sdedit,
    sds,
    vsd,
)
from course_lib.flows import RealNVP, ScoreFlowNetwork
from course_lib.samplers import CountEvaluations, uniform_grid

PATH = VP()
MEANS = torch.tensor([[-0.8, 0.9], [0.7, -0.6], [0.9, 0.8]]).double()
COVS = 0.1 * torch.eye(2).double().expand(3, 2, 2)
EXACT = GaussianMixture(MEANS, COVS, torch.ones(3).double(), PATH, torch.tensor([0, 1, 1]))
NORMAL = GaussianMixture(
    torch.zeros(1, 2).double(), torch.eye(2)[None].double(), torch.ones(1).double(), PATH
)
X = EXACT.sample(6, generator=torch.Generator().manual_seed(1))
Z = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
MASK = torch.tensor([1.0, 0.0])
TS, T = uniform_grid(PATH, 8, t_max=0.95), torch.full((6,), 0.4).double()


class Net(nn.Module):
    """A network that knows the exact answer for one face."""

    def __init__(self, face):
        super().__init__()
        self.exact, self.face = EXACT, face

    def forward(self, x, t, cond=None):
        return getattr(self.exact, self.face)(x, t, cond)

    def null_condition(self, cond):
        return self.exact.null_condition(cond)


GUISES = {
    "a network for noise": NetDenoiser(Net("noise"), PATH, "noise"),
    "a network for data": NetDenoiser(Net("data"), PATH, "data"),
    "a network for v": NetDenoiser(Net("v"), PATH, "v"),
    "a product with itself": ProductOfExperts([EXACT, EXACT], [0.3, 0.7]),
    "a mixture with itself": MixtureOfExperts([EXACT, EXACT]),
    "guidance of scale 1": ClassifierFreeGuidance(EXACT, 1.0),
    "a negative prompt, scale 1": NegativePrompt(EXACT, torch.tensor([1]), 1.0),
    "a counter": CountEvaluations(EXACT),
}


def seeded():
    return torch.Generator().manual_seed(3)


def guided(model, cond):
    known = mask_operator(MASK)
    model = ReconstructionGuidance(model, known, known(X[:1]), 0.1)
    return sample(model, (6, 2), ts=TS, cond=cond, solver="ddim")


KNOWN = {"known": X[:1], "mask": MASK}
APPLICATIONS = {
    "paste": lambda m, c: paste(m, Z, TS, cond=c, generator=seeded(), **KNOWN),
    "repaint": lambda m, c: repaint(m, Z, TS, resamples=2, cond=c, generator=seeded(), **KNOWN),
    "filtered": lambda m, c: filtered(m, Z, TS, cond=c, generator=seeded(), **KNOWN),
    "ReconstructionGuidance": guided,
    "sdedit": lambda m, c: sdedit(m, X, 0.5, steps=5, cond=c),
    # Not from t = 0: what predicts data says nothing of the noise there.
    "invert": lambda m, c: invert(m, X, TS[:-1], refine=2, cond=c),
    "sds": lambda m, c: sds(m, X, T, Z, c).gradient,
    "vsd": lambda m, c: vsd(m, ParticleDenoiser(X, PATH), X, T, Z, c).gradient,
    "annealed_langevin": lambda m, c: annealed_langevin(m, Z, TS, cond=c, generator=seeded()),
    "feynman_kac": lambda m, c: feynman_kac(
        ProductOfExperts([m, m], [0.5, 1.0]), Z, TS, cond=c, generator=seeded()
    ),
    "all_of": lambda m, c: sample(all_of(m, [LABELS], [2.0]), (6, 2), ts=TS, solver="ddim"),
}


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("guise", GUISES)
def test_the_same_model_in_another_guise_gives_the_same(guise, application):
    run = APPLICATIONS[application]
    right = run(EXACT, LABELS)
    assert right.shape == (6, 2)
    torch.testing.assert_close(run(GUISES[guise], LABELS), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("application", sorted(APPLICATIONS.keys() - {"all_of"}))
def test_a_score_flow_that_knows_the_normal_distribution_gives_the_same_as_its_formula(application):
    flow = ScoreFlowNetwork(RealNVP(2, n_layers=2, cond_dim=8), PATH).double()
    run = APPLICATIONS[application]
    torch.testing.assert_close(run(flow, None), run(NORMAL, None), rtol=1e-5, atol=1e-5)
