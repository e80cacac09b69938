"""Rules of the house for ``konomi.ops``: wrong shapes raise, and the sources stay pure and short."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from konomi import ops
from konomi.ops.checks import check_shapes

FILES = sorted(Path(ops.__file__).parent.glob("*.py"))
FUNCTIONS = {name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}

x, y, mask, wrong = torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3).bool(), torch.ones(2, 4).bool()
ids, score = torch.zeros(2).long(), torch.zeros(2)
discount, clip = {"gamma": 0.9, "lam": 0.8}, {"clip": 0.2}
WRONG = [
    *((function, (x, wrong), {}) for function in (ops.masked_sum, ops.masked_mean, ops.masked_var, ops.moments)),
    (ops.whiten, (x, wrong), {}),
    (ops.selected_logprobs, (x, torch.zeros(3).long()), {}),
    (ops.selected_logprobs, (x, ids.unsqueeze(1)), {}),
    (ops.kl_per_token, (x, y), {}),
    (ops.k3, (x, y), {}),
    (ops.full_kl, (x, y), {}),
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
    *((f, tuple(a if i != place else b for i in range(4)), clip)
      for f in (ops.policy_loss, ops.value_loss) for a, b in [(x, y)] for place in range(3)),
    *((f, (x, x, x, wrong), clip) for f in (ops.policy_loss, ops.value_loss)),
    (ops.explained_variance, (y, x, mask), {}),
    (ops.explained_variance, (x, x, wrong), {}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "keywords"), WRONG)
def test_wrong_shapes_raise(function, arguments, keywords):
    arguments = [mask if i == 3 and a is x else a for i, a in enumerate(arguments)]
    with pytest.raises(ValueError, match=r"has (size|shape)"):
        function(*arguments, **keywords)


@pytest.mark.parametrize("number", [torch.ones(2, 3), torch.ones(2, 3).long()])
def test_a_mask_of_numbers_raises(number):
    for call in (
        lambda: ops.masked_sum(x, number),
        lambda: ops.gae(x, x, number, **discount),
        lambda: ops.policy_loss(x, x, x, number, **clip),
    ):
        with pytest.raises(ValueError, match=r"make it torch\.bool"):
            call()


def test_shapes_are_read_from_the_names():
    check_shapes(scores_B=score, mask_BR=mask, logits_BRV=torch.zeros(2, 3, 5), x=x, mask=mask)
    for bad in ({"scores_B": x}, {"a_B": score, "b_B": torch.zeros(3)}, {"a_B": torch.zeros(0)}, {"a": x, "b": y}):
        with pytest.raises(ValueError, match=r"has (size|shape)"):
            check_shapes(**bad)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sources_are_pure_and_short(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert all(
        name in ("__future__", "collections.abc", "typing", "torch") or name.startswith("konomi.ops.") for name in imported
    )
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    assert not called & {"item", "to_", "cpu", "cuda", "numpy", "tolist", "rand", "randn", "manual_seed"}
    assert not [name for name in called if re.fullmatch(r"[a-z]\w*[a-z0-9]_", name)], "no in-place edits"
    assert len(source.splitlines()) <= 150
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all(node.end_lineno - node.lineno < 60 for node in functions)
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_does_and_shows_it(name):
    assert ">>>" in inspect.getdoc(FUNCTIONS[name])


def test_the_public_names_are_sorted():
    assert ops.__all__ == sorted(ops.__all__)
