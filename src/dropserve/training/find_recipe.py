"""From what a user types to a recipe's file."""

from __future__ import annotations

from pathlib import Path

from dropserve.errors import UsageError
from dropserve.project import Project, packaged_stages
from dropserve.training.problems import did_you_mean

RECIPES = "training/recipes"
DEFAULT = f"{RECIPES}/digits.toml"


def find_recipe(project: Project, wanted: str = DEFAULT) -> Path:
    """The file of a recipe.

    Args:
        project: whose ``training/recipes/`` comes before the packaged ones.
        wanted: a path, or the bare name of a recipe such as ``tutorial``.

    Raises:
        UsageError: if there is none; the message lists what there is.
    """
    path = Path(wanted)
    if not path.is_absolute():
        path = project.root / path
    if path.is_file():
        return path
    if wanted.startswith(f"{RECIPES}/") and (packaged := project.stage_file(wanted)).is_file():
        return packaged
    if "/" not in wanted:
        named = project.stage_file(f"{RECIPES}/{wanted.removesuffix('.toml')}.toml")
        if named.is_file():
            return named
    known = sorted(
        {file.stem for base in (project.root, packaged_stages()) for file in (base / RECIPES).glob("*.toml")}
    )
    raise UsageError(
        f"recipe {wanted!r}: there is no such file{did_you_mean(Path(wanted).stem, known)}. Give a path to "
        f"a TOML file, or one of: {', '.join(known)}"
    )
