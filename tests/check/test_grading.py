"""The grader: what a notebook does costs only itself.

Most tests run the second process's code in this one. Those of isolation start real processes.
"""

import builtins
import csv
import json
import os
import signal
import sys

import psutil
import pytest
import torch

from course_lib.check import CHAPTERS, grading, grading_fence, grading_report, grading_worker
from course_lib.check.grading import Grade, Graded, find_notebooks, grade, grade_notebook
from course_lib.check.grading_report import grades_table, write_csv

RIGHT = """def v_weight(betas):
    alpha_bar = (1 - betas).cumprod(0)
    snr = alpha_bar / (1 - alpha_bar)
    return 0.5 * (snr[:-1] - snr[1:]) * (1 - alpha_bar[1:])
"""
WRONG = RIGHT.replace("0.5", "1.0")
CALL = "from course_lib import check\ncheck.ddpm.v_weight(v_weight)\n"
CALL += "import os; os.write(1, b'{\"done\": true}\\n')"  # what it prints is no report
EULER = """def ve_euler_step(x, s, s_next, score):
    return x + (s - s_next) * s * score
"""
NAMES = [checker.name for checker in CHAPTERS["ddpm"]]
POPEN = grading.subprocess.Popen
posix = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def write(path, *cells, **metadata):
    """A notebook with these code cells, and a text before each."""
    text = {"cell_type": "markdown", "source": ["# A heading"], "metadata": {}}
    code = [{"cell_type": "code", "source": c.splitlines(keepends=True)} for c in cells]
    notebook = {"nbformat": 4, "metadata": metadata, "cells": [x for c in code for x in (text, c)]}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run notebooks as the second process does, without its fence; return what it reports."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setenv("COURSE_PROGRESS", "off")
    monkeypatch.setattr(grading_worker, "fence", lambda folder: None)
    monkeypatch.setattr(grading_worker, "limit_memory", lambda more: None)
    monkeypatch.setattr(grading_worker, "_wait", lambda: None)
    handler = signal.getsignal(signal.SIGINT)

    def run(*cells, chapter="", seconds=60.0, **metadata):
        reports = []
        monkeypatch.setattr(
            grading_worker, "_reports", lambda: lambda **facts: reports.append(facts)
        )
        path = write(tmp_path / "a.ipynb", *cells, **metadata)
        grading_worker.main([path, chapter, str(seconds), "0"])
        assert reports[-1] == {"done": True}
        return reports

    yield run
    signal.signal(signal.SIGINT, handler)


def results(reports):
    return {r["exercise"]: r["result"] for r in reports if "exercise" in r}


def notes(reports):
    return [r["note"] for r in reports if "note" in r]


def test_each_result_of_an_exercise(run):
    reports = run(
        RIGHT,
        EULER.replace("* s *", "*"),
        "def q_sample(x0, n, eps, alpha_bar):\n    raise NotImplementedError",
    )
    found = results(reports)
    assert list(found) == NAMES
    assert found["v_weight"] == "passed"
    assert found["ve_euler_step"] == "failed"
    assert found["q_sample"] == "not attempted"
    assert found["best_noise"] == "not found"
    (wrong,) = (r for r in reports if r.get("exercise") == "ve_euler_step")
    assert wrong["passed_cases"] < wrong["cases"]
    assert "Likely cause" in wrong["message"]
    assert notes(reports) == []


def test_functions_are_found_wherever_they_are_and_the_last_one_counts(run):
    assert results(run("x = 1", RIGHT + EULER))["ve_euler_step"] == "passed"
    assert results(run(WRONG, "x = 1", RIGHT))["v_weight"] == "passed"
    assert results(run(RIGHT, WRONG))["v_weight"] == "failed"
    copied = run(RIGHT.replace("v_weight", "mine"), "v_weight = lambda betas: mine(betas)")
    assert results(copied)["v_weight"] == "passed"
    assert results(run(RIGHT, "del v_weight", EULER))["v_weight"] == "not found"
    assert results(run("v_weight = 3", EULER))["v_weight"] == "failed"


def test_checkers_themselves_are_not_taken_for_answers(run):
    assert results(run("from course_lib.check.ddpm import *; from course_lib import check")) == {}
    imported = run("from course_lib.check.ddpm import v_weight", EULER)
    assert results(imported)["v_weight"] == "not found"


def test_chapter_comes_from_the_option_or_the_metadata_or_the_functions(run):
    assert results(run("x = 1")) == {}
    assert len(results(run("x = 1", chapter="ddpm"))) == len(NAMES)
    assert len(results(run("x = 1", course_lib={"chapter": "ddpm"}))) == len(NAMES)
    for odd in ("nonsense", 3, None, ["ddpm"]):
        assert len(results(run(RIGHT, course_lib={"chapter": odd}))) == len(NAMES)
    assert len(results(run(RIGHT, course_lib="ddpm"))) == len(NAMES)


def test_a_cell_that_fails_costs_only_itself(run):
    reports = run(
        "1 / 0",
        "x = (",
        "import sys; sys.exit(3)",
        "raise KeyboardInterrupt",
        "class Odd(Exception):\n    def __str__(self): 1 / 0\nraise Odd",
        "x = '\\0'" + chr(0),
        "raise ValueError('long' * 10**6)",
        RIGHT + "undefined",
    )
    kinds = [note.split(": ")[1] for note in notes(reports)]
    assert kinds[:5] == [
        "ZeroDivisionError",
        "SyntaxError",
        "SystemExit",
        "KeyboardInterrupt",
        "Odd",
    ]
    assert kinds[6:] == ["ValueError", "NameError"]
    assert notes(reports)[0] == "code cell 1: ZeroDivisionError: division by zero"
    assert max(map(len, notes(reports))) < 1000
    assert results(reports)["v_weight"] == "passed"


def test_a_cell_without_end_is_interrupted_and_the_next_goes_on(run):
    reports = run("while True: pass", "import time; time.sleep(600)", RIGHT, seconds=1.0)
    assert notes(reports) == [f"code cell {i}: interrupted after 1 s" for i in (1, 2)]
    assert results(reports)["v_weight"] == "passed"


def test_a_cell_that_goes_on_after_the_interruption_is_interrupted_again(run):
    stubborn = "import time\nfor i in range(2):\n    try:\n        time.sleep(600)\n"
    stubborn += "    except KeyboardInterrupt: print(i)\n"
    assert notes(run(stubborn, seconds=0.5)) == []


def test_what_a_notebook_breaks_is_mended_or_its_own(run):
    reports = run(
        "import builtins, sys\nfrom course_lib import check\ndel check\ncheck",
        "builtins.vars = builtins.len = builtins.str = None\nsum = max = 3\nsys.stdout = None",
        RIGHT,
        "@property\ndef ve_euler_step(x): return x",
    )
    assert notes(reports) == ["code cell 1: NameError: name 'check' is not defined"]
    assert results(reports)["v_weight"] == "passed"
    assert results(reports)["ve_euler_step"] == "failed"
    assert builtins.len([]) == 0


def test_a_check_that_breaks_is_an_error_of_this_exercise(run, monkeypatch):
    class Broken(Exception):
        pass

    def broken(self, function):
        if self.name == "v_weight":
            raise Broken("by the notebook")
        return plain(self, function)

    plain = grading_worker.Checker.run
    monkeypatch.setattr(grading_worker.Checker, "run", broken)
    reports = run(RIGHT, EULER)
    assert results(reports)["v_weight"] == "error"
    assert results(reports)["ve_euler_step"] == "passed"
    assert "by the notebook" in str(reports)


def test_cells_see_an_ordinary_module(run):
    """Dataclasses, sources of functions and annotations work as in a notebook."""
    reports = run(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1",
        "import pickle\nassert pickle.loads(pickle.dumps(A())) == A()",
        "import inspect\ndef f():\n    return 1\nassert 'return 1' in inspect.getsource(f)",
        "assert __name__ == '__main__'\ndisplay(A(), clear=True)",
        "def g(x: undefined): pass",
    )
    assert notes(reports) == ["code cell 5: NameError: name 'undefined' is not defined"]


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("if a:\n    %pip install x\nb", "if a:\n    pass\nb"),
        ("!ls\n? f\nf?\nf??\nx = !ls\na, b = %timeit c", "pass\npass\npass\npass\npass\npass"),
        ("%%time\nx = 1", "pass\nx = 1"),
        ("\n%%bash\nrm -rf x", ""),
        ("x %= 3\na != b\n'50%'\nx = 3 % 2", "x %= 3\na != b\n'50%'\nx = 3 % 2"),
        ("", ""),
    ],
)
def test_magic_lines_are_left_out(source, left):
    assert grading_worker.without_magics(source) == left


def test_magic_lines_cost_nothing_and_python_that_looks_like_them_stays(run):
    reports = run("%%html\n<b>", "!echo\n" + RIGHT, "x = (7\n% 4)\nassert x == 3", "f?\n" + EULER)
    assert notes(reports) == []
    assert [results(reports)[name] for name in ("v_weight", "ve_euler_step")] == ["passed"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no notebook"),
        (b"3", "no notebook"),
        (b'{"worksheets": []}', "no notebook"),
        (b'{"cells": 3}', "no notebook"),
        (b'{"cells": [{"cell_type": "code", "source": 3}]}', "no notebook"),
        (b'{"cells": [{"cell_type": "code", "source": [3]}]}', "no notebook"),
    ],
)
def test_what_is_no_notebook_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        grading_worker.read_notebook(content)


def test_notebooks_with_a_byte_order_mark_or_without_metadata_are_read():
    notebook = b'{"cells": [{"cell_type": "code", "source": "x"}, {"cell_type": "raw"}]}'
    assert grading_worker.read_notebook(b"\xef\xbb\xbf" + notebook) == (["x"], None)


@pytest.fixture
def hook(tmp_path):
    return grading_fence.audit_hook(tmp_path)


@pytest.mark.parametrize(
    ("event", "args"),
    [
        ("open", ("inside", "w", os.O_WRONLY)),
        ("open", ("inside", None, os.O_RDONLY)),
        ("open", (os.devnull, "w", os.O_WRONLY)),
        ("open", (3, "w", os.O_WRONLY)),
        ("open", (os.__file__, "r", os.O_RDONLY)),
        ("open", (torch.__file__.encode(), "r", os.O_RDONLY)),
        ("open", (grading.__file__, "r", os.O_RDONLY)),
        ("os.listdir", (None,)),
        ("os.scandir", (4,)),
        ("os.rename", ("a", "b", -1, -1)),
        ("os.remove", (b"a", -1)),
        ("os.kill", (os.getpid(), 2)),
        ("socket.connect", (None, ("127.0.0.1", 80))),
        ("import", ("os",)),
    ],
)
def test_fence_lets_pass(event, args, hook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hook(event, args)


@pytest.mark.parametrize(
    ("event", "args", "message"),
    [
        ("open", ("../outside", "w", os.O_WRONLY | os.O_CREAT), "write files only"),
        ("open", ("../outside", "r", os.O_RDONLY), "read files only"),
        pytest.param(*("open", ("link/outside", None, os.O_RDWR), "write files only"), marks=posix),
        ("open", (os.__file__, "a", os.O_APPEND | os.O_WRONLY), "write files only"),
        ("os.remove", ("../outside", -1), "write files only"),
        ("os.rename", ("inside", "../outside", -1, -1), "write files only"),
        ("shutil.rmtree", ("..", None), "write files only"),
        ("os.listdir", ("..",), "read files only"),
        ("os.scandir", (b"..",), "read files only"),
        ("sqlite3.connect", ("../outside",), "write files only"),
        ("subprocess.Popen", ("ls", [], None, None), "one process"),
        ("os.system", (b"ls",), "one process"),
        ("os.fork", (), "one process"),
        ("os.kill", (os.getppid(), 9), "stop no other"),
        ("socket.connect", (None, ("192.0.2.1", 80)), "no network"),
        ("socket.getaddrinfo", ("example.org", 80, 0, 0, 0), "no network"),
    ],
)
def test_fence_refuses(event, args, message, hook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "link" in str(args):
        (tmp_path / "link").symlink_to("..")
    with pytest.raises(PermissionError, match=f"the grader lets a notebook .*{message}|{message}"):
        hook(event, args)


def test_data_folder_of_the_teacher_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "data"))
    hook = grading_fence.audit_hook(tmp_path / "own")
    hook("open", (str(tmp_path / "data" / "x.gz"), "r", os.O_RDONLY))
    with pytest.raises(PermissionError, match="write files only"):
        hook("open", (str(tmp_path / "data" / "x.gz"), "w", os.O_WRONLY))
    with pytest.raises(PermissionError, match="read files only"):
        hook("open", (str(tmp_path / "database"), "r", os.O_RDONLY))


def leftovers(tmp_path):
    """Processes that were started for a notebook of this test."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        told = " ".join(process.info["cmdline"] or [])
        if str(tmp_path) in told and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


FENCE = """
from pathlib import Path
import os, socket, subprocess, sys, torch
tried = {
    "read": lambda: open(SECRET).read(),
    "write": lambda: open(SECRET, "w"),
    "save": lambda: torch.save({}, SECRET),
    "remove": lambda: os.remove(SECRET),
    "list": lambda: os.listdir(os.path.dirname(SECRET)),
    "process": lambda: subprocess.run([sys.executable, "-c", ""]),
    "shell": lambda: os.system("true"),
    "network": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "kill": lambda: os.kill(os.getppid(), 9),
}
for name, action in tried.items():
    try:
        action()
        Path(name).write_text("done")
    except PermissionError as error:
        Path(name).write_text(str(error))
told = {name: Path(name).read_text() for name in tried}
allowed = [name for name, text in told.items() if "the grader lets a notebook" not in text]
home = Path.home() == Path.cwd()
torch.save({"a": torch.ones(1)}, "own.pt")
allowed += [] if home and torch.load("own.pt")["a"] == 1 else ["home"]
try:
    input()
except EOFError:
    pass
raise RuntimeError(f"allowed: {allowed}")
"""


def test_a_real_notebook_is_held_by_the_fence_and_by_memory(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the grader's")
    hog = "held = []\nwhile True:\n    held.append(bytearray(2**26))"
    cells = [RIGHT, FENCE.replace("SECRET", repr(str(secret))), hog, "del held", CALL, EULER]
    if not hasattr(os, "fork") or sys.platform == "darwin":
        del cells[2]  # without a limit of the system, the whole notebook is stopped
    graded = grade_notebook(write(tmp_path / "a.ipynb", *cells), "", 120.0, 0.5)
    found = {g.exercise: g.result for g in graded.grades}
    assert graded.trouble == ""
    assert graded.notes[0] == "code cell 2: RuntimeError: allowed: []"
    assert [note.split(": ")[1] for note in graded.notes[1:]] in ([], ["MemoryError"])
    assert [found[name] for name in ("v_weight", "ve_euler_step")] == ["passed", "passed"]
    (missing,) = (g for g in graded.grades if g.exercise == "q_sample")
    assert missing.message.startswith("no function q_sample; code cell 2")
    assert secret.read_text() == "the grader's"
    assert leftovers(tmp_path) == []


def test_endless_printing_that_no_interruption_stops_costs_time_only(tmp_path):
    cell = "def flood():\n    while True: print('x' * 10_000)\n"
    cell += "while True:\n    try: flood()\n    except BaseException: pass"
    path = write(tmp_path / "a.ipynb", RIGHT, cell, course_lib={"chapter": "ddpm"})
    before = psutil.Process().memory_info().rss
    graded = grade_notebook(path, "", 2.0, 2.0)
    assert graded.trouble == "stopped after 2 s"
    assert {(g.result, g.message) for g in graded.grades} == {("error", "stopped after 2 s")}
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert leftovers(tmp_path) == []


@posix
def test_children_count_as_memory_and_do_not_survive(tmp_path):
    fork = "import ctypes, os, time\nfor _ in range(200):\n    if ctypes.CDLL(None).fork() == 0:\n"
    fork += "        os.setsid()\n        time.sleep(600)\n    time.sleep(0.01)\ntime.sleep(600)"
    graded = grade_notebook(write(tmp_path / "a.ipynb", fork), "ddpm", 120.0, 0.25)
    assert graded.trouble == "stopped when it took more than 0.25 GB of memory"
    assert leftovers(tmp_path) == []


@posix
def test_a_crash_costs_only_what_was_still_to_come(tmp_path):
    crash = "import os, signal\ndef best_noise(*args): os.kill(os.getpid(), signal.SIGSEGV)"
    stub = "def {}(*args):\n    raise NotImplementedError"
    before = [stub.format(name) for name in NAMES[: NAMES.index("best_noise")]]
    graded = grade_notebook(write(tmp_path / "a.ipynb", *before, RIGHT, crash), "", 120.0, 2.0)
    assert graded.trouble == "the notebook crashed (SIGSEGV)"
    expected = ["not attempted"] * len(before) + ["error"] * (len(NAMES) - len(before))
    assert [g.result for g in graded.grades] == expected


def test_a_teacher_who_interrupts_leaves_no_process_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grading._Worker, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade_notebook(write(tmp_path / "a.ipynb", "1"), "", 120.0, 2.0)
    assert leftovers(tmp_path) == []


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "LARGEST", 2**20)
    path = write(tmp_path / "a.ipynb", "#" * 2**21)
    assert grade_notebook(path, "", 120.0, 2.0).trouble == "not read: larger than 1 MB"


def worker(monkeypatch, code):
    """A worker that runs this code in place of the module."""

    def start(command, **how):
        return POPEN([sys.executable, "-c", code], **how)

    monkeypatch.setattr(grading.subprocess, "Popen", start)


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        ("raise SystemExit('no torch here')", "could not start Python: no torch here"),
        ("", "could not start Python: exit status 0"),
        ("import os; print('{\"ready\": 1}', flush=True); os._exit(3)", "with exit status 3"),
        ('print(\'{"trouble": "odd", "done": true}\')', "odd"),
        ("print('{\"done\": true}')", "no function of any exercise was found"),
        ("for i in range(10**5): print('{\"flood\": 1}')\nprint(3)", "could not start Python"),
    ],
)
def test_what_the_second_process_says_last(code, trouble, tmp_path, monkeypatch):
    worker(monkeypatch, code)
    assert trouble in grade_notebook(write(tmp_path / "a.ipynb"), "", 120.0, 2.0).trouble


def test_a_start_that_takes_for_ever_and_a_closed_channel_end(tmp_path, monkeypatch):
    worker(monkeypatch, "import os, time\nos.close(1); os.close(2)\ntime.sleep(600)")
    path = write(tmp_path / "a.ipynb")
    monkeypatch.setattr(grading, "END", 0.1)
    assert "heard no more" in grade_notebook(path, "", 120.0, 2.0).trouble
    monkeypatch.setattr(grading, "START", 0.2)
    worker(monkeypatch, "import time; time.sleep(600)")
    assert grade_notebook(path, "", 120.0, 2.0).trouble == "stopped after 0.2 s"


def test_limits_and_chapters_are_checked_before_anything_runs():
    for options in ({"timeout": 0.0}, {"memory": -1.0}, {"timeout": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
            grade(["a.ipynb"], **options)
    with pytest.raises(ValueError, match="chapter must be one of ddpm"):
        grade(["a.ipynb"], chapter="cats")


def test_notebooks_are_found_once_and_by_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.ipynb", "a.ipynb", "[odd].ipynb"):
        write(tmp_path / name)
    assert find_notebooks(["b.ipynb", "b.ipynb"]) == ["b.ipynb"]
    assert find_notebooks(["?.ipynb", "b.ipynb"]) == ["a.ipynb", "b.ipynb"]
    assert find_notebooks(["[odd].ipynb"]) == ["[odd].ipynb"]
    for name in ("none.ipynb", ".", "*.txt"):
        with pytest.raises(FileNotFoundError, match="no notebook"):
            find_notebooks([name])


def graded(notebook, *results, **facts):
    grades = [
        Grade("ddpm", k.name, k.title, r, "told", 1, 2)
        for k, r in zip(CHAPTERS["ddpm"], results, strict=False)
    ]
    return Graded(notebook, grades, **facts)


ALL = ("passed", "failed", "not attempted", "not found", "error", *["passed"] * (len(NAMES) - 5))


def test_table_has_a_row_for_each_notebook_and_a_column_for_each_exercise():
    rows = [
        graded("class/anna/01_ddpm.ipynb", *ALL, seconds=3.25),
        graded("class/ben/01_ddpm.ipynb", *["failed"] * len(NAMES), notes=["one", "two", "three"]),
        Graded("class/cleo.ipynb", trouble="not read: \x1b[31mempty\n"),
    ]
    text = grades_table(rows)
    lines = text.splitlines()
    assert lines[0].split() == ["ddpm", *map(str, range(1, len(NAMES) + 1)), "passed", "time"]
    marks = ["✓", "✗", "–", "?", "!", *["✓"] * (len(NAMES) - 5)]
    score = f"{len(NAMES) - 4}/{len(NAMES)}"
    assert lines[1].split() == ["anna/01_ddpm.ipynb", *marks, score, "3.2", "s"]
    assert f"  1 {NAMES[0]}: " in text
    assert "ben/01_ddpm.ipynb: one (and 2 more cells)" in lines
    assert "cleo.ipynb: not read: [31mempty" in lines
    assert max(map(len, lines)) <= 80
    assert {len(line) for line in lines[:3]} == {len(lines[0])}


def test_table_fits_and_copes_with_long_names_other_terminals_and_nothing():
    row = graded("x" * 200 + "end.ipynb", *ALL)
    for encoding in ("ascii", "cp1252", None, "no-such"):
        text = grades_table([row], encoding)
        text.encode("ascii")
        assert "+  x  -  ?  !" in text
        assert max(map(len, text.splitlines())) <= 80
        assert "end.ipynb" in text
    assert grades_table([]) == ""


def test_csv_has_one_row_for_each_exercise_and_no_formulas(tmp_path):
    path = tmp_path / "new" / "grades.csv"
    odd = Grade("ddpm", "q_sample", "Title", "failed", "=HYPERLINK(1)\n\x1b[1m" + "σ" * 5000, 3, 12)
    write_csv(path, [graded("a.ipynb", *ALL), Graded("-b.ipynb", [odd]), Graded("c", trouble="t")])
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == grading_report.FIELDS
    assert len(rows) == len(NAMES) + 2
    assert [row["result"] for row in rows[: len(NAMES)]] == list(ALL)
    assert rows[-2]["notebook"] == "'-b.ipynb"
    assert rows[-2]["message"].startswith("'=HYPERLINK(1) [1mσσ")
    assert len(rows[-2]["message"]) <= 1001
    assert (rows[-2]["passed_cases"], rows[-2]["cases"]) == ("3", "12")
    assert (rows[-1]["exercise"], rows[-1]["result"], rows[-1]["message"]) == ("", "error", "t")
    assert path.read_bytes().count(b"\n") == len(rows) + 1


def test_memory_is_limited_beyond_what_is_taken(monkeypatch):
    resource = pytest.importorskip("resource")
    asked = {}
    monkeypatch.setattr(resource, "setrlimit", lambda kind, bounds: asked.update({kind: bounds}))
    grading_fence.limit_memory(2**30)
    taken = psutil.Process().memory_info().vms
    assert abs(asked[resource.RLIMIT_AS][0] - taken - 2**30) < 2**26
    assert asked[resource.RLIMIT_FSIZE] == (2**30, 2**30)
    assert asked[resource.RLIMIT_CORE] == (0, 0)

    def refuse(*_):
        raise ValueError("not here")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    grading_fence.limit_memory(2**30)
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    grading_fence.limit_memory(2**30)
