"""Small faults put into ``konomi.ops``, one at a time, to see that a test of ``tests/ops`` notices each.

    python tests/mutants.py              all mutants; a table of who killed whom; exit 1 if one survives
    python tests/mutants.py 0 7 12       these only

Each mutant runs in a fork of one process that has torch imported already, on a copy of the package's ``ops``, so that a
mutant costs a second and the working tree is never touched. Needs ``os.fork`` (Linux, macOS).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
OPS = TESTS.parent / "src" / "konomi" / "ops"
PATIENCE = 60  # seconds until a mutant that hangs counts as killed


class Mutant(NamedTuple):
    """``old`` stands exactly once in ``file``; ``new`` takes its place."""

    file: str
    old: str
    new: str
    note: str


# file -> (fragment that stands exactly once in it, what takes its place, what is wrong then)
FAULTS = {
    "checks.py": [
        ('name.startswith("mask") and', 'name.startswith("mask_") and', "masks of flat shape unchecked"),
        ("tensor.dtype != torch.bool", "tensor.dtype == torch.bool", "mask type inverted"),
        ("if shape != tensor.shape:", "if shape == 0:", "equal shapes not asked for"),
        ("tensor.dim() != len(axes) or", "", "number of axes not checked"),
        (" or 0 in tensor.shape", "", "empty axes pass"),
        ("if size != expected:", "if size < expected:", "larger axes pass"),
    ],
    "masked.py": [
        ("x.float() if", "x if", "half precision not widened"),
        ("(torch.float16, torch.bfloat16)", "(torch.float16,)", "bfloat16 not widened"),
        ("torch.where(mask, widen(x), 0)", "widen(x) * mask", "NaN leaks through the mask"),
        ("torch.where(mask, widen(x), 0)", "torch.where(mask, 0, widen(x))", "mask polarity"),
        ("torch.where(mask, widen(x), 0)", "torch.where(mask, widen(x), 1)", "1 under the mask"),
        ("return zero_masked(x, mask).sum()", "return zero_masked(x, mask).mean()", "mean for sum"),
        ("(mask.sum().clamp(min=1) if", "(mask.numel() if", "padding counts in the mean"),
        ("(mask.sum().clamp(min=1) if", "(mask.sum() if", "no token: 0 / 0"),
        ("if count is None else count", "", "the count given is not used"),
        ("(self.count - int(unbiased))", "(self.count)", "always biased"),
        ("(self.count - int(unbiased))", "(self.count - 1)", "always unbiased"),
        ("int(unbiased)).clamp(min=1)", "int(unbiased))", "single token: 0 / 0"),
        ("    x = zero_masked(x, mask)  #", "    #", "NaN in the gradient of the square"),
        ("masked_sum((x - mean).square(), mask)", "masked_sum(x.square(), mask)", "not centred"),
        ("(x - mean).square(), mask)", "x.square(), mask) - mean.square() * mask.sum()", "variance in one pass"),
        ("masked_sum((x - mean).square(), mask)", "(x - mean).square().sum()", "padding deviates"),
        ("Moments(mask.sum().to(", "Moments(torch.ones_like(mask).sum().to(", "padding in the count"),
        ("a.count + b.count, b.mean - a.mean", "a.count + b.count, a.mean - b.mean", "sign of delta"),
        ("share = b.count /", "share = a.count /", "the other's share"),
        ("b.count / count.clamp(min=1)", "b.count / count", "nothing merged with nothing: 0 / 0"),
        ("a.mean + delta * share", "b.mean + delta * share", "mean from the wrong end"),
        ("a.m2 + b.m2 + delta", "a.m2 + delta", "one part's spread lost"),
        ("b.m2 + delta.square() * a.count * share", "b.m2", "spread between parts lost"),
        ("delta.square() * a.count * share", "delta.square() * b.count * share", "count of cross term"),
        ("for part in parts[1:]:", "for part in parts[2:]:", "a part is skipped"),
        ("if not parts:", "if parts is None:", "merging nothing passes"),
        (".var(unbiased)", ".var()", "masked_var always unbiased"),
        ("    x_BR = zero_masked(x_BR, mask_BR)\n", "", "whiten: NaN in the gradient"),
        ("masked_mean(x_BR, mask_BR) if mean is None", "x_BR.mean() if mean is None", "mean of padding"),
        ("if mean is None else mean", "", "the mean given is not used"),
        ("if var is None else var", "", "the variance given is not used"),
        ("masked_var(x_BR, mask_BR) if", "masked_var(x_BR, mask_BR, False) if", "biased whitening"),
        ("(x_BR - mean) /", "(x_BR + mean) /", "sign of the mean"),
        ("(var + eps) ** 0.5", "(var + eps)", "variance for standard deviation"),
        ("(var + eps) ** 0.5", "(var**0.5 + eps)", "eps outside the root"),
        ("scaled_BR if shift_mean else", "scaled_BR if not shift_mean else", "shift_mean inverted"),
        ("else scaled_BR + mean", "else scaled_BR", "mean not added back"),
        ("return zero_masked(scaled_BR", "return (lambda x, _: x)(scaled_BR", "padding not set to 0"),
    ],
    "logprobs.py": [
        ("    logits_NV = widen(logits_NV)\n", "", "log-probabilities in half precision"),
        ("return taken_N - logits_NV", "return taken_N + logits_NV", "sign of the normaliser"),
        ("logits_NV.logsumexp(-1)", "logits_NV.logsumexp(0)", "normalised over tokens"),
        ("logits_NV.logsumexp(-1)", "logits_NV.amax(-1)", "maximum for logsumexp"),
        ("logits_NV.logsumexp(-1)", "logits_NV.log_softmax(-1).neg().add(logits_NV)[..., 0]", "NV stored"),
        ("logits_NV.gather(-1, targets_N", "logits_NV.flip(-1).gather(-1, targets_N", "wrong token"),
        ("widen(logits_NV).log_softmax", "logits_NV.log_softmax", "entropy in half precision"),
        ("logprobs_NV == -torch.inf, 0", "logprobs_NV == torch.inf, 0", "0 times -inf"),
        ("return -(logprobs_NV", "return (logprobs_NV", "sign of the entropy"),
        ("finite_NV).sum(-1)", "finite_NV).mean(-1)", "mean over the vocabulary"),
    ],
    "kl.py": [
        ("widen(logprobs_BR) - widen(ref_logprobs_BR)", "widen(ref_logprobs_BR) - logprobs_BR", "sign of d"),
        ("widen(logprobs_BR) - widen(ref_logprobs_BR)", "logprobs_BR - ref_logprobs_BR", "not widened"),
        ("return gap_BR.abs()", "return gap_BR", "abs lost"),
        ("return 0.5 * gap_BR.square()", "return gap_BR.square()", "half lost"),
        ('kind == "k2":', 'kind != "k2":', "kinds mixed up"),
        ("torch.expm1(-gap_BR)", "torch.expm1(gap_BR)", "sign in k3"),
        ("expm1(-gap_BR) + gap_BR", "expm1(-gap_BR) - gap_BR", "sign of d in k3"),
        ("torch.expm1(-gap_BR)", "torch.exp(-gap_BR)", "the 1 of k3"),
        ("probs_NV = logprobs_NV.exp()", "probs_NV = ref_logprobs_NV.exp()", "KL weighted by the reference"),
        ("logprobs_NV - ref_logprobs_NV, 0", "ref_logprobs_NV - logprobs_NV, 0", "sign of the full KL"),
        ("torch.where(probs_NV > 0, logprobs_NV - ref_logprobs_NV, 0)", "(logprobs_NV - ref_logprobs_NV)", "0 x inf"),
        ("(probs_NV > 0, logprobs", "(logprobs_NV > -torch.inf, logprobs", "underflow times infinity"),
        ("(widen(x).log_softmax(-1) for", "(x.log_softmax(-1) for", "full KL in half precision"),
        ("(widen(x).log_softmax(-1) for", "(widen(x) for", "full KL not normalised"),
        ("mask_BR.any(1).all()", "mask_BR.any(1).any()", "one empty row passes"),
        ("mask_BR.flip(1).cumsum(1).flip(1)", "mask_BR.cumsum(1)", "score on the first token"),
        ("mask_BR & (left_BR == 1)", "left_BR == 1", "score on padding before the last token too"),
        ("(left_BR == 1)", "(left_BR == 2)", "score one token early"),
        ("(left_BR == 1)", "(left_BR >= 1)", "score on every token"),
        ("-kl_coef * zero_masked(kl_BR", "kl_coef * zero_masked(kl_BR", "sign of the penalty"),
        ("-kl_coef * zero_masked(kl_BR, mask_BR)", "-kl_coef * kl_BR", "penalty on padding"),
        ("return penalty_BR + torch", "return penalty_BR - torch", "sign of the score"),
        ("max(kl / target - 1, -0.2), 0.2)", "max(kl / target - 1, -0.2), 0.3)", "upper clip"),
        ("max(kl / target - 1, -0.2), 0.2)", "max(kl / target - 1, -0.3), 0.2)", "lower clip"),
        ("max(kl / target - 1, -0.2)", "max(1 - kl / target, -0.2)", "controller pushes away"),
        ("min(max(kl / target - 1, -0.2), 0.2)", "max(-0.2, min(0.2, kl / target - 1))", "NaN hidden"),
        ("error * episodes / horizon", "error / horizon", "episodes not counted"),
    ],
    "advantages.py": [
        ("reversed(range(mask_BR.shape[1]))", "reversed(range(1, mask_BR.shape[1]))", "one short"),
        ("reversed(range(mask_BR.shape[1]))", "range(mask_BR.shape[1])", "forward in time"),
        ("+ gamma * next_value_B", "+ next_value_B", "next value not discounted"),
        ("+ gamma * next_value_B", "", "no bootstrap"),
        ("next_value_B - value_B", "next_value_B + value_B", "sign of the value"),
        ("delta_B + gamma * lam *", "delta_B + lam *", "no gamma in the trace"),
        ("delta_B + gamma * lam *", "delta_B + gamma *", "no lambda in the trace"),
        ("(valid_B, delta_B", "(valid_B | True, delta_B", "holes discount the trace"),
        ("(valid_B, value_B", "(valid_B | True, value_B", "holes have value 0"),
        ("advantages_RB[::-1]", "advantages_RB", "time reversed"),
        ("dim=1), mask_BR)", "dim=1), mask_BR | True)", "advantage in a hole"),
        ("= zero_masked(values_BR, mask_BR)", "= values_BR", "value garbage in the return"),
        ("advantages_BR + values_BR", "advantages_BR - values_BR", "sign of the return"),
    ],
    "losses.py": [
        ("zero_masked(logprobs_BR, mask_BR) -", "logprobs_BR -", "log-probability garbage"),
        ("- zero_masked(old_logprobs_BR, mask_BR)", "- old_logprobs_BR", "old log-probability garbage"),
        ("mask_BR) - zero_masked(old_log", "mask_BR) + zero_masked(old_log", "sign of the old log-probability"),
        ("plain_BR = -advantages_BR * ratio_BR", "plain_BR = advantages_BR * ratio_BR", "sign of the surrogate"),
        ("clipped_BR = -advantages_BR", "clipped_BR = advantages_BR", "sign of the clipped term"),
        ("clamp(1 - clip, 1 + clip)", "clamp(1 - clip, 1 - clip)", "upper clip bound"),
        ("clamp(1 - clip, 1 + clip)", "clamp(1 + clip, 1 + clip)", "lower clip bound"),
        ("clamp(1 - clip, 1 + clip)", "clamp(1 / (1 + clip), 1 + clip)", "clip bound of another kind"),
        ("loss = masked_mean(torch.maximum", "loss = masked_mean(torch.minimum", "the optimistic term"),
        (
            "clipped_BR), mask_BR, count)\n    metrics = {\n",
            "clipped_BR), mask_BR)\n    metrics = {\n",
            "policy: count not used",
        ),
        ('    "clipped": (clipped_BR > plain', '    "clipped": (clipped_BR >= plain', "policy: ties count"),
        ("(clipped_BR > plain_BR).to(loss.dtype),\n", "((ratio_BR - 1).abs() > clip),\n", "clipped whatever the sign"),
        ('"approx_kl": 0.5 * log', '"approx_kl": log', "half of approx_kl"),
        ('"policy_kl": -log', '"policy_kl": log', "sign of policy_kl"),
        ('"ratio": ratio_BR', '"ratio": log_ratio_BR', "log for ratio"),
        ('{"clipped": (clipped_BR > plain', '{"clipped": (clipped_BR < plain', "value: clipped inverted"),
        ('{"clipped": (clipped_BR > plain', '{"clipped": (clipped_BR >= plain', "value: ties count"),
        ("values_BR, old_values_BR = zero_masked(values_BR, mask_BR), zero", "old_values_BR = zero", "value garbage"),
        ("mask_BR), zero_masked(old_values_BR, mask_BR)", "mask_BR), old_values_BR", "old value garbage"),
        ("    returns_BR = zero_masked(returns_BR, mask_BR)\n    plain_BR", "    plain_BR", "return garbage"),
        ("plain_BR = (values_BR - returns_BR)", "plain_BR = (values_BR + returns_BR)", "sign of the return"),
        ("near_BR = old_values_BR + (", "near_BR = returns_BR + (", "clipped about the return"),
        ("clamp(-clip, clip)", "clamp(-clip, 2 * clip)", "upper clip bound of the value"),
        ("clamp(-clip, clip)", "clamp(-2 * clip, clip)", "lower clip bound of the value"),
        ("loss = 0.5 * masked_mean(torch.maximum", "loss = masked_mean(torch.maximum", "half of the value loss"),
        ("0.5 * masked_mean(torch.maximum", "0.5 * masked_mean(torch.minimum", "the optimistic error"),
        (
            'clipped_BR), mask_BR, count)\n    metrics = {"',
            'clipped_BR), mask_BR)\n    metrics = {"',
            "value: count not used",
        ),
        ('"error": plain_BR', '"error": clipped_BR', "error of the clipped value"),
        ('"prediction": values_BR', '"prediction": near_BR', "clipped prediction"),
        ("masked_var(returns_BR - values", "masked_var(returns_BR + values", "explained: sign"),
        ("1 - left / total", "left / total", "explained: unexplained"),
        ("left / total, 0)", "left / total, 1)", "explained: no variance"),
        ("torch.where(total > 0, 1 - left / total, 0)", "1 - left / total", "explained: 0 / 0"),
    ],
}
MUTANTS = [Mutant(file, *fault) for file, faults in FAULTS.items() for fault in faults]


def misplaced() -> list[str]:
    """Name the mutants whose fragment does not stand exactly once in the sources."""
    found = [(mutant, (OPS / mutant.file).read_text("utf-8").count(mutant.old)) for mutant in MUTANTS]
    return [f"{mutant.file}: {count} times: {mutant.old}" for mutant, count in found if count != 1]


class Witness:
    """A pytest plugin that remembers the first failure."""

    first = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid.rpartition("/")[2]

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.first:
            self.first = f"NOT RUN: {report.nodeid} does not import"


def run_tests(package: Path, topic: str) -> str:
    """Run the tests of ``ops``, those of ``topic`` first, on the ``konomi`` in ``package``; name the first to fail."""
    import pytest

    sys.path[:0] = [str(package), str(TESTS)]
    import konomi.ops

    if not str(konomi.ops.__file__).startswith(str(package)):
        return "NOT RUN: another konomi was imported"
    files = sorted(path for path in (TESTS / "ops").glob("test_*.py") if path.stem != "test_mutants")
    first = [path for path in files if path.stem == f"test_{topic}"]
    options = ["-x", "-q", "-W", "error", "-c", os.devnull, "--rootdir", str(TESTS), "--noconftest", "--assert=plain"]
    for batch in (first, [path for path in files if path not in first]):
        witness = Witness()
        code = pytest.main([*options, "-p", "no:cacheprovider", *map(str, batch)], plugins=[witness]) if batch else 0
        if code:
            return witness.first or f"NOT RUN: pytest exits {int(code)}"
    return ""


def trial(mutant: Mutant | None) -> str:
    """Fork, apply ``mutant`` to a copy of the package, and return the test that fails first, or ''."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "konomi" / "ops"
        shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy.parent / "__init__.py").touch()
        if mutant:
            source = (copy / mutant.file).read_text("utf-8")
            (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new), "utf-8")
        answer = Path(directory) / "answer"
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            try:
                answer.write_text(run_tests(Path(directory), Path(mutant.file).stem if mutant else ""), "utf-8")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return f"(signal {os.WTERMSIG(status)})"
        return answer.read_text("utf-8") if answer.exists() else "NOT RUN: the tests broke off"


def main(arguments: list[str]) -> int:
    wrong = misplaced()
    if wrong:
        print("fragments that do not stand exactly once:", *wrong, sep="\n  ")
        return 1
    os.environ["KONOMI_FAST_TESTS"] = "1"  # see oracles.py
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    # imported here so that no fork has to, and kept out of the forks' garbage collection
    import hypothesis.strategies  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    if not arguments and (failure := trial(None)):
        print(f"the tests fail without any mutant: {failure}")
        return 1
    chosen = [int(number) for number in arguments] or range(len(MUTANTS))
    survivors, start = 0, time.monotonic()
    for number in chosen:
        mutant = MUTANTS[number]
        killer = trial(mutant)
        survivors += not killer or killer.startswith("NOT RUN")
        print(f"{number:3}  {mutant.file:14} {mutant.note:44} {killer or 'SURVIVES'}", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(chosen)} mutants, {len(chosen) - survivors} killed, {survivors} survive, {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
