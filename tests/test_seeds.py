"""Named random streams."""

from __future__ import annotations

import torch

from konomi.seeds import stream_seed


def test_streams_stay_what_they_are() -> None:
    """A checkpoint holds counters only: other numbers here would break the resumption of runs of an older version."""
    assert stream_seed(0, "rollout", 17) == 7271011467022291700
    assert stream_seed(7) == 8333924190356522945


def test_every_part_of_a_name_counts() -> None:
    names = [
        (0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), (0, "a1"), (0, "", "a", 1), (0, "a", 1, 1),
        (0, 1, "a"), (0, "ab", "c"), (0, "a", "bc"),
    ]  # fmt: skip
    assert len({stream_seed(*name) for name in names}) == len(names)


def test_a_seed_suits_torch() -> None:
    seeds = [stream_seed(0, "x", i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are used
    torch.Generator().manual_seed(max(seeds))
