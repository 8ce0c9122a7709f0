import pytest
import torch

from course_lib import data
from course_lib.denoisers import Denoiser
from course_lib.nets.classifier import DigitClassifier, cross_entropy, jittered_cross_entropy
from course_lib.training import recipe

SHIPPED = ["classifier_digits", "classifier_mnist", "ddpm_digits", "ddpm_mnist", "flow_digits"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_builds_a_model_that_fits_its_data(name):
    assert name in recipe.recipes()
    config = recipe.recipe_parser(recipe.recipe_path(name)).parse_args([])
    model = recipe.build_model(config.model.as_dict(), config.fit.seed).eval()
    size = {"digits": 8, "mnist": 28}[config.data]
    images = torch.zeros(2, 1, size, size)
    if isinstance(model, Denoiser):
        assert model.noise(images, torch.full((2,), 0.5)).shape == images.shape
        assert not config.labels
    else:
        assert model(images).shape == (2, 10)
        assert config.labels
        assert config.fit.objective in (cross_entropy, jittered_cross_entropy)


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

    model = recipe.train(config, objective=objective, steps=2)
    assert model.losses.shape == (2,)
    assert all((cond is not None) == labels for cond in seen)
    images, classes = recipe.recipe_data("digits", "train")
    torch.testing.assert_close(images, data.digits("train")[0])
    assert len(classes) == len(images)
