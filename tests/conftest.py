"""Settings of the whole suite, before torch is imported."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# the models here have some ten thousand weights: threads only wait for each other, and the machine may be shared
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.pop("MLFLOW_TRACKING_URI", None)  # the tests' runs are nobody else's

gc.disable()  # while tests are collected: hardly anything of what is loaded then is garbage

# a shell starts what runs in the background with SIGINT ignored, nohup with SIGHUP ignored, and so would be every process that a
# test starts and interrupts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# the same examples each time, however busy the machine is
settings.register_profile("suite", deadline=None, database=None, derandomize="KONOMI_FUZZ" not in os.environ)
settings.load_profile("suite")

SLOWEST = (
    "engine/test_families.py", "engine/test_device.py", "web/test_browser.py", "tests/test_wheel.py", "jobs/test_sft_job.py",
    "tests/test_outside.py", "web/test_serve.py", "web/test_people_to_ppo.py", "cli/test_cli.py", "jobs/test_pipeline.py",
    "tests/test_bench.py",
)  # fmt: skip
"""Come first, so that the processes are done at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.name}", len(places)))


def pytest_collection_finish() -> None:
    gc.enable()
    _keep_what_is_loaded()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        _keep_what_is_loaded()


def _keep_what_is_loaded() -> None:
    """Modules are not garbage: looking through them takes a second, and every training ends with a search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let a test choose its precision: Accelerate keeps the first one of a process and refuses another."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture(scope="session")
def furnished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `world` copies: a directory with all that small jobs need."""
    from furnished import furnish

    return furnish(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(furnished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current directory."""
    shutil.copytree(furnished_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
