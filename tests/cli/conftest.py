import pytest
from tiny_recipe import write_tiny

from course_lib.cli import main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """File of a tiny conditional recipe."""
    return write_tiny(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """Folder of a run of it."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", tiny, "--save-dir", str(folder)]) == 0
    return folder
