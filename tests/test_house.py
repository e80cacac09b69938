"""Rules of the house for the whole package; those of `konomi.ops` alone are in tests/ops."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "konomi"
FILES = sorted(SOURCES.rglob("*.py"))

LAYERS = [
    {"version", "errors", "seeds", "text"},
    {"reading"},
    {"files"},
    {"config", "ops", "runs"},
    {"data", "report"},
    {"statistics", "engine"},
    {"models", "labelling"},
    {"rewards"},
    {"training", "web"},
    {"jobs"},
    {"cli"},
    {"__main__"},
]
"""A part imports from layers above its own line, and from itself."""
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

LIGHT = ["cli", "config", "data.convert", "data.formats", "data.records", "data.sources", "errors", "files", "labelling.blind",
         "labelling.export", "labelling.project", "labelling.queue", "labelling.database", "report.report",
         "report.reward_report", "rewards.base", "runs.console", "runs.directory", "runs.environment", "runs.observer", "seeds",
         "statistics", "statistics.win_rate", "web.app", "web.figures", "web.serve"]  # fmt: skip
"""Modules that can be imported without any of these."""
HEAVY = ("torch", "transformers", "accelerate", "datasets", "mlflow", "onnxruntime", "safetensors")


def name_of(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from run_time_nodes(child)


def parts_imported(path: Path) -> set[str]:
    """The parts of konomi that a file imports, at its top or inside a function."""
    found = set()
    for node in run_time_nodes(tree_of(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("konomi.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != SOURCES or path.stem != "__init__"], ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in RANK, f"{part}: give it a place in LAYERS"
    wrong = {other for other in parts_imported(path) if other != part and RANK[other] >= RANK[part]}
    assert not wrong


def test_the_layers_would_notice(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from konomi import files, job as j\ndef f():\n    import konomi.training.ppo\n", encoding="utf-8")
    assert parts_imported(file) == {"files", "job", "training"}


def python(code: str) -> str:
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCES.parent, encoding="utf-8")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_light_modules_stay_light() -> None:
    imports = "; ".join(f"import konomi.{name}" for name in LIGHT)
    assert python(f"{imports}; import sys; print([m for m in {HEAVY} if m in sys.modules])").strip() == "[]"


def test_the_command_line_starts_with_next_to_nothing() -> None:
    unwanted = (*HEAVY, "pydantic", "numpy", "konomi.config", "konomi.jobs")
    assert python(f"import konomi.cli, sys; print([m for m in {unwanted} if m in sys.modules])").strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ppo", "--help"], ["demo", "--help"], ["run", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # an import of it raises
sys.argv = ["konomi", *{arguments}]
from konomi.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert "konomi" in python(code)


# -- the sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_errors_are_not_swallowed(path: Path) -> None:
    """A user's reward function may raise anything; nothing else is caught unless by name, or raised again, here or in the
    thread that waits for it."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"everything"}
        if names & {"everything", "Exception", "BaseException"}:
            last = node.body[-1]
            again = ast.unparse(last) in ("raise", f"answer.set_exception({node.name})")
            assert again or name_of(path) == "rewards/base.py", f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_pickled_and_every_text_file_has_its_encoding(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "shelve", "cloudpickle"} & {name.split(".")[0] for name in modules}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in ("torch.save", "torch.load"), f"line {node.lineno}"
            if node.func.attr in ("read_text", "write_text"):
                assert node.args[int(node.func.attr == "write_text") :] or any(k.arg == "encoding" for k in node.keywords), (
                    f"line {node.lineno}"
                )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "r")
            assert "b" in str(mode) or any(k.arg == "encoding" for k in node.keywords), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short_explained_and_finished(path: Path) -> None:
    source, tree = path.read_text("utf-8"), tree_of(path)
    assert len(source.splitlines()) <= 330
    assert ast.get_docstring(tree), "what is in this file?"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, node.name
        is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if is_public and node in tree.body:
            assert ast.get_docstring(node), f"{node.name}: what does it do?"


def counted_nouns(source: str) -> list[str]:
    """The f-strings that put a number before a plural noun, outside of errors: with 1 they are wrong; `markup.plural` is not."""
    tree = ast.parse(source)
    raised = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Raise) for node in ast.walk(each)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in raised:
            for number, after in zip(node.values, node.values[1:], strict=False):
                text = str(after.value) if isinstance(after, ast.Constant) else ""
                plain = isinstance(number, ast.FormattedValue) and "plural(" not in ast.unparse(number)
                noun = re.match(r" (?:held-out )?(\w+s)\b", text)
                if plain and noun and noun[1] not in NO_NOUNS:
                    found.append(f"line {node.lineno}: {noun[1]}")
    return found


NO_NOUNS = {"is", "was", "has", "does", "works", "makes", "minutes", "nats", "candidates", "responses", "tokens", "parameters",
            "others", "parts", "special", "bytes", "evaluations", "samples", "less", "characters", "families",
            "opens"}  # fmt: skip
"""Verbs, units, and counts that are settings of at least 2."""


def test_one_prompt_is_not_one_prompts() -> None:
    assert [f"{name_of(path)}, {each}" for path in FILES for each in counted_nouns(path.read_text("utf-8"))] == []
    assert counted_nouns('f"{n} prompts"; f"{n:,} held-out texts"; f"{plural(n, x)} texts"; f"{n} is"') == [
        "line 1: prompts",
        "line 1: texts",
    ]
