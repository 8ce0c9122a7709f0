"""One source makes two notebooks and the section of the page; nothing is missing, nothing leaks."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils.parsers.rst import DirectiveError

import exercise_section
import exercises
import notebooks
from course_lib.check import CHAPTERS
from exercise_notebooks import exercise_notebooks, pointer
from plain_markdown import Page, translate
from repository import Repository
from stored_notebook import is_compared, text_of

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "exercises").glob("[0-9][0-9]_*.md"))
KINDS = {"derivation": 1, "implementation": 3, "experiment": 1, "bug": 1}
SHAPE = re.compile(r"\((?:[A-Z0-9]\w*( [-+] 1)?|levels|\.\.\.|, )*,?\)|scalar")

SOURCE = '''\
# Exercises: A

Read {eq}`first`.

```python
import math
## no heading
```

Go on.

## twice

Double $\\E[x]$, as in {cite:t}`ho`.

:::{note}
Look.
:::

### Hint 1
Add.

### Hint 2
See {ref}`ex-a-add-one`.

### Solution
```python
FACTOR = 2


def twice(x: float) -> float:
    """Double x.

    Args:
        x: a scalar.
    """
    return FACTOR * x


assert twice(1.0) == 2
```

Because $2x = x + x$.

## add_one
Mend it.
### Start
```python
def add_one(x: float) -> float:
    """Add one to x, a scalar."""
    return x - 1
```
### Hint 1
a
### Hint 2
b
### Solution
```python
def add_one(x: float) -> float:
    """Add one to x, a scalar."""
    return x + 1
```
'''


# --- reading ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small source, and what its checkers know."""
    facts = [("twice", "Twice", "implementation", 2, 10), ("add_one", "Plus one", "bug", 1, 5)]
    keys = ("name", "title", "kind", "difficulty", "minutes")
    checkers = [SimpleNamespace(**dict(zip(keys, row, strict=True))) for row in facts]
    monkeypatch.setattr(exercises, "checkers_of", {"a": checkers}.get)
    (tmp_path / "exercises").mkdir()
    path = tmp_path / "exercises" / "01_a.md"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def sheet(source):
    return exercises.read_sheet(source)


def test_opening_is_split_into_text_and_code(sheet):
    assert (sheet.name, sheet.chapter) == ("01_a", "a")
    assert [kind for kind, _ in sheet.opening] == ["markdown", "code", "markdown"]
    assert sheet.opening[1][1] == "import math\n## no heading"
    assert sheet.opening[2][1] == "Go on."


def test_every_part_of_an_exercise_is_read(sheet):
    twice, add_one = sheet.exercises
    assert twice.statement.startswith("Double")
    assert twice.statement.endswith(":::")
    assert twice.hints == ("Add.", "See {ref}`ex-a-add-one`.")
    assert twice.explanation == "Because $2x = x + x$."
    assert (twice.start, add_one.explanation) == ("", "")
    assert "return x - 1" in add_one.start
    assert add_one.anchor == "ex-a-add-one"
    assert add_one.check == "check.a.add_one(add_one)"
    assert add_one.facts == "*spot the bug · difficulty ●○○ · about 5 minutes*"


def test_stub_is_the_solution_without_its_body_and_its_helpers(sheet):
    stub = sheet.exercises[0].stub
    assert stub.startswith('def twice(x: float) -> float:\n    """Double x.\n')
    assert stub.endswith(
        '    raise NotImplementedError("twice: replace this line with your answer")'
    )
    assert "FACTOR" not in stub
    assert "assert" not in stub
    names = {}
    exec(stub, names)
    with pytest.raises(NotImplementedError, match="twice: replace this line"):
        names["twice"](1.0)


def test_code_to_start_from_takes_the_place_of_the_stub(sheet):
    assert sheet.exercises[1].stub == sheet.exercises[1].start


MISTAKES = {
    "no title": ("# Exercises: A\n", "", "first line must be a title"),
    "another order": ("## twice", "## thrice", r"are \['thrice', 'add_one'\]"),
    "no statement": ("Mend it.", "", "'add_one': the part 'statement' is empty"),
    "empty hint": ("### Hint 1\na", "### Hint 1\n", "'add_one': the part 'Hint 1' is empty"),
    "no second hint": ("### Hint 2\nb", "", "found Start, Hint 1, Solution"),
    "unknown part": ("### Hint 2\nb", "### Hint 3\nb", "found Start, Hint 1, Hint 3"),
    "fence": ("Look.\n:::", "Look.", "':::' is not closed"),
    "text first": ("### Solution\n```python\nF", "### Solution\nHm.\n```python\nF", "must begin"),
    "no function": ("def twice", "def thrice", "must define twice once; found 0"),
    "no Python": ("return FACTOR *", "return FACTOR * *", "cannot be read"),
    "no type": ("twice(x: float)", "twice(x)", "twice has no type for x"),
    "no type of the result": ("def twice(x: float) -> float", "def twice(x: float)", "for return"),
    "no docstring": (
        '    """Add one to x, a scalar."""\n    return x + 1',
        "    return x + 1",
        "Solution: add_one has no docstring",
    ),
    "text after the start": ("```\n### Hint 1\na", "```\nMore.\n### Hint 1\na", "'More.'"),
}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_source_is_named_with_its_place(source, old, new, message):
    assert SOURCE.count(old) == 1
    source.write_text(SOURCE.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        exercises.read_sheet(source)
    assert str(caught.value).startswith("exercises/01_a.md")


# --- notebooks --------------------------------------------------------------------------------


@pytest.fixture
def page():
    ho = SimpleNamespace(authors="Ho", year="2020", url="")
    labels = {"first": "(1.1)", "01_a": "The title"}
    return Page("01_a", citations={"ho": ho}, labels=labels, macros={"E": "\\mathbb{E}"})


@pytest.fixture
def made(sheet, page):
    repository = Repository("https://github.com/a/b", "main", "book")
    exercise_notebooks(sheet, page, repository)  # a first reading, for references to what follows
    page.counts.clear()
    return exercise_notebooks(sheet, page, repository)


def test_both_notebooks_have_their_cells_in_order(made):
    top = ["note", "install", "opening-1", "opening-2", "opening-3"]
    roles = "statement hint-1 hint-2"
    first, second = ([f"{label}-{r}" for r in roles.split()] for label in ("twice", "add_one"))
    assert [cell.id for cell in made["exercises"].cells] == [
        *(top + first),
        *("twice-stub", "twice-check"),
        *second,
        *("add_one-stub", "add_one-check", "end"),
    ]
    assert [cell.id for cell in made["solutions"].cells] == [
        *(top + first),
        *("twice-solution", "twice-explanation", "twice-check"),
        *second,
        *("add_one-solution", "add_one-check"),
    ]
    for notebook in made.values():
        assert notebook.metadata["course_lib"] == {"chapter": "a"}
        text_of(notebook)  # is valid


def test_text_is_translated_and_numbered(made):
    cells = {cell.id: cell for cell in made["exercises"].cells}
    assert "Read (1.1)." in cells["opening-1"].source
    assert cells["twice-statement"].source.startswith(
        "## Exercise 1.1: Twice\n\n*implementation · difficulty ●●○ · about 10 minutes*\n\n"
        "Double $\\mathbb{E}[x]$, as in Ho (2020).\n\n> **Note**"
    )
    assert cells["twice-hint-2"].source.startswith("<details>\n<summary>Hint 2</summary>\n\nSee Ex")
    assert "See Exercise 1.2." in cells["twice-hint-2"].source


def test_addresses_are_those_of_the_folders(made):
    top = {folder: notebook.cells[0].source for folder, notebook in made.items()}
    start = "https://colab.research.google.com/github/a/b/blob/main"
    assert f"{start}/exercises/01_a.ipynb" in top["exercises"]
    assert f"{start}/solutions/01_a.ipynb" in top["solutions"]
    for text in top.values():
        assert "[The title](https://github.com/a/b/blob/main/book/01_a.ipynb)" in text
        assert "https://github.com/a/b/blob/main/exercises/01_a.md" in text
    end = made["exercises"].cells[-1].source
    assert "https://github.com/a/b/blob/main/solutions/01_a.ipynb" in end


def test_only_the_checks_of_the_solutions_are_compared(made):
    compared = [cell.id for cell in made["solutions"].cells if is_compared(cell)]
    assert compared == ["twice-check", "add_one-check"]
    assert not any(map(is_compared, made["exercises"].cells))


def test_the_notebook_of_the_chapter_points_to_the_exercises():
    repository = Repository("https://github.com/a/b", "main", "book")
    page = Page("01_a", exercises=pointer("01_a", repository))
    text = translate("Before.\n\n```{exercises} a\n```\n\nAfter.", page)
    assert "](https://github.com/a/b/blob/main/exercises/01_a.ipynb)" in text
    assert text.startswith("Before.\n\nThe exercises have a notebook of their own")
    assert text.endswith("\n\nAfter.")


# --- the section of the page ------------------------------------------------------------------


def test_section_has_boxes_with_folded_hints_and_solutions(sheet):
    repository = Repository("https://github.com/a/b", "main", "book")
    text = exercise_section.section(sheet, repository)
    assert "github/a/b/blob/main/exercises/01_a.ipynb" in text
    assert "[download it](path:../exercises/01_a.ipynb)" in text
    first, second = re.split(r"^:{4,}\{exercise\} ", text, flags=re.MULTILINE)[1:]
    assert first.startswith("Twice\n:label: ex-a-twice\n\n*implementation · ")
    assert re.findall(r"^::::\{dropdown\} (.+)$", first, re.MULTILINE) == [
        *("Hint 1", "Hint 2", "Solution")
    ]
    given, solution = first.split("{dropdown} Solution")
    assert "Double x." in given
    assert "FACTOR" not in given
    assert "return FACTOR * x" in solution
    assert '"""' not in solution  # given above
    assert "return x - 1" in second.split("{dropdown}")[0]
    assert first.rstrip().endswith("\n::::\n:::::")  # longer than the fence in the statement
    assert second.rstrip().endswith("\n:::\n::::")


def directive(root, argument):
    """The directive as Sphinx calls it, and what it tells Sphinx."""
    seen = SimpleNamespace(files=[], parsed=[])
    env = SimpleNamespace(srcdir=str(root / "book"), note_dependency=seen.files.append)
    state = SimpleNamespace(
        document=SimpleNamespace(settings=SimpleNamespace(env=env)),
        nested_parse=lambda lines, offset, node: seen.parsed.append("\n".join(lines)),
    )
    made = exercise_section.ExerciseSection(
        "exercises", [argument], {}, [], 1, 0, "", state, SimpleNamespace(reporter=None)
    )
    return made, seen


def test_directive_names_the_file_that_the_page_depends_on(source):
    root = source.parent.parent
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text("utf-8"), encoding="utf-8")
    made, seen = directive(root, "a")
    made.run()
    assert seen.files == [str(source)]
    assert ":label: ex-a-twice" in seen.parsed[0]


def test_directive_without_a_source_or_with_a_wrong_one_is_an_error(source):
    with pytest.raises(DirectiveError) as caught:
        directive(source.parent.parent, "b")[0].run()
    assert "no exercises/NN_b.md" in caught.value.msg
    source.write_text(SOURCE.replace("## twice", "## thrice"), encoding="utf-8")
    with pytest.raises(DirectiveError) as caught:
        directive(source.parent.parent, "a")[0].run()
    assert "the exercises are ['thrice'" in caught.value.msg


# --- the exercises of the course --------------------------------------------------------------


@cache
def sheet_of(path):
    return exercises.read_sheet(path)


@cache
def generated():
    """Every notebook as it should be, by its path below the root."""
    return {
        path.relative_to(ROOT).as_posix(): notebook
        for path, notebook in notebooks.generate_all(ROOT)
    }


def cells_of(folder, path):
    return {cell.id: cell for cell in generated()[f"{folder}/{path.stem}.ipynb"].cells}


def every(path):
    return pytest.param(path, id=path.stem)


def test_every_chapter_has_exercises_and_shows_them():
    chapters = [path for path in notebooks.sources(ROOT) if path.stem[:2].isdigit()]
    assert [path.stem for path in SOURCES] == [path.stem for path in chapters]
    assert set(CHAPTERS) == {path.stem.partition("_")[2] for path in chapters}
    for path in chapters:
        chapter = path.stem.partition("_")[2]
        line = rf"^```{{exercises}} {chapter}\n```$"
        assert len(re.findall(line, path.read_text("utf-8"), re.MULTILINE)) == 1, path.name


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_notebooks_are_up_to_date(path):
    for folder in ("exercises", "solutions"):
        stored = nbformat.read(ROOT / folder / f"{path.stem}.ipynb", as_version=4)
        assert text_of(stored) == text_of(generated()[f"{folder}/{path.stem}.ipynb"])


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_every_label_has_all_that_an_exercise_must_have(path):
    text, sheet = path.read_text(encoding="utf-8"), sheet_of(path)
    page = exercise_section.section(sheet, Repository.read(ROOT))
    labels = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert labels == [checker.name for checker in CHAPTERS[sheet.chapter]]
    assert Counter(labels).most_common(1)[0][1] == 1
    wanted = {
        "exercises": ("statement", "hint-1", "hint-2", "stub", "check"),
        "solutions": ("statement", "hint-1", "hint-2", "solution", "check"),
    }
    for folder, roles in wanted.items():
        cells = cells_of(folder, path)
        missing = [f"{n}-{r}" for n in labels for r in roles if f"{n}-{r}" not in cells]
        assert missing == [], folder
    for exercise in sheet.exercises:
        assert page.count(f":label: {exercise.anchor}\n") == 1, exercise.label
    folded = Counter(re.findall(r"\{dropdown\} (Hint 1|Hint 2|Solution)$", page, re.MULTILINE))
    assert folded == dict.fromkeys(("Hint 1", "Hint 2", "Solution"), len(labels))


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_every_chapter_has_all_kinds_of_exercises(path):
    checkers = [exercise.checker for exercise in sheet_of(path).exercises]
    kinds = Counter(checker.kind for checker in checkers)
    assert sum(kinds.values()) >= 6
    assert {kind: n for kind, n in KINDS.items() if kinds[kind] < n} == {}
    assert set(kinds) == set(KINDS)
    assert {checker.difficulty for checker in checkers} <= {1, 2, 3}
    assert all(1 <= checker.minutes <= 120 and checker.title for checker in checkers)


def unshaped(code, label):
    """Names of the tensors whose entry in the docstring gives no shape."""
    functions = [n for n in ast.parse(code).body if getattr(n, "name", "") == label]
    (function,) = functions
    text = ast.get_docstring(function)
    entries, _, returns = text.partition("Returns:")
    parts = dict(re.findall(r"^ +(\w+): ((?:.|\n      +)+)", entries, re.MULTILINE))
    types = {arg.arg: ast.unparse(arg.annotation) for arg in function.args.args}
    found = [n for n, kind in types.items() if "Tensor" in kind and not SHAPE.search(parts[n])]
    found += [n for n in types if n not in parts]
    is_tensor = "Tensor" in ast.unparse(function.returns)
    return found + ["Returns"] * (is_tensor and not SHAPE.search(returns))


def test_a_missing_shape_is_noticed():
    code = 'def f(a: Tensor, b: int) -> Tensor:\n    """F.\n\n    Args:\n'
    code += '        a: {}.\n        b: n.\n\n    Returns:\n        A {}.\n    """\n'
    assert unshaped(code.format("x, shape (B, ...)", "scalar"), "f") == []
    assert unshaped(code.format("data (clean)", "number (B - 1)"), "f") == ["a"]
    assert unshaped(code.format("shape (T - 1,)", "thing"), "f") == ["Returns"]
    assert unshaped(code.replace("b: n.", "n.").format("()", "()"), "f") == ["b"]


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_stubs_name_the_shapes_of_all_tensors(path):
    found = {e.label: unshaped(e.stub, e.label) for e in sheet_of(path).exercises}
    assert {label: names for label, names in found.items() if names} == {}


def own_lines(exercise):
    """The lines of a solution that are not given, by their text; what says nothing is left out."""
    given = {line.strip() for line in exercise.signature.splitlines()}
    lines = {line.strip() for line in exercise.solution.splitlines()} - given
    return {line for line in lines if len(line) >= 12 and not line.startswith(("import", "from"))}


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_exercise_notebook_shows_no_line_of_a_solution(path):
    shown = "\n".join(cell.source for cell in cells_of("exercises", path).values())
    lines = {line.strip() for line in shown.splitlines()}
    for exercise in sheet_of(path).exercises:
        own = own_lines(exercise)
        assert own, exercise.label
        assert own & lines == set(), exercise.label
        assert not exercise.explanation or exercise.explanation not in shown, exercise.label


def defined(sheet, exercise, code):
    """The function of an exercise, defined with nothing but the set-up."""
    names = {}
    for kind, part in sheet.opening:
        if kind == "code":
            exec(part, names)
    exec(code, names)
    return names[exercise.label]


def every_exercise():
    return [
        pytest.param(path, i, id=f"{path.stem}-{checker.name}")
        for path in SOURCES
        for i, checker in enumerate(CHAPTERS[path.stem.partition("_")[2]])
    ]


@pytest.mark.parametrize(("path", "i"), every_exercise())
def test_solution_passes_and_stub_does_not(path, i):
    sheet = sheet_of(path)
    exercise = sheet.exercises[i]
    # Ten seeds: a right answer must never be called wrong.
    solution = defined(sheet, exercise, exercise.solution)
    verdict = exercise.checker.run(solution, seeds=range(10), seconds=300)
    assert verdict.passed, verdict
    assert not exercise.checker.run(defined(sheet, exercise, exercise.stub)).passed


@pytest.mark.parametrize("path", map(every, SOURCES))
def test_stored_verdicts_are_passed(path):
    for exercise in sheet_of(path).exercises:
        (shown,) = cells_of("solutions", path)[f"{exercise.label}-check"].outputs
        assert set(shown["data"]) == {"text/plain", "text/html"}
        assert shown["data"]["text/plain"].startswith("✓"), exercise.label
