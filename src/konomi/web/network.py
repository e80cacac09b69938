"""Addresses, listening sockets, and deadlines for idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from konomi.errors import ConfigError

MAX_CONNECTIONS = 500
"""Maximum connections; each further one replaces the one that has been idle longest."""
HEADER_SECONDS = 10.0
"""Seconds for the headers of a request, from connecting or from the last response."""


def check_host(host: str, allow_network: bool) -> bool:
    """Whether other machines can reach ``host``.

    Raises:
        ConfigError: it is, and ``allow_network`` was not given; it is no address and no name.
    """
    try:
        addresses = {each[4][0] for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such host ({error}); 127.0.0.1 is this machine alone") from None
    open_to_others = not all(ipaddress.ip_address(str(each).split("%")[0]).is_loopback for each in addresses)
    if open_to_others and not allow_network:
        raise ConfigError(
            f"--host {host}: other machines could reach the page, and what goes over the network is not encrypted. "
            "If that is wanted, add --allow-network"
        )
    return open_to_others


def public_of(url: str) -> str:
    """``https://HOST`` or ``https://HOST:PORT`` of a proxy, normalised. Raises ConfigError: not such an address.

    >>> public_of("https://Rank.example:443/")
    'https://rank.example'
    """
    name = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    match = re.fullmatch(rf"https://(?P<host>{name}(\.{name})*|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{{1,5}}))?/?", url.lower())
    port = int(match["port"] or 443) if match else 0
    try:
        if match is None or not 0 < port < 65536:
            raise ValueError(url)
        if match["host"].startswith("["):
            ipaddress.IPv6Address(match["host"][1:-1])
    except ValueError:
        raise ConfigError(
            f"--public-url {url}: https://HOST or https://HOST:PORT is wanted, the address that people open"
        ) from None
    return f"https://{match['host']}{'' if port == 443 else f':{port}'}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one. Raises ConfigError: the port is taken or not permitted."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named so that asyncio turns off Nagle's algorithm: with it some answers would wait for 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(f"{host}, port {port}: {error.strerror or error}; leave --port out, or give another one") from None
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """``http://HOST:PORT`` by which the server can be reached."""
    name = "127.0.0.1" if host == "localhost" else host
    if is_wildcard(name):
        name = _own_address()
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"


def _own_address() -> str:
    """This machine's address in its network; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()


def is_wildcard(host: str) -> bool:
    """Whether ``host`` is the address of all interfaces.

    >>> is_wildcard("0.0.0.0"), is_wildcard("localhost")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class Connection(H11Protocol):
    """uvicorn's protocol with a deadline between requests; the body has its own deadline, in the app."""

    _deadline: asyncio.TimerHandle | None = None
    _waiting_since: float | None = None
    """Since when it waits for a request; None while a complete request is being answered."""

    def connection_made(self, transport: Any) -> None:
        """Start the deadline; drop the longest idle connection if there are too many."""
        super().connection_made(transport)
        self._update_deadline()
        if len(self.connections) > MAX_CONNECTIONS:
            ours = [each for each in self.connections if isinstance(each, Connection)]
            waiting = {each: each._waiting_since for each in ours if each._waiting_since is not None}
            longest = min(waiting, key=waiting.__getitem__)
            longest.transport.abort()
            longest._stop_deadline()
            self.connections.discard(longest)

    def handle_events(self) -> None:
        """Update the deadline."""
        super().handle_events()
        self._update_deadline()

    def on_response_complete(self) -> None:
        """Restart the deadline."""
        super().on_response_complete()
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        super().connection_lost(exc)
        self._stop_deadline()

    def _update_deadline(self) -> None:
        in_request = self.cycle is not None and not self.cycle.response_complete
        if in_request and not self.cycle.more_body:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self.loop.time()
        if in_request:
            self._stop_deadline()
        elif self._deadline is None and self in self.connections:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
