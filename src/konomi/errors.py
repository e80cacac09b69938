"""What konomi raises when it cannot do what was asked.

::

    KonomiError
    ├── ConfigError   a setting is unknown, of the wrong type, or contradicts another      exit 2
    ├── DataError     a file, a column or a row is not what was said                       exit 2
    ├── ModelError    a model or tokenizer cannot be found, read or used                   exit 2
    └── RunError      a run that had begun cannot go on                                    exit 1
        └── NotFiniteError   because a number is NaN or infinite

A message says what is wrong, where, and how to mend it. The command line prints it without a traceback.
"""

from __future__ import annotations


class KonomiError(Exception):
    """The base of all errors that konomi raises on purpose."""

    exit_code = 2


class ConfigError(KonomiError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(KonomiError):
    """A file, a column or a row is not what was said."""


class ModelError(KonomiError):
    """A model or tokenizer cannot be found, read or used."""


class RunError(KonomiError):
    """A run that had begun cannot go on."""

    exit_code = 1


class NotFiniteError(RunError):
    """A number of a run is NaN or infinite: ``what``, in a few words."""

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what


FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a library's code raises when it is given something that it does not know."""
