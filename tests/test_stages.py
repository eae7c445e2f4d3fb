"""``dropserve init``: every stage file arrives, and none of the user's is ever lost."""

from pathlib import Path

import pytest

from dropserve.errors import UsageError
from dropserve.project import STAGES, packaged_stages
from dropserve.stages import copy_stages


def files(folder: Path) -> dict[str, bytes]:
    found = (path for stage in STAGES for path in (folder / stage).rglob("*"))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_stage_file_is_copied(tmp_path: Path) -> None:
    target = tmp_path / "new" / "project"
    copied = copy_stages(target)
    assert files(target) == files(packaged_stages())
    assert {path.as_posix() for path in copied.created} == set(files(target))
    assert (copied.unchanged, copied.kept) == ([], [])
    assert {"training/models.py", "training/recipes/digits.toml", "export/checks.toml"} <= set(files(target))


def test_a_second_time_nothing_happens(tmp_path: Path) -> None:
    created = copy_stages(tmp_path).created
    again = copy_stages(tmp_path)
    assert (again.created, again.unchanged, again.kept) == ([], created, [])


def test_a_changed_file_is_kept_and_a_missing_one_comes_back(tmp_path: Path) -> None:
    copy_stages(tmp_path)
    (tmp_path / "training/models.py").write_text("# mine\n")
    (tmp_path / "export/checks.toml").unlink()
    copied = copy_stages(tmp_path)
    assert copied.kept == [Path("training/models.py")]
    assert copied.created == [Path("export/checks.toml")]
    assert (tmp_path / "training/models.py").read_text() == "# mine\n"


def test_a_file_in_the_way_of_a_folder_is_an_error_of_usage(tmp_path: Path) -> None:
    (tmp_path / "training").write_text("in the way")
    with pytest.raises(UsageError, match=r"training/.* cannot be written"):
        copy_stages(tmp_path)
    assert (tmp_path / "training").read_text() == "in the way"
