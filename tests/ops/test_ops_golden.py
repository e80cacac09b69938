"""Every number of the golden file, in float64, within 1e-9."""

import json
from pathlib import Path

import pytest
import torch

from konomi import ops
from oracles import close

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "classic_ppo.json").read_text("utf-8"))
KIND = {"kl": "k1", "abs": "abs", "mse": "k2"}


class Case:
    def __init__(self, case):
        self.settings = case
        self.__dict__.update({name: torch.tensor(x, dtype=torch.float64) for name, x in case["inputs"].items()})
        self.expected = {name: torch.tensor(x, dtype=torch.float64) for name, x in case["expected"].items()}
        self.mask = self.mask.bool()

    def kl(self):
        if self.settings["kl_penalty"] == "full":
            return ops.full_kl(self.full_old_logprobs, self.full_ref_logprobs)
        return ops.kl_per_token(self.old_logprobs, self.ref_logprobs, KIND[self.settings["kl_penalty"]])

    def rewards(self):
        return ops.shaped_rewards(self.kl(), self.scores, self.mask, self.settings["kl_coef"])

    def gae(self, rewards, values, mask):
        return ops.gae(rewards, values, mask, gamma=self.settings["gamma"], lam=self.settings["lam"])

    def is_(self, name, actual):
        """At valid positions; padding of the golden file holds 0."""
        if actual.dim():
            actual = actual.where(self.mask, 0)
        close(actual, self.expected[name])


def name(case):
    return f"{case['kl_penalty']}-{case['gamma']}-{case['lam']}"


@pytest.fixture(params=GOLDEN["cases"], ids=name)
def case(request):
    return Case(request.param)


def test_kl(case):
    case.is_("kl", case.kl())


def test_rewards(case):
    case.is_("rewards", case.rewards())


def test_advantages_and_returns(case):
    rewards, values, mask = case.rewards(), case.values, case.mask
    if case.settings["whiten_rewards"]:
        # the one difference (see gae): there the recursion runs through padding that whitening has given a reward
        mean, var = ops.masked_mean(rewards, case.mask), ops.masked_var(rewards, case.mask)
        padding = mean - mean / (var + 1e-8).sqrt()
        rewards = ops.whiten(rewards, case.mask, shift_mean=False).where(case.mask, padding)
        values, mask = values.where(case.mask, 0), torch.ones_like(case.mask)
    advantages, returns = case.gae(rewards, values, mask)
    case.is_("returns", returns)
    case.is_("advantages_whitened", ops.whiten(advantages, case.mask))


@pytest.mark.parametrize("settings", [x for x in GOLDEN["cases"] if x["whiten_rewards"]], ids=name)
def test_whitened_rewards_do_not_leak_from_padding(settings):
    case = Case(settings)
    _, returns = case.gae(ops.whiten(case.rewards(), case.mask, shift_mean=False), case.values, case.mask)
    same = torch.isclose(returns, case.expected["returns"], rtol=0, atol=1e-9).all(1)
    assert torch.equal(same, case.mask.all(1)), "full rows are equal, shorter ones free of the leak"


def test_policy_loss(case):
    advantages, count = case.expected["advantages_whitened"], case.mask.sum()
    loss, sums = ops.policy_loss(case.new_logprobs, case.old_logprobs, advantages, case.mask, clip=case.settings["cliprange"])
    case.is_("policy_loss", loss / count)
    case.is_("clip_fraction", sums["clipped"] / count)
    case.is_("approx_kl", sums["approx_kl"] / count)
    case.is_("policy_kl", sums["policy_kl"] / count)


def test_value_loss(case):
    returns, count = case.expected["returns"], case.mask.sum()
    loss, sums = ops.value_loss(case.new_values, case.values, returns, case.mask, clip=case.settings["cliprange_value"])
    case.is_("value_loss", loss / count)
    case.is_("value_clip_fraction", sums["clipped"] / count)


def test_entropy(case):
    case.is_("entropy_of_new", ops.masked_mean(ops.entropy(case.new_logits), case.mask))


@pytest.mark.parametrize("run", GOLDEN["adaptive_kl"], ids=lambda run: f"{run['init']}-{run['kl_sequence'][0]}")
def test_adaptive_kl_coef(run):
    coef = run["init"]
    for kl, expected in zip(run["kl_sequence"], run["coef_after"], strict=True):
        coef = ops.adaptive_kl_coef(coef, kl, target=run["target"], horizon=run["horizon"], episodes=run["n_episodes"])
        assert coef == pytest.approx(expected, rel=1e-12)


def test_every_expected_quantity_is_covered():
    assert len(GOLDEN["cases"]) == 12
    names = {name for case in GOLDEN["cases"] for name in case["expected"]}
    seen = {"kl", "rewards", "advantages_whitened", "returns", "policy_loss", "value_loss", "entropy_of_new"}
    assert names == seen | {"approx_kl", "policy_kl", "clip_fraction", "value_clip_fraction"}
