"""Turns under load, in rounds: one contestant at a time, and ratios only within a round.

A machine that others use is now fast, now slow. In a round every contestant has its turn at every number of
connections within a few minutes; a ratio is taken within a round, and the median over rounds is reported with
the least and the greatest. The order changes from round to round, so that nobody always follows the same
neighbour. Processor time hardly moves when others use the machine: it is reported beside every rate.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

import psutil
from contestants import Contestant
from load import Figures, apply

GENERATOR = "load generator"
_TOLERATED = 0.01  # errors for each good answer


@dataclass(frozen=True)
class Turn:
    """What one contestant did under one load.

    Attributes:
        figures: what the load generator saw.
        cost: processor microseconds for each question, by part of the server; and of the load generator.
        others: cores that work took which is not ours.
    """

    figures: Figures
    cost: dict[str, float]
    others: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.figures.rate

    @property
    def server_cost(self) -> float:
        """Processor microseconds for each question, of the whole server."""
        return sum(value for part, value in self.cost.items() if part != GENERATOR)


@dataclass(frozen=True)
class Spread:
    """The median over rounds, and between what it lies."""

    median: float
    least: float
    greatest: float


@dataclass
class Record:
    """Every turn by (contestant, connections), one for each round; and what was wrong.

    Attributes:
        turns: in the order of the rounds.
        idle: share of a core that a contestant uses while nobody asks anything.
        wrong: answers that the direct computation contradicts.
        checked: answers that were compared with it.
        errors: what else came, by contestant and kind.
        refusing: loads of which a contestant answered so little that its rate means nothing.
    """

    turns: dict[tuple[str, int], list[Turn]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    refusing: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        """Whether all of these took part."""
        return set(names) <= {name for name, _ in self.turns}

    def of(self, name: str, connections: int, figure: Callable[[Turn], float]) -> float:
        """A figure of one contestant: the median over rounds."""
        return median(map(figure, self.turns[name, connections]))

    @property
    def others(self) -> float:
        """Cores that work took which is not ours: the mean over all turns."""
        return mean(turn.others for turns in self.turns.values() for turn in turns)

    def rate(self, name: str, connections: int) -> float:
        """Answers a second."""
        return self.of(name, connections, lambda turn: turn.rate)

    def cost(self, name: str, connections: int) -> float:
        """Processor microseconds of the server for each question."""
        return self.of(name, connections, lambda turn: turn.server_cost)

    def latency(self, name: str, connections: int, at: str) -> float:
        """Milliseconds."""
        return self.of(name, connections, lambda turn: turn.figures.latency.get(at, float("nan")))

    def ratio(self, over: str, under: str, connections: int) -> Spread:
        """Answers a second of one contestant over another's."""
        return self._ratio(over, under, connections, lambda turn: turn.rate)

    def saving(self, ours: str, theirs: str, connections: int) -> Spread:
        """Processor time of another contestant for each question, over that of ours."""
        return self._ratio(theirs, ours, connections, lambda turn: turn.server_cost)

    def _ratio(self, over: str, under: str, connections: int, figure: Callable[[Turn], float]) -> Spread:
        pairs = zip(self.turns[over, connections], self.turns[under, connections], strict=True)
        values = [figure(a) / figure(b) if figure(b) else float("nan") for a, b in pairs]
        return Spread(median(values), min(values), max(values))

    def file(self, contestant: Contestant, figures: Figures) -> None:
        """Compare what came with the direct computation, and count errors."""
        name = contestant.name
        for kind, count in figures.errors.items():
            self.errors[f"{name}: {kind}"] = self.errors.get(f"{name}: {kind}", 0) + count
        if sum(figures.errors.values()) > _TOLERATED * figures.requests or not figures.requests:
            self.refusing.append(f"{name}: {figures.requests} answers and the errors {figures.errors}")
        if contestant.steady and figures.varying:
            self.wrong.append(f"{name}: {figures.varying} answers differ from the first to their question")
        self.checked += figures.requests
        for question, answers in enumerate(figures.answers):
            for text in answers:
                if problem := _problem(contestant, text, question):
                    self.wrong.append(f"{name}, question {question}: {problem}")


def _problem(contestant: Contestant, text: str, question: int) -> str:
    try:
        return contestant.problem(json.loads(text), question)
    except json.JSONDecodeError:
        return f"not JSON: {text[:200]}"


def order(contestants: Sequence[Contestant], number: int, rounds: int) -> list[Contestant]:
    """The order of a round: each begins elsewhere, and every other one goes backwards."""
    shift = number * len(contestants) // rounds
    turned = [*contestants[shift:], *contestants[:shift]]
    return turned if number % 2 == 0 else turned[::-1]


def turn(contestant: Contestant, connections: int, seconds: float, *, warmup: float = 0.5) -> Turn:
    """One load on one contestant."""
    with contestant.awake():
        busy, before, begin = _busy(), contestant.spent(), os.times()
        figures = apply([contestant.group(connections)], seconds, warmup=warmup)[contestant.name]
        end, after, busy = os.times(), contestant.spent(), _busy() - busy
    used = {part: after[part] - before[part] for part in before}
    used[GENERATOR] = sum(end[2:4]) - sum(begin[2:4])
    others = busy - sum(used.values()) - (sum(end[:2]) - sum(begin[:2]))
    cost = {part: 1e6 * value / max(1, figures.asked) for part, value in used.items()}
    return Turn(figures, cost, max(0.0, others) / (end.elapsed - begin.elapsed))


def _busy() -> float:
    """Seconds that all cores together have worked, or were kept from working by the machine's host."""
    times = psutil.cpu_times()
    named = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, name, 0.0) for name in named)


def idle(contestants: Sequence[Contestant], seconds: float) -> dict[str, float]:
    """Share of a core that each uses while nobody asks anything."""
    begin, before = time.monotonic(), [contestant.spent() for contestant in contestants]
    time.sleep(seconds)
    after, elapsed = [contestant.spent() for contestant in contestants], time.monotonic() - begin
    return {
        contestant.name: (sum(late.values()) - sum(early.values())) / elapsed
        for contestant, early, late in zip(contestants, before, after, strict=True)
    }


def compete(
    contestants: Sequence[Contestant],
    levels: Sequence[int],
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> Record:
    """Warm up, then all rounds.

    Args:
        contestants: who takes turns.
        levels: numbers of connections.
        rounds: how many.
        seconds: how long a turn is measured.
        tell: told how far it is.
    """
    record = Record()
    for contestant in contestants:  # Java compiles what runs often
        record.file(contestant, turn(contestant, max(levels), seconds).figures)
    with contextlib.ExitStack() as stack:
        for contestant in contestants:
            stack.enter_context(contestant.awake())
        record.idle = idle(contestants, seconds)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for connections in levels:
            for contestant in order(contestants, number, rounds):
                found = turn(contestant, connections, seconds)
                record.turns.setdefault((contestant.name, connections), []).append(found)
                record.file(contestant, found.figures)
    return record
