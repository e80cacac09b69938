"""Every number of the golden file, in float64, within 1e-9."""

import json
from pathlib import Path

import pytest
import torch

from konomi import ops
from oracles import close

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "classic_ppo.json").read_text("utf-8"))
assert len(GOLDEN["cases"]) == 12  # none of them is skipped
KIND = {"kl": "k1", "abs": "abs", "mse": "k2"}


def name(case):
    return f"{case['kl_penalty']}-{case['gamma']}-{case['lam']}"


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

    def advantages(self):
        """Whitened advantages, and returns."""
        rewards, values, mask = self.rewards(), self.values, self.mask
        if self.settings["whiten_rewards"]:
            # the one difference (see gae): there the recursion runs through padding that whitening has given a reward
            mean, var = ops.masked_mean(rewards, self.mask), ops.masked_var(rewards, self.mask)
            padding = mean - mean / (var + 1e-8).sqrt()
            rewards = ops.whiten(rewards, self.mask, shift_mean=False).where(self.mask, padding)
            values, mask = values.where(self.mask, 0), torch.ones_like(self.mask)
        advantages, returns = self.gae(rewards, values, mask)
        return ops.whiten(advantages, self.mask), returns


@pytest.mark.parametrize("settings", GOLDEN["cases"], ids=name)
def test_every_quantity(settings):
    """At valid positions; padding of the golden file holds 0."""
    case, clip = Case(settings), settings["cliprange"]
    count, whitened = case.mask.sum(), case.expected["advantages_whitened"]
    advantages, returns = case.advantages()
    policy, sums = ops.policy_loss(case.new_logprobs, case.old_logprobs, whitened, case.mask, clip=clip)
    value, value_sums = ops.value_loss(
        case.new_values, case.values, case.expected["returns"], case.mask, clip=settings["cliprange_value"]
    )
    found = {
        "kl": case.kl(), "rewards": case.rewards(), "returns": returns, "advantages_whitened": advantages,
        "policy_loss": policy / count, "clip_fraction": sums["clipped"] / count, "approx_kl": sums["approx_kl"] / count,
        "policy_kl": sums["policy_kl"] / count, "value_loss": value / count,
        "value_clip_fraction": value_sums["clipped"] / count,
        "entropy_of_new": ops.masked_mean(ops.entropy(case.new_logits), case.mask),
    }  # fmt: skip
    assert found.keys() == case.expected.keys()
    for quantity, actual in found.items():
        close(actual.where(case.mask, 0) if actual.dim() else actual, case.expected[quantity])


@pytest.mark.parametrize("settings", [x for x in GOLDEN["cases"] if x["whiten_rewards"]], ids=name)
def test_whitened_rewards_do_not_leak_from_padding(settings):
    case = Case(settings)
    _, returns = case.gae(ops.whiten(case.rewards(), case.mask, shift_mean=False), case.values, case.mask)
    same = torch.isclose(returns, case.expected["returns"], rtol=0, atol=1e-9).all(1)
    assert torch.equal(same, case.mask.all(1)), "full rows are equal, shorter ones free of the leak"


@pytest.mark.parametrize("run", GOLDEN["adaptive_kl"], ids=lambda run: f"{run['init']}-{run['kl_sequence'][0]}")
def test_adaptive_kl_coef(run):
    coef = run["init"]
    for kl, expected in zip(run["kl_sequence"], run["coef_after"], strict=True):
        coef = ops.adaptive_kl_coef(coef, kl, target=run["target"], horizon=run["horizon"], episodes=run["n_episodes"])
        assert coef == pytest.approx(expected, rel=1e-12)
