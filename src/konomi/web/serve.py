"""Serve the app on a socket until Ctrl-C."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from konomi.errors import ConfigError, KonomiError, RunError
from konomi.files import write_atomic
from konomi.labelling.assignments import busy
from konomi.labelling.people import add_person, all_people, checked_name, new_token
from konomi.labelling.project import Project
from konomi.runs.signals import ending_signals
from konomi.web.app import make_app
from konomi.web.network import address_of, check_host, is_wildcard, listen, public_of
from konomi.web.security import Hosts
from konomi.web.session import Site

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

    from konomi.web.chat import Policy

EVERY, LINGER, PATIENCE = 1.0, 5.0, 90.0
"""Seconds between checks of ``until``, from then to the stop, and the longest wait for open tasks."""
PORT_FILE = "port"
"""File in a project: port and address of its last server, reused so that open pages reconnect."""
CLAIM_FILE = "port.lock"
"""File in a project: locked by the server that owns the port."""


def serve(
    project: Project | None,
    *,
    runs: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_network: bool = False,
    names: Sequence[str] = (),
    public_url: str | None = None,
    say: Callable[[str], None],
    invite: Sequence[str] = (),
    until: Callable[[Site], bool] | None = None,
    policy: Policy | None = None,
) -> bool:
    """Serve until Ctrl-C or until ``until`` says so; return whether it was that.

    Args:
        project, runs, policy: as in :func:`konomi.web.app.make_app`.
        host: address to bind; other than loopback needs ``allow_network``.
        port: None: that of the project's last server if it is free, else any.
        names: more host names that the server answers to.
        public_url: the address of a TLS proxy in front of the server; links begin with it.
        say: called with the start address and each invite link.
        invite: names of people, added if missing.
        until: checked every second; once true, people are told and the server stops a little later.

    Raises:
        ConfigError: host, port or public address cannot be used.
        DataError, RunError: as ``make_app``; a name cannot be used; or a port cannot be kept.
    """
    check_host(host, allow_network)
    invite = list(dict.fromkeys(map(checked_name, invite)))
    public = None if public_url is None else public_of(public_url)
    claim = None if project is None else FileLock(project.path / CLAIM_FILE, mode=0o600)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        first = claim is None or _taken(claim)
        if claim is not None and first:
            stack.callback(claim.release)
        listening = stack.enter_context(contextlib.closing(_listen_again(project, host, port, first)))
        address = public or address_of(listening, host)
        known = [host, socket.gethostname(), *names, *([urlsplit(public).hostname or ""] if public else [])]
        hosts = Hosts(known, any_address=is_wildcard(host))
        start = secrets.token_urlsafe(32)
        app = make_app(project, runs=runs, start=start, address=address, public=public, hosts=hosts, policy=policy)
        if project is not None and first:
            _remember(project, listening, address)
        for line in _greeting(app, address, invite):
            say(line)
        if project is not None and not first:
            say(_second(project))
        server, came = stack.enter_context(_ended_by_signals(app))
        ending = _Ending(app.state.site, until, server) if until is not None else None
        server.run(sockets=[listening])
        if came:
            return False
        if ending is not None and ending.error is not None:
            raise ending.error
        return ending is not None and ending.over
    return False


def _server(app: FastAPI) -> Server:
    import uvicorn

    from konomi.web.network import MAX_CONNECTIONS, Connection

    config = uvicorn.Config(
        app,
        http=Connection,
        backlog=128,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,  # addresses contain tokens
        server_header=False,
        proxy_headers=False,  # clients could forge these headers
        timeout_graceful_shutdown=3,
        limit_concurrency=2 * MAX_CONNECTIONS,  # those that have just made room are counted until they notice
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _ended_by_signals(app: FastAPI) -> Iterator[tuple[Server, list[int]]]:
    """The server of an app, and the signals received: each stops the server, also one received before it runs.

    uvicorn handles only SIGINT and SIGTERM, only while it runs, and sends them again afterwards.
    """
    came: list[int] = []
    server: Server | None = None

    def handle(number: int, _: FrameType | None) -> None:
        came.append(number)
        if server is not None:
            server.should_exit = True

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in ending_signals() if here}
    try:
        server = _server(app)
        server.should_exit = bool(came)
        yield server, came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    """Checks in a thread whether the server should stop."""

    def __init__(self, site: Site, until: Callable[[Site], bool], server: Server) -> None:
        self.over = False
        self.error: Exception | None = None
        """The exception of ``until`` that stopped the server."""
        self._site, self._until, self._server = site, until, server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        site.before_end = self._stop
        self._thread.start()

    def _watch(self) -> None:
        try:
            while not self._stopped.wait(EVERY):
                with contextlib.suppress(RunError):  # the file is busy: later again
                    self.over = self._until(self._site)
                if self.over:
                    return self._close()
        except (KonomiError, OSError) as error:
            self.error = error
        finally:
            self._server.should_exit = True

    def _close(self) -> None:
        """Hand out no more tasks; leave time to finish open ones."""
        self._site.closing = True
        end = time.monotonic() + PATIENCE
        self._stopped.wait(LINGER)
        with contextlib.suppress(RunError):
            store = self._site.opened()[1]
            while time.monotonic() < end and not store.frozen and busy(store, time.time()):
                if self._stopped.wait(EVERY):
                    return

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _taken(claim: FileLock) -> bool:
    """Try to claim the project; False if another server has it."""
    try:
        claim.acquire(blocking=False)
    except Timeout:
        return False
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    return True


def _kept(project: Project) -> tuple[int, str]:
    """Port and address of the project's last server; 0 and "" if none."""
    with contextlib.suppress(OSError, ValueError):
        port, *address = (project.path / PORT_FILE).read_text(encoding="utf-8").split()
        return int(port), "".join(address)
    return 0, ""


def _listen_again(project: Project | None, host: str, port: int | None, first: bool) -> socket.socket:
    if port is None and project is not None and first and (last := _kept(project)[0]):
        with contextlib.suppress(ConfigError, OverflowError):
            return listen(host, last)
    return listen(host, port or 0)


def _remember(project: Project, listening: socket.socket, address: str) -> None:
    kept = project.path / PORT_FILE
    write_atomic(kept, f"{listening.getsockname()[1]}\n{address}\n".encode())
    kept.chmod(0o600)


def _second(project: Project) -> str:
    address = _kept(project)[1] or "another address"
    return (
        f"warning: {project.path} is served already, at {address}; answers of both are kept, and open pages "
        "stay with that server: unless you want two, end one of them with Ctrl-C"
    )


def _greeting(app: FastAPI, address: str, invite: Sequence[str]) -> list[str]:
    site = app.state.site
    lines = [f"open {address}/start/{site.start}"]
    if site.store is not None:
        known = {person.name: person for person in all_people(site.store)}
        for name in invite:
            if name in known and not known[name].active:
                lines.append(f"{name} had no access any more; whoever has this link comes in again:")
            token = new_token(site.store, known[name].id) if name in known else add_person(site.store, name)[1]
            lines.append(f"{name}: {address}/i/{token}")
    return lines
