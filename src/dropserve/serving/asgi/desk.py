"""What stands behind one name: loads its model, chooses where it is computed, passes requests on."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from dropserve.manifest import VersionManifest
from dropserve.serving.answering import Message
from dropserve.serving.asgi.inline import Inline
from dropserve.serving.asgi.lane import Lane, Take, Tuning, not_ready
from dropserve.serving.asgi.pool import Pool
from dropserve.serving.deployment import MODEL_CONFIG, Endpoint
from dropserve.serving.loaded import LOAD_FAILED, read_options
from dropserve.serving.tally import Sums
from dropserve.store import open_folder

log = logging.getLogger("dropserve.serving.asgi")
FAST = 0.001  # seconds: asking another process takes some tenth of it


class Desk:
    """One endpoint of the server.

    Where ``place`` is ``auto``, a deterministic model whose example row takes at most :data:`FAST` is
    computed in the server's own process. Monte Carlo and all others have processes of their own, so that they
    delay nobody.

    Args:
        endpoint: what it serves.
        folder: the unpacked archive.

    Attributes:
        manifest: of the version that it serves.
        tuning: its section of ``model-config.yaml``.
        limits: what one request may ask for.

    Raises:
        CorruptStoreError: if a file is not what was published.
        UsageError: if a setting is wrong.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint = endpoint
        self.manifest = open_folder(folder, VersionManifest, strict=False).manifest
        self._folder = folder
        self.tuning = Tuning.of(json.loads((folder / MODEL_CONFIG).read_bytes()))
        self.limits = read_options(self.tuning.handler).limits
        self._lane: Lane | None = None
        self._trouble = "its model is loading"

    async def open(self) -> None:
        """Load the model; what goes wrong is logged, and stands in :attr:`problem`."""
        name, tuning = self.endpoint.name, self.tuning
        at_home = tuning.place == "server" or (tuning.place == "auto" and tuning.workers == 1)
        if at_home and not self.endpoint.monte_carlo:
            try:
                inline = await asyncio.to_thread(Inline, self._folder, name, tuning)
            except Exception as error:
                text = " ".join(f"{error}".split()) or type(error).__name__
                log.exception("%s %s: %s", LOAD_FAILED, name, text)
                self._trouble = f"it cannot be loaded: {text}"
                return
            if tuning.place == "server" or inline.seconds <= FAST:
                self._lane = inline
                return
            await inline.stop()
        self._lane = Pool(self._folder, name, tuning)

    def ask(self, message: Message, take: Take) -> None:
        """As :meth:`Lane.ask`."""
        if self._lane is None:
            take(not_ready(self.endpoint.name, self._trouble))
        else:
            self._lane.ask(message, take)

    @property
    def problem(self) -> str | None:
        """Why it would not answer now, in words; None when it would."""
        return self._trouble if self._lane is None else self._lane.problem

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The model as V2 describes it; None until it has been loaded once."""
        return None if self._lane is None else self._lane.metadata

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return 0 if self._lane is None else self._lane.waiting

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        return 0 if self._lane is None else self._lane.restarts

    def take(self) -> Sums:
        """What was done since the last time."""
        return {} if self._lane is None else self._lane.take()

    async def close(self) -> None:
        """Let go of the model."""
        if self._lane is not None:
            await self._lane.stop()
