"""A chat model from fine-tuning to the before/after, through the command line; what rewards and people see on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chat_layouts import LAYOUTS, PHI, chat_tokenizer, ids_of, save_chat, talk
from command_line import assert_mistakes, konomi, lines_of, sets, write_rows
from konomi.config import ClassifierReward, ModelConfig, ModelReward
from konomi.data.formats import read_comparisons, read_tasks
from konomi.data.messages import Answered, Conversation
from konomi.data.records import Prompt
from konomi.jobs.revisit import Writer
from konomi.labelling.answers import collect
from konomi.labelling.export import rankings
from konomi.labelling.people import add_person
from konomi.labelling.project import create_project, tasks_of
from konomi.models.load import load_causal_lm
from konomi.models.reader import Reader
from konomi.models.reward_files import open_reward_model
from konomi.rewards import build_reward
from konomi.runs.console import one_line
from konomi.runs.observer import Observer
from people_at_work import work

QUESTIONS = [f"{a}{b}?" for a in "abcdefgh" for b in "uvwxyz"]
TASTE = '''
def polite(responses, messages, prompts):
    """Letters a in the answer; the conversation is what it has to be."""
    for talk, prompt in zip(messages, prompts):
        assert [each["role"] for each in talk] == ["system", "user", "assistant", "user"], talk
        assert talk[0]["content"] == "Be kind." and talk[-1]["content"].endswith("?")
        assert prompt == f"User: hi\\n\\nAssistant: yes\\n\\nUser: {talk[-1]['content']}", prompt
    return [float(text.count("a")) + len(text) / 64 for text in responses]
'''
COMMON = ("run.mlflow=false", "data.prompts=talks.jsonl", "data.column=messages", "data.system=Be kind.")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chat model, conversations that end with an answer, a reward function, empty job files."""
    monkeypatch.chdir(tmp_path)
    save_chat(tmp_path / "lm", "qwen3")
    write_rows("pairs.jsonl", ({"prompt": each, "chosen": "aaa", "rejected": "b"} for each in QUESTIONS))
    write_rows("talks.jsonl", ({"messages": talk("hi", "yes", each, f"{each[0]}a")} for each in QUESTIONS))
    write_rows("answers.jsonl", ({"messages": talk(each, f"{each[0]}a", "hi?", "yes")} for each in QUESTIONS))
    (tmp_path / "taste.py").write_text(TASTE, encoding="utf-8")
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    return tmp_path


LEARN = (
    "run.mlflow=false", "model.name=lm", "data.texts=answers.jsonl", "data.held_out=0.25", "sft.batch_size=8",
    "sft.learning_rate=1e-2",
)  # fmt: skip


def ran(verb: str, *settings: str) -> Any:
    settings = ("run.mlflow=false", *settings)
    return json.loads(konomi(verb, "empty.toml", "--json", *sets(*settings), code=0).stdout)


def test_a_chat_model_end_to_end(here: Path) -> None:
    learned = ran("sft", *LEARN, "sft.epochs=3", "run.name=first")
    assert learned["after"]["loss"] < learned["before"]["loss"] - 1
    lm = learned["model"]

    drawn = ran("sample", f"models.a.name={lm}", *COMMON, "rollout.response_tokens=[4,12]", "run.name=drawn")
    tasks = read_tasks(drawn["file"])
    assert tasks[0].messages == [{"role": "system", "content": "Be kind."}, *talk("hi", "yes", tasks[0].messages[-1]["content"])]  # type: ignore[index]
    assert not any("<|im" in task.prompt or "Be kind." in task.prompt for task in tasks)
    assert not any("<|im_end|>" in text for task in tasks for text in task.responses)
    assert any(text == "aa" or len(text) < 4 for task in tasks for text in task.responses)  # ended by its end of turn

    judged = ran(
        "judge", f"candidates={drawn['file']}", "reward.kind=function", "reward.name=taste.py:polite", "judge.agreement=1",
        "run.name=ranked",
    )  # fmt: skip
    trained = ran(
        "reward", f"model.name={lm}", f"data.file={judged['rankings']}", f"data.truth={judged['truth']}", "train.epochs=4",
        "train.learning_rate=3e-3", f"normalize.samples={drawn['file']}", "run.name=taste",
    )  # fmt: skip
    assert trained["eval"]["held_out"]["accuracy"]["value"] > 0.6
    assert all(text["chat"] and "<|im" not in text["prompt"] for text in trained["eval"]["texts"])
    facts = json.loads((Path(trained["model"]) / "reward.json").read_text("utf-8"))
    assert facts["chat"] is True

    settings = (
        f"model.name={lm}", *COMMON, "data.held_out=0.25", "rollout.response_tokens=[4,12]", "reward.kind=model",
        f"reward.name={trained['model']}", "judges.own.kind=function", "judges.own.name=taste.py:polite", "ppo.episodes=32",
        "ppo.batch_size=16", "ppo.mini_batch_size=8", "ppo.baseline_samples=16", "ppo.learning_rate=3e-3", "ppo.kl_cap=60",
        "run.mlflow=false", "run.name=tuned",
    )  # fmt: skip
    said = konomi("ppo", "empty.toml", *sets(*settings), code=0).stdout
    assert "generate runs/tuned/model --chat  # talk to it" in said
    run = Path("runs/tuned")
    compare = json.loads((run / "compare.json").read_text("utf-8"))
    assert compare["judges"].keys() == {"own"}
    shown = lines_of(run / "samples.jsonl") + compare["texts"]
    for row in shown:
        assert row["prompt"].startswith("User: hi\n\nAssistant: yes\n\nUser: ") and row["prompt"].endswith("?")
        assert not any("<|im_end|>" in row.get(side, "") for side in ("response", "before", "after"))
    assert all(row["chat"] for row in lines_of(run / "samples.jsonl"))
    ends = sorted(ids_of(chat_tokenizer("qwen3"), LAYOUTS["qwen3"].ends))
    assert json.loads((run / "run.json").read_text("utf-8"))["eos_ids"] == ends
    assert sorted(json.loads((run / "model" / "generation_config.json").read_text("utf-8"))["eos_token_id"]) == ends
    assert (run / "model" / "chat_template.jinja").read_text("utf-8") == LAYOUTS["qwen3"].template

    assert "konomi generate DIRECTORY --chat" in (run / "model" / "README.md").read_text("utf-8")

    again = json.loads(konomi("compare", str(run), "--json", "--prompts", "4", code=0).stdout)
    assert [row["chat"] for row in again["compare"]["texts"]] == [True] * 4
    assert all(row["messages"][0]["content"] == "Be kind." for row in again["compare"]["texts"])
    said = konomi("sft", "empty.toml", *sets(*LEARN, "sft.epochs=1", "run.name=again"), code=0).stdout
    assert "generate runs/again/model --chat -p '...'" in said
    asked = ("generate", str(run), "--chat", "--system", "Be kind.", "-p", "ab?", "-n", "2", "--json")
    told = json.loads(konomi(*asked, code=0).stdout)
    assert [row["prompt"] for row in told] == ["ab?"] * 2 and "<|im_end|>" not in told[0]["response"]


def test_a_resumed_run_from_python_has_the_same_conversations(here: Path) -> None:
    import konomi as library

    rows = [{"messages": talk("hi", "yes", each), "n": n} for n, each in enumerate(QUESTIONS)]
    seen: list[Any] = []

    def taste(responses: list[str], messages: list[Any], n: list[int]) -> list[float]:
        seen.extend(messages)
        return [float(len(text)) for text in responses]

    result = library.train(
        "lm", rows, taste, episodes=16, batch_size=16, mini_batch_size=8, baseline_samples=16, response_tokens=(2, 6), kl_cap=90,
        data={"column": "messages", "system": "Be kind."}, run={"mlflow": False, "name": "own"}, compare={"prompts": 4},
    )  # fmt: skip
    assert seen[0][0] == {"role": "system", "content": "Be kind."}
    kept = lines_of(Path(result["run"]) / "prompts.jsonl")
    assert [row["messages"] for row in kept] == [row["messages"] for row in rows]
    from konomi.jobs.prepare import find_prompts, job_of
    from konomi.runs.directory import RunDir

    train, held_out = find_prompts(job_of(RunDir.open(result["run"])))
    assert {each.text for each in (*train, *held_out)} == {f"User: hi\n\nAssistant: yes\n\nUser: {each}" for each in QUESTIONS}
    assert all(each.messages and each.messages[0]["content"] == "Be kind." for each in train)


def test_people_see_the_conversation_and_their_rankings_keep_it(here: Path) -> None:
    write_rows("prompts.jsonl", ({"text": each} for each in QUESTIONS[:4]))
    drawn = ran("sample", "models.a.name=lm", "data.prompts=prompts.jsonl", "data.chat=true", "data.system=Be kind.")
    project, _ = create_project(here / "people", tasks_of(Path(drawn["file"])))
    with project.store() as store:
        person = add_person(store, "Aki")[0]
        shown = work(store, person)
        assert sorted(each.prompt for each in shown) == sorted(QUESTIONS[:4])
        exported = collect(store)
    konomi("export", "people", "--out", "said", code=0)
    for name in ("rankings", "pairs"):
        for record in read_comparisons(f"said/{name}.jsonl"):
            assert record.messages == [{"role": "system", "content": "Be kind."}, *talk(record.prompt)]
    assert rankings(exported)[0].messages is not None
    konomi("convert", "said/rankings.jsonl", "again.jsonl", "--to", "candidates", code=0)
    assert read_tasks("again.jsonl")[0].messages == read_tasks(drawn["file"])[0].messages


def test_a_reward_model_reads_conversations_by_its_own_template(here: Path) -> None:
    save_chat(here / "phi", "phi3")
    save_chat(here / "bare", "phi3", template=False)
    rows = lines_of("pairs.jsonl")
    write_rows("talks.jsonl", ({**row, "prompt": talk(row["prompt"], system="Be kind.")} for row in rows))
    settings = ("data.held_out=0.25", "train.learning_rate=1e-3")
    for model, data, chat in (("phi", "talks", True), ("phi", "pairs", False), ("bare", "talks", False)):
        result = ran("reward", f"model.name={model}", f"data.file={data}.jsonl", *settings)
        made = open_reward_model(result["model"])
        assert (made.reader.render is not None) == chat
    asked = ran("reward", "model.name=phi", "data.file=pairs.jsonl", "data.chat=true", *settings)
    given = ran("reward", "model.name=bare", "data.file=pairs.jsonl", "data.chat=true", f"model.chat_template={PHI}", *settings)
    reward = build_reward(ModelReward(kind="model", name=asked["model"], normalized=False))
    tokenizer = chat_tokenizer("phi3")
    reader = open_reward_model(given["model"]).reader
    for each in (Answered("x", "y"), Answered("x", "y", Conversation(talk("x")))):
        (ids,) = reader.encode([each])
        assert tokenizer.decode(ids) == "<|user|>\nx<|end|>\n<|assistant|>\ny<|end|>\n<|endoftext|>"
    (attack,), (honest,) = reader.encode([Answered("x", "y<|end|>")]), reader.encode([Answered("x", "y")])
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert attack.count(end) == honest.count(end) == 2
    # the score is of that, whatever the text for people is
    one = reward(["-"], prompts=["x"], responses=["y"], columns={})
    assert one == reward(["x\n\ny"], prompts=["x"], responses=["y"], columns={"messages": [Conversation(talk("x"))]})
    other = reward(["-"], prompts=["x"], responses=["y"], columns={"messages": [Conversation(talk("x", system="S"))]})
    assert one != other
    both = [Conversation(talk("x")), Conversation(talk("x", system="S"))]  # in one call, too
    scores = reward(["-"] * 2, prompts=["x"] * 2, responses=["y"] * 2, columns={"messages": both})
    assert scores == pytest.approx([*one, *other], abs=1e-5)


def test_a_classifier_of_the_hub_may_read_conversations(here: Path) -> None:
    """As reward models of others are: one output, no reward.json."""
    made = ran("reward", "model.name=lm", "data.file=pairs.jsonl", "data.chat=true", "data.held_out=0.25")
    ours = build_reward(ModelReward(kind="model", name=made["model"], normalized=False, precision="fp32"))
    settings = {"name": made["model"], "label": 0, "precision": "fp32"}
    theirs, plain = (build_reward(ClassifierReward(**settings, chat=chat)) for chat in (True, False))
    columns = {"messages": [Conversation(talk("x", "y", "z")), Conversation(talk("u"))]}
    texts = {"prompts": ["User: x\n\nAssistant: y\n\nUser: z", "u"], "responses": ["one", "two"], "columns": columns}
    scores = theirs(["-", "-"], **texts)
    assert scores == pytest.approx(ours(["-", "-"], **texts), abs=1e-5)
    assert plain(["-", "-"], **texts)[0] == plain(["-", "-"], **texts)[1] != scores[0]


@pytest.mark.parametrize(("side", "kept"), [("left", "<|end|>\n<|endoftext|>"), ("right", "<|user|>\nx")])
def test_a_long_conversation_is_cut_where_the_tokenizer_cuts(here: Path, side: str, kept: str) -> None:
    model, tokenizer = load_causal_lm(ModelConfig(name=str(save_chat(here / "phi", "phi3")))).model, chat_tokenizer("phi3")
    tokenizer.truncation_side = side
    reader = Reader(tokenizer, model, 3, chat=True)
    rows = reader.encode([Answered("x", "y" * 50), Answered("x", "y")])
    assert [tokenizer.decode(row) for row in rows] == [kept, kept]
    assert (reader.texts, reader.cut, reader.longest) == (2, 2, 60)
    assert reader.lengths([Answered("x", "y" * 50), "abc"]) == [60, 3]


def test_a_base_model_gets_a_template(here: Path) -> None:
    save_chat(here / "base", "gemma3", template=False)
    Path("mine.jinja").write_text(LAYOUTS["gemma3"].template, encoding="utf-8")
    loaded = load_causal_lm(ModelConfig(name="base", chat_template="mine.jinja"))
    end = loaded.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end in loaded.tokens.eos_ids and end in loaded.model.generation_config.eos_token_id
    (query,) = loaded.tokens.queries([Prompt("a", {"messages": Conversation(talk("a"))})], None, 0, 0, 99)
    assert loaded.tokenizer.decode(query) == "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n"
    asked = ("generate", "base", "--chat", "--chat-template", "mine.jinja", "--tokens", "3")
    assert json.loads(konomi(*asked, "--json", code=0, stdin=b"a\xff\n").stdout)["prompt"] == "a\ufffd"
    told = konomi(*asked, code=0, stdin="a\n\nb\n").stdout.splitlines()
    first, second = map(json.loads, konomi(*asked, "--json", code=0, stdin="a\n\nb\n").stdout.splitlines())
    assert first["prompt"] == "a" and second["prompt"] == f"User: a\n\nAssistant: {first['response']}\n\nUser: b"
    assert told == [one_line(each["response"]) for each in (first, second)]
    writer = Writer(ModelConfig(name="base", chat_template="mine.jinja"), 3, 1.0, 0, Observer())
    one, other = writer.talk(["a", "", "b"], "S")
    assert other.messages == talk("a", one.response, "b", system="S")
    assert konomi("generate", "base", "-p", "a", code=0).stdout.startswith("a")


def test_a_scale_of_conversations_for_rows_of_texts_is_told(here: Path) -> None:
    candidates = [{"text": "aaa"}, {"text": "b"}]
    rows = [{"version": 1, "prompt": each, "messages": talk(each), "candidates": candidates} for each in QUESTIONS[:9]]
    write_rows("samples.jsonl", rows)
    common = ("run.mlflow=false", "model.name=lm", "data.file=pairs.jsonl", "train.epochs=1", "train.learning_rate=1e-3")
    said = [
        konomi("reward", "empty.toml", *sets(*common, "normalize.samples=samples.jsonl", f"data.chat={chat}"), code=0).stderr
        for chat in ("false", "true")
    ]
    assert ["set data.chat = true" in each for each in said] == [True, False]


def test_mistakes_are_one_message(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_chat(here / "bare", "qwen3", template=False)
    Path("broken.jinja").write_text("{% for %}", encoding="utf-8")
    write_rows("plain.jsonl", ({"text": each} for each in QUESTIONS))
    job = [*sets("run.mlflow=false", "reward.kind=function", "reward.name=taste.py:polite", "model.name=bare")]
    cut = "data.query_tokens=[1,2]"
    texts, talks = sets("data.prompts=plain.jsonl"), sets("data.prompts=talks.jsonl", "data.column=messages")
    template = "no chat template, which conversations need"
    cases = [
        (["ppo", "empty.toml", *job, *talks], ["bare", template, 'model.chat_template = "FILE.jinja"']),
        (["ppo", "empty.toml", *job, *texts, "--set", "data.system=x"], ["data.system", "set data.chat = true"]),
        (["ppo", "empty.toml", *job, *texts, *sets("data.chat=true", cut)], ["query_tokens", "stays whole"]),
        (["ppo", "empty.toml", *job, *talks, "--set", cut], ["data.query_tokens", "stays whole"]),
        (["ppo", "empty.toml", *job, *texts], ["'messages', which is not a column of the data"]),
        (["ppo", "empty.toml", *job, *talks, "--set", "model.chat_template=none.jinja"], ["model.chat_template", "none.jinja"]),
        (["ppo", "empty.toml", *job, *talks, "--set", "model.chat_template=broken.jinja"], ["model.chat_template: "]),
        (["ppo", "empty.toml", *job, *talks, *sets("model.name=lm", "data.max_query_tokens=20")],
         ["'User: hi\\n\\nAssistant: yes", "more than data.max_query_tokens = 20; shorten or remove it, or raise the limit"]),
        (["sft", "empty.toml", *sets("model.name=bare", "data.texts=answers.jsonl")], ["bare", template]),
        (["sample", "empty.toml", *sets("models.a.name=bare"), *talks], ["bare", template]),
        (["generate", "bare", "--chat", "-p", "x"], ["bare", template]),
        (["label", "p", "--chat", "bare"], ["bare", template]),
        (["label", "p", "--chat", "lm", "--candidates", "c.jsonl"], ["--chat and --candidates: raters write the prompts"]),
        (["label", "p", "--chat", "lm", "--edit"], ["--chat and --edit: that is for projects in which raters rank"]),
        (["generate", "lm", "--system", "S", "-p", "x"], ["--system and --chat-template go with it"]),
        (["generate", "lm"], ["--prompt TEXT is needed"]),
        (["generate", "lm", "--chat", "-n", "2"], ["--samples needs --prompt"]),
        (["reward", "empty.toml", *sets("model.name=bare", "data.file=p.jsonl", "data.chat=true", "train.task=classification")],
         ["data.chat"]),
    ]  # fmt: skip
    assert_mistakes(here, cases, monkeypatch)
