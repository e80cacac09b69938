"""Connections to the server: silent ones are closed after a while, and before others are turned away."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 500
"""Connections at once; then each further one takes the place of that which has been waited for longest."""
HEADER_SECONDS = 10.0
"""In which all headers of a request have to be there, from the moment that the connection is open or the last answer is out."""


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline while no request is under way. The body has a deadline of its own, in the app."""

    _deadline: asyncio.TimerHandle | None = None
    _since: float | None = None
    """When we began to wait for a request; None while there is all of one, its body too, and no answer yet."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request; where there are too many connections, make room."""
        super().connection_made(transport)
        self._look()
        if len(self.connections) > MOST:
            waiting = {each: each._since for each in self.connections if isinstance(each, Connection) and each._since is not None}
            longest = min(waiting, key=waiting.__getitem__)
            longest.transport.abort()
            longest._stop_deadline()
            self.connections.discard(longest)

    def handle_events(self) -> None:
        """Look whether a request has begun, and whether it is complete."""
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._stop_deadline()

    def _look(self) -> None:
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and not self.cycle.more_body:
            self._since = None
        elif self._since is None:
            self._since = self.loop.time()
        if under_way:
            self._stop_deadline()
        elif self._deadline is None and self in self.connections:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
