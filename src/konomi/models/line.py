"""The straight line through the initial and the trained weights of a policy: ``w0 + share (w1 - w0)``.

Along it the KL from the initial model and the reward change smoothly, so that it is a dial: the way back is the interpolation
toward the initialisation of WARP (Rame et al. 2024, arXiv:2406.16768, section 3.3). A share above 1 goes on in the direction in
which training went.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.models.lora import adapted_layers, adapter_weights
from konomi.models.policy import Policy


class Line:
    """Moves a policy's language model along its line; the value head stays as it is.

    With adapters, ``B A`` is what was trained, and scaling ``B`` moves along the line. It holds a copy of the trained weights.

    Args:
        policy: at the trained weights.
        initial: what it began as, from :func:`konomi.make_reference`.
    """

    def __init__(self, policy: Policy, initial: PreTrainedModel) -> None:
        moved: list[tuple[Tensor, Tensor | None]]
        if adapted_layers(policy.lm):
            moved = [(b, None) for name, b in adapter_weights(policy.lm).items() if ".lora_B." in name]
        else:
            first = dict(initial.named_parameters())
            moved = [(x, first[name]) for name, x in policy.lm.named_parameters() if x.requires_grad]
        self._moved = [(x, start, x.detach().clone()) for x, start in moved]

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the language model to a share, in place. Both ends are exact; weights in bfloat16 are rounded."""
        for x, start, end in self._moved:
            wide = torch.promote_types(x.dtype, torch.float32)
            origin = torch.zeros_like(end, dtype=wide) if start is None else start.to(wide)
            x.copy_(torch.lerp(origin, end.to(wide), share))
