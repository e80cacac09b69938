"""The processes of one job, as a launcher (accelerate launch, torchrun) starts them: the main process, and communication.

All processes run the same steps in the same order. Only the main one writes, prints and calls what must be called once; a single
process is the main one, and nothing heavy is imported. Communication goes through Accelerate.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from konomi.errors import KonomiError, RunError
from konomi.runs.environment import launched_processes
from konomi.text import plural

T = TypeVar("T")
S = TypeVar("S")

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others. A process that ended is noticed at once; a reward may be slow."""
LATER = 1.0
"""Seconds by which the other processes delay an error, so that the main one prints it first."""


def _state() -> Any:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def several() -> bool:
    """Whether a launcher has started more than one process."""
    return launched_processes() > 1


def count() -> int:
    """How many processes there are."""
    return int(_state().num_processes) if several() else 1


def index() -> int:
    """The number of this process; 0 is the main one."""
    return int(_state().process_index) if several() else 0


def is_main() -> bool:
    """Whether this is the main process, which writes and prints."""
    return index() == 0


def wait() -> None:
    """Wait for all processes."""
    if several():
        _state().wait_for_everyone()


def gather(x: T) -> list[T]:
    """The objects of all processes, in their order, in every process."""
    if not several():
        return [x]
    from accelerate.utils import gather_object

    _state()
    every: list[T] = gather_object([x])
    return every


def shared(x: T) -> T:
    """The main process's object, in every process."""
    if not several():
        return x
    from accelerate.utils import broadcast_object_list

    _state()
    box = [x if is_main() else None]
    broadcast_object_list(box, from_process=0)
    return x if is_main() else box[0]  # type: ignore[return-value]


def first(call: Callable[[], T]) -> T:
    """What ``call`` returns in the main process, which alone calls it, in all of them.

    Raises:
        KonomiError: what it raised, in all of them.
    """
    if not several():
        return call()
    result: Any = None
    try:
        result = call() if is_main() else None
    except KonomiError as error:
        shared((None, error))
        raise
    result, failure = shared((result, None))
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def all_or_none(call: Callable[[], T]) -> list[T]:
    """What ``call`` returns in each process, in all of them.

    Raises:
        KonomiError: what it raised in the first process in which it did, in all of them.
    """
    if not several():
        return [call()]
    result: Any = None
    mine: KonomiError | None = None
    try:
        result = call()
    except KonomiError as error:
        mine = error
    every = gather((result, mine))
    for number, (_, failure) in enumerate(every):
        if failure is not None:
            raise (mine if number == index() else None) or failure
    return [x for x, _ in every]


def own(count_of_all: int) -> range:
    """Which of so many things are this process's: as many in a row as others have, or one more."""
    here, processes = index(), count()
    return range(count_of_all * here // processes, count_of_all * (here + 1) // processes)


def divided(things: Sequence[S], call: Callable[[Sequence[S]], Sequence[T]]) -> list[T]:
    """``call(things)``, each process calling it for its own part alone; not called for none. Raises as `all_or_none`."""
    mine = own(len(things))
    parts = all_or_none(lambda: call(things[mine.start : mine.stop]) if mine else [])
    return [x for part in parts for x in part]


@contextmanager
def survivors() -> Iterator[None]:
    """Say that another process has ended where an exchange with it fails, with a RunError."""
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        raise RunError(
            f"another of {plural(launched_processes(), 'process', 'processes')} has ended, so that this one cannot go on; see "
            "its message, or the launcher's, for why. What was saved is whole: --resume goes on from there"
        ) from error


def lost(error: BaseException | None) -> bool:
    """Whether this is the failure of an exchange, because another process has ended."""
    if not several() or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def says(error: BaseException) -> bool:
    """Whether this process, which is about to end, is the one to print an error: of those with the same message the first, and of
    those that only say that another process has ended, or that the launcher stops this one, the first if nobody has said why."""
    if not several() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    follows = lost(error.__cause__) or (isinstance(error, KeyboardInterrupt) and "at once" in str(error))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"konomi/{attempt}/said"]
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher's, when the first process has ended: this one is about to
        signal.signal(number, signal.SIG_IGN)
    if not follows:
        time.sleep(0 if is_main() else LATER)
        names.append(f"konomi/{attempt}/{hashlib.sha256(str(error).encode('utf-8', 'replace')).hexdigest()}")
    try:
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=10))
        return [store.add(name, 1) for name in names][-1] == 1
    except DistError:  # the launcher has gone
        return True


def leave() -> None:
    """Wait for the others at the end of the work, and part."""
    if several():
        from torch.distributed import destroy_process_group

        wait()
        destroy_process_group()
