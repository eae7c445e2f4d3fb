"""Several processes that train one model: who is who, and how Lightning gets to know.

The process that the user started is number 0. It alone shows progress, writes the checkpoint and publishes.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from dropserve.training.seeding import seed_all

HOST = "127.0.0.1"
_PATIENCE = timedelta(minutes=30)  # for a step of the slowest


@dataclass(frozen=True)
class Team:
    """This process among those that train.

    Attributes:
        rank: its number.
        size: of the team.
        port: where number 0 awaits the others.
    """

    rank: int = 0
    size: int = 1
    port: int = 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody to agree with."""
        return self.size == 1

    def root(self, device: str) -> str:
        """The device of this process."""
        return f"cuda:{self.rank}" if device == "cuda" else device

    def strategy(self, device: str, *, unused: bool) -> Any:
        """How Lightning is to train.

        Args:
            device: ``cpu`` or ``cuda``.
            unused: whether some parameter takes no part in the loss.
        """
        if self.alone:
            return "auto"
        return DDPStrategy(
            cluster_environment=_Known(self),
            process_group_backend="nccl" if device == "cuda" else "gloo",
            timeout=_PATIENCE,
            find_unused_parameters=unused,
        )

    @contextmanager
    def at_work(self, device: str) -> Generator[None]:
        """Share the cores of a CPU out inside; leave no connection and no variable behind."""
        if self.alone:
            yield
            return
        before, threads = dict(os.environ), torch.get_num_threads()
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        if device == "cuda":
            torch.cuda.set_device(self.rank)
        else:
            torch.set_num_threads(max(1, threads // self.size))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if dist.is_initialized():
                dist.destroy_process_group()
            os.environ.clear()
            os.environ.update(before)


ALONE = Team()


class OwnSignals(pl.Callback):
    """Keeps the handler of SIGTERM: Lightning's own asks the other processes from within, and both wait.

    It is made before the trainer puts its own in place.
    """

    def __init__(self) -> None:
        self._in_main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put it back."""
        del trainer, pl_module
        if self._in_main:
            signal.signal(signal.SIGTERM, self._handler)


class OwnDraws(pl.Callback):
    """Dropout masks of its own for every process but the first, whose generators a checkpoint keeps.

    They are seeded anew in each epoch, so that a resumed training draws what an undisturbed one would.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed from the training seed, the rank and the epoch."""
        key = (self._seed, self._rank, trainer.current_epoch)
        seed_all(int(np.random.SeedSequence(key).generate_state(1)[0]), pl_module.device.type)


class _Known(ClusterEnvironment):
    """A team that has been started already."""

    def __init__(self, team: Team) -> None:
        self._team = team

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return HOST

    @property
    def main_port(self) -> int:
        return self._team.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._team.size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._team.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._team.rank

    def node_rank(self) -> int:
        return 0


def _loopback() -> str:
    """The name of the interface that leads nowhere else: ``lo``, or ``lo0`` on macOS."""
    names: Iterator[str] = (name for _, name in socket.if_nameindex() if name.rstrip("0") == "lo")
    return next(names, "lo")
