"""The ASGI application: what meets requests, and desks behind it."""

from __future__ import annotations

from collections.abc import Sequence

from dropserve.serving.asgi.desk import Desk
from dropserve.serving.asgi.figures import Figures
from dropserve.serving.asgi.front import Front, Policy
from dropserve.serving.asgi.pages import Tell, pages


class App(Front):
    """Serves desks.

    Args:
        desks: what is served.
        policy: what is asked of every request.
        figures: the text of ``/metrics``; what the desks themselves have done by default.
        numbered: as :class:`Front`.

    Attributes:
        draining: the server is about to stop: it is not ready any more, and lets go of each connection.
    """

    def __init__(
        self, desks: Sequence[Desk], policy: Policy, figures: Tell | None = None, *, numbered: bool = True
    ) -> None:
        self.desks = {desk.endpoint.name: desk for desk in desks}
        shown = pages(
            self.desks, lambda: self.draining, figures or _own(desks), tokens=policy.token is not None
        )
        super().__init__(desks, policy, shown, numbered=numbered)


def _own(desks: Sequence[Desk]) -> Tell:
    figures = Figures(desks)

    async def text() -> bytes:
        return figures.text()

    return text


__all__ = ["App", "Policy"]
