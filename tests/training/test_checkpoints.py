"""Checkpoints: what is in one, what is refused, and that one is always whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import child
from families import tiny_family
from konomi.errors import RunError
from konomi.training.checkpoints import Checkpoints
from konomi.training.ppo import PPOTrainer
from konomi.training.random_state import random_state
from tiny_run import facts, tiny_trainer, weights

TESTS = Path(__file__).resolve().parents[1]


def saved(directory: Path) -> PPOTrainer:
    trainer = tiny_trainer(episodes=32)
    trainer.step()
    trainer.save(directory)
    return trainer


def test_a_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    trainer = saved(tmp_path / "checkpoint")
    names = {file.name for file in (tmp_path / "checkpoint").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "value_head.safetensors", "optimizer.safetensors",
        "random.safetensors", "trainer.json",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["checkpoint"]
    state = json.loads((tmp_path / "checkpoint/trainer.json").read_text("utf-8"))
    assert state == trainer.state_dict() and state["update"] == 1 and state["episodes"] == 16
    moments = load_file(tmp_path / "checkpoint/optimizer.safetensors")
    assert {name.rsplit("/", 1)[1] for name in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(moments) == 3 * len(list(trainer.policy.parameters()))


def test_a_checkpoint_of_a_mixture_of_experts_is_read(tmp_path: Path) -> None:
    """Its family's files have the experts one by one, the model has them in one tensor."""
    trainer, fresh = (tiny_trainer(model=tiny_family("mixtral"), episodes=32) for _ in range(2))
    trainer.step()
    trainer.save(tmp_path / "checkpoint")
    fresh.load(tmp_path / "checkpoint")
    assert fresh.update == 1 and torch.equal(weights(fresh.policy), weights(trainer.policy))


def damages(directory: Path) -> dict[str, Callable[[], None]]:
    """What can be wrong with a checkpoint."""
    files = {path.name: path for path in directory.iterdir() if path.suffix == ".safetensors"}
    state = directory / "trainer.json"

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])

    def changed(path: Path, change: Callable[[torch.Tensor], torch.Tensor], name: str = "") -> None:
        tensors = load_file(path)
        name = name or max(tensors, key=lambda each: tensors[each].numel())
        save_file({**tensors, name: change(tensors[name]).contiguous()}, path)

    def swap(one: Path, two: Path) -> None:
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)

    def without(path: Path) -> None:
        tensors = load_file(path)
        del tensors[max(tensors)]
        save_file(tensors, path)

    def reworded(**values: Any) -> None:
        state.write_text(json.dumps(json.loads(state.read_text("utf-8")) | values), encoding="utf-8")

    table: dict[str, Callable[[], None]] = {"no state": state.unlink, "cut state": lambda: cut(state)}
    for name, path in files.items():
        table |= {
            f"no {name}": path.unlink,
            f"cut {name}": lambda path=path: cut(path),
            f"empty {name}": lambda path=path: path.write_bytes(b""),
            f"lacking {name}": lambda path=path: without(path),
            f"narrow {name}": lambda path=path: changed(path, lambda x: x[..., :-1]),
            f"rounded {name}": lambda path=path: changed(path, lambda x: x.bfloat16()),
        }
    pairs = zip(sorted(files), sorted(files)[1:], strict=False)
    table |= {f"{a} and {b} swapped": lambda a=files[a], b=files[b]: swap(a, b) for a, b in pairs}
    words = {"update": "2", "seed": -1, "kl_coef": None, "score_scale": {"average": 1.0}}
    table |= {f"{name} = {value}": lambda item=(name, value): reworded(**dict([item])) for name, value in words.items()}
    table["random words"] = lambda: changed(files["random.safetensors"], lambda x: -1 - x, "python")
    return table


def test_a_trainer_that_was_saved_before_its_first_update_still_scales_its_scores(tmp_path: Path) -> None:
    tiny_trainer().save(tmp_path / "checkpoint")
    trainer, own = tiny_trainer(seed=1), tiny_trainer()
    trainer.load(tmp_path / "checkpoint")
    assert trainer.scale is None
    assert facts(trainer.step().metrics) == facts(own.step().metrics) and trainer.scale == own.scale


def test_of_a_damaged_checkpoint_nothing_is_taken(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint")
    trainer = tiny_trainer(episodes=32, seed=3)
    trainer.step()
    trainer.step()

    def everything() -> list[torch.Tensor]:
        moments = [value for values in trainer.engine.optimizer.state.values() for value in values.values()]
        counters = torch.tensor(list(repr(trainer.state_dict()).encode()))
        return [x.clone() for x in (*trainer.policy.parameters(), *moments, *random_state().values(), counters)]

    def unchanged() -> bool:
        now = everything()
        return len(now) == len(before) and all(map(lambda a, b: torch.allclose(a, b, 0, 0, equal_nan=True), now, before))

    before, damaged = everything(), tmp_path / "damaged"
    for number in range(len(damages(tmp_path / "checkpoint"))):
        shutil.copytree(tmp_path / "checkpoint", damaged)
        name, damage = list(damages(damaged).items())[number]
        damage()
        with pytest.raises(RunError, match="not a complete checkpoint of this model"):
            trainer.load(damaged)
        assert unchanged(), name
        shutil.rmtree(damaged)
    trainer.load(tmp_path / "checkpoint")
    assert trainer.update == 1 and not unchanged()


def test_the_newest_checkpoint_that_is_whole_is_loaded(tmp_path: Path) -> None:
    checkpoints, trainer = Checkpoints(tmp_path / "checkpoints", keep=9), tiny_trainer(episodes=64)
    assert checkpoints.load_newest(trainer.load, print) is None
    for _ in range(3):
        trainer.step()
        checkpoints.save(trainer.update, trainer.save)
    (tmp_path / "checkpoints" / "update-old").mkdir()  # no checkpoint of ours
    fresh, warned = tiny_trainer(episodes=64), list[str]()
    for number in (3, 2):
        (tmp_path / "checkpoints" / f"update-{number:05d}" / "optimizer.safetensors").unlink()
        assert checkpoints.load_newest(fresh.load, warned.append) == number - 1 == fresh.update
        assert warned[-1].endswith("The one before it is tried")
    fresh.step()
    checkpoints.save(fresh.update, fresh.save)  # in place of the damaged one
    assert checkpoints.load_newest(fresh.load, warned.append) == 2
    (tmp_path / "checkpoints" / "update-00002" / "optimizer.safetensors").unlink()
    (tmp_path / "checkpoints" / "update-00001" / "random.safetensors").write_bytes(b"")
    warned.clear()
    with pytest.raises(RunError, match=r"No complete checkpoint is left in .*checkpoints"):
        checkpoints.load_newest(fresh.load, warned.append)
    assert len(warned) == 2 and fresh.update == 2


def test_the_best_stays_until_there_is_a_better_one_or_the_run_goes_back_before_it(tmp_path: Path) -> None:
    checkpoints, trainer = Checkpoints(tmp_path / "checkpoints", keep=1), tiny_trainer(episodes=64)

    def update_of_best() -> int:
        return int(json.loads((checkpoints.best / "trainer.json").read_text("utf-8"))["update"])

    (tmp_path / "checkpoints" / ".best.9").mkdir(parents=True)  # of a save that was killed
    for number in range(1, 4):
        trainer.step()
        if number < 3:
            checkpoints.save_best(trainer.save)
        checkpoints.save(number, trainer.save)
        checkpoints.prune(measured=number + 1)
        assert (update_of_best(), [update for update, _ in checkpoints.all()]) == (min(number, 2), [number])
    assert {path.name for path in checkpoints.directory.iterdir()} == {"best", "update-00003"}
    checkpoints.best.rename(checkpoints.directory / ".best.old")  # a save was killed between the two names
    checkpoints.make()
    fresh = tiny_trainer(episodes=64)
    fresh.load(checkpoints.best)
    assert fresh.update == 2
    checkpoints.drop_from(3)
    assert update_of_best() == 2 and not checkpoints.all()
    checkpoints.drop_from(2)
    assert not checkpoints.best.exists()


@pytest.mark.parametrize("other", ["llama", "narrow", "frozen", "none"])
def test_a_checkpoint_of_another_model_or_none_is_refused(other: str, tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint")
    from tiny import tiny_model

    trainer = {
        "llama": lambda: tiny_trainer("llama"),
        "narrow": lambda: tiny_trainer(model=tiny_model("gpt2", n_embd=16)),
        "frozen": lambda: tiny_trainer(freeze=True),
        "none": tiny_trainer,
    }[other]()
    with pytest.raises(RunError, match=r"another model|not a complete checkpoint of this model"):
        trainer.load(tmp_path / ("nowhere" if other == "none" else "checkpoint"))


SAVER = """
import sys
from pathlib import Path
from konomi.training.checkpoints import Checkpoints
from tiny_run import tiny_trainer

trainer = tiny_trainer(episodes=16 * 10**6)
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
trainer.update = 1
while True:
    checkpoints.save(trainer.update, trainer.save)
    print(trainer.update, flush=True)
    checkpoints.prune(measured=trainer.update + 1)
    trainer.update += 1
"""


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    directory = tmp_path / "checkpoints"
    command = [sys.executable, "-c", SAVER, str(directory)]
    with child(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        for _ in range(3):
            done = int(process.stdout.readline())
        trainer = tiny_trainer()
        for pause in (0.0, 0.003, 0.007, 0.013):  # at different places of the loop: stopped, looked at, let go on
            time.sleep(pause)
            os.kill(process.pid, signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            newest = Checkpoints(directory, keep=1).all()[-1]
            trainer.load(newest[1])
            assert trainer.update == newest[0] >= done
            os.kill(process.pid, signal.SIGCONT)
            done = int(process.stdout.readline())
        process.kill()
        assert process.wait() == -signal.SIGKILL
    newest = Checkpoints(directory, keep=1).all()[-1]
    trainer.load(newest[1])
    assert trainer.update == newest[0] >= done
