"""All splits of all tables: search and training in processes that get training rows alone, measuring here."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from dropserve.errors import TrainingError, UsageError
from dropserve.training.uci.choose import Choice, Space, choose
from dropserve.training.uci.judge import judge
from dropserve.training.uci.records import Records, SplitResult
from dropserve.training.uci.refit import Predictor, refit
from dropserve.training.uci.splits import Part, SplitTable

_SEEDS_A_SPLIT = 1000


@dataclass(frozen=True)
class Trained:
    """What comes back from the process that chose and trained.

    Attributes:
        choice: made on the training rows.
        predictor: trained on them.
        seconds: of the clock.
        processor_seconds: of the processor.
    """

    choice: Choice
    predictor: Predictor
    seconds: float
    processor_seconds: float


def train_split(part: Part, space: Space, seed: int) -> Trained:
    """All of a split but its measure; ``part`` is all the data it is given.

    Raises:
        TrainingError: if nothing finite came of it.
    """
    clock, processor = time.perf_counter(), time.process_time()
    choice = choose(part, space, seed=seed)
    predictor = refit(part, choice, space, seed=seed)
    if not predictor.sound:
        raise TrainingError(f"the last training, with {choice.candidate}, ended in no finite numbers")
    return Trained(choice, predictor, time.perf_counter() - clock, time.process_time() - processor)


def run(
    tables: Sequence[SplitTable],
    folder: Path,
    *,
    space: Space | None = None,
    splits: int | None = None,
    workers: int | None = None,
    told: Callable[[SplitTable, SplitResult], None] | None = None,
) -> dict[str, list[SplitResult]]:
    """Do every split that is not done yet.

    Args:
        tables: which; they are done in their order.
        folder: of the results.
        space: the search space.
        splits: the first so many of each table; all by default.
        workers: processes; by default one for each core.
        told: called with each result, those that were there included.

    Returns:
        The results of each table by name, in the order of the splits.

    Raises:
        UsageError: for a number of splits or workers below 1.
        TrainingError: if a split gives nothing finite.
    """
    if (splits is not None and splits < 1) or (workers is not None and workers < 1):
        raise UsageError(f"splits {splits}, workers {workers}: expected whole numbers of at least 1")
    space, tell = space or Space(), told or _ignore
    found: dict[str, dict[int, SplitResult]] = {table.name: {} for table in tables}
    # Forked children would inherit the threads of torch, but not their locks' owners.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, context, _follow_parent) as pool:
        waiting = {}
        for table in tables:
            records = Records(folder, table, space)
            for split in range(min(table.splits, splits or table.splits)):
                result = records.read(split)
                if result is None:
                    seed = split * _SEEDS_A_SPLIT
                    future = pool.submit(train_split, table.training(split), space, seed)
                    waiting[future] = table, split, records
                else:
                    found[table.name][split] = result
                    tell(table, result)
        try:
            for future in as_completed(waiting):
                table, split, records = waiting[future]
                result = _measured(table, split, future.result())
                records.write(result)
                found[table.name][split] = result
                tell(table, result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return {name: [results[split] for split in sorted(results)] for name, results in found.items()}


def _measured(table: SplitTable, split: int, trained: Trained) -> SplitResult:
    score, choice = judge(trained.predictor, table.test(split)), trained.choice
    one = choice.candidate
    return SplitResult(
        split=split,
        rmse=score.rmse,
        log_likelihood=score.log_likelihood,
        validation_rmse=choice.rmse,
        validation_log_likelihood=choice.log_likelihood,
        chosen={
            "rate": one.rate,
            "learning_rate": one.learning_rate,
            "weight_decay": one.weight_decay,
            "noise_factor": choice.noise.factor,
            "noise_floor": choice.noise.floor,
        },
        seconds=trained.seconds,
        processor_seconds=trained.processor_seconds,
    )


def _ignore(_: SplitTable, __: SplitResult) -> None:
    """Nobody watches."""


def _follow_parent() -> None:
    """End a worker whose parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
