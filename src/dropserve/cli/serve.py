"""``dropserve serve`` and ``dropserve stop``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dropserve.errors import UsageError
from dropserve.project import Project
from dropserve.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dropserve.manifest import VersionManifest
    from dropserve.serving.deployment import Deployment, Endpoint
    from dropserve.serving.supervisor import State
    from dropserve.store import Stored

app = typer.Typer()
_SHORT = 160  # characters of a body that a command line may hold


@app.command()
def serve(  # noqa: PLR0913  # one for each option
    names: Annotated[
        list[str] | None, typer.Argument(help="Models to serve; the only one in the store by default.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Which version; the newest by default.", show_default=False)
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="onnx or torchscript; replaces the one in model-config.yaml.", show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="torchserve; asgi: no Java, no torch, the complete V2 protocol; ray: the same, in replicas."
        ),
    ] = "torchserve",
    store: Annotated[
        Path | None, typer.Option(help="The model store; ./model_store by default.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(envvar="DROPSERVE_PORT", min=1, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback asks requests for a token.")
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Where Prometheus reads; any free one by default.", min=1, max=65535),
    ] = None,
    *,
    mc: Annotated[bool, typer.Option("--mc/--no-mc", help="Serve NAME-mc too, with uncertainty.")] = True,
    tls: Annotated[
        bool, typer.Option("--tls/--no-tls", help="With --host: HTTPS, or HTTP where something encrypts.")
    ] = True,
    token: Annotated[
        bool,
        typer.Option(
            "--token/--no-token", help="With --host: ask for it, or not where something knows who asks."
        ),
    ] = True,
    token_file: Annotated[
        Path | None,
        typer.Option(help="The token that requests must carry; drawn anew by default.", show_default=False),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that the header Host may have besides localhost; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages in browsers may ask, or *; may be repeated."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay attached until SIGTERM or Ctrl-C: for containers.")
    ] = False,
) -> None:
    """Start a server on models of the store, and return when they answer."""
    console = Console()
    project = Project(Path.cwd())
    versions = _versions(project.store if store is None else Store(store), names or [], version)
    with console.status("preparing"):
        # Imported here: serving needs onnxruntime and psutil, other commands do not.
        from dropserve.serving import lifecycle  # noqa: PLC0415
        from dropserve.serving.deployment import ENGINES  # noqa: PLC0415
        from dropserve.serving.graphs import BACKENDS  # noqa: PLC0415

    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: expected {' or '.join(BACKENDS)}")
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: expected {' or '.join(ENGINES)}")
    if not host.strip():
        raise UsageError("--host '': expected an address, such as 127.0.0.1 or ::1")
    options = lifecycle.Options(
        model_config=project.stage_file("serving/model-config.yaml"),
        properties=project.stage_file("serving/config.properties"),
        log_config=project.stage_file("serving/log4j2.xml"),
        port=port,
        host=host,
        tls=tls,
        tokens=token,
        token_file=token_file,
        allowed_hosts=tuple(allowed_host or ()),
        origins=tuple(cors or ()),
        metrics_port=metrics_port,
        backend=backend,
        monte_carlo=mc,
        engine=engine,
        scaling=project.stage_file("serving/deploy/ray-serve.yaml"),
    )
    _say_what(console, versions, mc=mc)
    if foreground:
        lifecycle.run(project.run_dir, versions, options, tell=_Reporter(console, project).tell)
        console.print("[green]stopped[/]; next: [bold]dropserve serve[/] starts it again")
        return
    start = time.perf_counter()
    with console.status("starting") as status:

        def tell(state: State) -> None:
            status.update(f"starting: {state.detail}")

        deployment = lifecycle.start(project.run_dir, versions, options, tell=tell)
    _say_ready(console, project, deployment, time.perf_counter() - start)


@app.command()
def stop() -> None:
    """Stop the server of this project, and nothing else."""
    with Console().status("stopping"):
        from dropserve.serving import lifecycle  # noqa: PLC0415  # hosts only

        stopped = lifecycle.stop(Project(Path.cwd()).run_dir)
    if stopped is None:
        Console().print("nothing of this project is running; next: [bold]dropserve serve[/] starts it")
        return
    names = ", ".join(endpoint.name for endpoint in stopped.endpoints)
    Console().print(
        f"[green]stopped {names} at {stopped.url}[/]; next: [bold]dropserve serve[/] starts it again",
        highlight=False,
    )


class _Reporter:
    """Lines for an attached server: one when it is ready, one whenever that changes."""

    def __init__(self, console: Console, project: Project) -> None:
        self._console = console
        self._project = project
        self._start = time.perf_counter()
        self._phase = ""

    def tell(self, state: State) -> None:
        """Say what has changed."""
        if state.phase == self._phase:
            return
        self._phase = state.phase
        if state.phase == "ready":
            _say_ready(self._console, self._project, state.deployment, time.perf_counter() - self._start)
        else:
            self._start = time.perf_counter()
            self._console.print(f"{state.phase} {escape(state.detail)}".rstrip(), highlight=False)


def _versions(store: Store, names: Sequence[str], number: int | None) -> list[Stored[VersionManifest]]:
    """Open, and so verify, what is to be served."""
    if not names:
        found = [name for name in store.names() if store.versions(name)]
        if len(found) > 1:
            raise UsageError(
                f"{store.root} holds {', '.join(found)}: say which, such as: dropserve serve {found[0]}"
            )
        names = found or store.names()[:1]
    if not names:
        raise UsageError(
            f"{store.root} holds no model. Make one with: dropserve train, then dropserve export"
        )
    if number is not None and len(names) > 1:
        raise UsageError(f"--version {number}: give one model, or serve the newest of each")
    return [store.version(name, number) for name in dict.fromkeys(names)]


def _say_what(console: Console, versions: Sequence[Stored[VersionManifest]], *, mc: bool) -> None:
    for version in versions:
        manifest = version.manifest
        line = f"[bold]{manifest.name}[/] version {manifest.version}: every file is as it was published"
        if not manifest.sites:
            line += f"; it has no dropout, so there is no {manifest.name}-mc"
        elif not mc:
            line += f"; {manifest.name}-mc is switched off"
        console.print(line, highlight=False)


def _say_ready(console: Console, project: Project, deployment: Deployment, seconds: float) -> None:
    names = ", ".join(endpoint.name for endpoint in deployment.endpoints)
    console.print(f"[green]{names} answer at {deployment.url}[/] (after {seconds:.1f} s)\n", highlight=False)
    for endpoint in deployment.endpoints:
        console.print(_curl(project, deployment, endpoint), highlight=False, soft_wrap=True, markup=False)
    doubt = " --mc" if deployment.endpoints[-1].monte_carlo else ""
    first = deployment.endpoints[0]
    example = _near(_example_file(project, deployment, first))
    console.print(
        f"{_token_note(project, deployment)}\nlogs: {_near(deployment.logs)}; figures: http://127.0.0.1:{deployment.metrics_port}/metrics\n"
        f"next: [bold]dropserve predict --model {first.model} --input {example}{doubt}[/]; "
        "[bold]dropserve stop[/] ends it",
        highlight=False,
        soft_wrap=True,
    )


def _token_note(project: Project, deployment: Deployment) -> str:
    if not deployment.tokens:
        return ""
    note = f"\nclients need the token in {_near(project.run_dir / 'token')}"
    return f"{note}; a server that is started again has a new one" if deployment.drawn else note


def _curl(project: Project, deployment: Deployment, endpoint: Endpoint) -> str:
    body = deployment.example(endpoint).decode().strip()
    if len(body) > _SHORT or "'" in body:
        data = f"@{_near(_example_file(project, deployment, endpoint))}"
    else:
        data = f"'{body}'"
    address = f"{deployment.url}/predictions/{endpoint.name}".replace("127.0.0.1", "localhost", 1)
    address = address.removeprefix("http://")
    token = ""
    if deployment.tokens:
        token = f' -H "authorization: Bearer $(cat {_near(project.run_dir / "token")})"'
    return f"  curl -s {address} -H 'content-type: application/json'{token} -d {data}"


def _example_file(project: Project, deployment: Deployment, endpoint: Endpoint) -> Path:
    """The model's example, where it stays when the server stops; on a full disk, where the server has it."""
    path = project.run_dir / "examples" / f"{endpoint.model}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deployment.example(endpoint))
    except OSError:
        return deployment.example_file(endpoint)
    return path


def _near(path: Path) -> Path:
    """Relative to the working directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
