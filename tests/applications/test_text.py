"""Conditions in words: what the conditioner gives, what the denoiser and the loss make of it."""

import pytest
import torch
from torch import nn

from course_lib import ClassifierFreeGuidance, NegativePrompt, NetDenoiser, sample
from course_lib.applications import (
    CaptionLoss,
    ConditionedDenoiser,
    Conditioner,
    retrieve,
    zero_shot,
)
from course_lib.data import VOCABULARY, tokenize
from course_lib.nets import CLIP, TextEncoder, UNet
from course_lib.objectives import ConditionDropout, denoising_loss
from course_lib.paths import Linear
from course_lib.samplers.counting import CountEvaluations

PROMPTS = ["a bold seven", "tiny: a 3", "nine"]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def conditioner():
    torch.manual_seed(0)
    made = Conditioner(TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


@pytest.fixture(scope="module")
def model(conditioner):
    torch.manual_seed(1)
    net = UNet(width=8, heads=2, patch=4, context_dim=8)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return ConditionedDenoiser(NetDenoiser(net.double(), Linear(), "velocity"), conditioner)


@pytest.fixture(scope="module")
def xt():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 1, 16, 16, generator=generator, dtype=torch.float64)


T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


# --- Conditioner --------------------------------------------------------------------------------


def test_label_and_words_are_tokens_side_by_side(conditioner):
    labels = torch.tensor([7, 3, 9])
    tokens, mask = conditioner({"label": labels, "text": PROMPTS})
    words, known = conditioner.text_encoder(tokenize(PROMPTS)[0])
    assert tokens.shape == (3, 21, 8)
    close(tokens[:, 0], conditioner.label.weight[labels])
    close(tokens[:, 1:], words)
    assert mask[:, 0].all()
    assert torch.equal(mask[:, 1:], known)


def test_what_is_not_given_is_masked(conditioner):
    labels = torch.tensor([7, 3, 9])
    both_tokens, both = conditioner({"label": labels, "text": PROMPTS})
    tokens, mask = conditioner({"label": labels})
    assert mask.sum(1).tolist() == [1, 1, 1]
    close(tokens[:, 0], both_tokens[:, 0])
    for cond in ({"text": PROMPTS}, {"text": PROMPTS, "label": None}):
        tokens, mask = conditioner(cond)
        assert not mask[:, 0].any()
        assert torch.equal(mask[:, 1:], both[:, 1:])
        close(tokens[:, 1:], both_tokens[:, 1:])
    mixed = {"label": torch.tensor([7, 10, 10]), "text": ["a seven", None, "nine"]}
    mask = conditioner(mixed)[1]
    assert mask.sum(1).tolist() == [5, 0, 3]  # begin and end count


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("a seven", {"text": ["a seven"]}),
        (["a seven", "nine"], {"text": ["a seven", "nine"]}),
        (("a seven", "nine"), {"text": ["a seven", "nine"]}),
        (torch.tensor([7, 3]), {"label": torch.tensor([7, 3])}),
        (tokenize(PROMPTS)[0], {"text": PROMPTS}),
        ({"label": 7, "text": "nine"}, {"label": torch.tensor([7]), "text": ["nine"]}),
        ({"label": [7, 3], "text": "nine"}, {"label": torch.tensor([7, 3]), "text": ["nine"] * 2}),
        ({"label": 7, "text": PROMPTS}, {"label": torch.tensor([7, 7, 7]), "text": PROMPTS}),
    ],
)
def test_short_forms(conditioner, short, whole):
    for a, b in zip(conditioner(short), conditioner(whole), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        (7, TypeError, "cond must be a dictionary with label and text, prompts, or labels; got i"),
        ({"colour": "red", "text": "a seven"}, ValueError, "have the keys label, text; got colour"),
        ({}, ValueError, "cond must give a label or a text; for no condition give None itself"),
        ({"label": None, "text": None}, ValueError, "cond must give a label or a text"),
        ({"label": [11, 3]}, ValueError, r"label must be 0 to 10 .*; got \[3, 11\]"),
        (torch.tensor([-1]), ValueError, r"label must be 0 to 10 .*; got \[-1\]"),
        ({"label": torch.tensor([1.0])}, ValueError, "label must be int64 .*; got torch.float32"),
        ({"label": [7, 3], "text": PROMPTS}, ValueError, "agree in rows; got 2 and 3"),
        ("a sevn", ValueError, "unknown word 'sevn' in 'a sevn'; nearest known: seven"),
        ("", ValueError, "a prompt must have a word"),
        ([], ValueError, "prompts must hold at least one text"),
        ([7], TypeError, "prompts must be texts; got int"),
        ({"text": torch.zeros(1, 30).long()}, ValueError, "N at most 20"),
    ],
)
def test_conditions_that_are_none(conditioner, cond, error, message):
    with pytest.raises(error, match=message):
        conditioner(cond)


# --- ConditionedDenoiser ------------------------------------------------------------------------


def test_it_is_the_inner_denoiser_given_the_tokens(model, xt):
    assert (model.path, model.predicts) == (model.denoiser.path, "velocity")
    cond = {"label": [7, 10, 3], "text": PROMPTS}
    encoded = model.conditioner(cond)
    for face in ("noise", "data", "velocity", "score"):
        wanted = getattr(model.denoiser, face)(xt, T, encoded)
        close(getattr(model, face)(xt, T, cond), wanted)
        close(getattr(model, face)(xt, T, encoded), wanted)
    close(model.velocity(xt, T), model.denoiser.velocity(xt, T))
    assert model.encode_condition(None) is None
    assert model.encode_condition(encoded) is encoded


def test_each_condition_matters_and_none_is_no_text_and_no_label(model, xt):
    given = [
        {"label": [7, 3, 9]},
        {"text": PROMPTS},
        {"label": [7, 3, 9], "text": PROMPTS},
        {"label": [7, 3, 9], "text": PROMPTS[::-1]},
    ]
    found = [model.velocity(xt, T, cond) for cond in given] + [model.velocity(xt, T)]
    for i, a in enumerate(found):
        assert all((a - b).abs().max() > 1e-3 for b in found[:i])
    hidden = {"label": [10, 10, 10], "text": [None, None, None]}
    close(model.velocity(xt, T, hidden), found[-1])
    for cond in (*given, ["a seven"] * 3, torch.tensor([7, 3, 9])):
        close(model.velocity(xt, T, model.null_condition(cond)), found[-1])


def test_padding_and_hidden_tokens_are_not_seen(model, xt):
    tokens, mask = model.conditioner(PROMPTS)
    noisy = torch.where(mask[..., None], tokens, 100.0)
    close(model.velocity(xt, T, (noisy, mask)), model.velocity(xt, T, PROMPTS))
    short = tokenize(PROMPTS, length=6)[0]
    close(model.velocity(xt, T, {"text": short}), model.velocity(xt, T, PROMPTS))


@pytest.mark.parametrize(
    "cond",
    [PROMPTS, tuple(PROMPTS), torch.tensor([7, 3, 9]), {"label": [7, 3, 9], "text": PROMPTS},
     {"label": 4, "text": PROMPTS}, {"text": [None, *PROMPTS[1:]]}],
)  # fmt: skip
def test_guidance_takes_prompts_and_dictionaries(model, xt, cond):
    given, none = model.velocity(xt, T, cond), model.velocity(xt, T)
    close(ClassifierFreeGuidance(model, 3.0).velocity(xt, T, cond), none + 3 * (given - none))
    close(ClassifierFreeGuidance(model, 0.0).velocity(xt, T, cond), none)
    close(ClassifierFreeGuidance(model, 1.0).velocity(xt, T, cond), given)


@pytest.mark.parametrize(
    "negative", [["a bold digit"], "a bold digit", {"text": "a bold digit"}, ["a bold digit"] * 3]
)
def test_a_negative_prompt_is_what_is_led_away_from(model, xt, negative):
    away = model.velocity(xt, T, ["a bold digit"] * 3)
    given = model.velocity(xt, T, PROMPTS)
    wanted = away + 2.5 * (given - away)
    close(NegativePrompt(model, negative, 2.5).velocity(xt, T, PROMPTS), wanted)
    counted = CountEvaluations(model)
    close(NegativePrompt(counted, negative, 2.5).velocity(xt, T, PROMPTS), wanted)
    assert counted.count == 1  # both in one batch


def test_a_label_can_lead_away_from_a_text(model, xt):
    away, given = (model.velocity(xt, T, c) for c in ({"label": [1] * 3}, PROMPTS))
    found = NegativePrompt(model, {"label": 1}, 2.0).velocity(xt, T, PROMPTS)
    close(found, 2 * given - away)


def test_guidance_nests_and_samples(model):
    guided = ClassifierFreeGuidance(model, 2.0)
    drawn = sample(guided, (2, 1, 16, 16), cond=["a seven", "nine"], steps=2, seed=3)
    one = sample(
        guided, (2, 1, 16, 16), cond={"text": "a seven", "label": [10, 10]}, steps=2, seed=3
    )
    assert drawn.shape == (2, 1, 16, 16)
    torch.testing.assert_close(drawn[0], one[0])
    assert not torch.allclose(drawn[1], one[1], atol=1e-3)
    outer = ClassifierFreeGuidance(guided, 1.0)
    again = sample(outer, (2, 1, 16, 16), cond=["a seven", "nine"], steps=2, seed=3)
    torch.testing.assert_close(again, drawn)


def test_rows_are_asked_for(model, xt):
    for denoiser in (model, ClassifierFreeGuidance(model, 2.0)):
        with pytest.raises(ValueError, match=r"cond must (be|have) "):
            denoiser.velocity(xt, T, ["a seven", "nine"])


def test_a_bare_network_is_refused(conditioner):
    with pytest.raises(TypeError, match="denoiser must be a Denoiser; got Linear"):
        ConditionedDenoiser(nn.Linear(2, 2), conditioner)


# --- losses -------------------------------------------------------------------------------------


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def captions_of(n, choices=4):
    """Labels, and `choices` captions of each: its own number as a word, and which it is."""
    labels = torch.arange(n) % 10
    names = VOCABULARY[3:13]
    adjectives = ("bold", "thin", "wide", "tiny")[:choices]
    texts = [f"a {a} {names[label]}" for label in labels for a in adjectives]
    return labels, tokenize(texts)[0].unflatten(0, (n, choices))


def seen_by(loss_options, model, n=4000, seed=0):
    """What a loss gives to its objective."""
    seen = []

    def objective(denoiser, x0, cond, *, generator):
        assert denoiser is model
        seen.append(cond)
        return torch.rand((), generator=generator)

    loss = CaptionLoss(**loss_options, objective=objective)
    x0, cond = torch.zeros(n, 1, 4, 4), captions_of(n)
    loss(model, x0, cond, generator=seeded(seed))
    return cond, seen[0]


def test_label_and_text_are_hidden_each_by_its_own_coin(model):
    (labels, texts), found = seen_by({"p_label": 0.5, "p_text": 0.2}, model)
    no_label, no_text = found["label"] == 10, (found["text"] == 0).all(1)
    assert torch.equal(found["label"][~no_label], labels[~no_label])
    shares = torch.stack([no_label & no_text, no_label & ~no_text, ~no_label & no_text])
    for share, p in zip(shares.double().mean(1), (0.1, 0.4, 0.1), strict=True):
        assert abs(share - p) < 4 * (p * (1 - p) / 4000) ** 0.5
    of_own = (found["text"][:, None] == texts).all(-1)[~no_text]
    assert (of_own.sum(1) == 1).all()  # one of its own captions, whole
    assert (of_own.double().mean(0) - 0.25).abs().max() < 0.03  # each as often


@pytest.mark.parametrize(("p_label", "p_text"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_nothing_and_everything_is_hidden(model, p_label, p_text):
    _, found = seen_by({"p_label": p_label, "p_text": p_text}, model, n=50)
    assert (found["label"] == 10).all() if p_label else not (found["label"] == 10).any()
    hidden = (found["text"] == 0).all(1)
    assert hidden.all() if p_text else not hidden.any()


def test_the_loss_is_that_of_the_conditions_that_are_left(model, xt):
    cond = captions_of(3)
    for p_label, p_text, left in (
        (0, 1, {"label": cond[0]}),
        (1, 1, None),
    ):
        found = CaptionLoss(p_label, p_text)(model, xt, cond, generator=seeded(1))
        generator = seeded(1)
        torch.randint(4, (3,), generator=generator), torch.rand(2, 3, generator=generator)
        close(found, denoising_loss(model, xt, left, generator=generator))


def test_the_loss_is_seeded_and_teaches_words(model, xt):
    cond = captions_of(3)
    state = torch.get_rng_state()
    losses = [CaptionLoss()(model, xt, cond, generator=seeded(s)) for s in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)
    loss = CaptionLoss(0.0, 0.0)(model, xt, cond, generator=seeded(0))
    (gradient,) = torch.autograd.grad(loss, model.conditioner.text_encoder.word.weight)
    assert (gradient[VOCABULARY.index("zero")] != 0).any()
    loss = CaptionLoss(0.0, 1.0)(model, xt, cond, generator=seeded(0))
    grads = torch.autograd.grad(
        loss, [model.conditioner.text_encoder.word.weight, model.conditioner.label.weight],
        allow_unused=True,
    )  # fmt: skip
    assert grads[0] is None or not grads[0].any()
    assert grads[1].any()


def test_condition_dropout_takes_prompts(model, xt):
    """It hides label and text together, in the encoded condition."""
    found = ConditionDropout(1.0)(model, xt, PROMPTS, generator=seeded(0))
    generator = seeded(0)
    torch.rand(3, generator=generator)
    close(found, denoising_loss(model, xt, None, generator=generator))


@pytest.mark.parametrize("name", ["p_label", "p_text"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_probabilities_lie_between_zero_and_one(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]; got {value}"):
        CaptionLoss(**{name: value})


# --- zero-shot and retrieval --------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)
    nn.init.normal_(encoder.word.weight)
    return CLIP(encoder, image_size=16, width=4, dim=6, temperature=0.2).double()


@pytest.fixture(scope="module")
def images():
    return torch.randn(600, 1, 16, 16, generator=seeded(0)).clamp(-1, 1)


def cosines(clip, images, prompts):
    with torch.no_grad():
        f = clip.embed_images(images.double())
        g = clip.embed_texts(tokenize(prompts)[0])
        return torch.cosine_similarity(f[:, None], g[None], dim=-1)


def test_zero_shot_is_a_softmax_over_cosines(clip, images):
    found = zero_shot(clip, images, PROMPTS)
    assert found.shape == (600, 3)
    wanted = (cosines(clip, images, PROMPTS) / 0.2).softmax(1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert not found.requires_grad


def test_retrieval_finds_the_nearest_first(clip, images):
    found = retrieve(clip, PROMPTS, images, k=7)
    assert found.shape == (3, 7)
    order = cosines(clip, images, PROMPTS).argsort(0, descending=True)
    assert torch.equal(found, order[:7].T)
    assert retrieve(clip, "nine", images[:4], k=4).sort(1).values.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_at_most_the_number_of_images(clip, images, k):
    with pytest.raises(ValueError, match=f"k must be 1 to 4; got {k}"):
        retrieve(clip, PROMPTS, images[:4], k=k)


def test_prompts_and_images_are_checked(clip, images):
    with pytest.raises(ValueError, match="unknown word 'sevn'"):
        zero_shot(clip, images[:2], ["a sevn"])
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 16, 16\), got \(2, 1, 28, 28\)"):
        zero_shot(clip, torch.zeros(2, 1, 28, 28), PROMPTS)
