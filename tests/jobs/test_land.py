"""Landing at a KL along the line through initial and trained weights, and other places of the line afterwards."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oracles
from command_line import konomi, sets
from konomi.config import LoraConfig, PPOJob, RolloutConfig, load_config
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.jobs.compare import Questions, exact_kl, first_of
from konomi.jobs.inputs import resumed_job
from konomi.jobs.land import TRIES, WHOLE_DIAL, nearest, prompts_of, search
from konomi.jobs.ppo import run_ppo
from konomi.models.half import weights_to_bf16
from konomi.models.line import Line
from konomi.models.lora import add_adapters, merged
from konomi.models.policy import Policy, make_reference
from konomi.runs.observer import Observer
from tiny import tiny_tokenizer
from tiny_run import CountA, alone, disturbed, sharp_model, tiny_rollout, weights, without_dropout

# -- the search --------------------------------------------------------------------------------------------------------


def looked_at(kl_of: Any, target: float, most: float = 1.5) -> tuple[list[float], Mapping[str, Any]]:
    """The shares that were measured, in their order, and the point of the target."""
    asked: list[float] = []

    def measure(share: float) -> dict[str, float]:
        asked.append(share)
        return {"share": share, "kl": kl_of(share)}

    points = search(measure, target, most)
    assert [point["share"] for point in points] == sorted(asked) and len(set(asked)) == len(asked)
    return asked, nearest(points, target)


@pytest.mark.parametrize("power", [0.7, 1.0, 2.2, 5.0])
def test_a_kl_that_rises_along_the_line_is_found(power: float) -> None:
    for target in (0.05, 1.0, 5.9, 8.0, 9.5):
        asked, found = looked_at(lambda share: 8 * share**power, target)
        reachable = min(target, 8 * 1.5**power)
        assert found["kl"] == pytest.approx(reachable, rel=0.02) and len(asked) <= len(WHOLE_DIAL) + 3, (target, asked)


def test_it_is_found_on_a_line_that_is_no_power_and_the_search_ends_on_any() -> None:
    _, bent = looked_at(lambda share: math.expm1(3 * share) / 4, 2.5)
    assert bent["kl"] == pytest.approx(2.5, rel=0.02)
    for odd in (lambda share: 0.0, lambda share: 3.0 * (share > 0.6), lambda share: math.sin(9 * share) ** 2):
        asked, _ = looked_at(odd, 2.0)
        assert len(asked) <= len(WHOLE_DIAL) + TRIES and max(asked) <= 1.5
    asked, far = looked_at(lambda share: 8 * share**2, 50.0)
    assert (asked[-1], far["share"]) == (1.5, 1.5)


def test_what_it_is_measured_on_judges_nothing() -> None:
    held_out, trained = ([Prompt(f"{side}{i}") for i in range(12)] for side in "ab")
    for compared, count, apart in ((8, 3, (3, 0)), (8, 6, (4, 2)), (12, 20, (0, 12)), (99, 5, (0, 5))):
        found, kinds = prompts_of(held_out, trained, compared, count)
        assert (kinds["held_out"], kinds["training"]) == apart and len(found) == sum(apart)
        assert not {each.key for each in found} & {each.key for each in first_of(held_out, compared)}


# -- the line ----------------------------------------------------------------------------------------------------------


def policy_of(case: str) -> tuple[Policy, Any, torch.Tensor]:
    """A policy away from its reference, that, and its value head's weights."""
    family = "gemma3" if "tied" in case else "gpt2"  # both tie embeddings and head
    lm = without_dropout(family)
    if "fp64" in case:
        lm.double()
    if "bf16" in case:
        weights_to_bf16(lm)
    add_adapters(lm, LoraConfig(rank=4 if "adapters" in case else None), seed=1)
    policy = Policy(lm, "frozen" in case, 1 if "top" in case else None)
    reference = make_reference(policy)
    disturbed(policy)
    return policy, reference, weights(policy.value_head)


@pytest.mark.parametrize(
    "case", ["whole", "fp64", "tied, frozen embeddings", "tied, top layer", "adapters", "bf16", "bf16, adapters"]
)
def test_a_share_of_the_way_in_the_weights(case: str) -> None:
    policy, reference, head = policy_of(case)
    frozen = [(x, x.detach().clone()) for x in policy.lm.parameters() if not x.requires_grad]
    start = {name: x.detach().double() for name, x in merged(copy.deepcopy(policy.lm)).named_parameters()}
    line, first = Line(policy, reference), {name: x.double() for name, x in reference.named_parameters()}
    exact = 1e-2 if "bf16" in case else 1e-12 if "fp64" in case else 1e-6
    for share in (0.6, 1.4, 1.0, 0.0):
        line.move(share)
        for name, x in merged(copy.deepcopy(policy.lm)).named_parameters():
            expected = first[name] + share * (start[name] - first[name])
            torch.testing.assert_close(x.double(), expected, rtol=exact, atol=exact)
        if share in (0.0, 1.0) and "adapters" not in case:
            ends = first if share == 0 else start
            assert all(torch.equal(x.double(), ends[name]) for name, x in policy.lm.named_parameters())
    assert all(torch.equal(x, kept) for x, kept in frozen) and torch.equal(weights(policy.value_head), head)
    embeddings, output = policy.lm.get_input_embeddings(), policy.lm.get_output_embeddings()
    assert embeddings.weight is output.weight


def test_the_kl_of_a_response_is_that_of_its_tokens_over_the_whole_vocabulary() -> None:
    model, initial = sharp_model("llama", seed=3), sharp_model("llama")
    rollout, config = tiny_rollout(initial, 12), RolloutConfig(temperature=0.8)
    ask = Questions(Tokens(tiny_tokenizer()), CountA(), {}, config, 0, torch.no_grad, None, lambda *_: None)
    pairs = zip(alone(model, rollout, 0.8), alone(initial, rollout, 0.8), strict=True)
    expected = [sum(oracles.full_kl(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)) for p, q in pairs]
    assert exact_kl(model, initial, rollout, ask) == pytest.approx(expected, rel=1e-5)


# -- runs --------------------------------------------------------------------------------------------------------------

SETTINGS = ["run.name=landed", "ppo.kl_controller=fixed", "ppo.kl_coef=0", "land.prompts=16", "compare.samples=4"]
CASES: dict[str, tuple[float, list[str]]] = {
    "all weights": (1.0, ["ppo.learning_rate=1e-2"]),
    "adapters": (0.04, ["ppo.learning_rate=5e-3", "lora.rank=4"]),
}
"""The KL, and further settings."""


class Killed(Observer):
    """Ends a run when it measures a place of the line."""

    def progress(self, what: str, done: int, total: int, figures: Any = None) -> None:
        if "0.5 of its way" in what:
            raise KeyboardInterrupt("killed")


@pytest.mark.parametrize("case", CASES)
def test_a_run_lands_also_after_a_kill_and_other_places_are_made_of_it(world: Path, case: str) -> None:
    target, more = CASES[case]
    settings = [*SETTINGS, f"land.kl={target}", *more]
    with pytest.raises(KeyboardInterrupt, match=r"killed; saved up to update 4; go on with: .*konomi ppo --resume"):
        run_ppo(load_config("ppo.toml", PPOJob, [*settings, "run.name=killed"]), "runs", Killed())
    assert not Path("runs/killed/model").exists()
    told = json.loads(konomi("ppo", "ppo.toml", "--json", *sets(*settings), code=0).stdout)
    run_ppo(resumed_job(Path("runs/killed"), "ppo", []), "runs", resume=Path("runs/killed"))  # type: ignore[arg-type]
    run, killed = Path("runs/landed"), Path("runs/killed")
    found = told["land"]
    assert found == json.loads((run / "land.json").read_text("utf-8")) == json.loads((killed / "land.json").read_text("utf-8"))
    trained = "adapter_model.safetensors" if case == "adapters" else "model.safetensors"
    for file in ("model/model.safetensors", f"end/{trained}", "model/value_head.safetensors"):
        assert (run / file).read_bytes() == (killed / file).read_bytes(), file

    assert found["landed"] and found["kl"] == pytest.approx(target, rel=0.02) and found["verdict"]["grade"] == "landed"
    assert 0 < found["share"] < 1 and found["end_kl"] > 1.3 * target and found["prompts"] == {"held_out": 0, "training": 16}
    kls = [point["kl"] for point in found["points"]]
    assert kls == sorted(kls) and kls[0] == 0.0
    if case == "all weights":
        assert told["compare"]["after"]["kl"] == pytest.approx(target, rel=0.4)  # of other prompts, and few
    assert found["verdict"]["en"] in konomi("doctor", str(run), "--json").stdout
    assert f'"dial":{{"version":1,"target":{target}' in (run / "report.html").read_text("utf-8")

    # the same place is the same model; another one has its KL; both are models
    share = str(found["share"])
    konomi("blend", str(run), "--share", share, "--prompts", "8", code=0)
    same, model = (load_file(each / "model.safetensors") for each in (run / f"blend-share-{share}", run / "model"))
    assert same.keys() == model.keys() and all(torch.equal(same[name], model[name]) for name in model)
    less = json.loads(konomi("blend", str(run), "--kl", str(target / 3), "--out", "less", "--json", code=0).stdout)
    assert less["landed"] and less["kl"] == pytest.approx(target / 3, rel=0.02) and 0 < less["share"] < found["share"]
    kept = json.loads(Path("less/blend.json").read_text("utf-8"))
    assert kept == {name: value for name, value in less.items() if name not in ("run", "model")}
    assert "## Licence" in Path("less/README.md").read_text("utf-8")
    assert found["verdict"]["en"] in (run / "model/README.md").read_text("utf-8")
    assert len(konomi("generate", "less", "-p", "abc", "-n", "2", "--tokens", "4", code=0).stdout.splitlines()) == 2


def test_of_several_runs_the_mean_of_the_weights_is_blended(world: Path) -> None:
    runs = [Path("runs") / name for name in "abc"]
    for seed, run in enumerate(runs[:2]):
        settings = sets(f"run.name={run.name}", f"run.seed={seed}", "ppo.episodes=32", "land.prompts=8", "compare.prompts=2")
        konomi("ppo", "ppo.toml", *settings, code=0)
    shutil.copytree(runs[0], runs[2])  # weighs as much as each other one

    def blend(*given: Path | str, code: int = 0) -> str:
        said = konomi("blend", *map(str, given), "--samples", "1", "--json", code=code)
        return said.stdout if code == 0 else said.stderr

    told = json.loads(blend(*runs, "--share", "0.6"))
    model = Path("runs/a/blend-share-0.6")
    assert (told["run"], told["model"], told["runs"]) == ("runs/a", str(model), ["runs/a", "runs/b", "runs/c"])
    assert json.loads((model / "blend.json").read_text("utf-8"))["runs"] == told["runs"]
    assert "# a, b, c: 60.0 % of the way to their mean" in (model / "README.md").read_text("utf-8")
    assert "mean of those of 3 runs" in (model / "README.md").read_text("utf-8")
    first, found = (load_file(each / "model.safetensors") for each in (Path("lm"), model))
    ends = [load_file(run / "model/model.safetensors") for run in runs]
    assert found.keys() == ends[0].keys() <= first.keys()
    for name, x in found.items():
        start, mean = first[name].double(), sum(end[name].double() for end in ends) / 3
        torch.testing.assert_close(x.double(), start + 0.6 * (mean - start), rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in found)

    assert "runs/../runs/a: named twice" in blend("runs/a", "runs/../runs/a", "--kl", "3", code=2)
    kept = json.loads((runs[2] / "config.json").read_text("utf-8"))

    def refused(section: str, setting: str, value: Any) -> str:
        config = kept | {section: kept[section] | {setting: value}}
        (runs[2] / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return blend(*runs, "--kl", "3", code=2)

    assert "runs/c: lora.rank = 4: the mean of adapters' B and of their A is not" in refused("lora", "rank", 4)
    assert "runs/c: model.freeze is embeddings, and none in runs/a. A mean is of" in refused("model", "freeze", "embeddings")
    assert "runs/c: model.top_layers is 1, and not set in runs/a" in refused("model", "top_layers", 1)
    (runs[2] / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    (runs[2] / "model").rename("elsewhere")
    assert "runs/c/model: no model there yet; the run has to end first" in blend(*runs, "--kl", "3", code=2)
    info = json.loads((runs[2] / "run.json").read_text("utf-8"))
    info["inputs"]["model.name"]["sha256"] = "another"
    (runs[2] / "run.json").write_text(json.dumps(info), encoding="utf-8")
    assert "runs/c: the initial model is another, and " in blend(*runs, "--kl", "3", code=2)
    assert not Path("runs/a/blend-kl-3").exists()
    konomi("sft", "sft.toml", *sets("run.name=other", "sft.epochs=1"), code=0)
    for given in (["runs/other"], ["runs/a", "runs/other"]):
        assert "runs/other: a run of `konomi sft`; give one of `konomi ppo`" in blend(*given, "--kl", "3", code=2)


def test_what_cannot_be_blended_is_one_message(world: Path) -> None:
    konomi("ppo", "ppo.toml", *sets("run.name=short", "ppo.episodes=32", "land.prompts=8"), code=0)
    run = Path("runs/short")
    assert not (run / "end").exists() and not (run / "land.json").exists()

    def refused(*arguments: str) -> str:
        before = sorted(run.rglob("*"))
        said = konomi("blend", "runs/short", *arguments, code=2).stderr
        assert sorted(run.rglob("*")) == before and "Traceback" not in said
        return said.splitlines()[-1]

    assert "give --kl NATS or --share SHARE" in refused() and "give --kl" in refused("--kl", "3", "--share", "0.5")
    assert "blend: kl: Input should be greater than 0" in refused("--kl", "0")
    assert "lm: not empty; give --out" in refused("--kl", "3", "--out", "lm")
    assert "--kl 50: The line from the initial to the trained weights does not reach a KL of 50.00" in refused("--kl", "50")
    short = json.loads(konomi("blend", "runs/short", "--share", "1", "--out", "same", "--json", code=0).stdout)
    assert short["target"] is None and short["verdict"]["grade"] == "share"
    changed = Path("lm/config.json")
    text = changed.read_text("utf-8")
    changed.write_text(text.replace("\n", "\n\n", 1), encoding="utf-8")
    assert "what it depends on has changed since it began: model.name = lm" in refused("--share", "0.5")
    changed.write_text(text, encoding="utf-8")
    Path("lm").rename("gone")
    assert "lm: no such directory" in refused("--share", "0.5")
    Path("gone").rename("lm")
    (run / "model").rename(run / "elsewhere")
    assert "no model there yet; the run has to end first (finished)" in refused("--share", "0.5")
