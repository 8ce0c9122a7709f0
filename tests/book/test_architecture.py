"""Rules that every module and every chapter keeps."""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

import notebooks
from stored_notebook import is_compared

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "course_lib").rglob("*.py"))
CHAPTERS = [path for path in notebooks.sources(ROOT) if path.stem[:2].isdigit()]
HEAVY = ("lightning", "sklearn", "scipy", "matplotlib", "pooch", "ot", "safetensors", "IPython")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def _name(path):
    return path.relative_to(ROOT).as_posix()


def code_lines(source):
    """Numbers of the lines that hold code: no comment, no blank line, no docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_code_lines_leave_out_what_is_no_code():
    assert code_lines('"""Doc\nmore."""\n\n# why\nx = [\n  1,\n]\n') == {5, 6, 7}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_functions_have_at_most_thirty_lines(path):
    source = path.read_text(encoding="utf-8")
    lines = code_lines(source)
    sizes = {
        f.name: len(lines & set(range(f.lineno, f.end_lineno + 1)))
        for f in functions(ast.parse(source))
    }
    assert {name: size for name, size in sizes.items() if size > 30} == {}


def exported(tree):
    """The names in `__all__`, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_say_what_they_offer_and_each_offer_is_described(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = exported(tree)
    assert ast.get_docstring(tree), "the module has no docstring"
    assert names is not None, "the module has no __all__"
    kinds = ast.FunctionDef | ast.ClassDef
    public = [n for n in tree.body if isinstance(n, kinds) and n.name in names]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


def raising(node):
    """Whether a function raises an error of its own making."""
    return any(isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) for n in ast.walk(node))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_functions_name_their_errors(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in (exported(tree) or ())
    ]
    silent = [
        n.name for n in public if raising(n) and "Raises:" not in (ast.get_docstring(n) or "")
    ]
    assert silent == []


def test_import_costs_little_more_than_torch():
    code = "import sys, torch; known = set(sys.modules); import course_lib; "
    code += "print(*sorted({m.split('.')[0] for m in set(sys.modules) - known}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
    assert "course_lib" in done.stdout.split()


def cells(path):
    """Sources of the code cells of a chapter, line magics left out."""
    import jupytext

    code = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    return [re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in code]


def headings(path):
    """The headings of the second level, code left out."""
    text = re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", CHAPTERS, ids=_name)
def test_code_cells_are_short(path):
    sizes = [len([line for line in source.splitlines() if line.strip()]) for source in cells(path)]
    assert statistics.median(sizes) <= 12
    assert max(sizes) <= 40


@pytest.mark.parametrize("path", CHAPTERS, ids=_name)
def test_every_figure_has_alternative_text(path):
    calls = [
        n for source in cells(path) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)
    ]
    shown = [
        c
        for c in calls
        if ast.unparse(c.func).split(".")[-1] in ("show", "viewer", "trajectory_viewer")
    ]
    assert shown, "the chapter shows nothing"
    without = [ast.unparse(c)[:60] for c in shown if "alt" not in [k.arg for k in c.keywords]]
    assert without == []


@pytest.mark.parametrize("path", CHAPTERS, ids=_name)
def test_chapters_have_one_interactive_figure_and_five_compared_cells(path):
    import jupytext

    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert any("viewer(" in cell.source for cell in code)
    assert sum(is_compared(cell) for cell in code) >= 5


@pytest.mark.parametrize("path", CHAPTERS, ids=_name)
def test_chapters_follow_the_template(path):
    text = path.read_text(encoding="utf-8")
    opening = text.split("\n## ", 1)[0].lower()
    assert "{chapter-runtime}" in opening
    assert "prerequisites" in opening
    assert "able to" in opening
    wanted = ["exact", "scale", "mistakes", "summary", "exercises", "further reading"]
    found = [h.lower() for h in headings(path)]
    places = [next((i for i, h in enumerate(found) if word in h), None) for word in wanted]
    assert None not in places, f"one of {wanted} is missing in {found}"
    assert all(a <= b for a, b in pairwise(places)), f"{found} is not in the order {wanted}"
