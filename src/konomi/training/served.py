"""Responses from an inference server during training: the policy's weights are handed over before each update, and its
log-probabilities are compared with the trainer's.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi import ops
from konomi.config import SamplingConfig, ServerConfig
from konomi.data.tokens import Tokens
from konomi.engine.sampler import Draws, Generation, make_draws
from konomi.engine.server import InferenceServer
from konomi.errors import RunError
from konomi.files import new_directory
from konomi.models.lora import adapted_layers, save_adapter
from konomi.models.policy import Policy
from konomi.runs import processes
from konomi.service import UNREACHED, Refused
from konomi.training.experience import Comparison

if TYPE_CHECKING:
    from konomi.training.ppo import PPOTrainer

ALLOWED_GAP = 0.25
"""Nats a token that the server's log-probabilities may be off the trainer's in the mean. Weights in bfloat16 are off by 0.03,
another model by more than 1."""
PROBES = 4
"""Responses that are drawn before training."""


class Served:
    """Draws responses on a server that has the policy's weights; called as :func:`konomi.engine.sampler.generate` is.

    Weights go through files: a model that the server reloads, or, of a policy with adapters, the adapters alone, each time under
    another name, so that the server cannot take old ones for new.

    Args:
        server: asked already what it serves.
        policy: what is handed over, as it is then.
        directory: for the files; the server sees it under the same path. None: `probe` chooses it.
        tell: called with a message while waiting for the server.
    """

    def __init__(
        self, server: InferenceServer, policy: Policy, directory: Path | None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.server, self.policy, self.tell = server, policy, tell
        self._directory, self._name = directory, ""

    @property
    def directory(self) -> Path:
        """Where the files are; `close` removes all of it."""
        assert self._directory is not None, "the server has not been probed"
        return self._directory

    def __call__(
        self, lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: SamplingConfig,
        *_: Any, **__: Any,
    ) -> Generation:  # fmt: skip
        """Draw one response for each query. A server that is away is waited for; since it may come back with other weights, it
        then gets the policy's again, and all responses are asked anew.

        Raises:
            RunError: it stays away, does not take the weights, or answers with something else.
        """
        loaded = True

        def draw() -> Generation:
            nonlocal loaded
            if not loaded:
                self._load()
            loaded = False
            try:
                return self.server.generate(lm, tokens, queries, draws, config, self._adapter)
            except Refused as error:
                if error.status == 404:  # it has come back without the adapter
                    raise OSError(str(error)) from error
                raise

        drawn: Generation = self.server.service.retried(draw, self.tell)
        return drawn

    def weights(self, compared: Comparison) -> Tensor:
        """[B, R] importance weights of the responses."""
        assert compared.drawn is not None
        config = self.server.config
        return ops.importance_weights(
            compared.logprobs, compared.drawn, compared.mask, cap=config.importance_cap, level=config.importance
        )

    @torch.no_grad()
    def probe(self, trainer: PPOTrainer, run: Path) -> None:
        """Hand over the weights that training in the directory ``run`` begins with, and make sure that the server has them: a few
        responses are as likely by the policy as it says.

        Raises:
            RunError: it does not take them, or its log-probabilities are of another model or temperature.
        """
        own, config, label = self.server.config.directory, trainer.rollout_config, self.server.service.label
        self._directory = Path(own).resolve() / run.name if own else run.resolve() / "served"
        _, queries = trainer.queries.take(0, PROBES)
        draws = make_draws(config, trainer.seed, [("probe", i) for i in range(PROBES)])
        self.hand_over(patient=False)
        drawn = self(self.policy.lm, trainer.tokens, queries, draws, config)
        with trainer.engine.autocast():
            gap, plain = (_mean_gap(self.policy, drawn, temperature) for temperature in (config.temperature, 1.0))
        if not gap <= ALLOWED_GAP:
            why = "it serves another model, or has not taken the policy's weights"
            if plain <= ALLOWED_GAP:
                why = "it tells those before the temperature; start it with --logprobs-mode processed_logprobs"
            raise RunError(f"{label}: its log-probabilities are off the policy's by {gap:.2g} nats a token: {why}")

    def hand_over(self, patient: bool = True) -> None:
        """Write the weights and have the server load them; of several processes the main one, for all.

        Raises:
            RunError: it does not take them, or stays away; not ``patient``: at the first try.
        """
        old, self._name = self._name, processes.shared(f"konomi-{uuid.uuid4().hex[:12]}")

        def write_and_load() -> None:
            with new_directory(self.directory / self._name) as draft:
                if adapted_layers(self.policy.lm):
                    save_adapter(self.policy.lm, draft)
                else:
                    self.policy.save_lm(draft)
            try:
                if patient:
                    self.server.service.retried(self._load, self.tell)
                else:
                    self._load()
            except UNREACHED as error:
                seen = f"Does it see {self.directory}? See docs/server.md"
                raise RunError(f"{self.server.service.label}: {error}. {seen}") from error
            self._forget(old)

        processes.first(write_and_load)

    def _load(self) -> None:
        if self._adapter:
            self.server.load_adapter(self.directory / self._adapter, self._adapter)
        else:
            self.server.load(self.directory / self._name)

    @property
    def _adapter(self) -> str | None:
        """The name by which the server knows the adapters."""
        return self._name if adapted_layers(self.policy.lm) else None

    def _forget(self, name: str) -> None:
        """Remove weights that the server has replaced."""
        if name:
            if self._adapter:
                self.server.unload_adapter(name)
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def close(self) -> None:
        """Remove the files written for the server."""
        if self._directory is not None and self._name and processes.is_main():
            self._forget(self._name)
            shutil.rmtree(self.directory, ignore_errors=True)


def _mean_gap(policy: Policy, drawn: Generation, temperature: float) -> float:
    """How far the log-probabilities of responses are off a policy's, nats a token."""
    own_BR = policy(drawn.rollout, temperature, with_entropy=False).logprobs
    mask_BR = drawn.rollout.mask.to(own_BR.device)
    return float(ops.masked_mean((own_BR - drawn.logprobs.to(own_BR)).abs(), mask_BR))


def check_gap(gap: float, update: int) -> None:
    """Raise RunError if the mean gap of an update is that of other weights than the policy's."""
    if not gap <= ALLOWED_GAP:
        raise RunError(
            f"update {update}: the inference server's log-probabilities are off the policy's by {gap:.2g} nats a token "
            f"(allowed: {ALLOWED_GAP:g}): it drew with other weights. The last checkpoint is untouched; see docs/server.md"
        )


@contextmanager
def serving(config: ServerConfig, room: int, policy: Policy, tell: Callable[[str], None]) -> Iterator[Served | None]:
    """What draws the responses of a run on the server of the settings, which is asked first what it serves; nothing without one.

    ``room``: tokens of the longest query and response together.

    Raises:
        ConfigError, ModelError: the server cannot be used.
    """
    if config.url is None:
        yield None
        return
    server = InferenceServer(config)
    server.check(room)
    served = Served(server, policy, None, tell)
    try:
        yield served
    finally:
        served.close()
