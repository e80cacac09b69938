"""The real server in a thread, and Debian's Chromium in front of it."""

from __future__ import annotations

import itertools
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import uvicorn

from konomi.data.records import Candidate
from konomi.labelling.answers import collect
from konomi.labelling.project import Project, create_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import LabelOptions, NewTask
from konomi.web.app import make_app
from label_site import figures_later

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PHONE = {"width": 360, "height": 740}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Server:
    """A project that is served. ``address`` lets nobody in; ``start`` does, as its owner."""

    def __init__(self, project: Project | None, runs: Sequence[Path] = (), policy: Any = None) -> None:
        self.project = project
        self.app = make_app(project, runs=runs, start="start-secret", policy=policy)
        figures_later(self.app)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.start = f"{self.address}/start/start-secret"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", ws="none", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.socket.close()
        assert not self.thread.is_alive(), "the server did not end"

    def judgements(self) -> list[Any]:
        """All that was said, with the items that it is about: (item, judgement)."""
        assert self.project is not None
        with self.project.store() as store:
            exported = collect(store)
        return [(exported.items[each.task], each) for each in exported.judgements]


def one_task(tmp_path: Path, count: int = 1) -> Server:
    """A project of ``count`` tasks of two texts."""
    return Server(project_of(tmp_path / "project", [[f"良さ 1 の文 {n}", f"良さ 2 の文 {n}"] for n in range(count)]))


def project_of(
    path: Path,
    tasks: Sequence[Sequence[str]],
    prompts: Sequence[str] = (),
    options: LabelOptions | None = None,
    **settings: Any,
) -> Project:
    """A project of tasks, each given by its texts."""
    settings = {"repeats": 0.0, "overlap": 1.0} | settings
    names = [*prompts, *(f"お題 {number}" for number in range(len(prompts), len(tasks)))]
    made = [
        NewTask(prompt, tuple(Candidate(text, {"model": f"secret-model-{i}"}) for i, text in enumerate(texts)))
        for prompt, texts in zip(names, tasks, strict=True)
    ]
    return create_project(path, made, title="宿の感想", lang="ja", settings=Settings(**settings), options=options)[0]


@contextmanager
def watched(page: Any) -> Iterator[list[str]]:
    """Collects what a page complains of: errors of scripts, what the policy has refused, dialogs."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda said: found.append(f"{said.type}: {said.text}") if said.type in ("error", "warning") else None)
    yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium (make install-dev does so as root)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # the machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in contexts of their own; none of them may complain."""
    contexts: list[BrowserContext] = []
    complaints: list[list[str]] = []

    def open_page(address: str, **options: Any) -> Page:
        usual = {"locale": "ja-JP", "viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        with watched(page) as found:
            complaints.append(found)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # that a request got no is said by the page itself; what the policy refuses reads otherwise
    assert [each for each in itertools.chain(*complaints) if not each.startswith("error: Failed to load resource")] == []


class Ranking(NamedTuple):
    """The ranking page of somebody who has read the guidelines."""

    page: Page
    server: Server


@pytest.fixture
def ranking(request: pytest.FixtureRequest, tmp_path: Path, visit: Callable[..., Page]) -> Iterator[Ranking]:
    """A project of one task, or of as many as the test's parameter says."""
    with one_task(tmp_path, getattr(request, "param", 1)) as server:
        page = visit(server.start)
        begin(page)
        yield Ranking(page, server)


two_tasks = pytest.mark.parametrize("ranking", [2], indirect=True, ids=[""])


def answer(page: Page, *ranks: int) -> None:
    """Rank with the keyboard, and submit."""
    for rank in ranks:
        page.keyboard.press(str(rank))
    page.keyboard.press("Enter")


def begin(page: Any) -> None:
    """Past the guidelines, which are shown first."""
    page.wait_for_url("**/guidelines")
    page.locator("#seen").click()
    page.locator(".card").first.wait_for()


def next_shown(page: Any, before: str) -> str:
    """Wait until another task than ``before`` is there."""
    page.locator(f"#task[data-shown]:not([hidden]):not([data-shown='{before}'])").wait_for()
    return str(page.locator("#task").get_attribute("data-shown"))


def clean(page: Any) -> None:
    """An accessibility scan, in light and dark, finds nothing; nothing is wider than the page, nothing too small to press."""
    from axe_core_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page)["violations"]] == []
    page.emulate_media(color_scheme="light")
    small = """() => [...document.querySelectorAll('button, input, textarea, summary, nav a')].filter(each => {
        const box = (each.closest('label') ?? each).getBoundingClientRect();
        return each.checkVisibility() && box.width && (box.width < 24 || box.height < 24);
    }).map(each => each.outerHTML)"""
    assert page.evaluate(small) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
