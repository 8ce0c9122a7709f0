"""CLIP guidance against its formula, written out; on a tiny CLIP and a tiny net in float64."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from course_lib import CosineVP, NetDenoiser
from course_lib.applications import clip_log_prob
from course_lib.data import VOCABULARY, tokenize
from course_lib.guidance import ClassifierGuidance
from course_lib.nets import UNet
from course_lib.nets.clip import CLIP
from course_lib.nets.text_encoder import TextEncoder

PROMPTS = ["a bold seven", "a thin two", "nine"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    encoder = TextEncoder(len(VOCABULARY), dim=8, depth=1, heads=2)
    torch.nn.init.normal_(encoder.word.weight)
    return CLIP(encoder, image_size=16, width=4, dim=8, temperature=0.2).double()


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(1)
    net = UNet(width=4, heads=1)
    for parameter in net.out.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return NetDenoiser(net, CosineVP(), "v").double()


@pytest.fixture
def xt(generator):
    return torch.randn(3, 1, 16, 16, generator=generator, dtype=torch.float64)


T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def cosines(clip, images, prompts):
    texts = clip.text_out(clip.text_encoder.pooled(tokenize(prompts)[0]))
    h = images
    for convolution, norm in zip(clip.convolutions, clip.norms, strict=True):
        h = torch.nn.functional.silu(norm(convolution(h)))
    return cosine_similarity(clip.image_out(h.flatten(1))[:, None], texts[None], dim=-1)


def test_it_is_the_cosine_of_the_denoised_image_over_the_temperature(clip, denoiser, xt):
    found = clip_log_prob(clip, denoiser)(xt, T, PROMPTS)
    wanted = cosines(clip, denoiser.data(xt, T), PROMPTS).diagonal() / 0.2
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # tau is stored in float32


def test_against_other_prompts_it_is_a_log_softmax(clip, denoiser, xt):
    log_prob = clip_log_prob(clip, denoiser, against=PROMPTS)
    logits = cosines(clip, denoiser.data(xt, T), PROMPTS) / 0.2
    for k, prompt in enumerate(PROMPTS):
        found = log_prob(xt, T, prompt)  # one of those against: it counts once
        torch.testing.assert_close(found, logits.log_softmax(1)[:, k], rtol=1e-6, atol=1e-6)
    alone = clip_log_prob(clip, denoiser, against=["nine"])(xt, T, ["nine"])
    torch.testing.assert_close(alone, torch.zeros_like(alone), rtol=0, atol=1e-12)


def test_a_prompt_that_is_not_among_the_others_joins_them(clip, denoiser, xt):
    found = clip_log_prob(clip, denoiser, against=PROMPTS[:2])(xt, T, "nine")
    logits = cosines(clip, denoiser.data(xt, T), PROMPTS) / 0.2
    torch.testing.assert_close(found, logits.log_softmax(1)[:, 2], rtol=1e-6, atol=1e-6)


def test_the_guided_score_moves_by_the_gradient_through_the_denoiser(clip, denoiser, xt):
    log_prob = clip_log_prob(clip, denoiser)
    guided = ClassifierGuidance(denoiser, log_prob, 2.0)
    step = guided.score(xt, T, PROMPTS) - denoiser.score(xt, T)
    direction = torch.randn(xt.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        ahead, behind = (log_prob(xt + h * direction, T, PROMPTS) for h in (1e-5, -1e-5))
    slope = (ahead - behind) / 2e-5
    along = (step * direction).flatten(1).sum(1).detach() / 2
    torch.testing.assert_close(along, slope, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit(clip, denoiser, xt):
    with pytest.raises(ValueError, match="cond must be 1 or 3 prompts; got 2"):
        clip_log_prob(clip, denoiser)(xt, T, PROMPTS[:2])
    with pytest.raises(ValueError, match="unknown word 'sevn'"):
        clip_log_prob(clip, denoiser, against=["sevn"])
    with pytest.raises(TypeError, match="denoiser must be a Denoiser; got UNet"):
        clip_log_prob(clip, denoiser.net)
