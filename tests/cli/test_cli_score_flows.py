"""Score flows on the command line: of points, of latents of MNIST, of a folder of latents."""

import io
import json
import math

import numpy as np
import pytest
import torch
from diffusers_vae import save_vae
from PIL import Image

from course_lib import cli, data, pretrained, sample
from course_lib.cli import SampleSpace, measure, spaces
from course_lib.cli.autoencoders import find_autoencoder
from course_lib.data.latents import write_latents
from course_lib.denoisers import NetDenoiser
from course_lib.evaluation import sliced_wasserstein2
from course_lib.flows import direct
from course_lib.guidance import ClassifierFreeGuidance
from course_lib.nets import MLP
from course_lib.nets.vae import ConvVAE
from course_lib.paths import VP
from course_lib.plotting.images import tile
from course_lib.plotting.points import points_picture
from course_lib.training.batches import Batches

TOY = """
model:
  class_path: course_lib.flows.score_flow.ScoreFlowNetwork
  init_args:
    flow:
      class_path: course_lib.flows.normalizing_flow.RealNVP
      init_args: {dim: 2, n_layers: 2, hidden: 8, cond_dim: 8}
    path: {class_path: course_lib.paths.VP}
    num_classes: 8
    data_std: 3.5
data: eight_gaussians
labels: true
sample_every: 4
fit:
  objective:
    class_path: course_lib.objectives.ConditionDropout
    init_args: {p: 0.3, objective: course_lib.flows.objectives.flow_likelihood}
  steps: 8
  batch_size: 16
  ema: 0.9
  save_every: 3
  progress: false
"""


def pixels(path):
    with Image.open(path) as found:
        return np.asarray(found)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(TOY)
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """Folder of a run on points."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["train", str(recipe), "--save-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def model(run):
    return pretrained.load_pretrained("toy", run)


def draw(folder, *options):
    return cli.main(["sample", "--checkpoint", str(folder), *options])


# --- points -------------------------------------------------------------------------------------


def test_points_are_shown_while_training_and_measured_at_its_end(run, model):
    files = sorted((run / "samples").iterdir())
    assert [file.name for file in files] == ["step-000000004.png", "step-000000008.png"]
    assert pixels(files[0]).shape == (480, 480, 4)
    info = pretrained.pretrained_info("toy", run)
    assert info["images"]["data"] == "eight_gaussians"
    found = info["metrics"]
    assert found["samples"] == 2000
    assert found["evaluations"] == 20
    test, labels = SampleSpace("eight_gaussians").load("test")
    drawn = sample(model, (250, 2), cond=labels[:250])  # the first batch of the two thousand
    rough = sliced_wasserstein2(drawn, test[:250])
    assert found["sliced_w2"] == pytest.approx(rough, rel=0.3)
    assert 0 < found["sliced_w2_floor"] < 0.1 < found["sliced_w2"]


def test_likelihood_is_that_of_the_test_points(run, model):
    x, labels = SampleSpace("eight_gaussians").load("test")
    x, labels = x[:2000], labels[:2000]
    found = pretrained.pretrained_info("toy", run)["metrics"]
    with torch.no_grad():
        wanted = -model.log_prob(x, torch.zeros(2000), labels).mean().item()
    assert found["nll"] == pytest.approx(wanted, abs=1e-3)
    floor = -data.eight_gaussians_log_prob(x).mean().item() - math.log(8)
    assert found["nll_floor"] == pytest.approx(floor, abs=1e-3)
    assert floor == pytest.approx(2.6147 - math.log(8), abs=0.05)


def test_without_labels_and_density_there_is_less_to_tell(model):
    found = measure(model, SampleSpace("spirals"), n=50, steps=2)
    assert {"nll", "sliced_w2", "sliced_w2_floor"} < set(found)
    assert "nll_floor" not in found
    network = NetDenoiser(MLP(2, width=8), VP(), "noise")
    found = measure(network, SampleSpace("spirals"), n=50, steps=2)
    assert "sliced_w2" in found
    assert "nll" not in found
    found = measure(model, SampleSpace("eight_gaussians"), n=2000, steps=1)
    assert found["nll_floor"] == pytest.approx(2.6147, abs=0.05)


def test_sample_draws_a_picture_of_points(run, model, tmp_path, capsys):
    path = tmp_path / "p.png"
    options = ["--label", "1", "6", "--num-samples", "7", "--steps", "3", "--seed", "2"]
    assert draw(run, *options, "--output", str(path)) == 0
    assert capsys.readouterr().out == f"{path}: 7 points\n"
    labels = torch.tensor([1, 6, 1, 6, 1, 6, 1])
    wanted = sample(model, (7, 2), steps=3, seed=2, cond=labels)
    assert np.array_equal(pixels(path), points_picture(wanted, labels))
    assert draw(run, "--output", str(path), "--steps", "1") == 0
    assert capsys.readouterr().out == f"{path}: 2000 points\n"


def test_guidance_of_a_score_flow(run, model, tmp_path):
    options = ["--label", "3", "--num-samples", "5", "--scale", "2", "--steps", "3"]
    assert draw(run, *options, "--output", str(tmp_path / "g.png")) == 0
    labels = torch.full((5,), 3)
    wanted = sample(ClassifierFreeGuidance(model, 2.0), (5, 2), steps=3, cond=labels)
    assert np.array_equal(pixels(tmp_path / "g.png"), points_picture(wanted, labels))


@pytest.mark.parametrize("label", [["--label", "3"], []])
def test_direct_is_one_pass_of_the_flow(run, model, tmp_path, label):
    path = tmp_path / "d.png"
    options = [*label, "--num-samples", "5", "--solver", "direct", "--seed", "4"]
    assert draw(run, *options, "--output", str(path)) == 0
    labels = torch.full((5,), 3) if label else None
    wanted = sample(model, (5, 2), solver=direct, steps=1, seed=4, cond=labels)
    assert np.array_equal(pixels(path), points_picture(wanted, labels))


def test_direct_takes_one_evaluation(run, capsys):
    command = ["evaluate", "--checkpoint", str(run), "--solver", "direct", "--num-samples", "9"]
    assert cli.main(command) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (lines["steps"], lines["evaluations"]) == ("1", "1.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--label 8", "--label must be 0 to 7; got 8"),
        ("--individual", "--individual needs images"),
        ("--label 1 --solver direct --scale 2", "direct knows no guidance: scale must be 1"),
        ("--label 1 --solver direct --negative-label 2", "got scale 1.0, negative label 2"),
        ("--autoencoder mnist-vae", "autoencoder must be left out for data eight_gaussians"),
    ],
)
def test_what_points_do_not_allow(run, options, message, capsys, tmp_path):
    assert draw(run, *options.split(), "--output", str(tmp_path / "no.png")) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_direct_is_for_score_flows(trained, tmp_path, capsys):
    assert draw(trained, "--solver", "direct", "--output", str(tmp_path / "no.png")) == 2
    assert "direct needs a ScoreFlowNetwork" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--solver magic", "solver must be one of euler, "),
        ("--solver direct --scale 2", "direct knows no guidance"),
        ("--data cats", "data must be one of digits, mnist, eight_gaussians, "),
        ("--data spirals", "labels must be false: data spirals have no classes"),
        ("--image-size 8", "image_size and channels must be left out for data eight_gaussians"),
    ],
)
def test_a_wrong_recipe_is_refused_before_the_training(recipe, flags, message, tmp_path, capsys):
    command = ["train", str(recipe), "--save-dir", str(tmp_path), *flags.split()]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def digest(folder):
    return json.loads((folder / "manifest.json").read_text())["toy"]["sha256"]


def test_a_killed_score_flow_ends_with_the_same_bits(recipe, run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    batch = Batches.batch

    def killed(self, step, *where):
        if step == 7:
            raise Killed
        return batch(self, step, *where)

    command = ["train", str(recipe), "--save-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", killed)
        with pytest.raises(Killed):
            cli.main(command)
    assert draw(tmp_path, "--steps", "1", "--output", str(tmp_path / "early.png")) == 0
    assert cli.main(command) == 0
    assert digest(tmp_path) == digest(run)
    other = tmp_path / "other"
    assert cli.main(["train", str(recipe), "--save-dir", str(other), "--seed", "1"]) == 0
    assert digest(other) != digest(run)


def test_tensorboard_takes_points(recipe, run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["train", str(recipe), "--save-dir", str(tmp_path), "--logger", "tensorboard"]
    assert cli.main(command) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0"))
    events.Reload()
    shown = events.Images("samples")
    assert [image.step for image in shown] == [4, 8]
    with Image.open(io.BytesIO(shown[1].encoded_image_string)) as picture:
        wanted = pixels(run / "samples" / "step-000000008.png")
        assert np.array_equal(np.asarray(picture), wanted)


def test_epochs_of_points(recipe, tmp_path):
    flags = ["--epochs", "0.0012", "--batch-size", "20", "--save-dir", str(tmp_path)]
    assert cli.main(["train", str(recipe), *flags, "--sample-every", "0"]) == 0
    assert pretrained.pretrained_info("toy", tmp_path)["steps"] == 3  # 60 of 50,000


# --- latents ------------------------------------------------------------------------------------


@pytest.fixture
def mnist(monkeypatch):
    """Images that the autoencoder makes of noise in the place of MNIST."""
    z = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    images = find_autoencoder("mnist-vae").decode(z)
    monkeypatch.setattr(spaces, "recipe_data", lambda *_: (images, torch.arange(400) % 10))
    return images


LATENT = (
    TOY.replace("dim: 2", "dim: 64")
    .replace("num_classes: 8", "num_classes: 10")
    .replace("data_std: 3.5", "data_std: 1.0")
    .replace("data: eight_gaussians", "data: mnist\nautoencoder: mnist-vae")
)


def test_a_flow_in_the_latents_of_mnist(mnist, tmp_path, capsys):
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(LATENT)
    assert cli.main(["train", str(recipe), "--save-dir", str(tmp_path), "--scale", "2"]) == 0
    info = pretrained.pretrained_info("toy", tmp_path)
    assert info["images"]["autoencoder"] == "mnist-vae"
    metrics = info["metrics"]
    assert {"nll", "frechet_test", "frechet_ratio", "class_agreement"} < set(metrics)
    assert (metrics["samples"], metrics["evaluations"]) == (400, 40)
    model, coder = pretrained.load_pretrained("toy", tmp_path), find_autoencoder("mnist-vae")
    x, labels = SampleSpace("mnist", autoencoder="mnist-vae").examples("test")
    with torch.no_grad():
        wanted = -model.log_prob(x, torch.zeros(400), labels).mean().item()
    assert metrics["nll"] == pytest.approx(wanted, rel=1e-4)
    options = ["--label", "5", "--num-samples", "4", "--individual", "--solver", "direct"]
    assert draw(tmp_path, *options, "--output", str(tmp_path / "s.png")) == 0
    drawn = sample(model, (4, 64), solver=direct, steps=1, cond=torch.full((4,), 5))
    wanted = tile(coder.decode(drawn)[2:3], 1, gap=0)[..., 0]
    assert np.array_equal(pixels(tmp_path / "s-002.png"), wanted)
    assert pixels(tmp_path / "samples" / "step-000000008.png").shape == (58, 290, 4)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    save_vae(folder)
    return folder


@pytest.fixture
def latents(tmp_path):
    """A folder of latents of three classes, which does not say what made them."""
    folder = tmp_path / "latents"
    folder.mkdir()
    x = torch.randn(40, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    write_latents(folder, 0, x, torch.arange(40) % 3)
    return folder


def train_latents(latents, folder, *flags):
    small = "--model.init_args.flow.init_args."
    sizes = {"dim": 8, "n_blocks": 2, "depth": 1, "heads": 2, "cond_dim": 8, "patch": 2}
    options = [f"{small}{name}={value}" for name, value in sizes.items()]
    options += ["--steps", "2", "--batch-size", "4", "--progress", "false"]
    options += ["--data", str(latents), "--save-dir", str(folder), *flags]
    return cli.main(["train", "flow_diffusion_latent", *options])


def test_a_flow_on_a_folder_of_latents(latents, vae, tmp_path):
    run = tmp_path / "run"
    flags = ["--labels", "true", "--autoencoder", str(vae), "--sample-every", "2"]
    assert train_latents(latents, run, *flags) == 0
    info = pretrained.pretrained_info("flow_diffusion_latent", run)
    arguments = info["model"]["init_args"]
    assert arguments["num_classes"] == 3
    assert (arguments["flow"]["init_args"]["image_size"], info["metrics"]["samples"]) == (4, 4)
    assert {"nll", "sliced_w2", "sliced_w2_floor"} < set(info["metrics"])
    assert pixels(run / "samples" / "step-000000002.png").shape == (18, 90, 4)
    for file in latents.iterdir():
        file.unlink()  # the run knows what its samples are
    options = ["--num-samples", "2", "--label", "2", "--steps", "3", "--individual"]
    assert draw(run, *options, "--output", str(tmp_path / "s.png")) == 0
    model = pretrained.load_pretrained("flow_diffusion_latent", run)
    drawn = sample(model, (2, 4, 4, 4), steps=3, cond=torch.tensor([2, 2]))
    wanted = tile(find_autoencoder(str(vae)).decode(drawn)[1:], 1, gap=0)[..., :3]
    assert np.abs(pixels(tmp_path / "s-001.png").astype(int) - wanted).max() <= 1
    assert cli.main(["evaluate", "--checkpoint", str(run)]) == 2  # that needs the data


def test_without_an_autoencoder_one_can_train_but_not_see(latents, vae, tmp_path, capsys):
    run, seen = tmp_path / "run", tmp_path / "s.png"
    assert train_latents(latents, run) == 2
    assert "autoencoder must be named (--autoencoder), to see" in capsys.readouterr().err
    assert train_latents(latents, run, "--sample-every", "0") == 0
    assert draw(run, "--output", str(seen)) == 2
    assert "autoencoder must be named (--autoencoder), to see" in capsys.readouterr().err
    options = ["--autoencoder", str(vae), "--num-samples", "1", "--steps", "1"]
    assert draw(run, *options, "--output", str(seen)) == 0
    assert pixels(seen).shape == (68, 68, 4)
    assert cli.main(["evaluate", "--checkpoint", str(run), *options]) == 0


# --- autoencoders -------------------------------------------------------------------------------


def test_an_autoencoder_is_trained_and_measured(tmp_path, capsys):
    flags = ["--data", "digits", "--image-size", "8", "--model.init_args.width", "4"]
    flags += ["--steps", "3", "--progress", "false", "--save-dir", str(tmp_path)]
    assert cli.main(["train", "vae_mnist", *flags]) == 0
    metrics = pretrained.pretrained_info("vae_mnist", tmp_path)["metrics"]
    capsys.readouterr()
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path)]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {name: float(value) for name, value in lines.items()} == metrics
    assert metrics["frechet_ratio"] > 1
    assert draw(tmp_path) == 2
    assert "holds a ConvVAE, which draws nothing" in capsys.readouterr().err


def test_a_perfect_autoencoder_makes_no_error(monkeypatch):
    def perfect(self, x, generator=None):
        mean = torch.ones(len(x), 3)
        return x, mean, 0 * mean

    monkeypatch.setattr(ConvVAE, "forward", perfect)
    metrics = measure(ConvVAE(8, latent_dim=3, width=4), SampleSpace("digits"))
    assert (metrics["test_error"], metrics["test_rate"]) == (0, 1.5)
    assert metrics["frechet_ratio"] == 1
    assert metrics["class_agreement"] > 0.9


def test_error_of_an_autoencoder_is_per_number(monkeypatch):
    def off_by_half(self, x, generator=None):
        return x + 0.5, torch.zeros(len(x), 3), torch.zeros(len(x), 3)

    monkeypatch.setattr(ConvVAE, "forward", off_by_half)
    metrics = measure(ConvVAE(8, latent_dim=3, width=4), SampleSpace("digits"))
    assert (metrics["test_error"], metrics["test_rate"]) == (0.25, 0)
