"""What the exercises on text to image claim in words or numbers, measured."""

import itertools
import math

import pytest
import torch

from course_lib.check import text_to_image
from course_lib.check.questions import normal
from course_lib.data import measure


def test_strangers_are_nearly_at_a_right_angle():
    """Exercise cosine_matrix."""
    images, texts = normal(0)(2, 100, 64)
    cosines = text_to_image._cosines()(images, texts)
    assert cosines.std() == pytest.approx(1 / math.sqrt(64), rel=0.05)
    assert cosines.abs().max() < 0.6
    assert (cosines.abs() > 0.5).double().mean() < 1e-3


def test_guessing_costs_log_n_and_the_gradient_is_probability_minus_truth():
    """Exercise contrastive_loss."""
    same = normal(0)(1, 3).expand(7, 3)
    loss = text_to_image._contrast()(same, same, torch.tensor(0.1).double())
    assert loss.item() == pytest.approx(math.log(7))
    logits = normal(1)(5, 5).requires_grad_()
    (found,) = torch.autograd.grad(text_to_image._images_ask(logits), logits)
    wanted = (logits.softmax(1) - torch.eye(5)) / 5
    torch.testing.assert_close(found, wanted.detach())


def test_a_small_temperature_gives_the_push_to_the_nearest():
    """Exercise contrastive_loss."""
    cosines = torch.tensor([0.8, 0.6, 0.2, -0.3]).double()  # the first is the right one
    shares = [(cosines / tau).softmax(0)[1:] for tau in (1.0, 0.05)]
    warm, cold = (share[0] / share.sum() for share in shares)
    assert warm < 0.5
    assert cold > 0.99


@pytest.mark.parametrize(
    ("batch", "floor", "bound"), [(128, 2.59, 2.55), (4, 0.20, math.log(4) - math.log(10))]
)
def test_the_floor_of_ten_digits(batch, floor, bound):
    """Exercise loss_floor: the numbers of the solution, against counting draws."""
    found = text_to_image._floored()(torch.full((10,), 0.1).double(), batch).item()
    assert found == pytest.approx(floor, abs=0.005)
    assert math.log(batch) - math.log(10) == pytest.approx(bound, abs=0.005)
    assert found > bound
    draws = torch.randint(10, (20_000, batch), generator=torch.Generator().manual_seed(0))
    equal = (draws == draws[:, :1]).sum(1).double()
    assert equal.log().mean().item() == pytest.approx(found, abs=0.02)


def test_the_mean_of_the_prompts_has_the_largest_sum_of_cosines():
    """Exercise prompt_ensemble."""
    prompts = torch.nn.functional.normalize(normal(0)(4, 3), dim=1)
    centre = torch.nn.functional.normalize(prompts.mean(0), dim=0)
    others = torch.nn.functional.normalize(normal(1)(10_000, 3), dim=1)
    best = (prompts @ centre).sum()
    assert (others @ prompts.T).sum(1).max() <= best
    assert (others @ prompts.T).sum(1).max() == pytest.approx(best.item(), abs=0.01)


def test_the_first_word_sees_itself_alone_and_later_words_change_no_earlier_one():
    """Exercise causal_attention."""
    q, k, v = normal(0)(3, 2, 6, 4)
    out = text_to_image._causal()(q, k, v, 2)
    torch.testing.assert_close(out[:, 0], v[:, 0])
    k[:, 4], v[:, 4] = 9.0, 9.0
    changed = (text_to_image._causal()(q, k, v, 2) - out).abs().amax((0, 2))
    assert (changed[:4] == 0).all()
    assert (changed[4:] > 1e-3).all()


def test_with_one_coin_no_label_is_ever_alone():
    """Exercise drop_conditions."""
    u = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0))
    seven, word = torch.full((100_000,), 7), torch.full((100_000, 1), 5)
    one_coin = text_to_image._dropped(lambda u, p, q: (u[0] < p, u[0] < q))
    for drop, alone in ((one_coin, 0.0), (text_to_image._dropped(), 0.1)):
        labels, ids = drop(seven, word, u, 0.5, 0.2, 10)
        share = ((labels == 7) & (ids[:, 0] == 0)).double().mean().item()
        assert share == pytest.approx(alone, abs=0.005)


@pytest.mark.parametrize("index", [0, 1])
def test_weights_that_sum_to_a_half_leave_nine_times_the_spread(index):
    """Exercise two_wishes: both wrong formulas, for w = 1/2; 8.94 in the limit of small steps."""
    wrong = text_to_image.two_wishes.mistakes[index].function
    s = (2.0, 1.0)[index]
    levels = torch.cat([torch.logspace(1.903, -2.7, 4000).double(), torch.zeros(1).double()])
    x = torch.tensor([80.0]).double()
    for now, then in itertools.pairwise(levels):
        eps = now * x / (1 + now**2)
        x = x + (then - now) * wrong(eps, eps, eps, s, 0.5)
    assert x.item() == pytest.approx(8.94, abs=0.02)


def test_with_one_less_than_the_first_scale_no_prompt_drops_out():
    """Exercise two_wishes."""
    none, pos, neg = normal(0)(3, 5)
    s = 2.5
    found = none + s * (pos - none) - (s - 1) * (neg - none)
    torch.testing.assert_close(found, neg + s * (pos - neg))


def test_a_shear_adds_to_the_slant_and_the_longest_axis_of_a_wide_digit_is_level():
    """Exercise measured_slant."""
    n = 61
    y, x = torch.meshgrid(*2 * (torch.arange(n).double() - n // 2,), indexing="ij")

    def picture(shear):
        u = x + shear * y  # up is -y
        return (2 * torch.exp(-((u / 9) ** 2) - (y / 6) ** 2) - 1)[None, None]

    slant = text_to_image._slanted()
    assert slant(picture(0.4)) - slant(picture(0.0)) == pytest.approx(0.4, abs=1e-4)
    axis = text_to_image._slanted(lambda vx, vy, cov: torch.atan2(-2 * cov, vx - vy) / 2)
    assert torch.rad2deg(axis(picture(0.2))).item() < 25  # from the horizontal
    assert slant(picture(0.2)) == pytest.approx(0.2, abs=1e-3)


def test_the_exercise_agrees_with_the_library_where_there_is_no_faint_ink():
    """Exercise measured_slant."""
    images = torch.full((1, 1, 12, 12), -1.0).double()
    for row in range(10):
        images[0, 0, row + 1, 9 - row // 2] = 1
    found = text_to_image._slanted()(images)
    torch.testing.assert_close(found, measure(images).slant)


def test_obedience_costs_variety():
    """Exercise following_experiment: for both prompts, by the numbers of the solution."""
    for prompt in text_to_image.WISHES:
        wish = text_to_image._Prompt(prompt)
        run = text_to_image._measured()(wish.draw, wish.told, text_to_image.SCALES)[1]
        none, plain, _, strong = run["following"].tolist()
        assert none < 0.25
        assert 0.5 < plain < 0.9 < strong
        assert run["variety"][3] < 0.75 * run["variety"][1]
    assert run["variety"][3] / run["variety"][1] == pytest.approx(0.53, abs=0.06)


def test_draw_takes_the_scales_that_were_given():
    with pytest.raises(ValueError, match=r"draw wants one of the scales \(0\.0, 1\.0, .*; got 3"):
        text_to_image._Prompt(text_to_image.WISHES[0]).draw(3.0)
