"""The pages say what the code does: tables and formulas of the notation are read and evaluated."""

import inspect
import math
import pkgutil
import re
from contextlib import suppress
from pathlib import Path as File
from typing import get_args

import pytest
import torch
from exact import PATHS, mixture_2d
from formulas import evaluate

import course_lib
from bibliography import read_bibliography
from course_lib import VP, Denoiser, DiscreteVP, GaussianMixture, Linear, denoising_loss
from course_lib.nets import MLP, DiT
from course_lib.paths import Face, Path, linear_betas
from course_lib.samplers import euler

BOOK = File(__file__).resolve().parents[2] / "book"
NOTATION = (BOOK / "notation.md").read_text(encoding="utf-8")
B, S, N, C, H, W, T = 5, 4, 3, 1, 8, 8, 1000


# --- reading a page ---------------------------------------------------------------------------


def section(label):
    """The text of a page from one label to the next."""
    return NOTATION.split(f"({label})=")[1].split("\n(notation")[0]


def tables(text):
    """Each table of a text as a list of rows, from column title to cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in block.split("\n")
        ]
        head, _, *rows = lines[:-1]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def formula(cell):
    """The only formula of a cell."""
    (tex,) = re.findall(r"\$(.+?)\$", cell)
    return tex


def code(cell):
    """The code that fills a cell, or None."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    return found and found[1]


def sizes(cell):
    """The shape in a cell, with the sizes of this test; a point stands for "..."."""
    shape = eval(cell, {"B": B, "S": S, "D": 2, "N": N, "C": C, "H": H, "W": W, "T": T})
    return torch.Size(n for part in shape for n in ((2,) if part is ... else (part,)))


def column(values):
    return values[:, None]


def value(tex, names):
    return torch.as_tensor(evaluate(tex, names), dtype=torch.float64)


def check(equation, names):
    """Both sides of an equation have the same value."""
    left, right = (value(side, names) for side in equation.split("="))
    torch.testing.assert_close(*torch.broadcast_tensors(left, right), rtol=1e-8, atol=1e-10)


# --- the reader of formulas -------------------------------------------------------------------


def test_formulas_are_read_as_arithmetic():
    names = {"e": math.e, "x": torch.tensor(3.0), "x_t": torch.tensor(5.0), "\\sigma'": 7.0}
    cases = {
        "-x_t + 2 x": 1.0,
        "x_t - x - 1": 1.0,
        "\\frac{x_t + 1}{2 x} x": 3.0,
        "x^2 \\sigma'": 63.0,
        "e^{-x/3} e": 1.0,
        "\\sqrt{x_t^2 - x^{1 + 1}}": 4.0,
        "\\frac{1}{2} \\log(e^x)": 1.5,
        "\\log\\frac{x}{x} + \\cos(x - 3)": 1.0,
    }
    for tex, value in cases.items():
        assert float(evaluate(tex, names)) == pytest.approx(value), tex


@pytest.mark.parametrize("tex", ["x + y", "x) + 1", "\\sin x"])
def test_what_is_no_known_formula_is_refused(tex):
    with pytest.raises(ValueError, match="cannot read"):
        evaluate(tex, {"x": 1.0})


# --- the table of symbols ---------------------------------------------------------------------

SYMBOLS = [row for table in tables(section("notation-symbols")) for row in table if "Symbol" in row]
DATA = {
    row["What"]: row
    for table in tables(section("notation-symbols"))
    for row in table
    if "What" in row
}


def test_the_table_of_symbols_is_found():
    assert len(SYMBOLS) >= 20
    assert [row["Symbol"] for row in SYMBOLS[:3]] == ["$x_0$", "$\\varepsilon$", "$t$"]


@pytest.mark.parametrize("row", SYMBOLS, ids=lambda row: row["Symbol"])
def test_code_of_a_symbol_runs_and_has_the_shape_of_the_table(row):
    path = DiscreteVP(linear_betas(T))
    mixture, t = mixture_2d(path), torch.linspace(0.2, 0.9, B, dtype=torch.float64)
    x0, eps = torch.ones(2, B, 2, dtype=torch.float64)
    known = {"path": path, "mixture": mixture, "denoiser": mixture, "x0": x0, "eps": eps, "t": t}
    known |= {"xt": path.sample(x0, t, eps), "lam": path.log_snr_half(t), "cond": None}
    value = eval(code(row["In code"]), known)
    if row["Shape"] == "number":
        assert isinstance(value, int)
    elif shape := code(row["Shape"]):
        assert value.shape == sizes(shape)


def test_plain_names_of_the_table_are_parameters_of_the_package():
    functions = [Path.sample, Path.convert, Denoiser.noise, denoising_loss, euler]
    parameters = {name for f in functions for name in inspect.signature(f).parameters}
    names = {code(row["In code"]).split("[")[0] for row in [*SYMBOLS, *DATA.values()]}
    assert {name for name in names if name.isidentifier()} == {"x0", "eps", "t", "cond", "ts"}
    assert {"x0", "eps", "t", "cond", "ts", "xt"} <= parameters


def test_networks_take_data_of_the_shapes_in_the_table():
    shape = {what: sizes(code(row["Shape"])) for what, row in DATA.items()}
    t = torch.rand(shape["labels"])
    points, images, tokens = (
        torch.randn(shape[what]) for what in ("points", "images", "tokens of a text")
    )
    labels = torch.zeros(shape["labels"], dtype=torch.int64)
    mask = torch.ones(shape["mask of a text"], dtype=torch.bool)
    assert MLP(2, num_classes=10)(points, t, labels).shape == points.shape
    assert DiT(8, num_classes=10)(images, t, labels).shape == images.shape
    assert DiT(8, context_dim=2)(images, t, (tokens, mask)).shape == images.shape
    ts = torch.linspace(1, 0, shape["times of a solver"][0])
    assert euler(mixture_2d(Linear()), points, ts).shape == points.shape


# --- faces, conversions and paths -------------------------------------------------------------


def on_path(path):
    """Times, data and noise, and the symbols that depend on the path alone, as columns."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    x0, eps = torch.randn(2, B, 2, generator=generator, dtype=torch.float64)
    names = {"\\alpha": path.alpha(t), "\\sigma": path.sigma(t)}
    names |= {"\\alpha'": path.d_alpha(t), "\\sigma'": path.d_sigma(t)}
    return t, x0, eps, {symbol: column(value) for symbol, value in names.items()}


def test_every_face_has_a_row():
    for label in ("notation-faces", "notation-convert"):
        (table,) = tables(section(label))
        assert [next(iter(row.values())).strip('`"') for row in table] == list(get_args(Face))


def test_targets_of_the_five_faces(path):
    t, x0, eps, names = on_path(path)
    (table,) = tables(section("notation-faces"))
    for row in table:
        face = row["Name in code"].strip('`"')
        value = evaluate(
            formula(row["is the mean, given $x_t$, of"]), names | {"x_0": x0, "\\varepsilon": eps}
        )
        torch.testing.assert_close(value, path.target(x0, eps, t, face))


def test_symbols_and_conversions_of_the_five_faces(path):
    t, x0, eps, names = on_path(path)
    mixture, xt = mixture_2d(path), path.sample(x0, t, eps)
    faces, conversions = (
        tables(section(label))[0] for label in ("notation-faces", "notation-convert")
    )
    exact = {row["Name in code"].strip('`"'): formula(row["Prediction"]) for row in faces}
    names |= {symbol: getattr(mixture, face)(xt, t) for face, symbol in exact.items()} | {"x_t": xt}
    for row in conversions:
        noise = evaluate(formula(row["noise $\\hat\\varepsilon$"]), names)
        data = evaluate(formula(row["data $\\hat x_0$"]), names)
        torch.testing.assert_close(noise, mixture.noise(xt, t))
        torch.testing.assert_close(data, mixture.data(xt, t))


@pytest.mark.parametrize("kind", PATHS)
def test_formulas_of_the_paths(kind):
    path, (rows, letters) = PATHS[kind], tables(section("notation-paths"))
    (row,) = [row for row in rows if row["Path"].endswith(f".{kind}`")]
    t = torch.tensor([0.001, 0.25, 0.5, 0.999], dtype=torch.float64)
    names = {"t": t, "e": math.e, "\\pi": math.pi}
    parameters = {"s": "s", "\\beta_{\\min}": "beta_min", "\\beta_{\\max}": "beta_max"}
    parameters |= {"\\sigma_{\\min}": "sigma_min", "\\sigma_{\\max}": "sigma_max"}
    known = {symbol: getattr(path, name, None) for symbol, name in parameters.items()}
    names |= {symbol: number for symbol, number in known.items() if number is not None}
    if kind == "DiscreteVP":
        steps = (t * path.num_steps).round().long()
        names["\\bar\\alpha_n"] = torch.cumprod(1 - linear_betas(path.num_steps), 0)[steps - 1]
    for letter in letters:
        with suppress(ValueError):  # a letter of another path; without its value the row fails
            names[formula(letter["Letter"])] = evaluate(formula(letter["Stands for"]), names)
    for column, method in [
        ("\\alpha", "alpha"),
        ("\\sigma", "sigma"),
        ("\\lambda", "log_snr_half"),
    ]:
        names[column] = value(formula(row[f"${column}$"]), names)
        expected = getattr(path, method)(t)
        torch.testing.assert_close(names[column].expand(4), expected, rtol=1e-9, atol=1e-9)


# --- the dictionary: one Gaussian, whose every answer fits on a line -------------------------

MEAN, VARIANCE = 0.7, 0.4


def ours(path, t, xt):
    """Our symbols for data N(MEAN, VARIANCE), at samples xt of time t."""
    mean, cov = t.new_full((1, 1), MEAN), t.new_full((1, 1, 1), VARIANCE)
    gaussian = GaussianMixture(mean, cov, t.new_ones(1), path)
    f, g2 = path.drift_diffusion(t)
    names = {"t": t, "x_t": xt, "e": math.e, "f": f, "g^2": g2, "\\lambda": path.log_snr_half(t)}
    names |= {"\\alpha": path.alpha(t), "\\sigma": path.sigma(t)}
    names |= {"\\alpha'": path.d_alpha(t), "\\sigma'": path.d_sigma(t)}
    faces = {
        "\\hat\\varepsilon": "noise",
        "\\hat x_0": "data",
        "u": "velocity",
        "\\nabla\\log p_t": "score",
    }
    return names | {s: getattr(gaussian, face)(column(xt), t)[:, 0] for s, face in faces.items()}


def equations(label):
    (table,) = tables(section(label))
    return {row["What"]: formula(list(row.values())[1]) for row in table}


def draw(n=7):
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return torch.linspace(0.1, 0.9, n, dtype=torch.float64), MEAN + VARIANCE**0.5 * x0, eps


def test_dictionary_flow_matching():
    s, data, noise = draw()
    x = s * data + (1 - s) * noise
    variance = s**2 * VARIANCE + (1 - s) ** 2  # of x, and half its derivative in their time:
    growth = s * VARIANCE - (1 - s)
    names = ours(Linear(), 1 - s, x) | {"\\tilde t": s, "\\tilde x_1": data, "\\tilde x_0": noise}
    names |= {
        "\\tilde u": MEAN + growth / variance * (x - s * MEAN),
        "x_0": data,
        "\\varepsilon": noise,
    }
    names |= {"\\nabla\\log\\tilde p": -(x - s * MEAN) / variance, "h": 0.1}
    for equation in equations("notation-flow-matching").values():
        check(equation, names)


def test_dictionary_ddpm():
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    n = torch.arange(2, T + 1)
    path, alpha_bars = DiscreteVP(betas), torch.cumprod(1 - betas, 0)
    names = ours(path, n.double() / T, torch.zeros(len(n), dtype=torch.float64)) | {"n": n.double(), "T": T}
    names |= {"\\beta_n": betas[n - 1], "\\bar\\alpha_n": alpha_bars[n - 1]}
    for equation in equations("notation-ddpm").values():
        check(equation, names | {"\\bar\\alpha_{n-1}": alpha_bars[n - 2]})
    torch.testing.assert_close(path.alpha_bars[n - 1], alpha_bars[n - 1])


def test_dictionary_edm(path):
    level = torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
    x = torch.tensor([-1.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    t, variance = path.t_of_lambda(-level.log()), VARIANCE + level**2
    names = ours(path, t, path.alpha(t) * x) | {"\\tilde x": x, "\\tilde\\sigma": level}
    names |= {"\\tilde D": (VARIANCE * x + level**2 * MEAN) / variance}
    for equation in equations("notation-edm").values():
        check(equation, names | {"\\nabla\\log\\tilde p": -(x - MEAN) / variance})


def test_dictionary_sde(path):
    t, data, noise = draw()
    names = ours(path, t, path.sample(data, t, noise))
    names["\\beta(t)"] = 0.1 + t * (20 - 0.1)
    for what, equation in equations("notation-sde").items():
        if "VP" not in what or path == VP(0.1, 20.0):
            check(equation, names)


def test_dictionary_snr(path):
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    names = ours(path, t, t) | {"\\tilde\\gamma": -torch.log(alpha**2 / sigma**2)}
    for equation in equations("notation-snr").values():
        check(equation, names)


# --- the other pages --------------------------------------------------------------------------


def test_glossary_is_sorted_and_says_each_thing_once():
    text = (BOOK / "glossary.md").read_text(encoding="utf-8").split("{glossary}")[1]
    terms = re.findall(r"^(?![:` ])(\S.*)$", text, re.MULTILINE)
    assert len(terms) >= 40
    assert terms == sorted(set(terms), key=str.casefold)


def test_reference_has_every_module_of_the_package():
    text = "".join(page.read_text(encoding="utf-8") for page in BOOK.glob("api/*.md"))
    documented = set(re.findall(r"automodule:: course_lib\.(\w+)", text))
    assert documented == {module.name for module in pkgutil.iter_modules(course_lib.__path__)}


def test_every_entry_of_the_bibliography_can_be_found():
    entries = read_bibliography(BOOK / "references.bib")
    assert len(entries) >= 40
    for key, entry in entries.items():
        assert entry.url.startswith("https://"), key
        assert entry.year in key, key
        assert entry.authors, key
