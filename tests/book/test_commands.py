"""The commands behind `make`: stages, the search for a browser, the pins."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import find_chromium
import lock
import stages
from course_lib import check
from stages import Stage

ROOT = Path(__file__).resolve().parents[2]


def python(code):
    return lambda: [sys.executable, "-c", code]


def test_stages_go_on_after_a_failure_and_leave_out_what_needs_it(capfd):
    found = stages.run(
        [
            Stage("good", python("print('here')")),
            Stage("bad", python("raise SystemExit(3)")),
            Stage("after", python("print('never')"), needs="bad"),
            Stage("empty", list),
            Stage("told", python("import os; assert os.environ['A'] == 'b'"), {"A": "b"}),
        ]
    )
    results = [result for result, _ in found.values()]
    assert results == ["ok", "FAILED", "FAILED", "nothing to do", "ok"]
    printed = capfd.readouterr().out
    assert "here" in printed
    assert "never" not in printed


def test_table_has_a_line_for_each_stage_and_the_sum():
    text = stages.table({"lint": ("ok", 1.25), "book": ("FAILED", 60.0)})
    lines = [line.split() for line in text.strip().splitlines()]
    assert lines[0] == ["lint", "1.2", "s", "ok"]
    assert lines[1][-1] == "FAILED"
    assert lines[2] == ["total", "61.2", "s"]


def test_exit_status_tells_whether_all_is_well(monkeypatch, capfd):
    monkeypatch.setattr(stages, "STAGES", [Stage("a", python("")), Stage("b", python("1/0"))])
    assert stages.main(["a"]) == 0
    assert stages.main([]) == 1
    assert stages.main(["typo"]) == 2
    assert "allowed: a, b" in capfd.readouterr().err


def test_every_check_of_the_course_is_a_stage():
    names = [stage.name for stage in stages.STAGES]
    assert " ".join(names) == "lint format types layers notebooks unit nbval book browser"
    assert {stage.needs for stage in stages.STAGES} <= {"", *names}


def test_nbval_runs_notebooks_one_after_another_and_copes_with_none(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    assert stages.nbval() == []
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "01_a.ipynb").write_text("", encoding="utf-8")
    command = stages.nbval()
    assert command[-1].endswith("01_a.ipynb")
    assert {"--nbval-lax", "loadfile", "nbval_keep"} <= set(command)


def test_chromium_of_the_environment_comes_first(monkeypatch, tmp_path):
    browser = tmp_path / "browser"
    browser.touch()
    monkeypatch.setenv("COURSE_CHROMIUM", str(browser))
    assert find_chromium.find_chromium() == str(browser)
    monkeypatch.setenv("COURSE_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="COURSE_CHROMIUM names"):
        find_chromium.find_chromium()


def test_without_any_chromium_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(find_chromium, "places", lambda: [lambda: None, lambda: None])
    with pytest.raises(FileNotFoundError, match="COURSE_CHROMIUM to the path"):
        find_chromium.find_chromium()


def test_the_first_place_that_has_one_ends_the_search(monkeypatch):
    places = [lambda: None, lambda: "here", lambda: pytest.fail("looked further")]
    monkeypatch.setattr(find_chromium, "places", lambda: places)
    assert find_chromium.find_chromium() == "here"


def test_a_command_that_fails_or_is_missing_is_no_error():
    assert find_chromium._run(sys.executable, "-c", "")
    assert not find_chromium._run(sys.executable, "-c", "1/0")
    assert not find_chromium._run("no-such-command")


def test_pins_are_tidied():
    text = (
        "# note\n--extra-index x\ntorch==2.1+cpu\nnvidia-cublas==1 ; sys_platform == 'linux'\na==1"
    )
    assert lock.tidy(text) == lock.HEADER + "torch==2.1\na==1\n"


@pytest.mark.skipif(os.name == "nt", reason="the shell of CI")
def test_ci_uses_a_copy_of_the_data_only_if_there_is_one(tmp_path):
    for place, expected in (("a/repo", ""), ("b/repo", "mnist")):
        ci = tmp_path / place / ".ci"
        ci.mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "run", ci)
        (ci.parent / "Makefile").write_text("test:\n\t@echo data=$$COURSE_DATA_DIR.\nbook:\n")
        if expected:
            (tmp_path / "b" / "shared" / "data" / "mnist").mkdir(parents=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("COURSE", "MAKE"))}
        done = subprocess.run(
            ["bash", str(ci / "run")], env=clean, capture_output=True, text=True, check=True
        )
        assert f"{expected}." in done.stdout
        assert ("data=." in done.stdout) == (not expected)


def test_the_failed_check_of_the_readme_is_what_a_check_says():
    verdict = check.ddpm.q_sample.run(check.ddpm.q_sample.mistakes[0].function)
    assert verdict.text() in (ROOT / "README.md").read_text(encoding="utf-8")
