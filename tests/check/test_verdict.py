"""How a verdict looks: a box in a notebook, plain text elsewhere."""

import io
import types

import pytest

from course_lib.check.verdict import Verdict, show

VERDICT = Verdict(
    "line", "A line", "failed", 1, 2, "right in 1 of 2 cases.", (("What", "1 < 2"),), "hello\n"
)


def test_plain_text():
    lines = ["✗ A line (line): right in 1 of 2 cases.", "  What: 1 < 2"]
    assert VERDICT.text() == "\n".join([*lines, "  Your function printed:", "    hello"])
    assert repr(VERDICT) == VERDICT.text()


def test_long_lines_are_wrapped():
    text = Verdict("f", "F", "failed", 0, 1, "no.", (("What", "word " * 40),)).text()
    assert max(map(len, text.split("\n"))) <= 88
    assert " ".join(text.split()).endswith("word " * 3 + "word")


def test_colour_marks_the_first_line_only():
    first, *rest = VERDICT.text(colour=True).split("\n")
    assert first.startswith("\033[31m✗")
    assert first.endswith("\033[0m")
    assert rest == VERDICT.text().split("\n")[1:]


def test_the_box_escapes_its_text_and_needs_no_style_of_the_page():
    box = VERDICT._repr_html_()
    assert "1 &lt; 2" in box
    assert "<b>Your function printed:</b>" in box
    assert "hello" in box
    assert " color:" not in box  # the text takes its colour from the page, light or dark


def test_in_a_notebook_the_verdict_is_displayed(monkeypatch, capsys):
    shown = []
    ipython = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=object()),
        display=types.SimpleNamespace(display=shown.append),
    )
    monkeypatch.setitem(__import__("sys").modules, "IPython", ipython)
    show(VERDICT)
    assert shown == [VERDICT]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("quiet", ["", "1"])
def test_a_terminal_shows_colour_unless_it_was_refused(monkeypatch, quiet):
    monkeypatch.setenv("NO_COLOR", quiet)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    show(VERDICT)
    terminal.flush()
    assert (b"\033[31m" in terminal.buffer.getvalue()) is (quiet == "")


def test_a_terminal_without_the_marks_still_shows_the_words(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    show(VERDICT)
    terminal.flush()
    assert terminal.buffer.getvalue().startswith(b"? A line (line): right in 1 of 2 cases.")
