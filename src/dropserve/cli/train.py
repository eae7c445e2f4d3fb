"""``dropserve train``, ``dropserve import`` and ``dropserve init``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table as Grid

from dropserve.project import Project

if TYPE_CHECKING:
    from dropserve.manifest import RunManifest
    from dropserve.store import Stored
    from dropserve.training.fit import Fitted
    from dropserve.training.run import Prepared

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's TOML file, or the name of a shipped one.")
    ] = "training/recipes/digits.toml",
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps; replaces the recipe's.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Training seed; replaces the recipe's.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs at most; replaces the recipe's.", show_default=False)
    ] = None,
) -> None:
    """Train a model by a recipe, and publish the run in model_store/."""
    console = Console()
    try:
        _train(recipe, {"device": device, "seed": seed, "epochs": epochs}, console)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing was published; the model store is as it was")
        raise typer.Exit(130) from None


def _train(wanted: str, options: dict[str, Any], console: Console) -> None:
    project = Project(Path.cwd())
    with console.status("reading recipe, data and model"):
        # Imported here: torch and Lightning take seconds, and other commands need neither.
        from dropserve.training.find_recipe import find_recipe  # noqa: PLC0415
        from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415

        overrides = {f"training.{key}": value for key, value in options.items() if value is not None}
        file = load_recipe(find_recipe(project, wanted), overrides)

        from dropserve.training.progress import EpochBar  # noqa: PLC0415
        from dropserve.training.run import prepare, train  # noqa: PLC0415

        prepared = prepare(file)
    console.print(_summary(prepared), highlight=False)
    for advice in prepared.advice:
        console.print(
            f"[yellow]advice[/] [bold]{escape(advice.where)}[/]: {escape(advice.why)}", highlight=False
        )
        console.print(f"       {escape(advice.change)}", highlight=False)
    with EpochBar(file.recipe.training.epochs, file.recipe.task, console) as bar:
        run, fitted = train(prepared, project.store, bar)
    console.print(_results(run, fitted))
    _say_next(console, f"published {_near(run.folder)}", f"dropserve export {run.manifest.name}")


def _summary(prepared: Prepared) -> str:
    from dropserve.training.run import dataset_title  # noqa: PLC0415

    recipe, split = prepared.file.recipe, prepared.dataset.split
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    title = escape(dataset_title(prepared.dataset))
    return (
        f"[bold]{recipe.name}[/]: {recipe.task} with {type(prepared.model).__name__} "
        f"({parameters:,} parameters) on {prepared.device}, seed {recipe.training.seed}\n"
        f"{title}: {len(split.train)} rows to train, {len(split.validation)} to validate, "
        f"{len(split.test)} to test"
    )


def _results(run: Stored[RunManifest], fitted: Fitted) -> Group:
    metrics = run.manifest.metrics
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    grid.add_column("")
    names = [name.removeprefix("test_") for name in metrics if name.startswith("test_")]
    for name in names:
        grid.add_column(name, justify="right")
    for part in ("validation", "test"):
        grid.add_row(part, *(f"{metrics[f'{part}_{name}']:.4f}" for name in names))
    why = "validation stopped improving" if fitted.stopped_early else "all epochs done"
    return Group(grid, f"weights of epoch {fitted.best.number} of {len(fitted.curve)}: {why}")


def _near(path: Path) -> Path:
    """Relative to the working directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say_next(console: Console, done: str, command: str) -> None:
    console.print(f"[green]{done}[/]; next: [bold]{command}[/]", highlight=False, soft_wrap=True)
