"""What holds for all of ``konomi.ops``: shapes, masks, half precision, and sources that are pure and short."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from konomi import ops
from konomi.ops.masked import check_shapes

FILES = sorted(Path(ops.__file__).parent.glob("*.py"))
FUNCTIONS = {name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}

x, y, mask, wrong = torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3).bool(), torch.ones(2, 4).bool()
ids, score = torch.zeros(2).long(), torch.zeros(2)
discount, clip = {"gamma": 0.9, "lam": 0.8}, {"clip": 0.2}
pair = (ids[:1], ids[:1], *(torch.zeros(1) for _ in range(3)))
WRONG = [
    *((function, (x, wrong), {}) for function in (ops.masked_sum, ops.masked_mean, ops.masked_var, ops.whiten)),
    (ops.selected_logprobs, (x, torch.zeros(3).long()), {}),
    (ops.selected_logprobs, (x, ids.unsqueeze(1)), {}),
    *((function, (x, y), {}) for function in (ops.kl_per_token, ops.full_kl, ops.linear_logits)),
    (ops.shaped_rewards, (y, score, mask, 0.2), {}),
    (ops.shaped_rewards, (x, torch.zeros(3), mask, 0.2), {}),
    (ops.shaped_rewards, (x, torch.zeros(2, 1), mask, 0.2), {}),
    (ops.shaped_rewards, (x, score, wrong, 0.2), {}),
    (ops.shaped_rewards, (x, score, mask, 0.2, y), {}),
    (ops.shaped_rewards, (x, score, mask, 0.2, torch.zeros(2, 1)), {}),
    (ops.gae, (y, x, mask), discount),
    (ops.gae, (x, y, mask), discount),
    (ops.gae, (x, x, wrong), discount),
    (ops.gae, (x[0], x[0], mask[0]), discount),
    (ops.gae, (x[:, :0], x[:, :0], mask[:, :0]), discount),
    *((f, (*(y if i == place else x for i in range(3)), mask), clip)
      for f in (ops.policy_loss, ops.value_loss) for place in range(3)),
    *((f, (x, x, x, wrong), clip) for f in (ops.policy_loss, ops.value_loss)),
    (ops.policy_loss, (x, x, x, mask), {**clip, "weights_BR": y}),
    (ops.policy_loss, (x, x, x, mask), {**clip, "sequences": (torch.zeros(2, 4).long(), 2)}),
    *((ops.kl_loss, (*(y if i == place else x for i in range(2)), mask, x), {}) for place in range(2)),
    (ops.kl_loss, (x, x, wrong, x), {}),
    (ops.kl_loss, (x, x, mask, y), {}),
    (ops.leave_one_out, (x, 2), {}),
    (ops.group_relative, (x, 2), {}),
    (ops.best_of_n, (x, 2), {"backward": 0.5}),
    *((ops.importance_weights, arguments, {"cap": 2.0}) for arguments in ((y, x, mask), (x, y, mask), (x, x, wrong))),
    (ops.importance_weights, (x[0], x[0], mask[0]), {"cap": 2.0}),
    (ops.linear_logprobs, (x, torch.zeros(5, 4), ids), {}),
    (ops.linear_logprobs, (x, torch.zeros(5, 3), torch.zeros(3).long()), {}),
    (ops.preference_loss, (score, *pair[:2], torch.zeros(2), *pair[3:]), {}),
    (ops.score_loss, (score, torch.zeros(3)), {}),
    (ops.label_loss, (x, ids[:1]), {}),
    (ops.conservative_scores, (score, 1.0), {}),
    (ops.log_ratios, (score, torch.zeros(3)), {}),
    (ops.log_ratios, (score, score, torch.ones(3)), {}),
    (ops.smooth_labels, (x, 0.1), {}),
    (ops.dpo_loss, (score, *pair[:2], torch.zeros(2), *pair[3:]), {"beta": 0.1}),
    (ops.ipo_loss, (score, *pair[:2], torch.zeros(2), pair[4]), {"beta": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "keywords"), WRONG)
def test_wrong_shapes_raise(function, arguments, keywords):
    with pytest.raises(ValueError, match=r"has (size|shape)"):
        function(*arguments, **keywords)


@pytest.mark.parametrize("number", [torch.ones(2, 3), torch.ones(2, 3).long()])
def test_a_mask_of_numbers_raises(number):
    for call in (
        lambda: ops.masked_sum(x, number), lambda: ops.gae(x, x, number, **discount),
        lambda: ops.policy_loss(x, x, x, number, **clip),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"make it torch\.bool"):
            call()
    with pytest.raises(ValueError, match="k1, abs or k2"):
        ops.kl_per_token(x, x, "full")


def test_shapes_are_read_from_the_names():
    check_shapes(scores_B=score, mask_BR=mask, logits_BRV=torch.zeros(2, 3, 5), x=x, mask=mask)
    for bad in ({"scores_B": x}, {"a_B": score, "b_B": torch.zeros(3)}, {"a_B": torch.zeros(0)}, {"a": x, "b": y}):
        with pytest.raises(ValueError, match=r"has (size|shape)"):
            check_shapes(**bad)


# -- masks and half precision ------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, False, False]])
ROWS = torch.arange(3)[:, None].expand(3, 4)
MASKED = {
    "sum": lambda a: ops.masked_sum(a, MASK),
    "mean": lambda a: ops.masked_mean(a, MASK),
    "var": lambda a: ops.masked_var(a, MASK),
    "whiten": lambda a: ops.whiten(a, MASK),
    "whiten with a mean": lambda a: ops.whiten(a, MASK, shift_mean=False),
    "gae": lambda a, b: ops.gae(a, b, MASK, **discount),
    "rewards": lambda a, b: ops.shaped_rewards(a, b[:, 0], MASK, 0.3),
    "rewards of tokens": lambda a, b, c: ops.shaped_rewards(a, b[:, 0], MASK, 0.3, c),
    "policy loss": lambda a, b, c: ops.policy_loss(a, b, c, MASK, **clip),
    "weighted policy loss": lambda a, b, c, d: ops.policy_loss(a, b, c, MASK, **clip, weights_BR=d),
    "policy loss of sequences": lambda a, b, c: ops.policy_loss(a, b, c, MASK, **clip, sequences=(ROWS, 3)),
    "kl loss": lambda a, b, c: ops.kl_loss(a, b, MASK, c),
    "weights of tokens": lambda a, b: ops.importance_weights(a, b, MASK, cap=2.0),
    "weights of sequences": lambda a, b: ops.importance_weights(a, b, MASK, cap=2.0, level="sequence"),
    "value loss": lambda a, b, c: ops.value_loss(a, b, c, MASK, **clip),
}
UNMASKED = {
    "group relative": lambda a: ops.group_relative(a.flatten(), 4),
    "best of n": lambda a: ops.best_of_n(a.flatten(), 4, backward=0.5),
    "leave one out": lambda a: ops.leave_one_out(a.flatten(), 4),
    "k1": ops.kl_per_token,
    "k2": lambda a, b: ops.kl_per_token(a, b, "k2"),
    "full kl": ops.full_kl,
    "selected": lambda a: ops.selected_logprobs(a, torch.tensor([0, 1, 3])),
    "entropy": ops.entropy,
    "conservative scores": lambda a: ops.conservative_scores(a, 0.5),
}


def parts(result):
    """The tensors of a result."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [part for each in (result.values() if isinstance(result, dict) else result) for part in parts(each)]


def inputs(function):
    """As many tensors as the function has arguments without a default."""
    needed = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator) for _ in needed]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("function", MASKED.values(), ids=MASKED)
def test_garbage_under_the_mask_reaches_neither_result_nor_gradient(function, garbage):
    def run(fill):
        given = [torch.where(MASK, each, fill).requires_grad_() for each in inputs(function)]
        before = [each.detach().clone() for each in given]
        found = parts(function(*given))
        slopes = torch.autograd.grad(sum(part.double().sum() for part in found if part.requires_grad), given, allow_unused=True)
        assert all(torch.equal(a.detach().nan_to_num(), b.nan_to_num()) for a, b in zip(given, before, strict=True))
        return [part.detach() for part in found], [slope for slope in slopes if slope is not None]

    for one, other in zip(run(garbage), run(0.0), strict=True):
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, other, strict=True))
    assert all((slope[~MASK] == 0).all() for slope in run(garbage)[1] if slope.shape == MASK.shape)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [*MASKED.values(), *UNMASKED.values()], ids=[*MASKED, *UNMASKED])
def test_half_precision_is_computed_in_float32_and_float64_stays(function, half):
    given = [each.to(half) for each in inputs(function)]
    found, expected, wide = (parts(function(*(each.to(kind) for each in given))) for kind in (half, torch.float32, torch.float64))
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))
    assert {part.dtype for part in wide} == {torch.float64}


# -- the sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sources_are_pure_and_short(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert all(
        name in ("__future__", "collections.abc", "typing", "torch", "torch.nn") or name.startswith("konomi.ops.")
        for name in imported
    )
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    assert not called & {"item", "to_", "cpu", "cuda", "numpy", "tolist", "rand", "randn", "manual_seed"}
    assert not [name for name in called if re.fullmatch(r"[a-z]\w*[a-z0-9]_", name)], "no in-place edits"
    assert len(source.splitlines()) <= 180


def test_every_function_shows_what_it_does_and_the_names_are_sorted():
    assert all(">>>" in inspect.getdoc(function) for function in FUNCTIONS.values())
    assert ops.__all__ == sorted(ops.__all__)
