"""Deadlines for idle connections, and a limit on their number."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 500
"""Maximum connections; each further one replaces the one that has been idle longest."""
HEADER_SECONDS = 10.0
"""Seconds for the headers of a request, from connecting or from the last response."""


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline between requests; the body has its own deadline, in the app."""

    _deadline: asyncio.TimerHandle | None = None
    _since: float | None = None
    """Since when it waits for a request; None while a complete request is being answered."""

    def connection_made(self, transport: Any) -> None:
        """Start the deadline; drop the longest idle connection if there are too many."""
        super().connection_made(transport)
        self._look()
        if len(self.connections) > MOST:
            waiting = {each: each._since for each in self.connections if isinstance(each, Connection) and each._since is not None}
            longest = min(waiting, key=waiting.__getitem__)
            longest.transport.abort()
            longest._stop_deadline()
            self.connections.discard(longest)

    def handle_events(self) -> None:
        """Update the deadline."""
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        """Restart the deadline."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
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
