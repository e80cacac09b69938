"""A hub in miniature on this machine: each directory OWNER/NAME is a repository of models or data sets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

CONVERTED = "refs/convert/parquet"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def entry(path: str, files: dict[str, bytes]) -> dict[str, object]:
    """What the hub says of a file or directory."""
    if path not in files:
        return {"type": "directory", "path": path, "size": 0, "oid": COMMIT}
    return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


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
            asked = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()).get("paths", [])
            where, _, query = self.path.partition("?")
            parts = [unquote(part) for part in where.split("/") if part not in ("", "models", "datasets")]
            api = parts[:1] == ["api"]
            repo, rest = "/".join(parts[api : api + 2]), parts[api + 2 :]
            paths = sorted(path for path in (root / repo).rglob("*") if path.is_file()) if repo else []
            files = {path.relative_to(root / repo).as_posix(): path.read_bytes() for path in paths}
            if not repo:
                self.answer(b"hub")
            elif not files:
                self.answer(b"", "RepoNotFound")
            elif len(rest) > 1 and rest[1] not in ("main", CONVERTED, COMMIT):
                self.answer(b"", "RevisionNotFound")
            elif not api:
                name = "/".join(rest[2:])
                self.answer(files.get(name, b""), "" if name in files else "EntryNotFound")
            elif rest[:1] in (["tree"], ["paths-info"]):
                folder, deep = "/".join([*rest[2:], ""]), "recursive=true" in query.lower()
                folders = {"/".join(name.split("/")[:i]) for name in files for i in range(1, name.count("/") + 1)}
                inside = [each for each in (*sorted(folders), *files) if each.startswith(folder)]
                listed = [each for each in inside if deep or "/" not in each.removeprefix(folder)]
                named = asked if rest[0] == "paths-info" else listed
                self.answer(json.dumps([entry(each, files) for each in named if each in folders | files.keys()]).encode())
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())

        do_HEAD = do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
