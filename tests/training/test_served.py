"""Updates whose responses an inference server draws: weights handed over, its log-probabilities, and what goes wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_server import TinyServer, serving
from konomi.config import ServerConfig
from konomi.engine.server import InferenceServer
from konomi.errors import RunError
from konomi.training import served as training_served
from konomi.training.served import Served
from tiny import tiny_model
from tiny_run import disturbed, facts, sharp_model, tiny_trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's
OWN = ("ppo/server/", "ppo/policy/sampler_gap")
"""Metrics that only one of two trainers has, or that are of something else."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(sharp_model("gpt2")) as started:
        yield started


def served_trainer(server: TinyServer, directory: Path, said: list[str] | None = None, **settings: Any) -> Any:
    """A trainer of the served model; settings with names of `ServerConfig` are for that."""
    names = ServerConfig.model_fields.keys()
    config = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    trainer = tiny_trainer(**{"model": copy.deepcopy(server.first), "precision": "fp64", **rest})
    found = InferenceServer(ServerConfig(url=server.url, **{"backoff": 0.0, "retries": 3, "timeout": 20.0, **config}))
    found.check(20)
    trainer.sampler = Served(found, trainer.policy, directory / "served", (said if said is not None else []).append)
    server.draws_of(trainer.rollout_config, trainer.seed, [("rollout", i) for i in range(64)])
    return trainer


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("settings", [{}, {"importance": "sequence"}, {"lora": 4}])
def test_of_the_same_responses_it_learns_the_same(server: TinyServer, tmp_path: Path, settings: dict[str, Any]) -> None:
    """The server gets the weights of each update, as a whole or as adapters."""
    lora = {"lora": 4} if "lora" in settings else {}
    own = tiny_trainer(model=copy.deepcopy(server.first), precision="fp64", **lora)
    trainer = served_trainer(server, tmp_path / "w", **settings)
    trainer.sampler.probe(trainer, tmp_path / "w")
    for _ in range(3):
        expected, step = own.step(), trainer.step()
        assert step.samples == [{**row, "kl": pytest.approx(row["kl"], abs=1e-9)} for row in expected.samples]
        theirs = {k: v for k, v in facts(step.metrics).items() if not k.startswith(OWN)}
        assert theirs == {k: pytest.approx(v, abs=1e-8) for k, v in facts(expected.metrics).items() if not k.startswith(OWN)}
        assert step.metrics["ppo/server/gap_max"] < 1e-9 and abs(step.metrics["ppo/server/weight_mean"] - 1) < 1e-9
        assert step.metrics["ppo/policy/sampler_gap"] < 1e-9
    assert torch.allclose(weights(trainer.policy), weights(own.policy), rtol=0, atol=1e-8)
    assert len(server.loaded) == len(set(server.loaded)) == 4  # with that of the probe
    assert [path.name for path in (tmp_path / "w/served").iterdir()] == [server.loaded[-1].name]
    assert len(server.adapters) == (1 if lora else 0)
    trainer.sampler.close()
    assert not (tmp_path / "w/served").exists() and not server.adapters


@pytest.mark.usefixtures("fresh_accelerator")
def test_without_a_directory_of_its_own_nothing_is_written_or_removed(
    server: TinyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = served_trainer(server, tmp_path)
    (tmp_path / "of others").touch()
    with training_served.serving(ServerConfig(url=server.url), 20, trainer.policy, str) as sampler:
        assert sampler is not None
        with pytest.raises(AssertionError, match="not been probed"):
            sampler.hand_over()
    assert [path.name for path in tmp_path.iterdir()] == ["of others"]


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("lora", [None, 4])
def test_a_server_that_dies_amid_an_update_and_comes_back_gets_the_weights_again(
    server: TinyServer, tmp_path: Path, lora: int | None
) -> None:
    said: list[str] = []
    trainer, other = (served_trainer(server, tmp_path / name, said, lora=lora, concurrency=4) for name in "ab")
    trainer.step()
    trainer.sampler.close()
    other.step()

    def dies(_: str, answer: Any) -> Any:
        server.silent, server.change = 3, lambda path, answer: answer
        return answer

    server.change = dies
    before, step = len(server.loaded), other.step()
    assert len(server.loaded) == before + 2  # of the update, and again
    assert step.metrics["ppo/server/gap_max"] < 1e-9
    assert said and all("asked again in 0 s" in line for line in said)
    assert step.samples == trainer.step().samples


def first_token_is_less_likely(_: str, answer: Any) -> Any:
    """By a factor of 3."""
    answer["choices"][0]["logprobs"]["token_logprobs"][0] -= math.log(3)
    return answer


@pytest.mark.usefixtures("fresh_accelerator")
def test_log_probabilities_that_are_off_are_measured_and_made_up_for(server: TinyServer, tmp_path: Path) -> None:
    """The first token of each response is three times as likely by the policy as the server says: it weighs the cap."""

    server.change = first_token_is_less_likely
    trainer = served_trainer(server, tmp_path / "w", rollout={"response_tokens": (6, 6), "stop": "length"})
    trainer.baseline()
    _, drawn = trainer._generate()
    passes = trainer._passes(drawn.rollout, epoch=0)
    compared = trainer.models.compare(drawn, passes, first=True)
    experience = trainer._experience(drawn, compared, torch.arange(16.0).double())
    expected = torch.ones(16, 6).double()
    expected[:, 0] = 2.0
    assert torch.allclose(experience.weights, expected, atol=1e-9)
    assert torch.equal(experience.columns["weights"], experience.weights)
    assert torch.equal(experience.logprobs, compared.logprobs)  # the trainer's own: the ratio is of those
    step = trainer.step()
    assert step.metrics["ppo/server/gap_mean"] == pytest.approx(math.log(3) / 6)
    assert step.metrics["ppo/server/gap_max"] == pytest.approx(math.log(3))
    assert step.metrics["ppo/server/weight_mean"] == pytest.approx(7 / 6)
    assert step.metrics["ppo/policy/sampler_gap"] == pytest.approx(2.0)


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_weights_reach_the_loss(server: TinyServer, tmp_path: Path) -> None:
    """With weights of 0 (sequences above the cap) nothing but the critic is learned from."""

    server.change = first_token_is_less_likely
    same = {"rollout": {"response_tokens": (6, 6), "stop": "length"}, "importance": "sequence", "vf_coef": 0.0}
    trainer = served_trainer(server, tmp_path / "w", **same)
    before = weights(trainer.policy)
    step = trainer.step()
    assert step.metrics["ppo/server/weight_mean"] == 0.0 == step.metrics["ppo/loss/policy"]
    assert torch.equal(weights(trainer.policy), before)


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_server_of_another_model_is_found_out(server: TinyServer, tmp_path: Path) -> None:
    trainer = served_trainer(server, tmp_path / "w", rollout={"temperature": 0.5})
    trainer.sampler.probe(trainer, tmp_path / "w")
    taken, server.reload = server.reload, lambda directory: (200, {"results": [None]})  # it says yes and does nothing
    trainer.sampler.probe(trainer, tmp_path / "w")
    disturbed(trainer.policy, 0.5)
    with pytest.raises(RunError, match=r"nats a token: it serves another model, or has not taken the policy's weights"):
        trainer.sampler.probe(trainer, tmp_path / "w")
    before = weights(trainer.policy)
    with pytest.raises(RunError, match=r"^update 1: the inference server's log-probabilities are off .* drew with other weights"):
        trainer.step()
    assert torch.equal(weights(trainer.policy), before)
    server.reload = taken
    trainer.sampler.probe(trainer, tmp_path / "w")


@pytest.mark.usefixtures("fresh_accelerator")
def test_log_probabilities_before_the_temperature_are_found_out(server: TinyServer, tmp_path: Path) -> None:
    trainer = served_trainer(server, tmp_path / "w", rollout={"temperature": 3.0, "response_tokens": (3, 7)})
    complete = server.complete

    def raw(body: Any) -> Any:
        """Log-probabilities before the temperature, of the same tokens."""
        status, said = complete(body)
        choice = said["choices"][0]
        ids = torch.tensor([body["prompt"] + choice["token_ids"]])
        rows = server.model(ids).logits[0].log_softmax(-1)[len(body["prompt"]) - 1 : -1]
        told = rows.gather(1, ids[0, len(body["prompt"]) :, None])[:, 0].tolist()
        return status, {"choices": [{**choice, "logprobs": {"token_logprobs": told}}]}

    server.complete = raw
    with pytest.raises(RunError, match=r"before the temperature; start it with --logprobs-mode processed_logprobs"):
        trainer.sampler.probe(trainer, tmp_path / "w")


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_server_that_stays_away_or_takes_no_weights_ends_the_run(server: TinyServer, tmp_path: Path) -> None:
    trainer, adapted = (served_trainer(server, tmp_path / name, retries=1, lora=lora) for name, lora in (("a", None), ("b", 2)))
    replies, server.reply = server.reply, lambda path, body: (404, {"detail": "Not Found"})
    for each, how in ((trainer, "VLLM_SERVER_DEV_MODE=1"), (adapted, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora")):
        with pytest.raises(RunError, match=rf"HTTP 404 .*; start it with {how}, see docs/server.md. It takes no weights"):
            each.sampler.probe(each, tmp_path / "w")
    server.reply = replies
    trainer.step()
    server.stop()
    with pytest.raises(RunError, match=r"no answer after 2 tries; the last: .*refused"):
        trainer.step()
    server.come_back()
    assert trainer.step().metrics["ppo/server/gap_max"] < 1e-9


def test_a_model_that_is_served_has_no_value_head(tmp_path: Path) -> None:
    """A server would take its file for weights of the model."""
    from konomi.models.policy import Policy

    Policy(tiny_model("gpt2")).save_lm(tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]
