"""Connections to the server: silent ones are closed after a while, and before others are turned away."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 500
"""Connections at once; then each further one takes the place of that which has been silent for longest."""
HEADER_SECONDS = 10.0
"""In which all headers of a request have to be there, from the moment that the connection is open or the last answer is out."""


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline while no request is under way. The body has a deadline of its own, in the app."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request; where there are too many connections, make room."""
        super().connection_made(transport)
        self._look()
        if len(self.connections) > MOST:
            silent = [each for each in self.connections if isinstance(each, Connection) and each._deadline is not None]
            longest = min(silent, key=lambda each: each._deadline.when() if each._deadline else 0.0)
            longest.transport.abort()
            longest._stop_waiting()
            self.connections.discard(longest)

    def handle_events(self) -> None:
        """Look whether a request has begun."""
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None and self in self.connections:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
