"""``dropserve overfit`` and ``dropserve tune``: does dropout help, and at which rate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dropserve.errors import UsageError
from dropserve.project import Project

app = typer.Typer()


@app.command()
def overfit(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's TOML file, or the name of a shipped one.")
    ] = "training/recipes/digits.toml",
    seeds: Annotated[int, typer.Option(help="Trainings at each rate; at least 2.")] = 5,
    small: Annotated[
        int | None,
        typer.Option(help="Training rows of the small set; a tenth by default.", show_default=False),
    ] = None,
    rates: Annotated[str, typer.Option(help="Dropout rates, with commas between; 0 is added.")] = (
        "0,0.2,0.3,0.4,0.5"
    ),
    epochs: Annotated[
        int | None, typer.Option(help="Epochs; replaces the recipe's.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; .run/overfit/NAME by default.", show_default=False)
    ] = None,
) -> None:
    """Train a recipe's net with and without dropout, on few and on all rows, and say what the evidence says.

    What was trained is not trained again: the same command goes on after an interruption.
    """
    project, console = Project(Path.cwd()), Console()
    wanted = _numbers(rates)
    with console.status("reading recipe, data and model"):
        # Imported here: torch and Lightning take seconds.
        from dropserve.training.find_recipe import find_recipe  # noqa: PLC0415
        from dropserve.training.overfit import show  # noqa: PLC0415
        from dropserve.training.overfit.evidence import weigh  # noqa: PLC0415
        from dropserve.training.overfit.study import Plan, run  # noqa: PLC0415
        from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415
        from dropserve.training.run import dataset_title, prepare  # noqa: PLC0415
        from dropserve.training.whole_files import write_whole  # noqa: PLC0415

        overrides = {} if epochs is None else {"training.epochs": epochs}
        prepared = prepare(load_recipe(find_recipe(project, recipe), overrides))
        plan = Plan.of(prepared.dataset, small, seeds, wanted)
    name = prepared.file.recipe.name
    folder = out or project.run_dir / "overfit" / name
    counts = len(plan.sizes), len(plan.rates), plan.seeds
    console.print(
        f"[bold]{name}[/]: {' x '.join(map(str, counts))} trainings (sizes {list(plan.sizes)}, rates "
        f"{list(plan.rates)}, {plan.seeds} seeds)",
        highlight=False,
    )
    bar = Progress(
        TextColumn("training"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with bar:
        task = bar.add_task("", total=1.0)
        cells = run(prepared, plan, folder / "trained", told=lambda done: bar.update(task, completed=done))
    classifies = prepared.file.recipe.task == "classification"
    evidence = weigh(cells, classifies=classifies)
    title = f"{name}: {type(prepared.model).__name__} on {dataset_title(prepared.dataset)}"
    console.print(show.grid(evidence))
    console.print(evidence.sentence, highlight=False)
    write_whole(
        folder / "overfit.json",
        {"sentence": evidence.sentence, "lines": [asdict(line) for line in evidence.lines]},
    )
    (folder / "overfit.md").write_text(show.markdown(evidence, title), encoding="utf-8")
    show.write_picture(folder / "overfit.png", evidence, title)
    console.print(f"[green]{folder / 'overfit.png'}, .md and .json[/]", highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--rates {text!r}: expected numbers with commas between, such as 0.2,0.5"
        ) from error


@app.command()
def tune(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's TOML file, or the name of a shipped one.")
    ] = "training/recipes/digits.toml",
    trials: Annotated[int, typer.Option(help="Trainings in all, those of former calls included.")] = 40,
    shared: Annotated[
        bool, typer.Option("--shared/--per-argument", help="One dropout rate, or one for each argument.")
    ] = True,
    at_once: Annotated[int, typer.Option(help="Trainings proposed together and trained as one.")] = 8,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of each; replaces the recipe's.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The recipe to write; NAME-tuned.toml by default.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
) -> None:
    """Search dropout rates, learning rate and weight decay on the validation rows, and write a recipe.

    What was tried is not tried again: the same command goes on after an interruption.
    """
    project, console = Project(Path.cwd()), Console()
    with console.status("reading recipe, data and model"):
        # Imported here: torch and Lightning take seconds.
        from dropserve.training.find_recipe import find_recipe  # noqa: PLC0415
        from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415
        from dropserve.training.run import prepare  # noqa: PLC0415
        from dropserve.training.tuning import search, show  # noqa: PLC0415
        from dropserve.training.tuning.space import find_space  # noqa: PLC0415
        from dropserve.training.tuning.write import write_recipe  # noqa: PLC0415

        overrides = {} if epochs is None else {"training.epochs": epochs}
        prepared = prepare(load_recipe(find_recipe(project, recipe), overrides))
        space = find_space(prepared, shared=shared)
    folder = project.run_dir / "tune"
    if fresh:
        search.journal_of(prepared, space, folder).unlink(missing_ok=True)
    bar = Progress(TextColumn("trials"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("", total=trials)
        found = search.tune(
            prepared,
            space,
            folder,
            trials=trials,
            at_once=at_once,
            told=lambda ended: bar.update(task, completed=ended),
        )
    file = prepared.file
    # A packaged recipe's folder is no place for a user's file.
    near = file.folder if file.path.is_relative_to(project.root.resolve()) else project.root
    target = out or near / f"{file.path.stem}-tuned.toml"
    write_recipe(file, found, target)
    plot = folder / f"{file.recipe.name}.png"
    show.write_picture(plot, found, file.recipe.name)
    console.print(show.grid(found))
    console.print(found.verdict, highlight=False)
    console.print(
        "The test rows were not looked at; the lowest of many validation losses is a little too good.",
        highlight=False,
    )
    console.print(
        f"[green]{target}, {plot}[/]; next: [bold]dropserve train {target}[/]",
        highlight=False,
        soft_wrap=True,
    )
