import pytest

from course_lib.cli import main


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """Folder of a run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", tiny, "--save-dir", str(folder)]) == 0
    return folder
