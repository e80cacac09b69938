import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi.ops import entropy, selected_logprobs
from oracles import close, quick

INF = float("inf")
seeds = st.integers(0, 2**31)


def draw(seed, *shape, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def pick(seed, vocabulary, *shape):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@quick
@given(seeds, st.integers(1, 6), st.integers(1, 9))
def test_selected_logprobs_are_the_loop(seed, tokens, vocabulary):
    logits, targets = draw(seed, tokens, vocabulary), pick(seed, vocabulary, tokens)
    expected = [oracles.log_softmax(row)[y] for row, y in zip(logits.tolist(), targets.tolist(), strict=True)]
    close(selected_logprobs(logits, targets), torch.tensor(expected, dtype=torch.float64))


@quick
@given(seeds, st.integers(1, 6), st.integers(1, 9))
def test_entropy_is_the_loop(seed, tokens, vocabulary):
    logits = draw(seed, tokens, vocabulary)
    expected = [oracles.entropy(row) for row in logits.tolist()]
    close(entropy(logits), torch.tensor(expected, dtype=torch.float64))


def test_any_leading_shape():
    logits, targets = draw(0, 2, 3, 5), pick(0, 5, 2, 3)
    close(selected_logprobs(logits, targets).flatten(), selected_logprobs(logits.flatten(0, 1), targets.flatten()))
    close(entropy(logits).flatten(), entropy(logits.flatten(0, 1)))
    assert selected_logprobs(logits[0, 0], targets[0, 0]).shape == entropy(logits[0, 0]).shape == ()


def test_gradient_is_that_of_log_softmax():
    logits, targets, weights = draw(1, 4, 7).requires_grad_(), pick(1, 7, 4), draw(2, 4)
    (actual,) = torch.autograd.grad((selected_logprobs(logits, targets) * weights).sum(), logits)
    chosen = logits.log_softmax(-1)[torch.arange(4), targets]
    (expected,) = torch.autograd.grad((chosen * weights).sum(), logits)
    close(actual, expected)


def test_autograd_keeps_the_logits_and_no_other_tensor_of_their_size():
    logits, kept = draw(0, 6, 50).requires_grad_(), set()

    def note(tensor):
        if tensor.numel() >= logits.numel():
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        selected_logprobs(logits, pick(0, 50, 6))
    assert kept == {logits.data_ptr()}


def test_forbidden_tokens_count_as_absent():
    logits = draw(4, 3, 5)
    forbidden = torch.cat([logits, torch.full((3, 2), -INF, dtype=torch.float64)], dim=1)
    logits.requires_grad_()
    forbidden.requires_grad_()
    for function in (entropy, lambda x: selected_logprobs(x, torch.tensor([0, 1, 4]))):
        close(function(forbidden), function(logits))
        (actual,) = torch.autograd.grad(function(forbidden).sum(), forbidden)
        (expected,) = torch.autograd.grad(function(logits).sum(), logits)
        close(actual, torch.cat([expected, torch.zeros(3, 2, dtype=torch.float64)], dim=1))
    assert selected_logprobs(torch.tensor([[0.0, -INF]]), torch.tensor([1])) == -INF


def test_entropy_keeps_its_digits_far_from_0():
    logits = torch.tensor([[1e4, 1e4 + 1, 1e4 - 2]])
    close(entropy(logits), entropy(logits - 1e4), 1e-6)
