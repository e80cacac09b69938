import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from konomi import ops
from konomi.ops import Blocks, entropy, linear_logits, selected_logprobs
from oracles import close, quick

seeds = st.integers(0, 2**31)
vocabularies = st.integers(1, 9) | st.integers(1020, 3300)
temperatures = st.sampled_from([0.7, 1.0, 1.6])


def linear_logprobs(hidden, weight, targets, temperature=1.0, blocks=Blocks(logits=1)):  # noqa: B008
    """In the narrowest blocks there are: 1024 tokens of the vocabulary."""
    return ops.linear_logprobs(hidden, weight, targets, temperature, blocks)


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(seed, tokens, width, vocabulary, dtype=torch.float64, spread=1.0):
    """Hidden states, weights, and targets with the first and last token and the most likely one among them."""
    hidden, weight = draw(seed, tokens, width) * spread, draw(seed + 1, vocabulary, width)
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    likeliest = (hidden @ weight.T).argmax(-1)
    places = torch.arange(tokens) % 5
    for place, choice in enumerate((likeliest, torch.zeros_like(targets), torch.full_like(targets, vocabulary - 1))):
        targets = torch.where(places == place, choice, targets)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def full(hidden, weight, targets, temperature=1.0):
    """What is to be computed, with all logits."""
    logits = hidden @ weight.T / temperature
    return selected_logprobs(logits, targets), entropy(logits.detach())


def gradients(function, hidden, weight, *arguments):
    """Gradients of a weighted sum of log-probabilities."""
    logprobs, _ = function(hidden, weight, *arguments)
    factors = draw(7, len(hidden), dtype=logprobs.dtype)
    return torch.autograd.grad((logprobs * factors).sum(), (hidden, weight))


def agree(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance)


class Watch(TorchDispatchMode):
    """Notes every operation, and the elements of the largest tensor that one makes."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            # a transposed weight is no tensor of its own
            if isinstance(tensor, torch.Tensor) and not function.is_view:
                self.largest = max(self.largest, tensor.numel())
        return made


# -- the same numbers as with the logits -------------------------------------------------------------------------------


@quick
@given(seeds, st.integers(1, 6), st.integers(1, 4), vocabularies, temperatures, st.sampled_from([torch.float64, torch.float32]))
def test_it_is_what_the_logits_give(seed, tokens, width, vocabulary, temperature, dtype):
    hidden, weight, targets = case(seed, tokens, width, vocabulary, dtype)
    wide = (hidden.double(), weight.double(), targets, temperature)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    answers = linear_logprobs(hidden, weight, targets, temperature)
    slopes = gradients(linear_logprobs, hidden, weight, targets, temperature)
    assert {x.dtype for x in (*answers, *slopes)} == {dtype}
    agree(answers, full(*wide), tolerance)
    agree(slopes, gradients(full, *wide), tolerance)


@pytest.mark.parametrize("elements", [1, 3 * 1500])
@pytest.mark.parametrize("vocabulary", [1023, 1024, 1025, 2048, 2049])
def test_no_token_is_lost_or_counted_twice_where_blocks_meet(vocabulary, elements):
    targets = torch.tensor([0, vocabulary // 2, vocabulary - 1])
    hidden, weight = draw(0, 3, 2).requires_grad_(), draw(1, vocabulary, 2).requires_grad_()
    slopes = gradients(linear_logprobs, hidden, weight, targets, 1.0, Blocks(elements))
    agree(slopes, gradients(full, hidden, weight, targets), 1e-12)
    _, even = linear_logprobs(torch.zeros(3, 2), torch.ones(vocabulary, 2), targets, 1.0, Blocks(elements))
    close(even.exp(), torch.full((3,), vocabulary), 1e-5)


# -- numbers at the edge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1e3, 1e-3])
@pytest.mark.parametrize("ascending", [True, False])
def test_large_and_small_logits(spread, ascending):
    """Logits to +-1e3 and beyond; the top moves up from block to block, or stays in the first."""
    hidden, weight, targets = case(11, 6, 3, 3300, spread=spread)
    order = (hidden[0] @ weight.T).argsort(descending=not ascending)
    arguments = (hidden, weight.detach()[order].requires_grad_(), targets, 1.3)
    agree(linear_logprobs(*arguments), full(*arguments), 1e-12)
    agree(gradients(linear_logprobs, *arguments), gradients(full, *arguments), 1e-11)


def test_digits_stay_when_all_logits_are_large():
    logprobs, spread = linear_logprobs(torch.tensor([[1e4], [-1e4]]), torch.ones(2100, 1), torch.tensor([5, 2099]))
    even = torch.full((2,), 2100.0).log()
    agree((logprobs, spread), (-even, even), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_log_probability_is_above_0(dtype):
    hidden, weight, _ = case(13, 40, 16, 2100, spread=30.0)
    hidden, weight = hidden.detach().to(dtype), weight.detach().to(dtype)
    targets = (hidden.double() @ weight.double().T).argmax(-1)
    logprobs, spread = linear_logprobs(hidden, weight, targets)
    assert (logprobs <= 0).all() and (logprobs > -1.0).any()
    assert (spread >= 0).all()


def test_a_nan_stays_in_its_row():
    hidden, weight, targets = case(14, 4, 3, 2100)
    broken = hidden.detach().clone()
    broken[1, 0] = torch.nan
    for actual, expected in zip(linear_logprobs(broken, weight, targets), full(hidden, weight, targets), strict=True):
        assert actual.isnan().tolist() == [False, True, False, False]
        close(actual[[0, 2, 3]], expected[[0, 2, 3]], 1e-12)


def test_a_first_block_that_weighs_nothing():
    weight = torch.cat([torch.full((1024, 1), -torch.inf), torch.zeros(4, 1)])
    close(linear_logprobs(torch.ones(1, 1), weight, torch.tensor([1025]))[0], -torch.tensor([4.0]).log(), 1e-6)
    assert linear_logprobs(torch.ones(1, 1), -weight, torch.tensor([1025]))[0].isnan().all()


@pytest.mark.parametrize("target", [-1, 1500])
def test_a_target_outside_of_the_vocabulary_has_no_number(target):
    assert linear_logprobs(draw(0, 1, 2), draw(1, 1500, 2), torch.tensor([target]))[0].isnan().all()


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half):
    hidden, weight, targets = (x.detach() for x in case(15, 6, 4, 2100))
    hidden, weight = hidden.to(half).requires_grad_(), weight.to(half).requires_grad_()
    logprobs, spread = linear_logprobs(hidden, weight, targets)
    assert logprobs.dtype == spread.dtype == torch.float32
    wide = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets)
    agree((logprobs, spread), full(*wide), 0.02)
    slopes = gradients(linear_logprobs, hidden, weight, targets)
    assert {x.dtype for x in slopes} == {half}
    agree([x.double() for x in slopes], gradients(full, *wide), 0.05)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_half_precision_are_not_rounded(half, autocast):
    """Log-probabilities are those of float64 products of the same factors, where logits rounded to half are far from them."""
    hidden, weight, targets = (x.detach() for x in case(15, 24, 64, 2100))
    hidden, weight = hidden.to(half), weight.to(half)
    exact = hidden.double() @ weight.double().T
    expected = selected_logprobs(exact, targets), entropy(exact)
    rounded = selected_logprobs(exact.to(half).float(), targets)
    assert (rounded - expected[0]).std() > (0.01 if half == torch.bfloat16 else 0.001)
    given = (hidden.float(), weight.float()) if autocast else (hidden, weight)
    with torch.autocast("cpu", half, enabled=autocast):
        found, logits = linear_logprobs(*given, targets), linear_logits(*given)
    assert (found[0] - expected[0]).std() < 1e-5
    agree(found, expected, 1e-5)
    assert logits.dtype == torch.float32
    close(logits, exact.float(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_have_the_gradients_of_their_product(dtype):
    hidden, weight, _ = case(23, 5, 4, 1030, dtype)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    factors = draw(7, 5, 1030).to(dtype)
    (linear_logits(hidden, weight) * factors).sum().backward()
    (wide[0] @ wide[1].T * factors.double()).sum().backward()
    for one, other in zip((hidden, weight), wide, strict=True):
        assert one.grad.dtype == dtype
        close(one.grad.double(), other.grad, 1e-12 if dtype == torch.float64 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype):
    """Products in the type of autocast, in the backward pass as well, which runs outside of it."""
    hidden, weight, targets = case(16, 6, 4, 2100, torch.float32)
    hidden = hidden.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, spread = linear_logprobs(hidden, weight, targets)
    halves = (hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_())
    expected, spread_expected = linear_logprobs(*halves, targets)
    assert logprobs.dtype == torch.float32
    assert torch.equal(logprobs, expected) and torch.equal(spread, spread_expected)
    of_halves = torch.autograd.grad(expected.sum(), halves)
    actual = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    assert (actual[0].dtype, actual[1].dtype) == (dtype, torch.float32)
    close(actual[0].float(), of_halves[0].float(), 0.02)
    rounded = weight.detach().bfloat16().float().requires_grad_()  # its gradient is float32, that of a half is rounded once more
    (of_rounded,) = torch.autograd.grad(linear_logprobs(halves[0].detach(), rounded, targets)[0].sum(), rounded)
    close(actual[1], of_rounded, 0.0)


def test_float64_stays_under_autocast():
    arguments = case(17, 3, 2, 1500)
    with torch.autocast("cpu", torch.bfloat16):
        close(linear_logprobs(*arguments)[0], full(*arguments)[0], 1e-12)


# -- gradients where they are wanted, and nothing that they do not need ------------------------------------------------


def test_the_same_bits_with_and_without_gradients():
    """The trainer relies on it: the first ratio is exactly 1."""
    hidden, weight, targets = case(18, 7, 33, 2100, torch.float32)
    with torch.no_grad():
        plain = linear_logprobs(hidden, weight, targets, 0.7)
    for frozen_hidden, frozen_weight in ((False, False), (False, True), (True, False), (True, True)):
        arguments = (hidden.detach() if frozen_hidden else hidden, weight.detach() if frozen_weight else weight)
        answers = linear_logprobs(*arguments, targets, 0.7)
        assert answers[0].requires_grad is not (frozen_hidden and frozen_weight)
        assert not answers[1].requires_grad
        assert all(torch.equal(actual, expected) for actual, expected in zip(answers, plain, strict=True))


def test_gradients_only_where_they_are_wanted():
    hidden, weight, targets = case(19, 5, 3, 2100)
    expected = gradients(full, hidden, weight, targets)
    linear_logprobs(hidden, weight.detach(), targets)[0].mul(draw(7, 5)).sum().backward()
    close(hidden.grad, expected[0], 1e-12)
    assert weight.grad is None
    linear_logprobs(hidden.detach(), weight, targets)[0].mul(draw(7, 5)).sum().backward()
    close(weight.grad, expected[1], 1e-12)


def test_only_what_is_wanted_is_computed_and_kept():
    """Per block one product for logits, and one for the gradient of the hidden states if that is to come."""
    hidden, weight, targets = case(20, 5, 3, 2100)

    def products(*arguments):
        kept = []
        with Watch() as watch, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape), lambda x: x):
            linear_logprobs(*arguments, targets)
        return watch.names.count("mm"), len(kept)

    assert products(hidden, weight) == (6, 7)
    assert products(hidden, weight.detach()) == (6, 1)
    assert products(hidden.detach(), weight) == (3, 6)
    assert products(hidden.detach(), weight.detach()) == (3, 0)
    with torch.no_grad():
        assert products(hidden, weight) == (3, 0)


def test_no_tensor_is_as_large_as_the_logits():
    hidden, weight, targets = case(21, 100, 4, 5000, torch.float32)
    with Watch() as forward:
        logprobs, _ = linear_logprobs(hidden, weight, targets, 1.0, Blocks(2**17, kept=0))  # what is kept is not made again
    with Watch() as backward:
        logprobs.sum().backward()
    for watch in (forward, backward):
        assert "mm" in watch.names
        assert 2**17 - 100 < watch.largest <= 2**17


def test_second_derivatives_raise():
    hidden, weight, targets = case(22, 2, 3, 5)
    logprobs, _ = linear_logprobs(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="leave create_graph out"):
        torch.autograd.grad(logprobs.sum(), hidden, create_graph=True)


# -- what is kept for the backward pass --------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [0, 5 * 1024, 2 * 5 * 1024 + 1, 2**25])
def test_what_is_kept_changes_no_gradient(elements):
    """Nothing, the first block of three, two of them, all."""
    hidden, weight, targets = case(3, 5, 4, 2500, spread=3.0)
    blocks = Blocks(logits=1, kept=elements)
    agree(gradients(linear_logprobs, hidden, weight, targets, 0.7, blocks), gradients(full, hidden, weight, targets, 0.7), 1e-12)
    kept = linear_logprobs(hidden, weight, targets, 1.0, blocks)[0].grad_fn.kept
    assert sum(exponentials.numel() for exponentials, _ in kept) == min(elements // 5120 * 5120, 5 * 2500)
    logprobs, _ = linear_logprobs(hidden, weight, targets, 1.0, blocks)
    with Watch() as watch:
        logprobs.sum().backward()
    assert watch.names.count("mm") == 3 + (3 - len(kept))  # one for the gradient, another only for what was not kept
    assert not linear_logprobs(hidden, weight.detach(), targets, 1.0, blocks)[0].grad_fn.kept


def test_a_second_backward_pass_does_the_products_again():
    hidden, weight, targets = case(4, 5, 4, 2500)
    total = linear_logprobs(hidden, weight, targets)[0].sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    agree(torch.autograd.grad(total, (hidden, weight)), first, 1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("vocabulary", [7, 2100])
def test_a_copy_of_the_weight_may_have_further_rows(vocabulary, temperature):
    """In one block and in several: log-probabilities, entropies and gradients are those without it."""
    hidden, weight, targets = case(23, 5, 3, vocabulary)
    copy = torch.cat([weight.detach(), torch.zeros(11, 3, dtype=torch.float64)])
    found = []
    for each in (None, copy):
        logprobs, entropies = ops.linear_logprobs(hidden, weight, targets, temperature, Blocks(logits=1), copy_VD=each)
        found.append([logprobs.detach(), entropies, *torch.autograd.grad(logprobs.mul(draw(7, 5)).sum(), [hidden, weight])])
    for one, other in zip(*found, strict=True):
        close(other, one, 1e-12)


def test_a_device_that_multiplies_to_float32_takes_tokens_in_parts():
    hidden, weight, targets = case(24, 9, 3, 7)
    found = []
    for blocks in (Blocks(rows=None), Blocks(logits=14, rows=None)):
        logprobs, entropies = ops.linear_logprobs(hidden, weight, targets, 0.7, blocks)
        found.append([logprobs.detach(), entropies, *torch.autograd.grad(logprobs.mul(draw(7, 9)).sum(), [hidden, weight])])
    for one, other in zip(*found, strict=True):
        close(other, one, 1e-12)
