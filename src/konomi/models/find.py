"""Find the files of a model: a directory, or the hub's cache, brought up to date."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from konomi.data.sources import hub_problem
from konomi.errors import DataError, ModelError
from konomi.files import model_path, read_utf8
from konomi.models.embedded import EMBEDDED_DEFAULT, Progress
from konomi.reading import parse_json
from konomi.runs.environment import without_password

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py", "README.md"]
_NOT_HUB_FILES = ["*/*", "consolidated*"]


def find_files(name: str, revision: str | None, progress: Progress | None = None) -> tuple[Path, str | None]:
    """The directory of a model and, of a hub model, its commit. A hub model is fetched into the hub's cache.

    Raises:
        ModelError: there is none, it cannot be reached, or has no safetensors weights.
    """
    path = model_path(name, ModelError)
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{name}: model.revision = {revision!r} is for hub models only; remove it")
        _check_directory(path, name)
        return path, None
    if path.is_file():
        raise ModelError(f"{name}: a file; give the model's directory, or a .gguf file")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ModelError(f"{name}: no such directory, and not a hub name (owner/model) either")
    snapshot = _fetch(name, revision, progress or (lambda message: None))
    _check_directory(snapshot, name)
    return snapshot, snapshot.name


def licence_of(directory: Path) -> str | None:
    """The licence in the README.md of a model's directory, in one line, or None."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if section := re.search(r"^## Licen[cs]e\n+(\S[^\n]*)", text, re.M):
        return section[1]
    head = re.match(r"---\n(.*?)\n---", text, re.S)
    names = re.findall(r"^license(?:_name|_link)?: *(\S.*)$", head[1], re.M) if head else []
    return f"Licence, as its README.md says: {', '.join(names)}" if names else None


def adapter_settings(path: Path) -> dict[str, Any] | None:
    """The settings of the adapter that lies alone in a directory; None if there is none, or it does not name its base model."""
    file = path / "adapter_config.json"
    if [os.path.isfile(path / each) for each in (file.name, "adapter_model.safetensors", "config.json")] != [True, True, False]:
        return None
    try:
        facts = parse_json(read_utf8(file))
    except (OSError, ValueError, DataError) as error:
        raise ModelError(f"{file}: cannot be read as JSON: {error}") from None
    name = facts.get("base_model_name_or_path") if isinstance(facts, dict) else None
    return facts if isinstance(name, str) and name else None


def refuse_adapter(source: str, name: str, **hub: Any) -> None:
    """Refuse a directory or hub model that holds an adapter, alone or beside the weights that it belongs to.

    Raises:
        ModelError: there is an adapter_config.json in it.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source, **hub):
        raise ModelError(
            f"{name}: it holds an adapter (adapter_config.json). For a language model konomi takes a directory with a LoRA "
            "adapter alone that names its base model; merge any other first, with peft: AutoPeftModelForCausalLM"
            ".from_pretrained(...).merge_and_unload().save_pretrained(...), and give the directory of the merged model and its "
            "tokenizer"
        )


def _check_directory(path: Path, name: str) -> None:
    refuse_adapter(str(path), name)
    if not os.path.isfile(path / "config.json"):  # False too where the directory may not be searched
        raise ModelError(
            f"{name}: the directory has no config.json, so it is not a saved model. Give one that save_pretrained wrote"
        )
    if not any(path.glob("*.safetensors")):
        pickled = [file.name for file in sorted(path.glob("*.bin"))][:1]
        only = f", only {pickled[0]}, which can run code when it is read" if pickled else ""
        raise ModelError(
            f"{name}: no .safetensors weights{only}. konomi reads no others. If you trust their source, convert "
            'them once to the directory `converted`: python -c "from transformers import AutoModelForCausalLM as M, '
            f"AutoTokenizer as T; [c.from_pretrained('{name}').save_pretrained('converted') for c in (M, T)]\""
        )


def _fetch(name: str, revision: str | None, say: Progress) -> Path:
    """Return the snapshot of a hub model in the hub's cache, brought up to date if the hub answers."""
    from huggingface_hub import constants, snapshot_download

    reached, hub = hub_problem() is None, without_password(constants.ENDPOINT)
    if reached:
        say(f"fetching {name} from {hub}, or what is new of it")
    try:
        where: dict[str, Any] = {"endpoint": constants.ENDPOINT, "local_files_only": not reached, "revision": revision}
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_HUB_FILES, **where))
    except (OSError, ValueError) as error:
        if reached:
            text = without_password(" ".join(str(error).split()))
            raise ModelError(f"{name}: cannot be fetched from {hub}: {text[:500]}") from error
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"the hub {hub} cannot be reached"
        wanted = f" of revision {revision}" if revision else ""
        raise ModelError(
            f"{name}: no such directory, no copy{wanted} in {constants.HF_HUB_CACHE}, and {why}. Without a network, "
            f"use a directory, a .gguf file, or {EMBEDDED_DEFAULT} (pip install 'konomi[embedded]')"
        ) from None
