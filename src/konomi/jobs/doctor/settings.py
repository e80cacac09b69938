"""Settings of a PPO job that are far from the usual ones."""

from __future__ import annotations

from collections.abc import Iterator

from konomi.config import PPOJob
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.text import plural

RATES = {"full": (1e-7, 1e-4, 1e-3), "adapters": (1e-6, 1e-3, 1e-2)}
"""What is trained -> the lowest and the highest usual learning rate, with room on both sides, and one that no run survives."""


def check_settings(job: PPOJob) -> list[Line]:
    """A line for each setting that is out of the usual range; one line if none is."""
    unusual = [*_steps(job), *_kl(job), *_rest(job)]
    ppo = job.ppo
    steps = ppo.batch_size // ppo.mini_batch_size * ppo.epochs
    seen = f"learning rate {ppo.learning_rate:g}, {plural(ppo.updates, 'update')} of {plural(steps, 'step')}, "
    held = f"KL target {ppo.kl_target:g}" if ppo.kl_controller != "fixed" else f"KL coefficient {ppo.kl_coef:g}, fixed"
    return unusual or [Line("settings", f"{seen}{held}")]


def check_rate(name: str, rate: float, adapters: bool, times: int = 1) -> Line:
    """A line on a learning rate; ``times``: how much larger it may be than that of PPO."""
    low, high, most = (each * times for each in RATES["adapters" if adapters else "full"])
    usual = f"usual {low * 10:.2g} to {high / 3:.2g}{' with adapters' if adapters else ''}"
    if rate >= most:
        return broken(name, f"{rate:g}; {usual}", "lower it: the first steps would destroy the model")
    if rate > high:
        return look(name, f"{rate:g}; {usual}", "lower it, unless the model is a very small one")
    if rate < low:
        return look(name, f"{rate:g}; {usual}", "raise it: the model would hardly move")
    return Line(name, f"{rate:g}")


def _steps(job: PPOJob) -> Iterator[Line]:
    ppo, rate = job.ppo, check_rate("ppo.learning_rate", job.ppo.learning_rate, job.lora.rank is not None)
    if rate.level != "fine":
        yield rate
    steps = ppo.batch_size // ppo.mini_batch_size * ppo.epochs
    if ppo.mini_batch_size < 4 < ppo.batch_size:
        seen = f"{plural(ppo.mini_batch_size, 'response')} a step, {plural(steps, 'step')} an update"
        yield look("ppo.mini_batch_size", seen, "raise it to 8 or 16: steps of a few responses are mostly noise, and slow")
    elif steps > 64:
        seen = f"{steps} an update, all on texts of one policy"
        yield look("steps", seen, "raise ppo.mini_batch_size or lower ppo.epochs")
    if ppo.epochs > 8:
        yield look("ppo.epochs", f"{ppo.epochs}; usual 1 to 4", "lower it: the texts are no longer those of the policy")
    if ppo.updates < 4:
        yield look("updates", f"{ppo.updates}: too few to learn much", "raise ppo.episodes, or lower ppo.batch_size")


def _kl(job: PPOJob) -> Iterator[Line]:
    ppo = job.ppo
    low, high = job.rollout.response_tokens
    per_token = 2 * ppo.kl_target / (low + high)
    if ppo.kl_coef == 0:
        do = "set ppo.kl_coef to 0.02 or more"
        if ppo.kl_controller != "fixed":
            yield broken("ppo.kl_coef", "0, which an adaptive controller multiplies: it stays 0, and nothing holds the model", do)
        else:
            yield look("ppo.kl_coef", "0: nothing holds the model to the initial one but ppo.kl_cap", do)
    elif ppo.kl_coef > 5:
        yield look("ppo.kl_coef", f"{ppo.kl_coef:g}; usual 0.01 to 0.5", "lower it: the penalty would outweigh every score")
    if ppo.kl_controller != "fixed" and per_token > 2:
        seen = f"{ppo.kl_target:g} nats for {low} to {high} tokens: {per_token:.1f} a token"
        yield look("ppo.kl_target", seen, "lower it: so far from the initial model, texts are rarely still texts")
    if ppo.kl_controller != "fixed" and per_token < 0.002:
        seen = f"{ppo.kl_target:g} nats for {low} to {high} tokens: {per_token:.2g} a token"
        yield look("ppo.kl_target", seen, "raise it: so near to the initial model nothing is seen of what it learns")


def _rest(job: PPOJob) -> Iterator[Line]:
    ppo, temperature = job.ppo, job.rollout.temperature
    if not 0.3 <= temperature <= 1.5:
        yield look("rollout.temperature", f"{temperature:g}; usual 0.7 to 1.0", "set it nearer to 1")
    if ppo.gamma < 0.9:
        reach = f"{ppo.gamma:g}: what comes {round(3 / (1 - ppo.gamma))} tokens later counts for nothing"
        yield look("ppo.gamma", reach, "set it to 1: a response is short, and its score comes at the end")
    if ppo.normalize_scores and ppo.baseline_samples < 16:
        yield look("ppo.baseline_samples", f"{ppo.baseline_samples}: the scale of the scores is a guess", "raise it to 64")
    if ppo.clip > 0.5:
        yield look("ppo.clip", f"{ppo.clip:g}; usual 0.1 to 0.3", "lower it: so wide it holds nothing")
