"""`konomi pick`: which tasks, which candidates, in which order; from one round of labels to the next."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np

from command_line import konomi, sets
from konomi.config import PickConfig
from konomi.data.formats import read_comparisons, read_tasks, write_records
from konomi.data.messages import Conversation
from konomi.data.records import Candidate, Pair, Ranking, Task, groups, is_held_out, text_key
from konomi.jobs.pick import DIMENSIONS, RIDGE, pick
from konomi.models.text_baseline import text_points

TEXTS = ["aaaa", "aaab", "aabb", "abbb", "bbbb", "bbba"]
TASKS = [
    Task(f"prompt {i}", tuple(Candidate(f"{text} {i}") for text in part)) for i in range(60) for part in (TEXTS[:3], TEXTS[3:])
]


def task(prompt: str, *texts: str) -> Task:
    return Task(prompt, tuple(map(Candidate, texts)))


def test_at_random_each_prompt_comes_once_before_any_comes_twice() -> None:
    few = pick(TASKS, [], PickConfig(tasks=30, held_out=1), 0)
    assert len({each.key for each in few}) == 30 and all(len(each.candidates) == 2 for each in few)
    many = pick(TASKS, [], PickConfig(tasks=150, held_out=1), 0)
    counts = Counter(each.key for each in many)
    assert set(counts.values()) == {2, 3} and len(counts) == 60
    seen = groups([Ranking("prompt 7", ("aaaa 7", "aaab 7"), (1, 2))])
    assert "prompt 7" not in {each.prompt for each in pick(TASKS, seen, PickConfig(tasks=59, held_out=1), 0)}


def test_the_seed_names_the_choice_whatever_the_order_of_the_file() -> None:
    for held_out in (0, 0.5, 1):
        settings = PickConfig(tasks=30, held_out=held_out)
        one = pick(TASKS, [], settings, 0)
        assert pick(TASKS[::-1], [], settings, 0) == one != pick(TASKS, [], settings, 1)
        shown = [(each.key, text) for each in one for text in each.responses]
        assert len(set(shown)) == len(shown) == 60


def test_each_task_adds_the_most_to_what_is_known() -> None:
    """The determinant of RIDGE + sum d d', over the pairs that are left, against a slow loop."""
    rng = random.Random(0)
    tasks = [task(f"p{i}", *("".join(rng.choices("abcdefgh", k=6)) for _ in range(4))) for i in range(6)]
    compared = groups([Pair("old", "abcab", "hgfhg")])
    texts = [*(text for each in tasks for text in each.responses), *compared[0].responses]
    points = dict(zip(texts, text_points(texts, DIMENSIONS, 0), strict=True))
    known = RIDGE * np.eye(len(points["abcab"])) + np.outer(*[points["abcab"] - points["hgfhg"]] * 2)
    left = {each.prompt: set(each.responses) for each in tasks}
    expected = []
    for _ in range(7):
        pairs = [(p, *sorted(pair)) for p, own in left.items() for pair in itertools.combinations(own, 2)]
        gain = {pair: np.linalg.slogdet(known + np.outer(*[points[pair[1]] - points[pair[2]]] * 2))[1] for pair in pairs}
        best = max(gain, key=gain.__getitem__)
        known += np.outer(*[points[best[1]] - points[best[2]]] * 2)
        left[best[0]] -= set(best[1:])
        expected.append(best)
    picked = pick(tasks, compared, PickConfig(tasks=7, held_out=0), 0)
    assert {(each.prompt, *sorted(each.responses)) for each in picked} == set(expected)


def test_what_is_unlike_comes_before_what_is_alike_and_what_was_asked_before() -> None:
    tasks = [task("alike", "abcabc", "abcabd"), task("asked", "aaaa", "bbbb"), task("new", "cccc", "dddd")]
    compared = groups([Pair(f"old {i}", "aaaa"[i:], "bbbb"[i:]) for i in range(3)])
    assert [each.prompt for each in pick(tasks, compared, PickConfig(tasks=1, held_out=0), 0)] == ["new"]
    assert {each.prompt for each in pick(tasks, [], PickConfig(tasks=2, held_out=0), 0)} == {"asked", "new"}
    seen = groups([Ranking("new", ("cccc ", "e"), (1, 2))])
    assert {each.prompt for each in pick(tasks, seen, PickConfig(tasks=3, held_out=0), 0)} == {"alike", "asked"}


def test_tasks_of_several_candidates() -> None:
    both = pick(TASKS, [], PickConfig(tasks=120, candidates=4, held_out=0), 0)
    assert Counter(len(each.candidates) for each in both) == {4: 60, 2: 60}
    three = pick(TASKS, [], PickConfig(tasks=20, candidates=3, held_out=0.5), 0)
    assert {len(each.candidates) for each in three} == {3}


def test_what_the_reward_model_holds_out_is_drawn_in_its_share() -> None:
    held_out = {each.key for each in TASKS if is_held_out(each.key, 0.5)}
    picked = pick(TASKS, [], PickConfig(tasks=30, held_out=0.5), 0)
    apart = [each.key for each in picked if each.key in held_out]
    assert len(apart) == round(30 * len(held_out) / 60) == len(set(apart)) and len(picked) == 30


def test_conversations_that_read_alike_are_not_mixed() -> None:
    def of(system: str) -> Task:
        talk = Conversation([{"role": "system", "content": system}, {"role": "user", "content": "Hi"}])
        return Task("Hi", (Candidate(f"a {system}"), Candidate(f"b {system}")), {"messages": talk})

    assert len(pick([of("x"), of("y")], [], PickConfig(tasks=9, held_out=0), 0)) == 2


def test_responses_of_one_letter() -> None:
    for other in ("A", ""):
        assert len(pick([task("p", "a", other)], [], PickConfig(tasks=1, held_out=0), 0)) == 1


def test_from_labels_to_the_next_labels(world: Path) -> None:
    first = json.loads(konomi("pick", "pick.toml", "--json", *sets("run.name=one", "pick.tasks=40"), code=0).stdout)
    assert (first["tasks"], first["status"]) == (40, "finished")
    judged = konomi("judge", "judge.toml", "--json", *sets("run.name=rank", f"candidates={first['file']}"), code=0)
    rankings = json.loads(judged.stdout)["rankings"]
    more = (f"pick.rankings={rankings}", "pick.tasks=80")
    second = konomi("pick", "pick.toml", *sets("run.name=two", *more), code=0)
    assert "80 tasks of " in second.stdout and "ranked so far: 40 prompts" in second.stderr
    konomi("pick", "pick.toml", *sets("run.name=three", *more), code=0)
    files = [Path(f"runs/{name}/candidates.jsonl") for name in ("two", "three")]
    assert files[0].read_bytes() == files[1].read_bytes()
    ranked = {(each.key, text_key(text)) for each in read_comparisons(rankings) for text in each.responses}
    assert not ranked & {(each.key, text_key(text)) for each in read_tasks(files[0]) for text in each.responses}
    # to the end
    few = konomi("pick", "pick.toml", *sets("run.name=all", "pick.tasks=1000"), code=0)
    assert "not pick.tasks = 1000" in few.stderr
    ranked_all = [Ranking(each.prompt, each.responses, (1, 2, 3, 4)) for each in read_tasks("candidates.jsonl")]
    write_records(Path("done.jsonl"), ranked_all)
    none = konomi("pick", "pick.toml", *sets("run.name=none", "pick.rankings=done.jsonl"), code=2)
    assert "every prompt has fewer than two candidates that are not ranked yet" in none.stderr and not Path("runs/none").exists()
