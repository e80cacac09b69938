"""Random streams by name.

Every random draw of a run comes from a stream that is named by the run's seed and by what it is for: the response of
episode 17, the mini-batch order of update 3. So a draw depends on nothing that was drawn before it: batch neighbours,
batch size and interruptions change nothing, and a resumed run needs counters alone to draw what it would have drawn.
"""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *name: str | int) -> int:
    """Return the 63-bit seed of the stream ``name`` of the run with seed ``seed``.

    >>> stream_seed(0, "rollout", 17) == stream_seed(0, "rollout", 17)
    True
    >>> stream_seed(0, "rollout", 17) == stream_seed(0, "rollout", 18)
    False
    """
    text = "\x1f".join([str(seed), *map(str, name)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
