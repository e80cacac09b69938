"""A user's Python function as a reward."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from konomi import config as configuration
from konomi.errors import ConfigError
from konomi.files import local_path
from konomi.rewards.base import Columns, Texts, TextScore, check_scores

_OWN = ("texts", "prompts", "responses")
# what importing a module commonly raises; anything else passes through with its traceback
_IMPORT_ERRORS = (
    ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError, RuntimeError,
    ArithmeticError, AssertionError, SystemExit,
)  # fmt: skip

IMPORTING: list[str] = []
"""The modules that are being imported for a reward: none of them may start a training."""


class FunctionReward:
    """Calls ``package.module:function`` or ``path/to/file.py:function`` with the arguments that the function names.

    They are lists of equal length, copies: ``texts`` (prompt + response), ``prompts``, ``responses``, and the data set's other
    columns by name (a column with one of these three names is not passed on). A function with ``**kwargs`` gets all.

    While the module is imported, the current directory (``package.module``) or the file's directory is searched first;
    later it is not, so imports belong at the top of the file.
    """

    def __init__(self, config: configuration.FunctionReward, function: Callable[..., Any] | None = None) -> None:
        """``function``: call this one instead of the one that the configuration names."""
        self.name = config.name
        self.function = _find(config.name) if function is None else _checked(function, config.name)
        parameters = _parameters(self.function, config.name)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._wanted = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]
        self._all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.reads = None if self._all else set(self._wanted) - set(_OWN)

    def check(self, columns: Iterable[str]) -> None:
        """Raise ConfigError if the function cannot be called where the data set has these other columns."""
        have = dict.fromkeys([*_OWN, *columns])
        if missing := [name for name in self._required if name not in have]:
            raise ConfigError(
                f"reward.name: {self.name} needs {', '.join(map(repr, missing))}, which is not a column of the data; "
                f"available: {', '.join(have)}. Rename the argument, or give it a default"
            )

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
        """Return what the function returns for the texts, as floats or pairs. What it raises comes through.

        Raises:
            ConfigError: the function needs a column that is not there.
            RunError: it did not return one finite number (or pairs) a text.
        """
        self.check(columns)
        offered = {**columns, "texts": texts, "prompts": prompts, "responses": responses}
        given = {name: list(value) for name, value in offered.items() if self._all or name in self._wanted}
        return check_scores(self.function(**given), responses, self.name, texts)


def _find(name: str) -> Callable[..., Any]:
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute.isidentifier():
        raise ConfigError(f"reward.name: {name}: write package.module:function or path/to/file.py:function")
    if module_name == "__main__":
        raise ConfigError(
            f"reward.name: {attribute} was defined in a Python session that is over; write it into a file and name that, or give "
            "the function to konomi.train again"
        )
    module = _import(module_name, name)
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"reward.name: {module_name} has no {attribute!r}; callable there: {', '.join(own) or 'nothing'}")
    return _checked(getattr(module, attribute), name)


def _checked(function: Any, name: str) -> Callable[..., Any]:
    if not callable(function):
        raise ConfigError(f"reward.name: {name} is a {type(function).__name__}; a function is needed")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward.name: {name} is an async function; a plain one is needed (it may call asyncio.run)")
    return function  # type: ignore[no-any-return]


def _import(module_name: str, name: str) -> ModuleType:
    path = local_path(module_name, ConfigError)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ConfigError(f"reward.name: {module_name}: no such file (seen from {Path.cwd()})")
    searched_first = str(path.resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, searched_first)
    IMPORTING.append(module_name)
    try:
        return _run_file(path.resolve()) if is_file else importlib.import_module(module_name)
    except _IMPORT_ERRORS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if isinstance(error, (ImportError, SyntaxError)) else f" ({frame.filename}, line {frame.lineno})"
        raise ConfigError(f"reward.name: {name}: cannot be imported: {type(error).__name__}: {error}{at}") from error
    finally:
        IMPORTING.pop()
        with suppress(ValueError):  # the module itself may have taken it out
            sys.path.remove(searched_first)


def _run_file(path: Path) -> ModuleType:
    # a unique name, so that a file called json.py hides nothing
    module_name = f"_konomi_reward_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # true of every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"reward.name: {name}: its arguments cannot be read; wrap it in a def") from error
    if only := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise ConfigError(f"reward.name: {name}: argument {only[0]!r} cannot be given by name; remove the / behind it")
    return parameters
