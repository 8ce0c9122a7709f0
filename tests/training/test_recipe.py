import pytest
import torch

from course_lib import data
from course_lib.cli import SampleSpace, train_recipe
from course_lib.cli.drawing import SOLVERS
from course_lib.cli.teaching import taught
from course_lib.denoisers import Denoiser
from course_lib.nets.classifier import DigitClassifier
from course_lib.objectives import ConditionDropout, denoising_loss
from course_lib.training import recipe

# A transformer of 80 million weights would take seconds to make.
SMALLER = {"flow_diffusion_latent": ["--model.init_args.flow.init_args.dim=16"]}
MODELS = ("ddpm", "ddpm_cfg", "flow", "classifier", "classifier_noisy")


def test_recipes_come_for_both_data_sets():
    both = {f"{m}_{d}" for m in MODELS for d in ("digits", "mnist")}
    larger = {"ddpm_dit_digits", "flow_dit_digits"}  # for longer, which ship too
    flows = {f"flow_diffusion_{on}" for on in ("toy", "mnist", "mnist_latent", "latent")}
    flows |= {"transformer_flow_mnist", "vae_mnist"}
    few = {"reflow", "consistency_distillation", "consistency_training", "progressive"}
    few = {f"{m}_{d}" for m in few for d in ("digits", "mnist")} | {"meanflow_digits"}
    texts = {"text_mnist", "clip_mnist"}
    assert set(recipe.recipes()) == both | larger | flows | few | texts


@pytest.mark.parametrize("name", recipe.recipes())
def test_every_recipe_builds_a_model_and_an_objective_that_fit_its_data(name):
    config = recipe.recipe_parser(recipe.recipe_path(name)).parse_args(SMALLER.get(name, []))
    model = recipe.build_model(config.model.as_dict(), config.fit.seed).eval()
    folder = {"shape": (4, 64, 64)} if config.data == "latents" else {}
    space = SampleSpace.of(dict(config.items()) | folder)
    images, labels = torch.zeros(2, *space.shape), torch.tensor([3, space.classes - 1])
    if isinstance(model, Denoiser):
        assert model.noise(images, torch.full((2,), 0.5)).shape == images.shape
        assert config.solver in SOLVERS
    objective = recipe.build_objective(config.fit.as_dict()["objective"])
    objective = taught(objective, model if config.teacher else None)
    cond = labels if config.labels else None
    cond = (labels, torch.ones(2, config.captions, 20).long()) if config.captions else cond
    cond = (torch.randn_like(images), cond) if config.pairs else cond
    loss = objective(model, images, cond, generator=torch.Generator().manual_seed(0))
    assert loss.shape == ()
    assert loss.isfinite()


def test_fields_are_overridden_by_flags():
    parser = recipe.recipe_parser(recipe.recipe_path("classifier_digits"))
    config = parser.parse_args(["--fit.steps", "7", "--model.init_args.width", "4"])
    assert (config.fit.steps, config.fit.batch_size) == (7, 128)
    assert config.model.init_args.width == 4


def test_first_weights_are_those_of_the_seed():
    spec = {
        "class_path": "course_lib.nets.classifier.DigitClassifier",
        "init_args": {"image_size": 8, "width": 4},
    }
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (recipe.build_model(spec, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(first, DigitClassifier)
    assert torch.equal(first.hidden.weight, second.hidden.weight)
    assert not torch.equal(first.hidden.weight, other.hidden.weight)


def test_own_recipe_file_and_unknown_name(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("data: digits\n")
    assert recipe.recipe_path(str(own)) == own
    with pytest.raises(ValueError, match=r"one of classifier_digits, .*got 'ddpm_cats'"):
        recipe.recipe_path("ddpm_cats")


def test_unbuildable_model():
    with pytest.raises(ValueError, match=r"cannot build model .*course_lib\.nets\.NoSuchNet"):
        recipe.build_model({"class_path": "course_lib.nets.NoSuchNet"})


@pytest.mark.parametrize("labels", [False, True])
def test_train_hands_labels_over_only_if_asked(labels, monkeypatch):
    config = recipe.recipe_parser(recipe.recipe_path("classifier_digits")).parse_args([])
    config.labels, config.fit.progress = labels, False
    config.model.init_args.width = 2
    seen = []

    def objective(model, x0, cond, *, generator):
        seen.append(cond)
        return model(x0).square().mean()

    model = train_recipe(config, objective=objective, steps=2)
    assert model.losses.shape == (2,)
    assert all((cond is not None) == labels for cond in seen)
    images, classes = recipe.recipe_data("digits", "train")
    torch.testing.assert_close(images, data.digits("train")[0])
    assert len(classes) == len(images)


# --- data ---------------------------------------------------------------------------------------


@pytest.fixture
def mnist(monkeypatch):
    """A few random images in the place of MNIST; larger ones get its frame of background."""
    raw = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def load(split, size=28):
        assert split == "test"
        frame = (size - 28) // 2
        return torch.nn.functional.pad(raw, 4 * (frame,), value=-1), torch.arange(3)

    monkeypatch.setattr(data, "mnist", load)
    return raw


def test_images_come_in_their_own_size_by_default(mnist):
    for name, size in (("mnist", 28), ("digits", 8)):
        for given in (None, size):
            assert recipe.recipe_data(name, "test", given)[0].shape[1:] == (1, size, size)
        assert recipe.image_shape(name) == (1, size, size)
    assert torch.equal(recipe.recipe_data("mnist", "test")[0], mnist)


def test_mnist_at_32_has_a_frame_of_background(mnist):
    images, labels = recipe.recipe_data("mnist", "test", 32)
    assert torch.equal(images[..., 2:-2, 2:-2], mnist)
    assert images.sum() == pytest.approx(float(mnist.sum()) - 3 * (32**2 - 28**2), rel=1e-5)
    assert torch.equal(labels, torch.arange(3))


def test_other_sizes_are_antialiased(mnist):
    """Half the size: a pixel is the mean of 4 x 4 with weights (1, 3, 3, 1) / 8 a side."""
    framed = torch.nn.functional.pad(mnist, (2, 2, 2, 2), value=-1)
    half = recipe.recipe_data("mnist", "test", 16)[0]
    assert half.shape == (3, 1, 16, 16)
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for row, column in ((1, 7), (8, 8), (14, 3)):
        block = framed[..., 2 * row - 1 : 2 * row + 3, 2 * column - 1 : 2 * column + 3]
        wanted = torch.einsum("nchw,h,w->nc", block, weights, weights)
        torch.testing.assert_close(half[..., row, column], wanted)
    large = recipe.recipe_data("digits", "test", 16)[0]
    assert large.shape == (297, 1, 16, 16)
    assert -1 <= large.min() < large.max() <= 1


def test_three_channels_are_equal():
    one, three = (recipe.recipe_data("digits", "test", None, channels)[0] for channels in (1, 3))
    assert three.shape == (297, 3, 8, 8)
    assert all(torch.equal(three[:, c], one[:, 0]) for c in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cats",), "data must be one of digits, mnist; got 'cats'"),
        (("digits", 0), "image_size must be at least 1; got 0"),
        (("digits", 8, 2), "channels must be 1 or 3; got 2"),
    ],
)
def test_images_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.image_shape(*arguments)


# --- objectives ---------------------------------------------------------------------------------


def test_objectives_are_functions_or_classes_whose_instances_are_called():
    assert recipe.build_objective("course_lib.objectives.denoising_loss") is denoising_loss
    assert recipe.build_objective(denoising_loss) is denoising_loss
    spec = {"class_path": "course_lib.objectives.ConditionDropout", "init_args": {"p": 0.4}}
    assert recipe.build_objective(spec) == ConditionDropout(0.4)
    with pytest.raises(ValueError, match=r"cannot build objective .*NoSuchLoss"):
        recipe.build_objective("course_lib.objectives.NoSuchLoss")
