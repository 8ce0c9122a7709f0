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


def values(denoiser, x0, eps, t):
    """What each symbol of the table stands for, by its code; so a swap there is noticed, too."""
    path = denoiser.path
    known = {"path": path, "mixture": denoiser, "denoiser": denoiser, "x0": x0, "eps": eps, "t": t}
    known |= {"xt": path.sample(x0, t, eps), "lam": path.log_snr_half(t), "cond": None}
    of_path, _, of_denoiser, _ = tables(section("notation-symbols"))
    found = {formula(r["Symbol"]): eval(code(r["In code"]), known) for r in of_path + of_denoiser}
    return {symbol: number for symbol, number in found.items() if isinstance(number, torch.Tensor)}


def on_path(path):
    """Data, noise, times and a denoiser for them, and the value of every symbol as a column."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
    x0, eps = torch.randn(2, B, 2, generator=generator, dtype=torch.float64)
    mixture = mixture_2d(path)
    names = values(mixture, x0, eps, t)
    return x0, eps, t, mixture, {s: v if v.ndim > 1 else column(v) for s, v in names.items()}


def test_every_face_has_a_row():
    for label in ("notation-faces", "notation-convert"):
        (table,) = tables(section(label))
        assert [next(iter(row.values())).strip('`"') for row in table] == list(get_args(Face))


def test_targets_of_the_five_faces(path):
    x0, eps, t, _, names = on_path(path)
    (table,) = tables(section("notation-faces"))
    for row in table:
        target = evaluate(formula(row["is the mean, given $x_t$, of"]), names)
        face = row["Name in code"].strip('`"')
        torch.testing.assert_close(target, path.target(x0, eps, t, face))


def test_conversions_of_the_five_faces(path):
    *_, t, mixture, names = on_path(path)
    faces, conversions = (tables(section(f"notation-{name}"))[0] for name in ("faces", "convert"))
    for face, row in zip(faces, conversions, strict=True):
        xt = names["x_t"]
        exact = getattr(mixture, face["Name in code"].strip('`"'))(xt, t)
        torch.testing.assert_close(names[formula(face["Prediction"])], exact)
        noise = evaluate(formula(row["noise $\\hat\\varepsilon$"]), names)
        torch.testing.assert_close(noise, mixture.noise(xt, t))
        data = evaluate(formula(row["data $\\hat x_0$"]), names)
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
    for symbol, method in {
        "\\alpha": "alpha",
        "\\sigma": "sigma",
        "\\lambda": "log_snr_half",
    }.items():
        names[symbol] = value(formula(row[f"${symbol}$"]), names)
        expected = getattr(path, method)(t)
        torch.testing.assert_close(names[symbol].expand(4), expected, rtol=1e-9, atol=1e-9)


# --- the dictionary: one Gaussian, whose every answer fits on a line -------------------------

MEAN, VARIANCE = 0.7, 0.4


def ours(path, x0, eps, t):
    """Our symbols for data N(MEAN, VARIANCE), at the noisy samples of these data and noise."""
    mean, cov = t.new_full((1, 1), MEAN), t.new_full((1, 1, 1), VARIANCE)
    gaussian = GaussianMixture(mean, cov, t.new_ones(1), path)
    names = values(gaussian, column(x0), column(eps), t)
    return {symbol: v if v.ndim == 1 else v[:, 0] for symbol, v in names.items()} | {"e": math.e}


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
    names = ours(Linear(), data, noise, 1 - s)
    names |= {"\\tilde t": s, "\\tilde x_1": data, "\\tilde x_0": noise, "h": 0.1}
    names |= {"\\tilde u": MEAN + growth / variance * (x - s * MEAN)}
    names |= {"\\nabla\\log\\tilde p": -(x - s * MEAN) / variance}
    for equation in equations("notation-flow-matching").values():
        check(equation, names)


def test_dictionary_ddpm():
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    n = torch.arange(2, T + 1)
    path, alpha_bars = DiscreteVP(betas), torch.cumprod(1 - betas, 0)
    names = ours(path, *torch.zeros(2, len(n)).double(), n.double() / T) | {"n": n.double(), "T": T}
    names |= {"\\beta_n": betas[n - 1], "\\bar\\alpha_n": alpha_bars[n - 1]}
    for equation in equations("notation-ddpm").values():
        check(equation, names | {"\\bar\\alpha_{n-1}": alpha_bars[n - 2]})
    torch.testing.assert_close(path.alpha_bars[n - 1], alpha_bars[n - 1])


def test_dictionary_edm(path):
    level = torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
    x = torch.tensor([-1.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    variance = VARIANCE + level**2
    names = ours(path, x, 0 * x, path.t_of_lambda(-level.log()))  # so x_t = alpha x
    names |= {"\\tilde x": x, "\\tilde\\sigma": level}
    names |= {"\\tilde D": (VARIANCE * x + level**2 * MEAN) / variance}
    for equation in equations("notation-edm").values():
        check(equation, names | {"\\nabla\\log\\tilde p": -(x - MEAN) / variance})


def test_dictionary_sde(path):
    t, data, noise = draw()
    names = ours(path, data, noise, t) | {"\\beta(t)": 0.1 + t * (20 - 0.1)}
    for what, equation in equations("notation-sde").items():
        if "VP" not in what or path == VP(0.1, 20.0):
            check(equation, names)


def test_dictionary_snr(path):
    t, data, noise = draw()
    names = ours(path, data, noise, t)
    names["\\tilde\\gamma"] = -torch.log(path.alpha(t) ** 2 / path.sigma(t) ** 2)
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
