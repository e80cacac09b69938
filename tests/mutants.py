"""Small faults put into the equations, the trainer, the sampler and labelling, one at a time: a test has to notice each.

    python tests/mutants.py              all mutants; a table of who killed whom; exit 1 if one survives
    python tests/mutants.py 0 7 12       these only

Those of ``konomi.ops`` are for all of ``tests/ops``, the others for the test that faults.py names, which has to pass without a
mutant. Each runs in a fork of one process that has torch imported already, on a copy of the package, so that it costs a second or
two and the working tree is never touched. Needs ``os.fork`` (Linux, macOS).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from faults import LABELLING, OPS, TRAINING

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "src" / "konomi"
PATIENCE = 60  # seconds of processor time until a mutant that hangs counts as killed; a busy machine kills none


class Mutant(NamedTuple):
    """``old`` stands exactly once in ``file``; ``new`` takes its place."""

    file: str
    old: str
    new: str
    note: str
    test: str = ""
    """Beginning of the node id of the test that has to fail; empty: those of ``tests/ops``."""


MUTANTS = [Mutant(f"ops/{file}", *fault) for file, faults in OPS.items() for fault in faults]
MUTANTS += [Mutant(file, *fault) for file, faults in (TRAINING | LABELLING).items() for fault in faults]


def misplaced() -> list[str]:
    """Name the mutants whose fragment does not stand exactly once in the sources."""
    found = [(mutant, (SOURCES / mutant.file).read_text("utf-8").count(mutant.old)) for mutant in MUTANTS]
    return [f"{mutant.file}: {count} times: {mutant.old}" for mutant, count in found if count != 1]


class Witness:
    """A pytest plugin that remembers the first failure."""

    first = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid.rpartition("/")[2]

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.first:
            self.first = f"NOT RUN: {report.nodeid} does not import"


def run_tests(package: Path, mutant: Mutant | None) -> str:
    """Run what has to notice ``mutant`` on the ``konomi`` in ``package``; name the first test to fail. None: the tests of ops."""
    import pytest

    sys.path[:0] = [str(package), str(TESTS)]
    import konomi

    if not str(konomi.__file__).startswith(str(package)):
        return "NOT RUN: another konomi was imported"
    options = ["-x", "-q", "-c", os.devnull, "--rootdir", str(TESTS), "--assert=plain", "-p", "no:cacheprovider"]
    if mutant and mutant.test:
        file, _, name = mutant.test.partition("::")
        batches = [[str(TESTS / file), "-k", name]]
    else:
        files = sorted(path for path in (TESTS / "ops").glob("test_*.py") if path.stem != "test_mutants")
        first = [path for path in files if mutant and path.stem == f"test_{Path(mutant.file).stem}"]
        batches = [["-W", "error", *map(str, batch)] for batch in (first, [p for p in files if p not in first]) if batch]
    for batch in batches:
        witness = Witness()
        if code := pytest.main([*options, *batch], plugins=[witness]):
            return witness.first or f"NOT RUN: pytest exits {int(code)}"
    return ""


def healthy(chosen: list[Mutant]) -> str:
    """Run the tests that mutants name without any mutant; the first that fails, or ''."""
    names: dict[str, set[str]] = {}
    for file, _, name in (mutant.test.partition("::") for mutant in chosen if mutant.test):
        names.setdefault(file, set()).add(name)
    tests = (f"{file}::{' or '.join(sorted(each))}" for file, each in names.items())
    return next(filter(None, (trial(Mutant("", "", "", "", test)) for test in tests)), "")


def trial(mutant: Mutant | None) -> str:
    """Fork, apply ``mutant`` to a copy of the package, and return the test that fails first, or ''."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "konomi"
        shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant and mutant.old:
            source = (copy / mutant.file).read_text("utf-8")
            (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new), "utf-8")
        answer = Path(directory) / "answer"
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            try:
                answer.write_text(run_tests(Path(directory), mutant), "utf-8")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return f"(signal {os.WTERMSIG(status)})"
        return answer.read_text("utf-8") if answer.exists() else "NOT RUN: the tests broke off"


def main(arguments: list[str]) -> int:
    wrong = misplaced()
    if wrong:
        print("fragments that do not stand exactly once:", *wrong, sep="\n  ")
        return 1
    os.environ["KONOMI_FAST_TESTS"] = "1"  # see oracles.py
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    # imported here so that no fork has to, and kept out of the forks' garbage collection
    import hypothesis.strategies  # noqa: F401
    import pytest  # noqa: F401
    import torch

    if any(mutant.file in TRAINING for mutant in ([MUTANTS[int(number)] for number in arguments] or MUTANTS)):
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
    torch.set_num_threads(1)
    gc.freeze()
    chosen = [int(number) for number in arguments] or range(len(MUTANTS))
    if failure := ("" if arguments else trial(None)) or healthy([MUTANTS[number] for number in chosen]):
        print(f"the tests fail without any mutant: {failure}")
        return 1
    survivors, start = 0, time.monotonic()
    for number in chosen:
        mutant = MUTANTS[number]
        killer = trial(mutant)
        survivors += not killer or killer.startswith("NOT RUN")
        print(f"{number:3}  {mutant.file:22} {mutant.note:48} {killer or 'SURVIVES'}", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(chosen)} mutants, {len(chosen) - survivors} killed, {survivors} survive, {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
