"""The pages: people rank, and a run is watched. FastAPI, Jinja2 and plain JavaScript; no torch.

- security.py: what is refused before anything looks at it, and the headers of every response.
- api.py: the JSON that the pages live on. followed_run.py: runs as they grow. app.py: the pages, and how all is put together.
- serve.py: an address, a socket, and an end by Ctrl-C.
"""
