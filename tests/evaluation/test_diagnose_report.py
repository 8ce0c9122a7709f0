"""The report as a table, the parts of the diagnosis against closed forms, and its errors."""

from types import SimpleNamespace

import pytest
import torch

from course_lib import VE, VP, GaussianMixture, Linear, NetDenoiser
from course_lib.data import eight_gaussians, eight_gaussians_labels, eight_gaussians_parameters
from course_lib.evaluation import Finding, Report, diagnose
from course_lib.evaluation.diagnosis.conventions import _paths
from course_lib.evaluation.diagnosis.loss import check_history
from course_lib.evaluation.diagnosis.probe import reaches
from course_lib.evaluation.diagnosis.references import LinearDenoiser, Memoriser
from course_lib.nets import MLP
from course_lib.samplers import euler, uniform_grid

X = eight_gaussians(400, seed=1)
EXACT = GaussianMixture(*eight_gaussians_parameters(), VP())
FAST = {"n": 200, "steps": 20, "polish": 0}


@pytest.fixture(scope="module")
def report():
    return Report(
        (
            Finding("data", "ok", "range -1 to 1"),
            Finding("use", "bad", "error <3> & more", "swapped time", "tell it t, not 1 - t"),
            Finding("seeds", "look", "a " * 60, "seeds disagree", "draw more"),
            Finding("memory", "bad", "copies", "swapped time"),
            Finding("labels", "skipped", "none given"),
        )
    )


def test_causes_and_verdicts(report):
    assert report.causes == ("swapped time", "seeds disagree")
    assert report.verdict == "bad"
    assert report["seeds"].advice == "draw more"
    assert report.headline == "✗ bad: swapped time, seeds disagree"
    assert Report(report.findings[::4]).verdict == "ok"
    assert Report(report.findings[::4]).headline.endswith("1 of 2 checks are ok")
    assert Report(report.findings[2:3]).verdict == "look"
    with pytest.raises(KeyError, match="no check 'colour'; there are data, use, seeds"):
        report["colour"]
    with pytest.raises(ValueError, match="verdict must be one of ok, look, bad, skipped"):
        Finding("data", "fine", "")


def test_the_table_of_a_terminal_fits_and_holds_all(report):
    lines = str(report).split("\n")
    assert max(map(len, lines)) <= 102
    assert lines[0] == report.headline
    assert lines[2].split() == ["check", "verdict", "evidence", "what", "to", "try"]
    assert any(line.startswith("use") and "✗ bad" in line for line in lines)
    said = " ".join(line[29:70] for line in lines).split()
    assert said.count("a") == 60  # wrapped, not cut


def test_the_table_of_a_notebook_escapes_and_has_no_colours(report):
    page = report._repr_html_()
    assert "error &lt;3&gt; &amp; more" in page
    assert "<3>" not in page
    assert page.count("<tr>") == 6
    assert page.count('scope="row"') == 5
    assert "color" not in page
    assert "background" not in page
    assert "✗ bad" in page
    assert "– skipped" in page


def test_the_linear_denoiser_is_exact_for_gaussian_data():
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.7, 0.5]], dtype=torch.float64)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64) @ root.T + 1
    centred = x - x.mean(0)
    exact = GaussianMixture(
        x.mean(0)[None], (centred.T @ centred / 400)[None], torch.ones(1).double(), VP()
    )
    t = torch.rand(400, generator=generator, dtype=torch.float64)
    xt = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    for face in ("data", "noise", "velocity"):
        ours, theirs = (getattr(d, face)(xt, t) for d in (LinearDenoiser(x, VP()), exact))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    few = LinearDenoiser(x[:16], VP())  # each dimension alone
    cov = torch.diag(x[:16].var(0, correction=0))
    alone = GaussianMixture(x[:16].mean(0)[None], cov[None], torch.ones(1).double(), VP())
    torch.testing.assert_close(few.data(xt, t), alone.data(xt, t), rtol=1e-9, atol=1e-9)


def test_the_memoriser_is_the_mixture_of_points():
    x = X[:30].double()
    points = GaussianMixture(x, 1e-12 * torch.eye(2).double().repeat(30, 1, 1),
                             torch.ones(30).double(), Linear())  # fmt: skip
    t = torch.linspace(0.05, 1, 30).double()
    eps = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xt = Linear().sample(x, t, eps)
    torch.testing.assert_close(
        Memoriser(x, Linear()).data(xt, t), points.data(xt, t), rtol=1e-6, atol=1e-6
    )


def test_paths_are_compared_where_they_have_the_same_noise():
    assert all(reaches(path, 1.0) for path in _paths())
    assert not reaches(VE(), 64.0)  # sigma 50 does not drown data of 64
    assert not reaches(VP(), 64.0)  # alpha(1) 64 = .42
    assert reaches(Linear(), 64.0)


def test_history_alone():
    """The verdicts on curves made by hand."""
    generator = torch.Generator().manual_seed(0)
    noise = 1 + 0.1 * torch.randn(600, generator=generator)
    falls = (0.4 + 0.6 * torch.exp(-torch.arange(600) / 40)) * noise

    def found(history):
        return check_history(SimpleNamespace(history=history))

    assert found(falls).verdict == "ok"
    assert diagnose(EXACT, X, falls.tolist(), **FAST)["history of loss"] == found(falls)
    assert found(noise).cause == "not learned"
    late = (1 - 0.8 * torch.arange(600) / 600) * noise
    assert (found(late).verdict, found(late).cause) == ("look", "trained too short")
    one = falls.clone()
    one[100] = 50.0  # a single odd batch
    assert found(one).verdict == "ok"
    high = falls.clone()
    high[10:20] = 50.0
    assert found(high).cause == "too high learning rate"
    assert "50 about step" in found(high).evidence
    spikes = falls.clone()
    spikes[300::40] = 30.0
    assert found(spikes).cause == "too high learning rate"
    assert "spikes make the mean" in found(spikes).evidence
    broken = falls.clone()
    broken[-3:] = torch.nan
    assert found(broken).evidence == "3 of 600 losses are not finite"
    assert found(broken).cause == "too high learning rate"


def test_samples_that_are_not_finite():
    class Broken(GaussianMixture):
        def predict(self, xt, t, cond=None):
            return super().predict(xt, t, cond) / 0

    report = diagnose(Broken(*eight_gaussians_parameters(), Linear()), X, **FAST)
    assert report.causes == ("not finite",)
    assert "200 of 200 samples hold NaN" in report["samples"].evidence


def test_an_untrained_network_has_not_learned():
    torch.manual_seed(0)
    network = NetDenoiser(MLP(2, 32), Linear(), "velocity", data_std=3.5)
    report = diagnose(network, X, n=100, polish=0)
    assert report.verdict == "bad"
    assert report.causes == ("not learned",)
    assert report["coverage"].verdict == "skipped"
    assert report["ends"].advice == "see level of loss"
    assert report["rest of weights"].evidence == "polish = 0"


def test_a_model_that_is_moved():
    """By a fifth of the deviation: all modes are there, but the distribution is another."""
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    moved = GaussianMixture(torch.full((1, 2), 0.2), torch.eye(2)[None], torch.ones(1), VP())
    assert diagnose(moved, x, n=1000).causes == ("another distribution",)


def test_labels_that_belong_to_other_data():
    exact = GaussianMixture(*eight_gaussians_parameters(), VP(), torch.arange(8))
    labels = eight_gaussians_labels(X)
    report = diagnose(exact, (X, (labels + 1) % 8), **FAST)
    assert "labels not followed" in report.causes
    assert report["labels"].evidence.startswith("0% of the samples")


def test_seeds_that_disagree():
    calls = []

    def moody(denoiser, x, ts, *, cond, generator, callback):
        calls.append(1)
        draw = eight_gaussians(len(x), generator=generator)
        return draw[draw[:, 0].argsort(descending=len(calls) % 2 == 0)][:1] * 0 + draw.abs() * (
            1 if len(calls) % 2 else -1
        )

    report = diagnose(EXACT, X, **FAST, solver=moody)
    assert report["seeds"].cause == "seeds disagree"


def test_scores_are_compared_as_noise():
    class Score(GaussianMixture):
        predicts = "score"

        def predict(self, xt, t, cond=None):
            return self.path.convert(super().predict(xt, t, cond), xt, t, "data", "score")

    path = VE(0.01, 50.0)
    report = diagnose(Score(*eight_gaussians_parameters(), path), X, **FAST)
    assert report["level of loss"].verdict == "ok"
    assert report.verdict != "bad"


def test_a_fitted_solver_brings_its_own_grid():
    class Fitted:
        ts = uniform_grid(Linear(), 3)

        def __call__(self, denoiser, x, ts, **options):
            assert torch.equal(ts, self.ts)
            return euler(denoiser, x, ts, **options)

    diagnose(GaussianMixture(*eight_gaussians_parameters(), Linear()), X, solver=Fitted(), **FAST)


def test_wrong_inputs():
    bad = X.clone()
    bad[3, 0] = torch.nan
    with pytest.raises(TypeError, match=r"denoiser must be a Denoiser; got MLP"):
        diagnose(MLP(2), X)
    with pytest.raises(TypeError, match=r"data must be a floating-point tensor.*got list"):
        diagnose(EXACT, [1.0, 2.0])
    with pytest.raises(TypeError, match=r"got torch.uint8"):
        diagnose(EXACT, torch.zeros(20, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"data must have shape \(N, ...\), N >= 16; got \(9, 2\)"):
        diagnose(EXACT, X[:9])
    with pytest.raises(ValueError, match=r"N >= 16; got \(400,\)"):
        diagnose(EXACT, X[:, 0])
    with pytest.raises(ValueError, match="data must be finite"):
        diagnose(EXACT, bad)
    with pytest.raises(ValueError, match="all 20 are the same"):
        diagnose(EXACT, torch.ones(20, 2))
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor; got torch\.float32"):
        diagnose(EXACT, (X, X[:, 0]))
    with pytest.raises(TypeError, match="labels must be an int64 tensor; got list"):
        diagnose(EXACT, (X, [1]))
    with pytest.raises(ValueError, match=r"labels must have shape \(400,\), each at least 0"):
        diagnose(EXACT, (X, torch.arange(3)))
    with pytest.raises(ValueError, match="least -1"):
        diagnose(EXACT, (X, torch.full((400,), -1)))
    for name, value in (("n", 10), ("steps", 0), ("polish", -1)):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            diagnose(EXACT, X, **{name: value})
    with pytest.raises(ValueError, match="solver must be one of"):
        diagnose(EXACT, X, solver="magic")
    with pytest.raises(TypeError, match="history must be losses, one number a step; got str"):
        diagnose(EXACT, X, "losses.csv")
    with pytest.raises(ValueError, match=r"history must have shape \(S,\), S >= 16"):
        diagnose(EXACT, X, [1.0, 2.0])
