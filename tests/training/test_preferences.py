"""Comparisons as tokens, and training on them: each response counts as if it were alone; what was computed once is kept."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from konomi.config import DPOConfig
from konomi.data.chat import template_render
from konomi.data.messages import Conversation
from konomi.data.records import Group, Pair, Ranking, groups
from konomi.data.tokens import Tokens
from konomi.errors import DataError
from konomi.training.dpo import ResponseLogprobs, batch_loss, collate, figures, reference_logprobs, response_logprobs
from konomi.training.preferences import Choices, Judged, encode, rollout_of, votes
from konomi.training.texts import Cut
from tiny import EOS_ID, tiny_model, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def encoded(group: Group, max_length: int = 99, end_of_text: bool = True, chat: bool = False) -> tuple[Choices, Cut]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["qz"]})
    tokens, render = Tokens(tokenizer), template_render(tokenizer)
    (found,), cut = encode([group], tokens, max_length=max_length, end_of_text=end_of_text, chat=chat, render=render)
    return found, cut


def shown(ids: list[int]) -> str:
    return "".join({0: "^", 1: "$", 28: " "}.get(i) or chr(i - 2 + ord("a")) for i in ids)


def of(*records: Pair | Ranking) -> Group:
    (group,) = groups(records)
    return group


# -- votes -------------------------------------------------------------------------------------------------------------


def test_votes_on_the_same_two_responses_are_one_judgement() -> None:
    group = of(
        Ranking("p", ("a", "b", "c"), (1, 2, 3), rater="x"), Ranking("p", ("b", "a", "c"), (1, 2, 3), rater="y"),
        Ranking("p", ("a", "b", "c"), (1, 1, 1), rater="z"), Pair("p", "c", "a", label=0.8), Pair("p", "b", "d", margin=2.0),
        Pair("p", "d", "a", margin=1.0),
    )  # fmt: skip
    found = {(group.responses[j.better], group.responses[j.worse]): j for j in votes(group)}
    assert {pair: (round(j.label, 3), j.margin, round(j.weight * 12, 3)) for pair, j in found.items()} == {
        ("a", "b"): (0.5, 0.0, 3.0), ("a", "c"): (round(2.7 / 4, 3), 0.0, 4.0), ("b", "c"): (round(2.5 / 3, 3), 0.0, 3.0),
        ("b", "d"): (1.0, 2.0, 1.0), ("d", "a"): (1.0, 1.0, 1.0),
    }  # fmt: skip
    assert votes(of(Ranking("p", ("a", "b"), (1, 2)), Ranking("p", ("b", "c"), (1, 1)))) == (Judged(0, 1, 1.0, 0.0, 1.0),)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_responses_share_their_prompt_and_end_in_the_end_of_text() -> None:
    pair = of(Pair("ab ", "cd", "xyz"))
    choices, cut = encoded(pair)
    assert (shown(choices.query), list(map(shown, choices.responses)), cut.texts) == ("^ab ", ["cd$", "xyz$"], 0)
    assert (choices.longest, cut.longest) == (8, 8)
    choices, cut = encoded(pair, max_length=7)
    assert (list(map(shown, choices.responses)), cut.texts) == (["cd$", "xyz"], 1)
    assert list(map(shown, encoded(pair, end_of_text=False)[0].responses)) == ["cd", "xyz"]
    rollout = rollout_of([choices, encoded(of(Pair("q", "r", "s")))[0]])
    assert rollout.response_ids() == [*choices.responses, [19, EOS_ID], [20, EOS_ID]]
    assert rollout.query_lengths.tolist() == [4, 4, 2, 2]


@pytest.mark.parametrize("chat", [True, False])
def test_a_conversation_is_written_by_the_template(chat: bool) -> None:
    """A response is what follows the cue for an answer; its own control tokens are text."""
    talk = Conversation([{"role": "user", "content": "hi"}])
    pair = Pair("hi", "yqzs", "no") if chat else Pair("hi", "yqzs", "no", messages=talk)
    for end in (True, False):
        choices, _ = encoded(of(pair), chat=chat, end_of_text=end)
        assert (shown(choices.query), list(map(shown, choices.responses))) == ("^u hi$a ", ["yqzs$", "no$"])


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError, match=r"'abcdef' has 7 tokens, which leaves no room for a response within dpo.max_length = 7"):
        encoded(of(Pair("abcdef", "a", "b")), max_length=7)
    with pytest.raises(DataError, match=r"the response '' has no tokens .* dpo.end_of_text = true"):
        encoded(Group("a", ("", "b"), of(Pair("a", "x", "b")).comparisons), end_of_text=False)


# -- training ----------------------------------------------------------------------------------------------------------

ELEMENTS = [
    Choices([0, 2, 3, 4], [[5, 6, EOS_ID], [7, EOS_ID], [8, 9, 10, 11, EOS_ID]],
            (Judged(0, 1, 1.0, 0.0, 0.25), Judged(2, 1, 0.7, 0.0, 0.5), Judged(0, 2, 1.0, 0.3, 0.25))),
    Choices([0, 12], [[13, EOS_ID], [14, 15, EOS_ID]], (Judged(1, 0, 1.0, 0.0, 1.0),)),
]  # fmt: skip


def alone(lm: Any, query: list[int], response: list[int]) -> Tensor:
    """The log-probability of a response, from the whole logits of one sequence."""
    logits = lm(torch.tensor([[*query, *response]])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(query) - 1 + i, token] for i, token in enumerate(response)]).sum()


def slopes(loss: Tensor, lm: Any) -> list[Tensor]:
    wanted = [p for p in lm.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, wanted, materialize_grads=True, retain_graph=True))


@pytest.mark.parametrize(("family", "loss", "per_token"), [("gpt2", "sigmoid", "auto"), ("gemma3", "ipo", "auto"),
                                                           ("llama", "sigmoid", "yes")])  # fmt: skip
def test_loss_and_gradient_are_those_of_each_response_alone(family: str, loss: str, per_token: str) -> None:
    lm, initial = (tiny_model(family, seed=seed).double() for seed in (0, 1))
    config = DPOConfig(loss=loss, beta=0.3, per_token=per_token, label_smoothing=0.1)  # type: ignore[arg-type]
    model = ResponseLogprobs(lm)
    references = response_logprobs(ResponseLogprobs(initial), ELEMENTS, nullcontext)
    rows = list(zip(ELEMENTS, references, strict=True))

    def lost(*parts: list[tuple[Choices, Tensor]]) -> Tensor:
        """Of micro-batches."""
        losses = [batch_loss(model(rollout_of([each for each, _ in part])), collate(part), config)[0] for part in parts]
        return torch.stack(losses).sum()

    expected = torch.zeros((), dtype=torch.float64)
    for each in ELEMENTS:
        ratios = [alone(lm, each.query, row) - alone(initial, each.query, row).detach() for row in each.responses]
        if loss == "ipo" or per_token == "yes":
            ratios = [ratio / len(row) for ratio, row in zip(ratios, each.responses, strict=True)]
        for better, worse, label, margin, weight in each.judged:
            target, gap = label * 0.9 + (1 - label) * 0.1, ratios[better] - ratios[worse]
            if loss == "ipo":
                expected = expected + weight * (gap - (2 * target - 1) / 0.6) ** 2
            else:
                z = 0.3 * gap - margin
                expected = expected - weight * (target * z.sigmoid().log() + (1 - target) * (-z).sigmoid().log())
    for found in (lost(rows), lost(rows[:1], rows[1:])):
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
        for slope, other in zip(slopes(found, lm), slopes(expected, lm), strict=True):
            assert torch.allclose(slope, other, rtol=1e-5, atol=1e-5)  # Gemma norms in float32


def test_many_short_responses_are_not_padded_to_a_long_one() -> None:
    judged, done = (Judged(0, 1, 1.0, 0.0, 1.0),), list[int]()
    elements = [Choices([0], [[5] * 99, [6] * 90], judged), Choices([0], [[5, 6]] * 50, judged)]
    lm = tiny_model("llama")
    (long, _), short = response_logprobs(ResponseLogprobs(lm), elements, nullcontext, lambda so_far, _: done.append(so_far))
    assert done == [1, 2]  # 52 rows of 100 tokens would be more than are read at a time
    assert (len(short), float(long)) == (50, pytest.approx(float(alone(lm, [0], [5] * 99).detach()), rel=1e-4))


def test_an_evaluation_lays_out_no_prompts() -> None:
    """Of thousands of long ones, that would be gigabytes."""
    logprobs, references = (
        [torch.tensor(rows) for rows in each] for each in ([[-3.0, -1, -2], [-4.0, -2]], [[-4.0, -1, -4], [-4.0, -4]])
    )
    without = [replace(each, query=None) for each in ELEMENTS]  # type: ignore[arg-type]
    found = figures(logprobs, references, without, DPOConfig(beta=0.5))
    assert found == figures(logprobs, references, ELEMENTS, DPOConfig(beta=0.5))
    # the gaps of the log-ratios: 1, 2 and -1 with weights 1/4, 1/2, 1/4 of the first prompt, 2 of the second
    assert (found["accuracy"], found["margin"]) == (pytest.approx(0.875), pytest.approx(0.75))


def test_the_reference_is_computed_once_for_these_tokens_and_this_model(tmp_path: Path) -> None:
    model, file, computed = ResponseLogprobs(tiny_model("llama")), tmp_path / "reference.safetensors", list[int]()

    def ask(elements: list[Choices], identity: str = "a") -> list[Tensor]:
        (found,) = reference_logprobs(model, [elements], file, identity, nullcontext, lambda done, _: computed.append(done))
        return found

    first = ask(ELEMENTS)
    assert [len(each) for each in first] == [3, 2] and computed == [2]
    assert all(torch.equal(*pair) for pair in zip(first, ask(ELEMENTS), strict=True)) and computed == [2]
    ask(ELEMENTS, "another model")
    ask(ELEMENTS[:1], "another model")
    assert computed == [2, 2, 1]
    file.write_bytes(file.read_bytes()[:-3])  # torn by a kill
    assert len(ask(ELEMENTS[:1], "another model")) == 1 and computed == [2, 2, 1, 1]
