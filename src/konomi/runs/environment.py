"""The environment of a run: versions, processor, git commit. Imports nothing heavy; records no name of a person or host."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from konomi.errors import ConfigError
from konomi.version import __version__

_GROUP = Path("/sys/fs/cgroup")
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "pydantic", "numpy", "mlflow")


def versions() -> dict[str, str]:
    """Versions of konomi, Python and the packages that decide results; one that is not installed is left out."""
    installed = {"konomi": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)  # reads a text file: the package is not imported
        except metadata.PackageNotFoundError:
            continue
    return installed


def machine(gpu: str | None = None) -> dict[str, Any]:
    """Operating system, processor, number of its logical cores, and the GPU if its name is given."""
    computer = {"platform": platform.platform(), "cpu": _cpu(), "cpus": os.cpu_count()}
    return computer | ({"gpu": gpu} if gpu else {})


def free_memory() -> int:
    """Free memory in bytes, within the limit of a container; 0 if unknown."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return 0
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, held = (int((_GROUP / name).read_text("utf-8")) for name in (limit, used))
            memory_stat = (_GROUP / limit).with_name("memory.stat").read_text("utf-8")
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        files = re.search(r"^(?:total_)?inactive_file (\d+)$", memory_stat, re.M)
        free = min(free, most - held + (int(files[1]) if files else 0))  # the page cache can be reclaimed
    return max(0, free)


def git() -> dict[str, Any] | None:
    """Commit of the current directory's work tree, and whether tracked files differ from it; None outside of git."""

    def ask(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=10, text=True, encoding="utf-8").stdout

    try:
        commit = ask("rev-parse", "--verify", "HEAD").strip()
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):  # no git, no repository, no commit yet
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def typed(program: str) -> str:
    """The command for a program installed beside this one: its name, or its path if it is not on PATH."""
    beside = Path(sys.argv[0]).with_name(program)
    on_path = shutil.which(program)
    if not beside.exists() or (on_path and Path(on_path).resolve() == beside.resolve()):
        return program
    return shlex.quote(os.path.relpath(beside))


_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_OWN = r"ACCELERATE_(MIXED_PRECISION|GRADIENT_ACCUMULATION_STEPS|DYNAMO_.*)"
"""Set by `accelerate launch`, but decided by konomi's own settings."""
_LAUNCHER = re.compile(
    "|".join(_SIZES) + "|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*|PMI_RANK|MPI_LOCAL.*"
    "|OMPI_COMM_WORLD_.*|MV2_COMM_WORLD_.*|FSDP_.*|(PARALLELISM_CONFIG|CONTEXT_PARALLEL)_.*|ACCELERATE_(?!TORCH_DEVICE$).*"
)
"""Variables of launchers (torchrun, accelerate, mpirun); ACCELERATE_TORCH_DEVICE is a user's own."""


def launched_processes() -> int:
    """The number of processes according to a launcher's variables; 1 without them."""
    return max([1, *(int(os.environ[name]) for name in _SIZES if os.environ.get(name, "").isdecimal())])


def settle_processes(command: str, several: bool) -> None:
    """Check and clean the launcher's environment variables; remove them all if there is only one process.

    Args:
        command: for the message.
        several: whether it can work in several processes.

    Raises:
        ConfigError: it cannot, and several were started; or the variables are not those of a whole launcher.
    """
    processes = launched_processes()
    names = sorted(name for name in os.environ if _LAUNCHER.fullmatch(name))
    if processes > 1:
        size = next(name for name in _SIZES if os.environ.get(name) == str(processes))
        left = f"Start it without a launcher, or remove what one has left: unset {' '.join(names)}"
        if not several:
            raise ConfigError(f"{size} = {processes} is set: {command} works in one process. {left}")
        if not os.environ.get("MASTER_ADDR") or (size == "WORLD_SIZE" and not {"RANK", "LOCAL_RANK", "MASTER_PORT"} <= {*names}):
            raise ConfigError(
                f"{size} = {processes} is set, but not what else several processes need (RANK, LOCAL_RANK, MASTER_ADDR, "
                f"MASTER_PORT). Start them by accelerate launch or torchrun, see examples/accelerate. {left}"
            )
        check_sharding(command)
        for name in filter(re.compile(_OWN).fullmatch, names):
            del os.environ[name]
        return
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")  # set by the user
    for name in names:
        del os.environ[name]
    if wanted:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def is_sharded() -> bool:
    """Whether a launcher requests FSDP, which divides a trained model among the processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") and launched_processes() > 1


_FSDP = "accelerate launch --use_fsdp --fsdp_version 2, see examples/accelerate/fsdp-eight-gpus.yaml"
_OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": f"konomi does not run under DeepSpeed. FSDP2 divides a model as its ZeRO-3 does: {_FSDP}",
    "ACCELERATE_USE_MEGATRON_LM": f"konomi does not run under Megatron-LM; FSDP2 divides a model too: {_FSDP}",
    "FSDP_OFFLOAD_PARAMS": "konomi keeps shards on the device; remove fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "set model.gradient_checkpointing = true instead, and remove fsdp_activation_checkpointing",
}
_WITHOUT = ("konomi sft", "konomi reward", "konomi run")


def check_sharding(command: str) -> None:
    """Check that konomi supports what a launcher of several processes requests.

    Raises:
        ConfigError: it is not: DeepSpeed, FSDP1, a setting of FSDP, or FSDP for a command that trains without it.
    """
    asked = [name for name in _OTHERS if os.environ.get(name, "").lower() in ("1", "true")]
    if asked:
        raise ConfigError(f"{asked[0]} = {os.environ[asked[0]]} is set: {_OTHERS[asked[0]]}")
    if not is_sharded():
        return
    if command in _WITHOUT:
        raise ConfigError(f"{command} trains without FSDP; start it without --use_fsdp, each process then has the whole model")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(f"FSDP_VERSION = {os.environ.get('FSDP_VERSION', '1')}: konomi runs under FSDP2 alone: {_FSDP}")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # all processes but one would get no weights


def without_password(text: str) -> str:
    """``text`` without the user, password and query of any address in it, whatever characters these have.

    >>> without_password("http://me:a/b@c#d@host:80/x?key=1 and sqlite:////home/a@b/mlflow.db")
    'http://host:80/x and sqlite:////home/a@b/mlflow.db'
    """
    return re.sub(r"(?<=://)(?!/)(?:\S*@)?([^\s?]*)(?:\?\S*)?", r"\1", text)


def without_secrets(text: str, uri: str) -> str:
    """An error's text without the user, password and query of the store's address."""
    _, _, rest = uri.partition("://")
    user, _, place = rest.rpartition("@")
    _, _, password = user.partition(":")
    _, _, query = place.partition("?")
    if rest.startswith("/"):  # a file
        return text
    if set(password) & set("@/#?:[] "):  # others take them for parts of the address, and print them
        return "its user or password has characters that have to be written as %XX there: @ is %40, / is %2F, # is %23"
    secrets = {user, password, query, *(value for _, value in parse_qsl(query))}
    for secret in sorted((secrets | set(map(unquote, secrets))) - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return without_password(text)
