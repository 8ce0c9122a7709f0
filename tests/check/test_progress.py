"""The file that remembers which exercises were passed."""

import json
from pathlib import Path

import pytest

from course_lib.check import CHAPTERS, progress, progress_table
from course_lib.check.progress import note_passed, passed_exercises, progress_path

FIRST, SECOND = CHAPTERS["ddpm"][:2]


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    return path


def test_passed_exercises_are_remembered_with_their_first_day(file):
    note_passed("ddpm", "q_sample")
    day = passed_exercises()["ddpm.q_sample"]
    stored = json.loads(file.read_text())
    stored["passed"]["ddpm.q_sample"] = "2020-01-01"
    file.write_text(json.dumps(stored))
    note_passed("ddpm", "q_sample")
    note_passed("ddpm", "best_noise")
    assert passed_exercises() == {"ddpm.q_sample": "2020-01-01", "ddpm.best_noise": day}


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no", "false"])
def test_opting_out_leaves_no_file(monkeypatch, tmp_path, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROGRESS", word)
    note_passed("ddpm", "q_sample")
    assert progress_path() is None
    assert passed_exercises() == {}
    assert list(tmp_path.iterdir()) == []
    assert "not kept: COURSE_PROGRESS is off" in progress_table()


def test_by_default_it_lies_where_the_system_keeps_data_of_programs(monkeypatch):
    monkeypatch.delenv("COURSE_PROGRESS", raising=False)
    assert progress_path().name == "progress.json"
    assert "course-lib" in progress_path().parts


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"passed": 3}', '{"passed": {"a": 1}}', "\udce9 not utf-8"]
)
def test_a_damaged_file_is_set_aside_with_a_warning(file, text):
    file.parent.mkdir()
    for i in (1, 2):
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.warns(UserWarning, match="was damaged"):
            assert passed_exercises() == {}
        kept = file.with_name(f"progress.json.damaged-{i}")
        assert kept.read_bytes() == text.encode("utf-8", "surrogateescape")
    note_passed("ddpm", "q_sample")
    assert "ddpm.q_sample" in passed_exercises()


def test_a_file_that_cannot_be_written_or_read_costs_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    with pytest.warns(UserWarning, match="not saved"):
        note_passed("ddpm", "q_sample")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path))  # a folder
    with pytest.warns(UserWarning, match="cannot read your progress"):
        assert passed_exercises() == {}


def test_a_file_that_cannot_be_read_is_not_written_over(file, monkeypatch):
    note_passed("ddpm", "q_sample")
    before = file.read_bytes()

    def refuse(self, **options):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.warns(UserWarning, match="cannot read"):
        note_passed("ddpm", "best_noise")
    assert file.read_bytes() == before


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", "~/mine.json")
    assert progress_path() == Path.home() / "mine.json"


def test_a_damaged_file_that_cannot_be_renamed(file, monkeypatch):
    file.parent.mkdir()
    file.write_text("{")

    def refuse(self, target):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.warns(UserWarning, match="was damaged"):
        assert passed_exercises() == {}


def test_the_table_shows_what_is_passed_and_what_is_next(file, capsys):
    progress()
    text = capsys.readouterr().out
    assert f"Next: {FIRST.title}, check.ddpm.{FIRST.name}({FIRST.name})" in text
    assert f"0 of {len(CHAPTERS['ddpm'])}" in text
    note_passed("ddpm", FIRST.name)
    lines = progress_table().splitlines()
    assert f"  ✓ ●○○   5 min  {FIRST.title} ({FIRST.name})" in lines
    assert f"Next: {SECOND.title}, check.ddpm.{SECOND.name}({SECOND.name})" in lines
    assert f"(kept in {file})" in lines
    for chapter, checkers in CHAPTERS.items():
        for checker in checkers:
            note_passed(chapter, checker.name)
    assert "All passed. Well done!" in progress_table()
