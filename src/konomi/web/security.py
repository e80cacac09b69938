"""Checks before the app: host names, origins, rate limits, body sizes, security headers.

Binding to 127.0.0.1 keeps out other machines, but not other pages in the same browser: any page may send requests here, and
with DNS rebinding even read the responses. So the Host header is always checked, and every request but a plain GET must
come from one of our own pages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from konomi.web.errors import Refusal, refused

BODY_LIMIT = 65_536
"""Maximum bytes of a request body."""
BODY_SECONDS = 20.0
"""Seconds in which the whole body must arrive."""
BUSY_SECONDS = 5.0
"""Seconds a request waits for its turn, and then for a locked store."""
RETRY_SECONDS = 5
"""Seconds after which a page should retry."""
AT_ONCE = 32
"""Requests that may wait for the store: fewer than the 40 threads, so that static files are always served."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
SAFE = ("GET", "HEAD")


class Hosts:
    """The host names that the server answers to.

    Args:
        names: host names and addresses, without ports.
        any_address: also any numeric address; DNS rebinding needs a name.
    """

    def __init__(self, names: Iterable[str] = (), *, any_address: bool = False) -> None:
        self.names = {"127.0.0.1", "localhost", "::1", *(name.lower() for name in names)}
        self.any_address = any_address

    def __contains__(self, header: object) -> bool:
        """Whether a Host header is one of them.

        >>> [header in Hosts() for header in ("localhost:80", "[::1]", "127.0.0.1.evil.org", "evil@localhost", "")]
        [True, True, False, False, False]
        """
        match = _HOST.fullmatch(header) if isinstance(header, str) else None
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name in self.names:
            return True
        try:
            return self.any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class RateLimiter:
    """A token bucket per name: ``burst`` requests at once, ``per_second`` in the long run."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self.burst = burst
        self.clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> int:
        """Count a request: 0 if it is allowed, else the seconds to wait.

        >>> limiter = RateLimiter(1, 2, clock=lambda: 0.0)
        >>> [limiter.take("a") for _ in range(3)], limiter.take("b")
        ([0, 0, 1], 0)
        """
        now = self.clock()
        if len(self._left) > 4096:  # those that are full again say nothing
            full = self.burst / self.per_second
            self._left = {key: each for key, each in self._left.items() if now - each[1] < full}
        left, since = self._left.get(name, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.per_second)
        if left < 1:
            self._left[name] = (left, now)
            return max(1, round((1 - left) / self.per_second))
        self._left[name] = (left - 1, now)
        return 0


class Guard:
    """ASGI middleware around the whole app; leaves the request body in ``scope["state"]["body"]``.

    ``public`` is the origin of a proxy in front of the server.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Hosts, addresses: RateLimiter, state: Mapping[str, object], public: str | None = None
    ) -> None:
        self.app = app
        self.public = public
        self.hosts = hosts
        self.addresses = addresses
        self.state = state
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then pass it on or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), **self.state}
        secure_send = _WithHeaders(send, static=scope["path"].startswith("/static/"))
        request = Request(scope, receive)
        try:
            self._check(request)
            body = await _read(request)
        except Refusal as refusal:
            await refused(request, refusal)(scope, receive, secure_send)
            return
        scope["state"]["body"] = body
        if secure_send.static:
            await self._answer(scope, receive, secure_send, body)
            return
        try:
            await asyncio.wait_for(self._room.acquire(), BUSY_SECONDS)
        except asyncio.TimeoutError:
            await refused(request, Refusal("busy", wait=RETRY_SECONDS))(scope, receive, secure_send)
            return
        try:
            await self._answer(scope, receive, secure_send, body)
        finally:
            self._room.release()

    async def _answer(self, scope: Scope, receive: Receive, secure_send: _WithHeaders, body: bytes) -> None:
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, replay, secure_send)
        except Exception:  # a bug in a route: the response needs our headers too; the server logs what is raised again
            if not secure_send.started:
                await refused(Request(scope), Refusal("failed"))(scope, receive, secure_send)
            raise

    def _check(self, request: Request) -> None:
        headers = request.headers
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            raise Refusal("bad_host")
        client = request.client.host if request.client else ""
        # a proxy on this machine asks for everybody, and knows their addresses itself
        wait = 0 if self.public and client in ("127.0.0.1", "::1") else self.addresses.take(client)
        if wait:
            raise Refusal("too_many", wait=wait)
        site = headers.get("sec-fetch-site")
        safe = request.method in SAFE
        if safe:
            # a page of another origin has no business with the data, even if it could not read the answer
            if request.url.path.startswith("/api/") and site not in (None, "same-origin", "none"):
                raise Refusal("cross_site")
            return
        if site not in (None, "same-origin"):
            raise Refusal("cross_site")
        # where there is a public address, our pages at any other are not the ones that people were sent to
        if (site is None or self.public) and headers.get("origin") != (self.public or f"{request.url.scheme}://{hosts[0]}"):
            raise Refusal("cross_site")
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json" and (has_body or request.method != "DELETE"):
            raise Refusal("not_json")


class _WithHeaders:
    """``send`` that adds the security headers to every response."""

    def __init__(self, send: Send, static: bool) -> None:
        self.send = send
        self.static = static
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["cache-control"] = "no-cache" if self.static else "no-store"
        await self.send(message)


async def _read(request: Request) -> bytes:
    """The whole body, read up to the limit; nothing is read if the announced length is over it."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced[:20]) > BODY_LIMIT:
        raise Refusal("too_large")
    try:
        return await asyncio.wait_for(_up_to_the_limit(request), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal("too_slow") from None
    except ClientDisconnect:
        raise Refusal("bad_request") from None


async def _up_to_the_limit(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise Refusal("too_large")
    return bytes(body)
