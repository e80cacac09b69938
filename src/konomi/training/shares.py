"""How several processes divide an update among them, and exchange the parts so that each holds all of it.

Shape suffixes: B sequences of the whole batch, b of a process, L query + response tokens, R response tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from konomi.config import PPOConfig
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout, micro_batches
from konomi.engine.sampler import Generation
from konomi.errors import ConfigError
from konomi.runs import processes
from konomi.text import plural
from konomi.training.accelerator import Engine
from konomi.training.passes import Models


def check_mini_batch(ppo: PPOConfig) -> None:
    """Raise ConfigError if a mini-batch has fewer responses than there are processes."""
    if ppo.mini_batch_size < processes.count():
        among = plural(processes.count(), "process", "processes")
        raise ConfigError(
            f"ppo.mini_batch_size = {ppo.mini_batch_size} cannot be divided among {among}; raise it, or start fewer"
        )


def divide(rows: Tensor, lengths: Tensor, together: int, parts: int) -> list[Tensor]:
    """Divide the rows of a mini-batch into ``parts`` of about as many tokens; none is empty, where there are rows enough.

    ``together`` rows in a row, the responses to one prompt, stay in one part unless there are fewer such groups than parts.
    ``lengths``: [B] tokens of every row.

    >>> import torch
    >>> [part.tolist() for part in divide(torch.tensor([4, 5, 0, 1, 2, 3]), torch.tensor([1, 1, 5, 5, 9, 9]), 2, 2)]
    [[4, 5], [0, 1, 2, 3]]
    """
    if parts == 1:
        return [rows]
    groups = rows.view(-1, together if len(rows) >= together * parts else 1)
    tokens = lengths[groups].sum(1).tolist()
    loads = [(0, part) for part in range(parts)]
    owner = [0] * len(groups)
    for group in sorted(range(len(groups)), key=lambda group: -tokens[group]):  # the longest to whoever has least
        load, owner[group] = heapq.heappop(loads)
        heapq.heappush(loads, (load + tokens[group], owner[group]))
    return [groups[torch.tensor([each == part for each in owner])].flatten() for part in range(parts)]


def own_micro_batches(rows: Tensor, lengths: Tensor, together: int, models: Models) -> list[Tensor]:
    """This process's part of a mini-batch, see :func:`divide`, in micro-batches.

    A pass of a divided policy is an exchange: there all processes have as many, of which the last ones may be empty.
    """
    engine, mine = models.engine, models.engine.accelerator.process_index
    parts = divide(rows, lengths, together, engine.processes)
    own = micro_batches(lengths, parts[mine], models.micro_batch_tokens)
    most = max(len(micro_batches(lengths, part, models.micro_batch_tokens)) for part in parts) if engine.shards else len(own)
    return own + [rows.new_empty(0)] * (most - len(own))


def own_rows(count: int, together: int) -> range:
    """Which responses this process draws, all to one prompt if there are prompts enough."""
    if count < together * processes.count():
        return processes.own(count)
    mine = processes.own(count // together)
    return range(mine.start * together, mine.stop * together)


def whole_rollout(draw: Callable[[], Rollout], drawn: range, pad: int) -> Rollout:
    """The responses drawn by all processes, in order, in each of them. ``drawn``: those of this process, possibly none.

    Raises:
        RunError: one of them could not.
    """
    parts = [each for each in processes.all_or_none(lambda: draw() if drawn else None) if each is not None]
    if len(parts) == 1:
        return parts[0]
    width = max(each.ids.shape[1] for each in parts)
    ids_BL = torch.cat([functional.pad(each.ids, (0, width - each.ids.shape[1]), value=pad) for each in parts])
    names = ("query_lengths", "response_lengths", "ended")
    return Rollout(ids_BL, *(torch.cat([getattr(each, name) for each in parts]) for name in names))


def whole_generation(draw: Callable[[], Generation], drawn: range, pad: int, engine: Engine) -> Generation:
    """The same with what was computed while drawing."""
    if engine.processes == 1:
        return draw()
    part: Generation

    def rollout_drawn() -> Rollout:
        nonlocal part
        part = draw()
        return part.rollout

    rollout = whole_rollout(rollout_drawn, drawn, pad)
    figures_3BR = _spread(torch.stack([part.logprobs, part.entropy, part.values]), drawn, rollout.mask.shape, engine)
    trunk = part.trunk
    if trunk is not None:
        hidden_DBL = _spread(trunk.hidden.movedim(-1, 0), drawn, rollout.ids.shape, engine)
        trunk = Trunk(trunk.layer, hidden_DBL.movedim(0, -1).contiguous())
    return Generation(rollout, figures_3BR[0], figures_3BR[1], figures_3BR[2], trunk, part.served)


def _spread(x_CbR: Tensor, mine: range, shape: Sequence[int], engine: Engine) -> Tensor:
    """[C, *shape] of all rows, from the rows that each process has."""
    x_CBR = x_CbR.new_zeros(len(x_CbR), *shape)
    x_CBR[:, mine.start : mine.stop, : x_CbR.shape[2]] = x_CbR
    return engine.total(x_CBR)
