"""The wheel, installed alone, runs the demo outside of the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HATCHLING = Path(sys.prefix) / "hatchling"
"""Where `make install-dev` puts what builds wheels: it needs a newer `packaging` than the embedded classifier allows."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert HATCHLING.is_dir(), f"{HATCHLING} is missing: run `make install-dev`"
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(HATCHLING)}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(about).decode()
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "konomi").rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("konomi/examples/")} == {
        name for name in files if "__pycache__" not in name
    }
    shipped = {name.removeprefix("konomi/examples/") for name in names if name.startswith("konomi/examples/")}
    examples = ROOT / "examples"
    assert shipped == {path.relative_to(examples).as_posix() for path in examples.rglob("*") if path.is_file()}
    # everything that it asks for is what the tests run with
    needed = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert len(needed) > 10
    for requirement in needed:
        if "python_version" not in requirement:
            metadata.version(re.match(r"[\w-]+", requirement)[0])  # type: ignore[index]


@pytest.mark.real
def test_the_installed_wheel_runs_the_quick_demo(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    # its dependencies, which take minutes to install, are those of the environment that runs the tests
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import konomi; print(konomi.__file__)"], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert Path(where.stdout.strip()).is_relative_to(packages), where
    wanted = (
        "run.mlflow=false", "ppo.episodes=16", "ppo.batch_size=8", "ppo.baseline_samples=8", "compare.prompts=4",
        "rollout.response_tokens=[4, 8]",
    )  # fmt: skip
    short = [word for each in wanted for word in ("--set", each)]
    result = subprocess.run(
        [environment / "bin" / "konomi", "demo", "--quick", "--out", "runs", "--json", *short],
        cwd=tmp_path, env=variables, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["updates"] == 2
    assert [text["prompt"] for text in outcome["compare"]["texts"]][-2:] == ["今日の天気は", "この商品は"]
    assert outcome["last_update"]["objective/kl"] != 0  # an estimate from few texts, which may be below 0
    assert outcome["peak_gb"] < 8
    assert (tmp_path / outcome["report"]).is_file()
