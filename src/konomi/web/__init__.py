"""Web pages to rank texts and to watch runs. FastAPI, Jinja2 and plain JavaScript; no torch.

- security.py: checks before the app, and the headers of every response. session.py: who sent a request.
- app.py: the pages and how everything is put together. api.py: their JSON. followed_run.py: runs as they grow.
- serve.py: serve until Ctrl-C. network.py: addresses, sockets, deadlines of connections.
"""
