"""The model card of a run: README.md beside the model, for users of the model without the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from konomi import files
from konomi.report.advice import change
from konomi.report.names import algorithm_name, model_name, reward_in_words
from konomi.report.page import evaluations
from konomi.runs.directory import RunDir
from konomi.text import flat, number, percent, plural

NAME = "README.md"
_SETTINGS = {
    "ppo": ("algorithm.kind", "model.freeze", "model.top_layers", "lora.rank", "ppo.episodes", "ppo.batch_size",
            "ppo.responses_per_prompt", "ppo.epochs", "ppo.learning_rate", "ppo.kl_coef", "ppo.kl_controller", "ppo.kl_target",
            "land.kl", "rollout.response_tokens", "rollout.temperature"),
    "sft": ("model.freeze", "model.top_layers", "lora.rank", "sft.epochs", "sft.batch_size", "sft.learning_rate",
            "sft.max_length", "sft.loss"),
    "dpo": ("model.freeze", "model.top_layers", "lora.rank", "dpo.loss", "dpo.beta", "dpo.per_token", "dpo.label_smoothing",
            "dpo.epochs", "dpo.batch_size", "dpo.learning_rate", "dpo.max_length"),
    "reward": ("lora.rank", "train.task", "train.epochs", "train.batch_size", "train.learning_rate", "train.max_length",
               "ensemble.text_weight"),
}  # fmt: skip
_DONE = {
    "ppo": "A language model, moved toward a reward by {algorithm}.",
    "sft": "A language model, fine-tuned on texts.",
    "dpo": "A language model, moved toward preferred responses by DPO.",
    "reward": "A model that scores texts: a reward model or a classifier.",
}
_CLASSES = {"reward": "AutoModelForSequenceClassification"}


def write_card(run: RunDir) -> Path | None:
    """Write ``model/README.md`` of a run that has ended: base model, data, reward, settings, figures, licence, how to load it.

    Return its path; None where the run has no model. Raises DataError: a file of the run is damaged; RunError: it cannot be
    written.
    """
    if not run.model.is_dir():
        return None
    verb, info, config = run.verb, run.info, run.config
    model = config.get("model", {})
    base = model_name({"model": {**model, "name": _shared(str(model.get("name", "")))}})
    about = [("base model", base), *_data(config, info), ("run", f"{run.path.name}, {info.get('status', '')}")]
    settings = [(f"`{path}`", json.dumps(value)) for path in _SETTINGS.get(verb, ()) if (value := _at(config, path)) is not None]
    guards = [(str(event["update"]), event["en"]) for event in info.get("guards") or ()]
    versions = info.get("versions", {})
    done = _DONE.get(verb, "").format(algorithm=flat(algorithm_name(config)))
    parts = [
        f"---\nlibrary_name: transformers\ntags:\n- konomi\n- {verb}\n---\n",
        f"# {flat(run.path.name)}\n\n{done} Made with konomi {versions.get('konomi', '')}.\n",
        _table(("", ""), about),
        "## Figures\n\n" + _figures(run, verb),
        *(["## What the guards saw\n\n" + _table(("update", ""), guards)] if guards else []),
        "## Settings\n\n" + _table(("setting", "value"), settings),
        "## How to load it\n\n" + _how(verb, run.model),
        _licence(info, base),
    ]
    path = run.model / NAME
    files.write_atomic(path, files.utf8("\n".join(parts)))
    return path


def blend_card(run: RunDir, blend: Mapping[str, Any]) -> bytes:
    """The card of a model that `konomi blend` made; ``run``: the first of the runs, ``blend``: what its blend.json holds."""
    model = run.config.get("model", {})
    names = [flat(Path(each).name) for each in blend.get("runs", [run.path])]
    title, mean = f"{names[0]}, {percent(blend['share'])} of its way", ""
    if len(names) > 1:
        title = f"{', '.join(names)}: {percent(blend['share'])} of the way to their mean"
        mean = f"\nThe trained weights are the mean of those of {plural(len(names), 'run')}.\n"
    about = f"# {title}\n\n{blend['verdict']['en']}\n{mean}"
    return files.utf8(f"{about}\n{_licence(run.info, _shared(str(model.get('name', ''))))}")


def _licence(info: Mapping[str, Any], base: str) -> str:
    licence = (
        info.get("licence")
        or f"That of the base model ({flat(base)}), which is not known here: look it up before you share this."
    )
    return f"## Licence\n\n{' '.join(str(licence).split())}\n"


def _data(config: Mapping[str, Any], info: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    data = config.get("data", {})
    for key in ("prompts", "texts", "file"):
        if data.get(key):
            yield key, _shared(str(data[key]))
    if reward := config.get("reward"):
        yield "reward", reward_in_words(_shared_reward(reward))
    for setting, each in (info.get("inputs") or {}).items():
        if setting.startswith("reward.") and each.get("sha256"):
            yield f"`{setting}`, SHA-256", each["sha256"]


def _shared(name: str) -> str:
    """A name without the directories of this machine."""
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def _shared_reward(reward: Mapping[str, Any]) -> dict[str, Any]:
    """A reward and its parts, with such names only."""
    parts = {name: _shared_reward(part) for name, part in reward.get("parts", {}).items()}
    name = reward.get("name", "")
    shared = [_shared(str(each)) for each in name] if isinstance(name, list) else _shared(str(name))
    return {**reward, "parts": parts} | ({"name": shared} if "name" in reward else {})


def _at(config: Mapping[str, Any], path: str) -> Any:
    section, key = path.split(".")
    return config.get(section, {}).get(key)


def _figures(run: RunDir, verb: str) -> str:
    """The results of the run on held-out data."""
    if verb == "sft":
        evaluated = evaluations(run.read_metrics())
        before, after = (evaluated["before"], evaluated["model"]) if evaluated else ({}, {})
        initial = "" if not evaluated or evaluated["better"] else "\nNo evaluation was better: this is the initial model.\n"
        labels = {"loss": "loss, nats/token", "perplexity": "perplexity"}
        rows = [(label, number(before.get(key)), number(after.get(key))) for key, label in labels.items()]
        return "On held-out texts:\n\n" + _table(("", "before", "after"), rows) + initial
    if verb == "dpo":
        changed = _before_after(run) if run.compare.is_file() else ""
        return _of_evaluation(run) + (f"\nBefore and after:\n\n{changed}" if changed else "")
    return _of_evaluation(run) if verb == "reward" else _before_after(run)


def _of_evaluation(run: RunDir) -> str:
    """The figures of eval.json."""
    held_out = (run.read_json("eval.json") or {}).get("held_out") or {}
    measured = {key: each for key, each in held_out.items() if isinstance(each, Mapping) and "low" in each}
    rows = [(key.replace("_", " "), *(number(each[end]) for end in ("value", "low", "high"))) for key, each in measured.items()]
    verdict = (held_out.get("verdict") or {}).get("en", "")
    return "On what was held out, with 95 % intervals:\n\n" + _table(("", "value", "low", "high"), rows) + f"\n{verdict}\n"


def _before_after(run: RunDir) -> str:
    """The figures of compare.json."""
    compare = run.read_json("compare.json") or {}
    before, after = compare.get("before", {}), compare.get("after", {})
    pairs = {key.replace("_", " "): (before[key], after[key]) for key in after if key in before}
    pairs |= {f"judge {name}": (each.get("before"), each.get("after")) for name, each in compare.get("judges", {}).items()}
    verdict = compare.get("verdict") or change(compare.get("difference", {}), compare.get("prompts", 0))
    rows = [(key, number(old), number(new)) for key, (old, new) in pairs.items()]
    landed = ((run.read_json("land.json") or {}).get("verdict") or {}).get("en", "")
    return f"{verdict['en']} {landed}".strip() + "\n\n" + _table(("", "before", "after"), rows)


def _how(verb: str, model: Path) -> str:
    kind = _CLASSES.get(verb, "AutoModelForCausalLM")
    code = (
        f"```python\nfrom transformers import AutoTokenizer, {kind}\n\n"
        f'model = {kind}.from_pretrained("DIRECTORY")\ntokenizer = AutoTokenizer.from_pretrained("DIRECTORY")\n```\n'
    )
    if verb == "reward":
        if (model / "text_baseline.safetensors").is_file():
            code += "\nThat is the network alone; konomi adds the text baseline in `text_baseline.safetensors`.\n"
        return code + '\nAs the reward of `konomi ppo`: `reward.kind = "model"`, `reward.name = "DIRECTORY"`.\n'
    more = "\n`value_head.safetensors` is the critic of PPO; generating does not need it.\n"
    more = more if verb == "ppo" and (model / "value_head.safetensors").is_file() else ""
    talk = " By its chat template: `konomi generate DIRECTORY --chat`." if (model / "chat_template.jinja").is_file() else ""
    return code + f"\nOr `konomi generate DIRECTORY -p 'The beginning of a text'`.{talk}\n" + more


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: Any) -> str:
    """A text that stays in its cell."""
    return " ".join(flat(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
