"""Batches of transformers' Trainer in several processes: a step has the same rows as in one process.

Accelerate's own samplers fill up the last step of an epoch with rows from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from konomi.config import DPOConfig, RewardTraining, SFTConfig
from konomi.errors import ConfigError
from konomi.runs import processes


def micro_batch_size(config: SFTConfig | RewardTraining | DPOConfig, section: str) -> int:
    """Rows that a process computes at a time: no more than is set, and a divisor of its share of ``batch_size``.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
    """
    share, rest = divmod(config.batch_size, processes.count())
    if rest or not share:
        raise ConfigError(
            f"{section}.batch_size = {config.batch_size} cannot be divided among the processes, {processes.count()} of them; "
            "set a multiple of that"
        )
    most = min(share, config.micro_batch_size or share)
    return next(size for size in range(most, 0, -1) if share % size == 0)


class OwnBatches(Sampler[list[int]]):
    """This process's micro-batches of an epoch: of the rows of each step as many as the others have, or one more.

    In a step with fewer rows than processes, the processes without a row get fillers: row ``i`` as a filler is ``rows + i``.

    Args:
        rows: how many there are.
        batch: rows of a step, in all processes.
        micro: most rows of a micro-batch.
        seed: of the order, which is that of one process.
    """

    def __init__(self, rows: int, batch: int, micro: int, seed: int) -> None:
        self.rows, self.batch = rows, batch
        self.count, self.index = processes.count(), processes.index()
        self.together = micro * self.count
        self.order = SeedableRandomSampler(range(rows), generator=torch.Generator(), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(-(-len(step) // self.together) for step in self._steps(range(self.rows)))

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps(list(self.order)):
            parts = -(-len(step) // self.together) * self.count
            for part in range(self.index, parts, self.count):
                mine = step[len(step) * part // parts : len(step) * (part + 1) // parts]
                yield list(mine) or [self.rows + step[0]]

    def _steps(self, order: Sequence[int]) -> list[Sequence[int]]:
        return [order[start : start + self.batch] for start in range(0, self.rows, self.batch)]


class OwnLoader(DataLoader[Any]):
    """A loader of `OwnBatches`; ``filler`` makes of a row one that nothing is learned from."""

    def __init__(self, data: Any, batches: OwnBatches, collate: Callable[[list[Any]], Any], filler: Callable[[Any], Any]) -> None:
        super().__init__(_Filled(data, filler), batch_sampler=batches, collate_fn=collate)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer calls it."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _Filled(Dataset[Any]):
    def __init__(self, data: Any, filler: Callable[[Any], Any]) -> None:
        self.data, self.filler = data, filler

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index] if index < len(self.data) else self.filler(self.data[index - len(self.data)])
