"""One place holds the address of the repository; no file names the machine of its author."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import notebooks
from repository import Repository
from set_repository import set_repository

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "_build", "__pycache__", "node_modules"}
NEW = "https://git.example.org/someone/else"


def project_files():
    """Every text file that is, or could be, committed."""
    try:
        command = ["git", "ls-files", "-co", "--exclude-standard"]
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        paths = [ROOT / line for line in listed.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # an archive without its history
        paths = [p for p in ROOT.rglob("*") if not SKIPPED & set(p.relative_to(ROOT).parts)]
    for path in paths:
        if path.is_file() and path.suffix not in (".png", ".safetensors", ".gz", ".whl"):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8", errors="ignore")


def holders(address):
    """Names of the files that hold the address, or its last two parts."""
    short = "/".join(address.rstrip("/").split("/")[-2:])
    return {path.as_posix() for path, text in project_files() if short in text}


def test_the_address_is_in_the_settings_and_the_generated_notebooks_only():
    generated = {p.relative_to(ROOT).as_posix() for p, _ in notebooks.generate_all(ROOT)}
    assert holders(Repository.read(ROOT).url) == {"_config.yml"} | generated


def test_set_repository_changes_all_of_it(tmp_path, capsys):
    old = Repository.read(ROOT).url
    shutil.copy(ROOT / "_config.yml", tmp_path)
    for folder in ("book", "exercises", "solutions"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("_toc.yml"))
    set_repository(NEW + ".git/", tmp_path)
    changed = [tmp_path / "_config.yml", *(path for path, _ in notebooks.generate_all(tmp_path))]
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert "someone/else" in text, path.name
        assert old not in text, path.name
    before = (ROOT / "_config.yml").read_text(encoding="utf-8").splitlines()
    after = changed[0].read_text(encoding="utf-8").splitlines()
    assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1
    notebooks.main(["--check"], tmp_path)
    assert "out of date" not in capsys.readouterr().out


@pytest.mark.parametrize("url", ["github.com/a/b", "https://github.com/a", "https://x/a/b/c", ""])
def test_set_repository_refuses_what_is_no_address(tmp_path, url):
    shutil.copy(ROOT / "_config.yml", tmp_path)
    with pytest.raises(ValueError, match="must look like"):
        set_repository(url, tmp_path)


def test_set_repository_refuses_settings_without_an_address(tmp_path):
    (tmp_path / "_config.yml").write_text("title: a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one line"):
        set_repository(NEW, tmp_path)


def test_addresses_for_colab():
    repository = Repository("https://github.com/a/b", "main", "book")
    assert repository.at("exercises").colab.endswith("/github/a/b/blob/main/exercises")
    assert repository.colab == "https://colab.research.google.com/github/a/b/blob/main/book"
    assert repository.pip == '%pip install -q "git+https://github.com/a/b@main"'


def test_no_file_names_a_path_of_one_machine():
    path = re.compile(r"(?<![\w.~-])/(?:tmp|work|root|home|Users)/\w")
    named = {p.as_posix(): found for p, text in project_files() if (found := path.findall(text))}
    assert not named


def test_requirements_pin_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    versions = {pin.name.lower(): str(pin.specifier)[2:] for pin in pins}
    extras = project["project"].get("optional-dependencies", {})
    wanted = list(project["project"]["dependencies"])
    for group in [*extras.values(), *project["dependency-groups"].values()]:
        wanted += group
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement.name


def test_the_package_pins_nothing_above():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for line in project["project"]["dependencies"]:
        assert {part.operator for part in Requirement(line).specifier} == {">="}, line


def documents():
    """The pages about the project itself."""
    return [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_in_documents_lead_to_files(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_example_of_the_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["x"].shape == (1000, 2)
    assert names["x"].isfinite().all()


def test_commands_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in documents():
        named = re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, path.name
