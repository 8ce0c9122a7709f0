"""AND and NOT of prompts on MNIST: how many of N digits are as all prompts ask.

`mnist-text` gets one joint prompt, or three prompts that are combined as a product of experts; the
product is sampled as it is, with Langevin steps at every level, and with weighted particles. NOT
takes a growing weight. Digits are read by the classifier, attributes measured by the code of the
captions. Evaluations are those of one network, of one image.
"""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from course_lib import Denoiser, sample
from course_lib.applications import all_of, annealed_langevin, feynman_kac
from course_lib.evaluation import prompt_agreement
from course_lib.pretrained import load_pretrained
from course_lib.samplers import uniform_grid

N = 100
THREE = [["a seven"], ["a bold digit"], ["a digit leaning left"]]
JOINT, PLAIN, AVOIDED = "a bold seven leaning left", "a seven", "a digit leaning right"
NEGATIVE = (0.0, -1.0, -2.0, -4.0)


def measure(quick: bool) -> dict[str, Any]:
    """Agreement of every way, and the effective sample size of the particles."""
    words, n = load_pretrained("mnist-text").eval(), 4 if quick else N
    sizes: list[float] = []
    langevin = {
        "solver": annealed_langevin, "steps": 12, "predictor": "ddim", "corrections": 3, "step": 0.1
    }  # fmt: skip
    grid = uniform_grid(words.path, 40, t_max=0.95)
    weighted = {"solver": feynman_kac, "ts": grid, "record": sizes}
    ways = {
        "one joint prompt, s = 1": (all_of(words, [[JOINT]]), {"steps": 12}, 12),
        "one joint prompt, s = 2": (all_of(words, [[JOINT]], [2]), {"steps": 12}, 24),
        "three prompts, w = 1, ODE": (all_of(words, THREE), {"steps": 12}, 48),
        "three prompts, w = 1, SDE": (
            all_of(words, THREE), {"steps": 60, "solver": "ancestral"}, 240
        ),
        "three prompts, w = 1, Langevin": (all_of(words, THREE), langevin, 4 * (12 + 11 * 4)),
        "three prompts, w = 1, particles": (all_of(words, THREE), weighted, 160),
        "three prompts, w = 2, ODE": (all_of(words, THREE, [2, 2, 2]), {"steps": 12}, 48),
        "three prompts, w = 2, Langevin": (
            all_of(words, THREE, [2, 2, 2]), langevin, 4 * (12 + 11 * 4)
        ),
    }  # fmt: skip
    rows = {
        name: _agreement(model, options, n, JOINT) | {"evaluations": cost}
        for name, (model, options, cost) in tqdm(ways.items(), desc="AND")
    }
    negated = {
        str(w): _agreement(all_of(words, [[PLAIN], [AVOIDED]], [2, w]), {"steps": 12}, n,
                           "a seven leaning right")
        for w in tqdm(NEGATIVE, desc="NOT")
    }  # fmt: skip
    return {"samples": n, "and": rows, "not": negated, "effective": sizes}


def _agreement(model: Denoiser, options: dict[str, Any], n: int, prompt: str) -> dict[str, float]:
    x = sample(model, (n, 1, 32, 32), **options)
    return prompt_agreement(x.clamp(-1, 1), [prompt] * n)


def table(values: dict[str, Any]) -> str:
    """The results as text."""
    keys = ("class_agreement", "weight_agreement", "slant_agreement")
    lines = [f"{values['samples']} digits{'':28s}class   bold   left   evaluations"]
    for name, row in values["and"].items():
        shares = "".join(f"{row[key]:7.2f}" for key in keys)
        lines.append(f"{name:35s}{shares}{row['evaluations']:14d}")
    lines += ["", "weight of 'a digit leaning right'   a seven   leaning right"]
    for w, row in values["not"].items():
        lines.append(f"{w:>33s}{row['class_agreement']:10.2f}{row['slant_agreement']:16.2f}")
    return "\n".join(lines)
