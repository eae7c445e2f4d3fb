"""``dropserve predict``: ask a running server, and read its answer."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dropserve.errors import UsageError
from dropserve.images import kind_of
from dropserve.project import Project

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dropserve.client import Answer, Prediction, Uncertainty

app = typer.Typer()
_BAR = 24
_SHOWN_CLASSES = 10
_SHOWN_ROWS = 5


def _share(text: str) -> float:
    """A fraction; a text without a point stays a whole number, which the server takes for thousandths."""
    return int(text) if text.strip().isdigit() else float(text)


@app.command()
def predict(  # noqa: PLR0913  # one for each option
    model: Annotated[
        str | None, typer.Option(help="The model; the only one in the store by default.", show_default=False)
    ] = None,
    input_file: Annotated[
        str,
        typer.Option(
            "--input",
            help='JSON: {"instances": [...]}, a list of rows, or one row; a PNG or JPEG image; - for stdin.',
        ),
    ] = "-",
    samples: Annotated[int | None, typer.Option(help="Monte Carlo samples.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the masks.", show_default=False)] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=_share,
            metavar="FRACTION",
            help="Stop each row at this Monte Carlo error, such as 0.01; --samples is the most.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where the server is; this project's by default.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="DROPSERVE_TOKEN", help="Where the server asks for one.", show_default=False),
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option("--ca", help="Certificates to trust, for HTTPS.", show_default=False)
    ] = None,
    *,
    coverage: Annotated[
        float | None,
        typer.Option(
            parser=_share,
            metavar="FRACTION",
            help="How often sets and intervals shall hold the truth, such as 0.9.",
            show_default=False,
        ),
    ] = None,
    mc: Annotated[bool, typer.Option("--mc", help="Ask how sure the model is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a running server for predictions."""
    from dropserve.client import Client  # noqa: PLC0415  # other commands need no httpx

    project = Project(Path.cwd())
    name = model or _only_model(project)
    address, secret = (url, token) if url else _own_server(project)
    with Client(address, token=token or secret, certificates=certificates) as client:
        rows = _read(input_file)
        answer = client.predict(
            name, rows, mc=mc, samples=samples, seed=seed, coverage=coverage, tolerance=tolerance
        )
    console = Console()
    if as_json:
        print(json.dumps(_as_json(answer), indent=1))
        return
    for row, prediction in enumerate(answer[:_SHOWN_ROWS]):
        if len(answer) > 1:
            console.print(f"[dim]instance {row}[/]")
        _show(console, prediction)
        for line in _guaranteed(prediction, answer):
            console.print(line, highlight=False)
    if len(answer) > _SHOWN_ROWS:
        console.print(f"[dim]... and {len(answer) - _SHOWN_ROWS} more; --json prints all[/]")
    for note in _notes(answer):
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False)
    if answer.parameters:
        settings = ", ".join(f"{key.removeprefix('mc_')} {value}" for key, value in answer.parameters.items())
        console.print(f"[dim]{settings}: the same question gets the same answer[/]", highlight=False)
    _say_next(console, answer, mc=mc)


def _only_model(project: Project) -> str:
    names = [name for name in project.store.names() if project.store.versions(name)]
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UsageError(f"--model is needed: {project.store.root} holds {listed}")
    return names[0]


def _own_server(project: Project) -> tuple[str | None, str | None]:
    """The address and the token of this project's server, as it wrote them down; None where it did not."""
    try:
        deployment = json.loads((project.run_dir / "server.json").read_bytes())["deployment"]
        scheme = "https" if deployment["tls"] else "http"
        host = "127.0.0.1" if deployment["host"] == "0.0.0.0" else deployment["host"]  # noqa: S104
        url = f"{scheme}://{host}:{deployment['port']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    file = project.run_dir / "token"
    return url, file.read_text("ascii") if file.is_file() else None


def _read(file: str) -> Any:
    """The rows in a file: what ``instances`` holds, a list of rows, or a lone row; or an image's bytes."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        if kind_of(raw):
            return raw
        content = json.loads(raw)
    except OSError as error:
        raise UsageError(f"--input {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f'--input {file}: not JSON ({error}); expected {{"instances": [...]}}, or a PNG or JPEG image'
        ) from error
    if isinstance(content, dict) and "instances" in content:
        return content["instances"]
    if isinstance(content, list) and content and not isinstance(content[0], list | dict):
        return [content]
    return content if isinstance(content, list) else [content]


def _show(console: Console, prediction: Prediction) -> None:
    doubt = prediction.uncertainty
    if prediction.probabilities is not None:
        console.print(_bars(prediction.probabilities, prediction.label, doubt))
        if doubt is not None:
            console.print(_words(doubt, len(prediction.probabilities)), highlight=False)
        return
    answer = prediction.value if prediction.value is not None else prediction.outputs
    spread = "" if doubt is None else f" +- {_number(doubt.standard_deviation)} (standard deviation)"
    if doubt is not None and doubt.total is not None:
        spread = f" +- {_number(doubt.total)} (standard deviation; of the noise {_number(doubt.aleatoric)})"
    elif prediction.standard_deviation is not None:
        spread = f" +- {_number(prediction.standard_deviation)} (standard deviation of the noise)"
    console.print(f"[bold]{_number(answer)}[/]{spread}", highlight=False)
    if doubt is not None and doubt.standard_error is not None:
        console.print(
            f"the Monte Carlo error of the mean is {_number(doubt.standard_error)}", highlight=False
        )


def _bars(probabilities: dict[str, float], label: str | None, doubt: Uncertainty | None) -> Table:
    table = Table(box=None, pad_edge=False, show_header=doubt is not None, header_style="dim")
    table.add_column("")
    table.add_column("")
    table.add_column("probability", justify="right")
    if doubt is not None:
        table.add_column("+-", justify="right")
    best = sorted(probabilities, key=lambda name: -probabilities[name])[:_SHOWN_CLASSES]
    for name in (name for name in probabilities if name in set(best)):
        p = probabilities[name]
        style = "bold green" if name == label else ""
        cells = [name, "█" * round(p * _BAR) or "▏", f"{p:.4f}"]
        if doubt is not None:
            cells.append(f"{doubt.standard_deviation[name]:.4f}")
        table.add_row(*cells, style=style)
    if len(probabilities) > len(best):
        table.add_row(f"{len(probabilities) - len(best)} less probable", "", "", style="dim")
    return table


def _words(doubt: Uncertainty, classes: int) -> str:
    """How sure the model is, and where its doubt comes from."""
    total, model = doubt.predictive_entropy or 0.0, doubt.mutual_information or 0.0
    share = total / math.log(classes) if classes > 1 else 0.0
    sure = "sure" if share < 0.1 else "fairly sure" if share < 0.5 else "unsure"
    if share >= 0.1 and model > total / 2:
        sure += ", mostly because it knows too little of such rows (more data like this would help)"
    elif share >= 0.1:
        sure += ", mostly because such rows are ambiguous in themselves"
    return (
        f"[bold]{sure}[/]: predictive entropy {total:.3f} of at most {math.log(classes):.3f} nats, "
        f"mutual information {model:.3f}, {doubt.variation_ratio or 0.0:.0%} of the samples vote otherwise"
    )


def _guaranteed(prediction: Prediction, answer: Answer) -> list[str]:
    """The prediction set or interval, and whether the row is unlike others; nothing without calibration."""
    found, coverage = prediction.calibrated, answer.parameters.get("mc_coverage")
    if found is None or not isinstance(coverage, float):
        return []
    share = f"{coverage * 100:.10g}%"
    if "interval" in found:
        told = "none, too few calibration rows"
        if found["interval"] is not None:
            low, high = found["interval"]
            told = f"[bold]{_number(low)} to {_number(high)}[/]"
        lines = [f"{share} prediction interval: {told}"]
    elif found["prediction_set"] is None:
        lines = [f"{share} prediction set: none, too few calibration rows"]
    else:
        labels = ", ".join(map(escape, found["prediction_set"]))
        lines = [f"{share} prediction set: [bold]{{{labels}}}[/]"]
    if found.get("out_of_distribution"):
        lines.append(f"[yellow]out of distribution[/]: {_raised_by(found, answer)}")
    return lines


def _raised_by(found: Mapping[str, Any], answer: Answer) -> str:
    """Why the row is flagged, as the server says it; an older server says the score and the threshold."""
    if why := found.get("out_of_distribution_reason"):
        return escape(str(why))
    rule = answer.calibration.get("out_of_distribution") or {}
    score, threshold = found.get("out_of_distribution_score"), rule.get("threshold")
    text = "unlike the rows that it was calibrated on"
    if score is None or threshold is None:
        return text
    return escape(f"{text} ({rule.get('score')} {_number(score)}, threshold {_number(threshold)})")


def _notes(answer: Answer) -> list[str]:
    """What the server says of its calibration, in its words: too few rows, or why there is none."""
    reason = answer.calibration.get("reason")
    without = "so there is no set or interval, and rows unlike the training data are not flagged"
    return [
        *([f"not calibrated, {without}: {reason}"] if reason else []),
        *answer.calibration.get("notes", []),
    ]


def _number(value: Any) -> str:
    if isinstance(value, float | int):
        return f"{value:.6g}"
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _as_json(answer: Answer) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415  # one output form of several

    rows = [{k: v for k, v in asdict(p).items() if v is not None} for p in answer]
    document: dict[str, Any] = {"predictions": rows}
    document |= {"calibration": dict(answer.calibration)} if answer.calibration else {}
    return document | ({"parameters": dict(answer.parameters)} if answer.parameters else {})


def _say_next(console: Console, answer: Answer, *, mc: bool) -> None:
    if not mc and not answer.parameters:
        console.print("next: add [bold]--mc[/] to see how sure the model is")
        return
    doubt = answer[0].uncertainty
    if doubt is not None and doubt.standard_error is None:
        console.print("next: [bold]--samples 50[/] or more tells the Monte Carlo error too")
    else:
        console.print(
            "next: [bold]--coverage 0.95[/] for a wider set or interval, [bold]--json[/] for programs"
        )
