"""A hub in miniature on this machine: each directory OWNER/NAME is a repository of models or data sets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(root: Path) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """The server and its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def answer(self, body: bytes, error: str = "") -> None:
            self.send_response(404 if error else 200)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"', "Content-Length": str(len(body))}
            for key, value in (headers | ({"X-Error-Code": error} if error else {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = [part for part in self.path.partition("?")[0].split("/") if part not in ("", "models", "datasets")]
            api = parts[:1] == ["api"]
            repo, rest = "/".join(parts[api : api + 2]), parts[api + 2 :]
            files = {path.name: path.read_bytes() for path in sorted((root / repo).glob("*"))} if repo else {}
            if not repo:
                self.answer(b"hub")
            elif not files:
                self.answer(b"", "RepoNotFound")
            elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
                self.answer(b"", "RevisionNotFound")
            elif not api:
                name = "/".join(rest[2:])
                self.answer(files.get(name, b""), "" if name in files else "EntryNotFound")
            elif rest[:1] in (["tree"], ["paths-info"]):
                sums = {name: hashlib.sha1(body).hexdigest() for name, body in files.items()}
                entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": oid} for name, oid in sums.items()]
                self.answer(json.dumps(entries).encode())
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())

        do_HEAD = do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
