"""``dropserve export`` and ``dropserve models``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dropserve.errors import UsageError
from dropserve.project import Project

if TYPE_CHECKING:
    from dropserve.export.pipeline import Report
    from dropserve.manifest import CheckRecord, VersionManifest
    from dropserve.store import Stored

app = typer.Typer()
_LESSER = ("_brier", "_ece", "_ece_mass")  # metrics that a line of the list has no room for
_STYLE = {"passed": "green", "failed": "bold red", "waived": "yellow", "skipped": "dim"}


@app.command()
def export(
    name: Annotated[
        str | None, typer.Argument(help="The model; the only one by default.", show_default=False)
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Id of a run; the newest by default.", show_default=False)
    ] = None,
    checks: Annotated[
        Path | None, typer.Option(help="Another checks.toml than the project's.", show_default=False)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8, in place of checks.toml's.", show_default=False),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, in place of checks.toml's.", show_default=False)
    ] = None,
) -> None:
    """Prove that dropout is off, export to TorchScript and ONNX, and publish a version."""
    console = Console()
    try:
        _export(name, run, checks, {"precision": precision, "opset": opset}, console)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing was published; the model store is as it was")
        raise typer.Exit(130) from None


def _export(
    name: str | None,
    run_id: str | None,
    checks: Path | None,
    options: Mapping[str, str | int | None],
    console: Console,
) -> None:
    project = Project(Path.cwd())
    store = project.store
    model = name or _only(store.names(), project)
    with console.status("reading the run") as status:
        # Imported here: torch takes seconds, and other commands do without.
        from dropserve.export.archive import Stage  # noqa: PLC0415
        from dropserve.export.pipeline import Report, export_run  # noqa: PLC0415
        from dropserve.export.settings import read_settings  # noqa: PLC0415

        settings = read_settings(checks or project.stage_file("export/checks.toml"), options)
        stage = Stage(
            project.stage_file("serving/handler.py"), project.stage_file("serving/model-config.yaml")
        )
        report = Report(on_step=lambda step: status.update(f"{model}: {step}"))
        details = project.run_dir / f"export-{model}.json"
        details.unlink(missing_ok=True)
        try:
            version = export_run(store, store.run(model, run_id), settings, stage, report)
        except BaseException:
            status.stop()
            _show_failure(report, details, console)
            raise
    console.print(_table(report.checks))
    for note in report.notes:
        console.print(f"[dim]{escape(note)}[/]", highlight=False)
    _say_done(version, report, console)


def _show_failure(report: Report, details: Path, console: Console) -> None:
    if not report.checks:
        return
    console.print(_table(report.checks))
    if any(check.verdict == "failed" for check in report.checks):
        details.parent.mkdir(parents=True, exist_ok=True)
        details.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        console.print(f"all figures: {_near(details)}", markup=False, highlight=False)


def _table(checks: list[CheckRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence")
    for check in checks:
        name, verdict = escape(check.name), f"[{_STYLE[check.verdict]}]{check.verdict}[/]"
        if check.verdict in {"passed", "skipped"}:  # a line each; export.json has it all
            table.add_row(name, verdict, Text(check.evidence, no_wrap=True, overflow="ellipsis"))
            continue
        lines = [escape(check.evidence)]
        lines += [f"[bold]at[/] {escape(check.where)}"] if check.where else []
        lines += [f"[bold]do[/] {escape(check.remedy)}"] if check.remedy else []
        table.add_row(name, verdict, "\n".join(lines))
    return table


def _say_done(version: Stored[VersionManifest], report: Report, console: Console) -> None:
    manifest = version.manifest
    seconds = sum(report.seconds.values())
    waived = [check.name for check in report.checks if check.verdict == "waived"]
    if waived:
        console.print(f"[yellow]waived[/]: {', '.join(waived)}", highlight=False)
    page = _near(version.folder / "report.html")
    console.print(f"report: {escape(str(page))}", highlight=False, soft_wrap=True)
    endpoints = f"{manifest.name} and {manifest.name}-mc" if manifest.sites else manifest.name
    console.print(
        f"[green]published {escape(str(_near(version.folder)))}[/] ({endpoints}) in {seconds:.0f} s; "
        f"next: [bold]make serve[/] or [bold]dropserve serve {manifest.name}[/]",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def models(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models in model_store/ and their versions."""
    project = Project(Path.cwd())
    store = project.store
    found = [
        (name, store.runs(name), [store.version(name, number) for number in store.versions(name)])
        for name in store.names()
    ]
    console = Console()
    if as_json:
        listed = {
            name: {
                "runs": runs,
                "versions": {
                    v.manifest.version: v.manifest.model_dump(mode="json", exclude={"files"})
                    for v in versions
                },
            }
            for name, runs, versions in found
        }
        print(json.dumps(listed, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "version", "metrics", "dropout", "created", "run"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for name, runs, versions in found:
        for version in versions:
            table.add_row(*_row(version.manifest))
        if not versions:
            table.add_row(escape(name), "[dim]none[/]", "", "", "", f"{len(runs)} not exported")
    console.print(table)
    if not found:
        console.print(f"{_near(store.root)} is empty; next: [bold]dropserve train[/]", highlight=False)
    elif any(versions for _, _, versions in found):
        newest = next(name for name, _, versions in found if versions)
        console.print(f"next: [bold]dropserve serve {newest}[/]", highlight=False)
    else:
        console.print(f"next: [bold]dropserve export {found[0][0]}[/]", highlight=False)


def _row(manifest: VersionManifest) -> list[str]:
    kept = {k: v for k, v in manifest.metrics.items() if not k.endswith(_LESSER)}
    shown = {k.removeprefix("test_"): v for k, v in kept.items() if k.startswith("test_")}
    metrics = ", ".join(f"{name} {value:.3g}" for name, value in (shown or kept).items())
    count = len(manifest.sites)
    sites = f"{count} site{'' if count == 1 else 's'}" if count else "none"
    waived = [check.name for check in manifest.checks if check.verdict == "waived"]
    version = (
        str(manifest.version) if manifest.precision == "fp32" else f"{manifest.version} {manifest.precision}"
    )
    version += f" [yellow](waived: {', '.join(waived)})[/]" if waived else ""
    created = manifest.created[:16].replace("T", " ")
    return [manifest.name, version, metrics, sites, created, manifest.run[:15]]


def _only(names: list[str], project: Project) -> str:
    if len(names) != 1:
        listed = ", ".join(names) or "nothing yet: make a run with `dropserve train`"
        raise UsageError(f"which model? {_near(project.store.root)} holds {listed}")
    return names[0]


def _near(path: Path) -> Path:
    """Relative to the working directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
