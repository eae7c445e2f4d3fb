"""``dropserve audit`` and ``dropserve sites``."""

from __future__ import annotations

import inspect
import io
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dropserve.cli.checks import checks_table, counted
from dropserve.errors import MissingExtraError, ModelSourceError, UsageError
from dropserve.project import Project

if TYPE_CHECKING:
    from torch import nn

    from dropserve.model import ModelClass
    from dropserve.signature import Site, TensorSpec

app = typer.Typer()

Model = Annotated[str, typer.Argument(help="FILE.py:CLASS or package.module:CLASS.", show_default=False)]
Shapes = Annotated[
    list[str],
    typer.Option(
        "--input",
        help="Shape of one row: 16, or 1,28,28, or 7:int64, or L<=64,16. Once for each input.",
        show_default=False,
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", help="NAME=VALUE for the constructor; repeat it.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


@app.command()
def audit(
    model: Model,
    inputs: Shapes,
    arg: Arguments = None,
    checks: Annotated[
        Path | None, typer.Option(help="Another checks.toml than the project's.", show_default=False)
    ] = None,
    *,
    eager: Annotated[
        bool, typer.Option("--eager", help="Look at the model and its masks alone; export nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that a model is deterministic in eval mode, exports faithfully, and can be sampled.

    Exit status: 0 sound, 1 a check failed, 2 wrong usage.
    """
    console = Console(file=sys.stderr if as_json else sys.stdout)
    with console.status("loading the model") as status, redirect_stdout(io.StringIO()):  # a model may print
        source, specs, arguments = _load(model, inputs, arg)
        # Imported here: torch and onnx take seconds, and other commands do without.
        try:
            from dropserve.export.audit.full import full_audit  # noqa: PLC0415
            from dropserve.export.pipeline import require_known_waivers  # noqa: PLC0415
            from dropserve.export.settings import read_settings  # noqa: PLC0415
            from dropserve.export.subject import Subject  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "onnx", "export") from error

        settings = read_settings(checks or Project(Path.cwd()).stage_file("export/checks.toml"))
        require_known_waivers(settings)
        subject = Subject(source.cls.__name__, _eval_mode(_build(source, arguments)), specs)
        start = time.perf_counter()
        records = full_audit(
            subject,
            settings,
            rebuild=lambda: _build(source, arguments),
            graphs=not eager,
            on_step=lambda step: status.update(f"{subject.name}: {step}"),
        )
    seconds = time.perf_counter() - start
    sound = all(record.verdict != "failed" for record in records)
    if as_json:
        found = {"model": source.spec, "sound": sound, "seconds": round(seconds, 3)}
        print(json.dumps({**found, "checks": [record.model_dump() for record in records]}, indent=1))
    else:
        console.print(checks_table(records))
        _conclude(console, source, counted(records), seconds, sound=sound)
        for record in records if sound else ():
            if record.name == "dropout-sites" and record.remedy:
                told = "[yellow]no Monte Carlo for this model[/] (dropout-sites, above)"
                console.print(f"{told}: {escape(record.remedy)}", highlight=False, soft_wrap=True)
    if not sound:
        raise typer.Exit(1)


@app.command()
def sites(
    model: Annotated[
        str,
        typer.Argument(help="A recipe's file or name, or FILE.py:CLASS with --input.", show_default=False),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of one row; not for a recipe.", show_default=False),
    ] = None,
    arg: Arguments = None,
    *,
    as_json: Json = False,
) -> None:
    """List the dropout sites of a model: where activations meet a random mask."""
    console = Console(file=sys.stderr if as_json else sys.stdout)
    with console.status("running the model"), redirect_stdout(io.StringIO()):  # a model may print
        module, specs, name = _module(model, inputs, arg)
        from dropserve.dropout.sites import find_sites  # noqa: PLC0415  # see audit

        found = find_sites(module, specs)
    if as_json:
        print(json.dumps([site.model_dump(mode="json") for site in found], indent=1))
        return
    if not found:
        console.print(f"{name} has no dropout: Monte Carlo has nothing to sample", markup=False)
        return
    console.print(_sites_table(found))
    units = sum(site.units for site in found)
    plural = "s" if len(found) != 1 else ""
    audit_it = f"dropserve audit {model} --input ..." if inputs else f"dropserve train {model}"
    console.print(
        f"{len(found)} site{plural}, {units:,} random numbers a sample; next: [bold]{escape(audit_it)}[/]",
        highlight=False,
        soft_wrap=True,
    )


def _sites_table(found: tuple[Site, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("site", "kind", "p", "mask", "place"):
        table.add_column(column, justify="right" if column == "p" else "left")
    for site in found:
        shape = ",".join(str(axis) for axis in site.shape)
        table.add_row(escape(site.name), site.kind, f"{site.p:g}", escape(f"[{shape}]"), escape(site.where))
    return table


def _conclude(console: Console, source: ModelClass, counts: str, seconds: float, *, sound: bool) -> None:
    if sound:
        verdict = f"[green]sound[/]: {counts} in {seconds:.1f} s"
        then = "dropserve import, or a recipe and dropserve train"
    else:
        verdict = f"[bold red]not sound[/]: {counts} in {seconds:.1f} s"
        then = f"change {escape(source.file.name)} as told above, and run this again"
    console.print(f"{verdict}; next: [bold]{then}[/]", highlight=False, soft_wrap=True)


def _load(
    spec: str, inputs: list[str], arg: list[str] | None
) -> tuple[ModelClass, tuple[TensorSpec, ...], dict[str, Any]]:
    try:
        from dropserve.model import load_class, name_inputs, parse_arguments  # noqa: PLC0415  # see audit
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "export") from error
    try:
        source = load_class(spec)
    except ModelSourceError as error:
        raise UsageError(str(error)) from error
    _require_count(source.cls, len(inputs))
    return source, name_inputs(inputs, source.cls), parse_arguments(arg or [])


def _build(source: ModelClass, arguments: dict[str, Any]) -> nn.Module:
    try:
        return source.build(arguments)
    except ModelSourceError as error:
        raise UsageError(str(error)) from error


def _eval_mode(model: nn.Module) -> nn.Module:
    from dropserve.model import set_mode  # noqa: PLC0415  # see audit

    try:
        return set_mode(model)
    except ModelSourceError as error:
        raise UsageError(str(error)) from error


def _require_count(cls: type[nn.Module], given: int) -> None:
    """Say at once when forward cannot take that many inputs.

    Raises:
        UsageError: naming its parameters.
    """
    parameters = [*inspect.signature(cls.forward).parameters.values()][1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    places = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    needed = sum(p.default is p.empty for p in places)
    if not needed <= given <= len(places):
        names = ", ".join(p.name for p in places)
        count = f"{needed}" if needed == len(places) else f"{needed} to {len(places)}"
        raise UsageError(
            f"{cls.__name__}.forward takes {count} inputs ({names}), {given} given: write --input SHAPE once "
            "for each, in this order"
        )


def _module(
    model: str, inputs: list[str] | None, arg: list[str] | None
) -> tuple[nn.Module, tuple[TensorSpec, ...], str]:
    """The module to look at, from a class or from a recipe."""
    if inputs:
        source, specs, arguments = _load(model, inputs, arg)
        return _eval_mode(_build(source, arguments)), specs, source.cls.__name__
    if ":" in model:
        raise UsageError(f"{model}: give the shape of one row as well, such as --input 16 or --input 1,28,28")
    try:
        from dropserve.training.find_recipe import find_recipe  # noqa: PLC0415  # see audit
        from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415
        from dropserve.training.run import prepare  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "lightning", "train") from error
    prepared = prepare(load_recipe(find_recipe(Project(Path.cwd()), model)))
    return _eval_mode(prepared.model), prepared.model_inputs, prepared.file.recipe.name
