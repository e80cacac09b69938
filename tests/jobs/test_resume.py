"""Runs that are interrupted and go on: what they end with is what they would have ended with. Those of PPO are in test_ppo.py and
test_cli.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi, lines_of, sets, started, wait_until, write_rows
from konomi.config import VERBS, load_config
from konomi.jobs.inputs import resumed_job
from konomi.jobs.pipeline import runner
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer, StepResult
from tiny import tiny_encoder
from tiny_run import facts

Event = tuple[str, int]
"""What is being done, and how much of it is done."""


class Interrupting(Observer):
    """Ends a job at its next event, as a kill does, or, of those in ``gently``, as a first Ctrl-C."""

    def __init__(self, at: Event, gently: bool = False) -> None:
        self.at, self.gently, self.warned, self.seen = at, gently, list[str](), set[str]()

    def progress(self, what: str, done: int, total: int, figures: Any = None) -> None:
        self.seen.add(what)
        if (what.removesuffix(" step"), done) == self.at and figures is None:
            if not self.gently:
                raise KeyboardInterrupt("killed")
            self.gently = False
            signal.raise_signal(signal.SIGTERM)

    def step(self, result: StepResult) -> None:
        self.progress("update", result.update, 0)

    def say(self, message: str) -> None:
        self.progress(message, 0, 0)

    def warn(self, message: str) -> None:
        self.warned.append(message)


def interrupted(verb: str, observer: Interrupting, *settings: str) -> str:
    """Begin or go on with the run "broken", up to where the observer ends it; what is said then."""
    run = Path("runs/broken")
    if (run / "run.json").exists():
        job, more = resumed_job(run, verb, []), {"resume": run}
    else:
        job, more = load_config(f"{verb}.toml", VERBS[verb].job, [*settings, "run.name=broken"]), {}
    with pytest.raises(KeyboardInterrupt) as stopped:
        runner(verb)(job, Path("runs"), observer, **more)
    return str(stopped.value)


def without_clock(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for timings."""
    return [{name: value for name, value in line.items() if name != "time"} for line in lines_of(run / "metrics.jsonl")]


CASES: dict[str, tuple[str, list[str], list[tuple[Event, bool]], list[str]]] = {
    "all weights": (
        "sft", ["run.save_every=3"],
        # before any checkpoint; within an epoch; at once after its end; in an evaluation; a Ctrl-C at an epoch's end and within
        [(("training", 2), False), (("training", 8), False), (("training", 13), False), (("evaluation", 3), False),
         (("training", 24), True), (("training", 29), True)],
        ["model/model.safetensors"],
    ),
    "packed adapters, evaluated often, ended early": (
        "sft",
        ["run.save_every=2", "sft.packing=true", "sft.evaluate_every=2", "lora.rank=2", "sft.learning_rate=0.3", "sft.patience=3",
         "sft.epochs=40"],
        [(("training", 1), False), (("training", 3), False), (("training", 4), True), (("training", 7), False),
         (("training", 10), True), (("training", 14), True)],
        ["model/model.safetensors", "adapter/adapter_model.safetensors"],
    ),
    "dropout": (
        "reward", ["model.name=xlm", "run.save_every=2", "train.batch_size=8", "train.micro_batch_size=4", "train.epochs=3",
                   "train.evaluations=2", "train.learning_rate=1e-3", "train.head_learning_rate=1e-2"],
        [(("training", 1), False), (("training", 5), True), (("training", 8), False), (("training", 15), False),
         (("The model is evaluated on what was held out", 0), False)],
        ["model/model.safetensors", "eval.json"],
    ),
    "a reward model that keeps its language": (
        "reward", ["run.save_every=2", "train.batch_size=8", "train.epochs=2", "train.lm_weight=0.1", "train.learning_rate=1e-2",
                   "lora.rank=2"],
        [(("training", 1), False), (("training", 5), True)],
        ["model/model.safetensors", "eval.json"],
    ),
    "preferences, with adapters, held against a reward": (
        "dpo", ["run.save_every=2", "dpo.epochs=3", "dpo.micro_batch_size=2", "lora.rank=2", "dpo.learning_rate=1e-2",
                "reward.kind=function", "reward.name=taste.py:count_a"],
        [(("training", 1), False), (("training", 5), True), (("evaluation", 11), False), (("training", 16), False),
         (("texts of the tuned model", 11), False)],
        ["model/model.safetensors", "adapter/adapter_model.safetensors", "eval.json", "compare.json"],
    ),
}  # fmt: skip
"""Verb, settings, where it is interrupted and whether gently, files that have to be the same."""


@pytest.mark.parametrize("case", CASES)
def test_a_training_goes_on_as_if_it_had_never_been_interrupted(case: str, world: Path) -> None:
    verb, settings, events, same = CASES[case]
    tiny_encoder("xlm")
    broken, whole = Path("runs/broken"), Path("runs/whole")
    for number, (event, gently) in enumerate(events):
        observer = Interrupting(event, gently)
        said = interrupted(verb, observer, *settings)
        assert f"konomi {verb} --resume runs/broken" in said
        assert RunDir(broken).info["status"] == "stopped"
        assert ("killed; " in said, "stopped after" in said) == (not gently, gently)
        if number == 0:
            assert "killed; nothing was saved yet, so that it begins again; " in said
        assert any("it begins again" in each for each in observer.warned) == (number == 1)
        kinds = {path.suffix for path in broken.glob("checkpoints/update-*/*")}
        assert kinds <= {".json", ".safetensors"} and len(list(broken.glob("checkpoints/update-*"))) <= 1
    resumed = json.loads(konomi(verb, "--resume", str(broken), "--json", code=0).stdout)
    told = json.loads(konomi(verb, f"{verb}.toml", "--json", *sets(*settings, "run.name=whole"), code=0).stdout)
    assert without_clock(broken) == without_clock(whole)
    for file in same:
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), file
    varying = {"run", "seconds", "peak_gb", "model", "report"}
    assert {k: v for k, v in resumed.items() if k not in varying} == {k: v for k, v in told.items() if k not in varying}
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}
    finished = konomi(verb, "--resume", str(broken), code=2)
    assert "this run is finished; there is nothing to go on with" in finished.stderr


def test_a_run_without_a_critic_goes_on_and_has_no_value_head(world: Path) -> None:
    settings = ["algorithm.kind=grpo", "ppo.responses_per_prompt=4", "ppo.episodes=48", "compare.prompts=2"]
    settings += ["ppo.value_learning_rate=1e-4"]  # the default: that of the file is of no use here
    broken, whole = Path("runs/broken"), Path("runs/whole")
    said = interrupted("ppo", Interrupting(("update", 2)), *settings)
    assert "konomi ppo --resume runs/broken" in said
    resumed = json.loads(konomi("ppo", "--resume", str(broken), "--json", code=0).stdout)
    told = json.loads(konomi("ppo", "ppo.toml", "--json", *sets(*settings, "run.name=whole"), code=0).stdout)
    assert [facts(line) for line in without_clock(broken)] == [facts(line) for line in without_clock(whole)]
    assert resumed["compare"] == told["compare"]
    assert (broken / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    assert not list(broken.rglob("value_head*")) and "value_head" not in (broken / "model/README.md").read_text("utf-8")
    assert "expl.v" not in konomi("ppo", "ppo.toml", *sets(*settings, "run.name=shown"), code=0).stderr


def test_log_probabilities_under_the_reference_are_computed_once(world: Path) -> None:
    first, second = Interrupting(("training", 2)), Interrupting(("training", 4))
    interrupted("dpo", first, "run.save_every=1")
    interrupted("dpo", second)
    assert ("reference" in first.seen, "reference" in second.seen) == (True, False)
    konomi("dpo", "--resume", "runs/broken", code=0)
    assert not Path("runs/broken/checkpoints").exists()


def test_candidates_are_drawn_once(world: Path) -> None:
    settings = ["models.b.name=other", "sample.batch_size=7", "rollout.response_tokens=[1, 2]"]
    whole = konomi("sample", "sample.toml", "--json", *sets(*settings, "run.name=whole"), code=0)
    broken, result, drawn = Path("runs/broken"), Path("runs/whole"), Path("runs/broken/drawn.jsonl")
    for event in (("candidates of b", 14), ("candidates of b", 21), ("candidates of a", 21)):
        said = interrupted("sample", Interrupting(event), *settings)
        assert " candidates kept; go on with: " in said and "konomi sample --resume runs/broken" in said
        drawn.write_bytes(drawn.read_bytes()[:-20])  # torn by a kill: this batch is drawn again
    resumed = konomi("sample", "--resume", "runs/broken", "--json", code=0)
    for file in ("candidates.jsonl", "manifest.json"):
        assert (broken / file).read_bytes() == (result / file).read_bytes(), file
    assert {path.name for path in broken.iterdir()} == {path.name for path in result.iterdir()}
    told = [json.loads(each.stdout) for each in (whole, resumed)]
    assert len({str({k: v for k, v in each.items() if k not in ("run", "seconds", "file")}) for each in told}) == 1
    # what was kept is not drawn again
    broken.rename("runs/first")
    interrupted("sample", Interrupting(("candidates of a", 21)), *settings)
    lines = lines_of(drawn)
    lines[0]["candidates"][0]["text"] = "of the first session"
    short = lines[0]["candidates"][1:]
    for wrong in ({"batch": 3}, {"batch": lines[0]["batch"], "candidates": short}, {**lines[0], "candidates": [{"text": 3}] * 7}):
        write_rows(drawn, [wrong, *lines[1:]])
        refused = konomi("sample", "--resume", "runs/broken", code=2).stderr.splitlines()[-1]
        assert "holds what konomi does not write" in refused or "6 candidates, not 7, of batch" in refused
    write_rows(drawn, lines)
    konomi("sample", "--resume", "runs/broken", code=0)
    assert "of the first session" in (broken / "candidates.jsonl").read_text("utf-8")


def test_what_a_run_began_with_has_to_be_there(world: Path) -> None:
    def refusal(verb: str, *more: str) -> str:
        return konomi(verb, "--resume", "runs/broken", *more, code=2).stderr

    for verb, event, data in (
        ("sft", ("training", 3), "completions.jsonl"), ("reward", ("training", 1), "pairs.jsonl"),
        ("dpo", ("training", 1), "pairs.jsonl"),
        ("sample", ("candidates of a", 64), "prompts.jsonl"),
    ):  # fmt: skip
        interrupted(verb, Interrupting(event), *([] if verb == "sample" else ["run.save_every=1"]))
        assert f"a run of `konomi {verb}`; give one of `konomi ppo`" in refusal("ppo")
        assert "--set run.seed=3: a resumed run goes on as it began" in refusal(verb, "--seed", "3")
        assert "give a CONFIG.toml to start a run, or --resume RUN" in refusal(verb, f"{verb}.toml")
        for path in (Path(data), Path("lm/config.json")):
            text = path.read_text("utf-8")
            path.write_text(text.replace("\n", "\n\n", 1), encoding="utf-8")
            assert "what it depends on has changed since it began: " in refusal(verb)
            path.write_text(text, encoding="utf-8")
        Path("runs/broken").rename(f"runs/{verb}")


def test_a_damaged_checkpoint_is_one_message(world: Path) -> None:
    interrupted("sft", Interrupting(("training", 3)), "run.save_every=1")
    (checkpoint,) = Path("runs/broken/checkpoints").iterdir()
    damages: dict[str, Callable[[str], str]] = {
        "trainer_state.json": lambda text: text.replace('"global_step": 2', '"global_step": 1'),
        "trainer.json": lambda text: text.replace('"losses": []', '"losses": ["a"]'),
        "weights.safetensors": lambda text: "",
    }
    for name, damage in damages.items():
        file = checkpoint / name
        content = file.read_bytes()
        file.write_bytes(damage(content.decode("utf-8", "ignore")).encode("utf-8"))
        result = konomi("sft", "--resume", "runs/broken", code=1)
        assert "not a complete checkpoint of this model" in result.stderr and "and nothing was trained" in result.stderr, name
        file.write_bytes(content)
    konomi("sft", "--resume", "runs/broken", code=0)


def test_a_killed_stage_goes_on_inside(world: Path) -> None:
    (world / "two.toml").write_text(
        'name = "two"\nmlflow = false\n'
        '[stages.tune]\ndo = "sft"\nmodel.name = "lm"\ndata = { texts = "completions.jsonl", held_out = 0.25 }\n'
        "sft = { epochs = 12, batch_size = 8, patience = 0, learning_rate = 1e-4 }\nrun = { save_every = 5 }\n"
        '[stages.write]\ndo = "sample"\nmodels.tuned.name = "@tune.model"\ndata.prompts = "prompts.jsonl"\n'
        "rollout.response_tokens = [3, 6]\n",
        encoding="utf-8",
    )
    checkpoints = RunDir(world / "runs/two/tune").checkpoints
    with started("run", "two.toml") as process:
        wait_until(lambda: any(checkpoints.glob("update-*")), process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    saved = int(next(checkpoints.glob("update-*")).name.removeprefix("update-"))
    plan = json.loads(konomi("run", "two.toml", "--dry-run", "--json", code=0).stdout)
    assert [step["action"] for step in plan] == ["resume", "run"]
    assert f"Going on after update {saved}" in konomi("run", "two.toml", code=0).stderr
    konomi("run", "two.toml", "--out", "whole", code=0)
    for file in ("tune/model/model.safetensors", "write/candidates.jsonl"):
        assert (world / "runs/two" / file).read_bytes() == (world / "whole/two" / file).read_bytes(), file
    assert without_clock(world / "runs/two/tune") == without_clock(world / "whole/two/tune")
