from __future__ import annotations

from pathlib import Path

import pytest

from dropserve.errors import RecipeError
from dropserve.export.settings import ExportSettings, read_settings
from dropserve.project import packaged_stages


def test_the_shipped_file_says_what_the_defaults_are() -> None:
    assert read_settings(packaged_stages() / "export" / "checks.toml") == ExportSettings()


def test_every_problem_is_reported_at_once_with_key_value_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "checks.toml"
    file.write_text(
        'tolerance = -1\nbatch_sizes = [1]\nopset = 3\nformats = ["torchscript"]\ntolerence = 1\n'
    )
    with pytest.raises(RecipeError) as caught:
        read_settings(file)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for part in (
        "tolerance = -1",
        "batch_sizes",
        "opset = 3",
        '"onnx" must be',
        "tolerence: there is no such",
    ):
        assert part in text
    assert "the keys are tolerance, batch_sizes" in text


@pytest.mark.parametrize("content", ["tolerance = ", "\x00"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "checks.toml"
    file.write_text(content)
    with pytest.raises(RecipeError, match="is not TOML"):
        read_settings(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.toml.*\n.*cannot be read"):
        read_settings(tmp_path / "nothing.toml")
