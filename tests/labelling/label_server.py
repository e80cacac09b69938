"""A process that owns a store and answers over a socket, a thread a client; it is killed by the tests.

    python label_server.py PATH [wal]

One JSON object a line: {"token": ...} gives the next task, with "answer" it saves that; what comes back comes after the commit.
"""

from __future__ import annotations

import json
import socketserver
import sqlite3
import sys
import time
from dataclasses import asdict
from pathlib import Path

from konomi.labelling.answers import save
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.people import person_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import Answer


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            asked = json.loads(line)
            person = person_of(store, asked["token"])
            assert person is not None
            if "answer" in asked:
                said = asdict(save(store, person, Answer(**asked["answer"]), time.time()))
            else:
                shown = next_task(store, person, time.time())
                said = {} if shown is None else asdict(shown)
            self.wfile.write((json.dumps(said) + "\n").encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 100


if __name__ == "__main__":
    if sys.argv[2:] == ["wal"]:
        sqlite3.sqlite_version_info = (3, 51, 3)
    store = Store(Path(sys.argv[1]), Settings(overlap=5))
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
