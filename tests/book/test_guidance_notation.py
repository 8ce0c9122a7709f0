"""The dictionary of guidance scales says what the code does."""

import torch
from exact import class_mixture
from test_pages import check, equations

from course_lib import VP
from course_lib.guidance import ClassifierFreeGuidance


def test_dictionary_guidance():
    mixture, w = class_mixture(VP()), 1.5
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    xt, cond = mixture.sample(5, t), torch.tensor([0, 1, 2, 1, 0])
    names = {"s": 1 + w, "\\tilde w": w}
    names["\\hat\\varepsilon_c"] = mixture.noise(xt, t, cond)
    names["\\hat\\varepsilon_\\varnothing"] = mixture.noise(xt, t)
    table = equations("notation-guidance")
    for equation in table.values():
        check(equation, names)
    guided = ClassifierFreeGuidance(mixture, 1 + w).noise(xt, t, cond)
    check(f"{table['guided noise'].split('=')[1]} = g", names | {"g": guided})
