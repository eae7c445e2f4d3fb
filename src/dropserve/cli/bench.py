"""``dropserve bench uci`` and ``dropserve bench ood``: what others publish, on data of yours or theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dropserve.errors import UsageError
from dropserve.project import Project

if TYPE_CHECKING:
    from dropserve.training.uci.records import SplitResult
    from dropserve.training.uci.splits import SplitTable

app = typer.Typer()
bench = typer.Typer(help="Benchmarks that need data of yours or others'.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.callback()
def _group() -> None:
    """Benchmarks that need data of yours or others'."""


@bench.command()
def uci(
    data: Annotated[
        Path,
        typer.Option(help="A folder of tables with splits (.npz); published.json in it is set beside."),
    ],
    table: Annotated[
        list[str] | None, typer.Option(help="Name of a table; repeat it. All by default.", show_default=False)
    ] = None,
    splits: Annotated[
        int | None, typer.Option(help="The first so many splits of each; all by default.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; one for each core by default.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where results go; .run/bench/uci by default.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the figures here as well.", show_default=False)
    ] = None,
) -> None:
    """Test RMSE and log-likelihood of one dropout network a split, chosen on training rows alone.

    A split that was done is not done again: the same command goes on after an interruption.
    """
    if not data.is_dir():
        raise UsageError(f"--data {data}: there is no such folder")
    console = Console()
    with console.status("reading the tables"):
        # Imported here: torch takes seconds.
        from dropserve.training.uci import report  # noqa: PLC0415
        from dropserve.training.uci.bench import run  # noqa: PLC0415
        from dropserve.training.uci.published import read_published  # noqa: PLC0415
        from dropserve.training.uci.splits import read_tables  # noqa: PLC0415
        from dropserve.training.whole_files import write_whole  # noqa: PLC0415

        tables = read_tables(data, table)
        published = read_published(data)
    folder = results or Project(Path.cwd()).run_dir / "bench" / "uci"
    with _Bars(tables, splits, console) as bars:
        found = run(tables, folder, splits=splits, workers=workers, told=bars.done)
    rows = report.rows(tables, found, published)
    console.print(report.grid(rows))
    for sentence in (*report.verdicts(rows), report.CLEAN):
        console.print(sentence, highlight=False)
    record = report.record(rows, found)
    for path in (folder / "summary.json", *([json] if json else [])):
        write_whole(path, record)
    console.print(f"[green]results in {folder}[/]", highlight=False, soft_wrap=True)


@bench.command()
def ood(
    data: Annotated[Path, typer.Option(help="A folder of IDX files (MNIST's names) to train on.")],
    other: Annotated[Path, typer.Option(help="Another, whose test images are to be told apart.")],
    seeds: Annotated[int, typer.Option(help="Nets to train.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of each.")] = 20,
    rows: Annotated[
        int | None,
        typer.Option(help="Training images, the first so many; all by default.", show_default=False),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where results go; .run/bench/ood by default.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the figures here as well.", show_default=False)
    ] = None,
) -> None:
    """How well a perceptron's doubt tells images of one folder from those of another.

    A net that was trained is not trained again: the same command goes on after an interruption.
    """
    for option, folder in (("--data", data), ("--other", other)):
        if not folder.is_dir():
            raise UsageError(f"{option} {folder}: there is no such folder")
    console = Console()
    with console.status("reading the images"):
        # Imported here: torch takes seconds.
        from dropserve.training.ood import report  # noqa: PLC0415
        from dropserve.training.ood.bench import Setup, run  # noqa: PLC0415
        from dropserve.training.whole_files import write_whole  # noqa: PLC0415
    kept = results or Project(Path.cwd()).run_dir / "bench" / "ood"
    setup = Setup(epochs=epochs, rows=rows)
    with Progress(TextColumn("training"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("", total=1.0)
        found = run(
            data, other, kept, seeds=seeds, setup=setup, told=lambda done: bar.update(task, completed=done)
        )
    console.print(report.grid(found))
    console.print(report.sentence(found, data.name, other.name, rows), highlight=False)
    for path in (kept / "summary.json", *([json] if json else [])):
        write_whole(path, report.record(found, setup, data.name, other.name))
    console.print(f"[green]results in {kept}[/]", highlight=False, soft_wrap=True)


class _Bars:
    """A bar for each table."""

    def __init__(self, tables: list[SplitTable], splits: int | None, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[last]}"),
            console=console,
        )
        self._tasks = {
            table.name: self._progress.add_task(
                table.name, total=min(table.splits, splits or table.splits), last=""
            )
            for table in tables
        }

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self, table: SplitTable, result: SplitResult) -> None:
        """A split is done."""
        last = f"split {result.split}: RMSE {result.rmse:.4g}, log-likelihood {result.log_likelihood:.3f}"
        self._progress.update(self._tasks[table.name], advance=1, last=last)
