"""A reward model: a language model or an encoder, and a linear head that reads one position of a text.

A decoder's head reads the last token. Texts go through a decoder packed end to end (`konomi.engine.packed`), a common beginning
once; where only the top layers are trained, the layers below run once for each text. An encoder runs padded on the right.

Shape suffixes: B texts, L tokens of the longest, T tokens of all, D width, C numbers that the head gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konomi.data.messages import Text
from konomi.data.tokens import length_batches, lengths_to_mask, pad_right
from konomi.engine import packed
from konomi.engine.device import score_tokens
from konomi.engine.layout import Layout
from konomi.engine.packed import Trunk
from konomi.errors import ModelError
from konomi.files import utf8, write_atomic
from konomi.models.language_head import LanguageHead
from konomi.models.load import quiet
from konomi.models.lora import merged
from konomi.models.policy import layers_below
from konomi.models.reader import PART, Reader
from konomi.models.text_baseline import Ensemble

FILE, VERSION = "reward.json", 2
"""Beside the weights of a saved model: what it was trained on, and its normalisation. Version 2: with an ensemble."""


@dataclass(frozen=True)
class Normalisation:
    """What makes a score comparable: normalised = (score - mean) / std.

    mean, std: of the initial model's samples, raw score units.
    count: samples.
    data_sha256: of the file that they were in.
    """

    mean: float
    std: float
    count: int
    data_sha256: str


@dataclass(frozen=True)
class Batch:
    """Texts as token ids.

    ids: [B, L] int64, any padding on the right.
    lengths: [B] int64, at least 1.
    shared: [B] int64: how many first tokens a text has in common with the others of its group.
    hidden: [B, L, D] input of the first layer that is trained, or None.
    starts: [B] int64, at least 1: the first token of each text whose likelihood is asked for; its length: of none. Or None.
    """

    ids: Tensor
    lengths: Tensor
    shared: Tensor
    hidden: Tensor | None = None
    starts: Tensor | None = None


class RewardModel(nn.Module):
    """Texts -> [B, C] raw scores (C = 1) or logits of labels.

    Args:
        model: a sequence-classification model of transformers.
        tokenizer: its own.
        max_length: tokens; a decoder cuts a longer text at its beginning, an encoder at its end.
        top_layers: train only this many top layers, what follows them, and the head.
        freeze_embeddings: the token embeddings stay as they are.
        chat: a prompt and its response are read as a conversation, written by the tokenizer's chat template.

    Raises:
        ConfigError: the model has fewer layers than ``top_layers``.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_length: int = 512, top_layers: int | None = None,
        freeze_embeddings: bool = False, chat: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.normalisation: Normalisation | None = None
        self.ensemble: Ensemble | None = None
        self.language: LanguageHead | None = None
        self.reader = Reader(tokenizer, model, max_length, chat=chat)
        self.pad_id = self.reader.pad_id
        model.config.get_text_config().pad_token_id = self.pad_id  # decoders ask for it to find each row's last token
        self.packs = self._check_packed()
        if isinstance(getattr(model, "score", None), nn.Linear):
            tokenizer.truncation_side = "left"  # the response is at the end
        self.trunk_layer: int | None = None
        """The first layer that is trained, where its input can be kept."""
        if freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        if top_layers is not None:
            self._freeze(top_layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def forward(self, batch: Batch) -> Tensor:
        """[B, C] float32 (or wider), with gradients where training is on; with ``batch.starts`` a further column, the mean
        negative log-likelihood of each text's tokens from there on, nats a token."""
        if not self.packs:
            mask_BL = lengths_to_mask(batch.lengths, batch.ids.shape[1]).long().to(self.device)
            logits_BC: Tensor = self.model(input_ids=batch.ids.to(self.device), attention_mask=mask_BL).logits
            return logits_BC.float() if logits_BC.dtype.itemsize < 4 else logits_BC
        layout, hidden_TD = self._hidden(batch)
        hidden_BD = layout.at(hidden_TD, torch.arange(len(batch.lengths)), batch.lengths - 1)
        with torch.autocast(hidden_BD.device.type, enabled=False):  # bfloat16 would round scores to 8 bits
            scores_BC: Tensor = self.model.score(hidden_BD.to(self.model.score.weight.dtype))
        if batch.starts is None or self.language is None:
            return scores_BC
        nll_B = self.language.nll(hidden_TD, layout, batch.ids, batch.lengths, batch.starts)
        return torch.cat([scores_BC, nll_B[:, None].to(scores_BC)], 1)

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each text, or prompt with its response, as its tokenizer makes them, cut to ``max_length``."""
        return self.reader.encode(texts)

    def batch(self, rows: Sequence[Sequence[int]], groups: Sequence[int] | None = None) -> Batch:
        """Rows of token ids as a batch. Rows with the same number in ``groups`` may share a beginning."""
        ids_BL, lengths_B = pad_right(rows, self.pad_id)
        shared = [0] * len(rows)
        members: dict[int, list[int]] = {}
        for place, group in enumerate(groups or ()):
            members.setdefault(group, []).append(place)
        for at in members.values():
            for place in at if len(at) > 1 else ():
                shared[place] = _common([rows[each] for each in at])
        return Batch(ids_BL, lengths_B, torch.tensor(shared))

    @torch.no_grad()
    def predict(
        self, texts: Sequence[Sequence[Text]], *, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> list[Tensor]:
        """[K, C] raw numbers, on the CPU, of the K texts of each group, which may share a beginning; of an ensemble its sum.

        Other texts change a text's numbers by float error alone, which in bf16 can be seen: products of another size may round
        otherwise.
        """
        was_training = self.training
        self.eval()
        order: list[int] = []
        numbers: list[Tensor] = []
        for part in _parts(texts):
            start = len(order)
            for rows_b, numbers_bC in self._launched(part, autocast):
                order += [start + row for row in rows_b]
                numbers.append(numbers_bC)
        self.train(was_training)
        if not numbers:
            return []
        read_BC = torch.cat(numbers).cpu()
        read = list(read_BC[torch.tensor(order).argsort()].split(list(map(len, texts))))
        return read if self.ensemble is None else self.ensemble.sum(read, texts)

    def _launched(
        self, texts: Sequence[Sequence[Text]], autocast: Callable[[], AbstractContextManager[Any]]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Batch by batch which texts it has, counted through all groups, and their numbers [b, C], not waited for."""
        rows, most, end = self.encode([text for group in texts for text in group]), score_tokens(self.device)[0], 0
        pieces: list[list[int]] = []  # a group larger than a batch gives several
        for group in texts:
            start, end = end, end + len(group)
            size = max(1, most // max(map(len, rows[start:end]), default=1))
            pieces += [list(range(first, min(first + size, end))) for first in range(start, end, size)]
        widths = [max(len(rows[i]) for i in piece) for piece in pieces]
        for batch in length_batches(widths, lambda some: sum(len(pieces[i]) for i in some) * widths[some[-1]] <= most):
            chosen = [row for i in batch for row in pieces[i]]
            with autocast():
                numbers_bC = self(self.batch([rows[i] for i in chosen], [i for i in batch for _ in pieces[i]]))
            yield chosen, numbers_bC.float()

    def normalised(self, raw: float) -> float:
        """A raw score on the scale of the initial model's samples; unchanged where there is no scale."""
        scale = self.normalisation
        return raw if scale is None else (raw - scale.mean) / scale.std

    @torch.no_grad()
    def trunk(self, batch: Batch) -> Tensor | None:
        """[B, L, D] input of the first trained layer, the same in every epoch. None if it cannot be kept."""
        if not self.packs or not self.trunk_layer:
            return None
        layout, ids_T = _layout(batch, self.device)
        with packed.keeping(self.model, self.trunk_layer) as kept:
            packed.run(self.model, ids_T, layout.positions_T, layout)
        return layout.pad(kept[0])

    def save(self, directory: Path, facts: dict[str, Any]) -> None:
        """Write the model, its tokenizer, ``reward.json`` (``facts`` and the normalisation), and the rest of an ensemble."""
        with quiet():
            merged(self.model).save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        scale = asdict(self.normalisation) if self.normalisation else {}
        chat = self.reader.render is not None
        content = {"version": 1, **facts, "max_length": self.reader.max_length, "chat": chat, **scale}
        if self.ensemble:
            self.ensemble.text_baseline.save(directory)
            content |= {"version": VERSION, "ensemble": {"network": self.ensemble.network, "text": self.ensemble.text}}
        write_atomic(directory / FILE, utf8(json.dumps(content, ensure_ascii=False, indent=2) + "\n"))

    def _hidden(self, batch: Batch) -> tuple[Layout, Tensor]:
        """Where the tokens are, and the last hidden states [T, D]."""
        layout, ids_T = _layout(batch, self.device)
        if batch.hidden is not None and self.trunk_layer:
            return layout, packed.run_from(self.model, Trunk(self.trunk_layer, batch.hidden), ids_T, layout)
        return layout, packed.run(self.model, ids_T, layout.positions_T, layout)

    @torch.no_grad()
    def _check_packed(self) -> bool:
        """Whether packed texts give the model's own numbers: it has to be a decoder whose head reads the last token."""
        if not isinstance(getattr(self.model, "score", None), nn.Linear) or not packed.packs(self.model):
            return False
        first = next(i for i in range(3) if i != self.pad_id)
        rows = [[first] * 2, [first] * 4]
        was_training = self.model.training
        self.model.eval()
        theirs = torch.cat([self.model(input_ids=torch.tensor([row], device=self.device)).logits for row in rows])
        self.packs = True
        try:
            ours = self(self.batch(rows))
        except packed.CannotPack:
            return False
        finally:
            self.model.train(was_training)
        return torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3)

    def _freeze(self, top_layers: int) -> None:
        below = layers_below(self.model, top_layers)
        stays = {id(p) for p in self.model.base_model.parameters()}
        if self.packs:
            stays -= {id(p) for p in packed.top_parameters(self.model, top_layers)}
        else:  # an encoder: its layers are in a list somewhere below
            stays -= {id(p) for layer in _layers(self.model)[-top_layers:] for p in layer.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) in stays:
                parameter.requires_grad_(False)
        self.trunk_layer = below if self.packs else None


def _parts(texts: Sequence[Sequence[Text]]) -> Iterator[list[Sequence[Text]]]:
    """Groups one after another, as many together as have `PART` texts."""
    part: list[Sequence[Text]] = []
    count = 0
    for group in texts:
        part.append(group)
        count += len(group)
        if count >= PART:
            yield part
            part, count = [], 0
    if part:
        yield part


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens are the same in all rows."""
    return next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def _layout(batch: Batch, device: torch.device) -> tuple[Layout, Tensor]:
    layout = Layout(batch.lengths, (batch.ids, batch.shared), device)
    return layout, layout.ids(batch.ids)


def _layers(model: Any) -> nn.ModuleList:
    count = packed.layer_count(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: its {count} layers are not found, so that model.top_layers cannot be used with it")
