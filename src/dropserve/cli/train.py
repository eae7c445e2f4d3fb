"""``dropserve train``, ``dropserve import`` and ``dropserve init``."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table as Grid

from dropserve.project import Project
from dropserve.stages import copy_stages

if TYPE_CHECKING:
    from dropserve.manifest import RunManifest
    from dropserve.store import Stored
    from dropserve.training.checkpoint import Checkpoint
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
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if this training was interrupted before.")
    ] = False,
) -> None:
    """Train a model by a recipe, and publish the run in model_store/.

    A training that was interrupted goes on from its last finished epoch.
    """
    overrides = {"device": device, "seed": seed, "epochs": epochs}
    with _told_when_interrupted() as kept:
        _train(recipe, overrides, Console(), kept, fresh=fresh)


@contextmanager
def _told_when_interrupted() -> Generator[list[Checkpoint]]:
    """Turn Ctrl-C and SIGTERM into an exit status and a word on what is left, for the checkpoints put in."""
    kept: list[Checkpoint] = []
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield kept
    except (KeyboardInterrupt, SystemExit) as error:
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("interrupted: nothing was published; the model store is as it was")
        if any(checkpoint.path.is_file() for checkpoint in kept):
            console.print("the same command goes on after the last finished epoch; --fresh starts over")
        raise SystemExit(status) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _train(
    wanted: str, options: dict[str, Any], console: Console, kept: list[Checkpoint], *, fresh: bool
) -> None:
    project = Project(Path.cwd())
    with console.status("reading recipe, data and model"), _uninterrupted():
        # Imported here: torch and Lightning take seconds, and other commands need neither.
        from dropserve.training.find_recipe import find_recipe  # noqa: PLC0415
        from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415

        overrides = {f"training.{key}": value for key, value in options.items() if value is not None}
        file = load_recipe(find_recipe(project, wanted), overrides)

        from dropserve.training.progress import EpochBar  # noqa: PLC0415
        from dropserve.training.run import checkpoint_of, prepare, train  # noqa: PLC0415

    with console.status("trying the model on a small batch"):
        prepared = prepare(file)
    console.print(_summary(prepared), highlight=False)
    if names := prepared.dataset.constant_columns:
        listed = escape(", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else ""))
        console.print(
            f"[yellow]warning[/] the same in every training row, so nothing is learned from it: {listed}",
            highlight=False,
        )
    for advice in prepared.advice:
        console.print(
            f"[yellow]advice[/] [bold]{escape(advice.where)}[/]: {escape(advice.why)}", highlight=False
        )
        console.print(f"       {escape(advice.change)}", highlight=False)
    checkpoint = checkpoint_of(prepared, project.run_dir / "training")
    kept.append(checkpoint)
    if fresh:
        checkpoint.discard()
    progress, epochs = checkpoint.read(), file.recipe.training.epochs
    if progress:
        done = len(progress.curve)
        console.print(f"resuming after epoch {done} of {epochs}; --fresh starts over", highlight=False)
    with EpochBar(epochs, file.recipe, console) as bar:
        for row in progress.curve if progress else ():
            bar.on_epoch(row)
        run, fitted = train(prepared, project.store, bar, checkpoint)
    console.print(_results(run, fitted))
    _say_next(console, f"published {_near(run.folder)}", f"dropserve export {run.manifest.name}")


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Keep signals waiting: an exception in the middle of torch's own initialisation aborts the process."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _summary(prepared: Prepared) -> str:
    from dropserve.training.run import dataset_title  # noqa: PLC0415

    recipe, split = prepared.file.recipe, prepared.dataset.split
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    title = escape(dataset_title(prepared.dataset))
    columns, width = prepared.dataset.table.columns, prepared.dataset.features[0].size
    inputs = f"{len(columns)} columns as {width} inputs; " if columns and width != len(columns) else ""
    calibrate = f"{len(split.calibration)} to calibrate, " if len(split.calibration) else ""
    return (
        f"[bold]{recipe.name}[/]: {recipe.task} with {type(prepared.model).__name__} "
        f"({parameters:,} parameters) on {prepared.hardware}, seed {recipe.training.seed}\n"
        f"{title}: {inputs}{len(split.train)} rows to train, {len(split.validation)} to validate, "
        f"{calibrate}{len(split.test)} to test"
    )


def _results(run: Stored[RunManifest], fitted: Fitted) -> Group:
    metrics = run.manifest.metrics
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    grid.add_column("")
    names = [name.removeprefix("test_") for name in metrics if name.startswith("test_")]
    for name in names:
        grid.add_column(name, justify="right")
    for part in ("validation", "test"):
        own = [metrics.get(f"{part}_{name}") for name in names]
        grid.add_row(part, *("" if value is None else f"{value:.4f}" for value in own))
    why = "validation stopped improving" if fitted.stopped_early else "all epochs done"
    return Group(grid, f"weights of epoch {fitted.best.number} of {len(fitted.curve)}: {why}")


def _near(path: Path) -> Path:
    """Relative to the working directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say_next(console: Console, done: str, command: str) -> None:
    console.print(f"[green]{done}[/]; next: [bold]{command}[/]", highlight=False, soft_wrap=True)


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(help="FILE.py:CLASS or package.module:CLASS.", show_default=False)],
    weights: Annotated[
        Path, typer.Option(help="A safetensors file, or a torch checkpoint of tensors.", show_default=False)
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            help="Shape of one row: 16, or 1,28,28, or 7:int64, or L<=64,16. Once for each input.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name in the store; the class's by default.", show_default=False)
    ] = None,
    task: Annotated[
        Literal["classification", "regression", "raw"] | None,
        typer.Option(
            help="What its outputs mean: raw, or classification if there are labels.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the classes, a,b,c.", show_default=False)
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the constructor; repeat it.", show_default=False),
    ] = None,
    preprocessing: Annotated[
        Path | None,
        typer.Option(help="JSON: columns of a table and scaling, before the model.", show_default=False),
    ] = None,
) -> None:
    """Bring in a model trained elsewhere, and publish it as a run in model_store/."""
    console = Console()
    with console.status("building the model and loading its weights"):
        from dropserve.model import parse_arguments  # noqa: PLC0415  # see _train
        from dropserve.training.import_model import default_name, import_model  # noqa: PLC0415  # see _train

        done = import_model(
            Project(Path.cwd()).store,
            model,
            weights,
            inputs,
            name=name or default_name(model),
            task=task or ("classification" if labels else "raw"),
            labels=[label.strip() for label in labels.split(",")] if labels else (),
            arguments=parse_arguments(arg or []),
            preprocessing=preprocessing,
        )
    manifest = done.run.manifest
    inward, outward = (
        "; ".join(map(str, specs)) for specs in (manifest.signature.inputs, manifest.signature.outputs)
    )
    console.print(f"{manifest.name}: {manifest.task}, {inward} -> {outward}", markup=False, highlight=False)
    if done.weights.prefix:
        told = f"took {done.weights.prefix!r} off the names of the weights"
        console.print(told, markup=False, highlight=False)
    for converted in done.weights.converted:
        console.print(f"converted weights from {converted}", markup=False, highlight=False)
    _say_next(console, f"published {_near(done.run.folder)}", f"dropserve export {manifest.name}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the stage folders.")] = Path(),
) -> None:
    """Copy the stage folders training/, export/ and serving/, to be edited; nothing is written over."""
    console = Console()
    copied = copy_stages(folder)
    for name in copied.created:
        console.print(f"created {folder / name}", markup=False, highlight=False)
    for name in copied.kept:
        console.print(f"kept    {folder / name}: it is there and differs", markup=False, highlight=False)
    done = f"{len(copied.created)} created, {len(copied.unchanged)} already there, {len(copied.kept)} kept"
    where = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    _say_next(console, done, f"{where}dropserve train training/recipes/digits.toml")
