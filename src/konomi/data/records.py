"""The records that data is read into. Standard library only."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A text that responses are drawn for.

    Attributes:
        text: as it was read, white space and all.
        columns: the row's other columns by name, the same names in all prompts of a source; reward functions get them.
    """

    text: str
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """32 hex digits that name the text, whichever way its accents are encoded and whatever white space is around.

        >>> Prompt("caf\\u00e9").key == Prompt(" cafe\\u0301 ").key
        True
        """
        text = unicodedata.normalize("NFC", self.text).strip()
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
