"""Rules of the house for the whole package; those of `konomi.ops` alone are in tests/ops."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "konomi"
FILES = sorted(SOURCES.rglob("*.py"))
GROUND = {"__init__", "__main__", "version", "errors", "seeds", "text", "reading", "files", "service"}
"""The only modules that are in no folder."""
MOST_FILES = 220
LONGEST_FILE, LONGEST_FUNCTION = 330, 60
"""Lines; 95 % of the functions have at most 40."""

LAYERS = [
    {"version", "errors", "seeds", "text"},
    {"reading"},
    {"files", "service"},
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
"""A part imports from lines above its own, and from itself."""
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

LIGHT = ["cli", "config", "data.convert", "data.formats", "data.prompts", "data.records", "data.sources", "engine.device",
         "errors", "files", "labelling.blind", "labelling.export", "labelling.project", "labelling.queue",
         "labelling.database", "report.page", "rewards.base", "runs.console", "runs.directory", "runs.environment",
         "runs.observer", "runs.sinks", "seeds", "service", "statistics", "statistics.win_rate", "web.app", "web.figures",
         "web.serve"]  # fmt: skip
"""Modules that can be imported without any of these."""
HEAVY = ("torch", "transformers", "accelerate", "datasets", "mlflow", "onnxruntime", "safetensors")


def name_of(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


def module_of(path: Path) -> str:
    return ".".join(("konomi", *path.relative_to(SOURCES).with_suffix("").parts)).removesuffix(".__init__")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__main__"


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


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules of konomi that code imports: at its top, inside a function, or by a string: "konomi.x", "konomi.x:y", and
    f"konomi.x.{y}", which may be any module of that folder."""
    found = set()
    for node in run_time_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            prefix = str(node.values[0].value)
            found |= {module for module in modules if prefix.startswith("konomi.") and module.startswith(prefix)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"konomi(\.\w+)+(:\w+)?", str(node.value)):
            names = [str(node.value).partition(":")[0]]
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {"", "konomi"}


def test_imports_go_down_only_and_in_no_circle() -> None:
    modules = {module_of(path): path for path in FILES}
    graph = {module: imported(tree_of(path), set(modules)) - {module} for module, path in modules.items()}
    assert {part_of(module) for module in modules} == set(RANK), "give each part a place in LAYERS"
    upward = [
        f"{module} -> {other}" for module, others in graph.items() for other in others
        if part_of(module) != part_of(other) and RANK[part_of(other)] >= RANK[part_of(module)]
    ]  # fmt: skip
    assert upward == []
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_drawing_would_notice() -> None:
    modules = {"konomi", "konomi.files", "konomi.a", "konomi.a.b", "konomi.a.c", "konomi.d", "konomi.e"}
    code = """if True:
        from typing import TYPE_CHECKING
        from konomi import files, other as j
        if TYPE_CHECKING:
            from konomi import e
        def f():
            import konomi.d
            import_module(f"konomi.a.{name}")
    """
    assert imported(ast.parse(code), modules) == {"konomi.files", "konomi.d", "konomi.a.b", "konomi.a.c"}
    assert imported(ast.parse('load("konomi.a.b:function"), "konomi of ours"'), modules) == {"konomi.a.b"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_the_house_is_no_larger_than_it_may_be() -> None:
    assert len(FILES) <= MOST_FILES
    assert {path.stem for path in SOURCES.glob("*.py")} == GROUND
    functions = [node for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, FUNCTION)]
    lines = [(node.end_lineno or 0) - node.lineno + 1 for node in functions]
    assert sum(count <= 40 for count in lines) >= 0.95 * len(lines)
    assert [node.name for node, count in zip(functions, lines, strict=True) if count > LONGEST_FUNCTION] == []
    assert [name_of(path) for path in FILES if len(path.read_text("utf-8").splitlines()) > LONGEST_FILE] == []


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


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


def test_help_needs_no_torch() -> None:
    code = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # an import of it raises
from konomi.cli import main
for arguments in (["--help"], ["--version"], ["ppo", "--help"], ["demo", "--help"], ["run", "--help"], ["sft", "--help"]):
    sys.argv = ["konomi", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
"""
    assert python(code).count("konomi") >= 6


# -- the sources -------------------------------------------------------------------------------------------------------


def test_errors_are_not_swallowed() -> None:
    """A user's reward function may raise anything; nothing else is caught unless by name, or raised again, here or in the
    thread that waits for it."""
    for path in FILES:
        for node in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)):
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"everything"}
            if names & {"everything", "Exception", "BaseException"}:
                again = ast.unparse(node.body[-1]) in ("raise", f"answer.set_exception({node.name})")
                assert again or name_of(path) == "rewards/base.py", f"{name_of(path)}, line {node.lineno}"


def test_nothing_is_pickled_and_every_text_file_has_its_encoding() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "joblib", "shelve", "cloudpickle"} & {name.split(".")[0] for name in modules}
            if not isinstance(node, ast.Call):
                continue
            where, called = f"{name_of(path)}, line {node.lineno}", ast.unparse(node.func)
            encoded = any(keyword.arg == "encoding" for keyword in node.keywords)
            assert called not in ("torch.save", "torch.load"), where
            if called.endswith((".read_text", ".write_text")):
                assert encoded or node.args[int(called.endswith(".write_text")) :], where
            if called == "open":
                mode = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "r")
                assert encoded or "b" in str(mode), where


def test_no_code_comes_from_what_is_read() -> None:
    """As SECURITY.md says; reward functions alone are imported by the name that a setting gives."""
    importers = set()
    for path in FILES:
        for node in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
            where, called = f"{name_of(path)}, line {node.lineno}", ast.unparse(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads"), where
            assert not called.startswith(("yaml.", "runpy.")), where
            for name in ("trust_remote_code", "allow_pickle", "shell"):  # a setting's value, never a constant
                assert not (isinstance(given.get(name), ast.Constant) and given[name].value), where  # type: ignore[attr-defined]
            if "AutoModel" in called and called.endswith("from_pretrained"):
                assert ast.unparse(given.get("use_safetensors", given.get("gguf_file", node))) in ("True", "gguf.name"), where
            if called.endswith(("import_module", "spec_from_file_location")) and not isinstance(node.args[0], ast.JoinedStr):
                importers.add(name_of(path))
    assert importers == {"rewards/function.py", "__init__.py"}, importers  # the latter by a table of its own


def test_files_and_functions_are_explained_and_finished() -> None:
    for path in FILES:
        source, tree = path.read_text("utf-8"), tree_of(path)
        assert ast.get_docstring(tree), f"{name_of(path)}: what is in this file?"
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", source), name_of(path)
        for node in tree.body:
            if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name_of(path)}: {node.name}: what does it do?"


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
            "others", "parts", "special", "bytes", "evaluations", "samples", "less", "characters", "families", "wins",
            "opens"}  # fmt: skip
"""Verbs, units, and counts that are settings of at least 2."""


def test_no_two_files_of_tests_share_a_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_one_prompt_is_not_one_prompts() -> None:
    assert [f"{name_of(path)}, {each}" for path in FILES for each in counted_nouns(path.read_text("utf-8"))] == []
    example = 'f"{n} prompts"; f"{n:,} held-out texts"; f"{plural(n, x)} texts"; f"{n} is"'
    assert counted_nouns(example) == ["line 1: prompts", "line 1: texts"]


def asks_for_the_device(tree: ast.Module) -> list[int]:
    """Lines that look at ``torch.cuda`` and its like, or compare the type of something with the name of a device."""
    kinds = {"cuda", "mps", "backends", "xpu"}
    found = []
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        typed = any(isinstance(side, ast.Attribute) and side.attr == "type" for side in sides)
        compared = typed and any(isinstance(side, ast.Constant) and side.value in {"cpu", *kinds} for side in sides)
        if compared or (isinstance(node, ast.Attribute) and node.attr in kinds):
            found.append(node.lineno)
    return found


def test_one_file_asks_what_the_device_is() -> None:
    found = {name_of(path): lines for path in FILES if (lines := asks_for_the_device(tree_of(path)))}
    assert found.keys() == {"engine/device.py"}, found
    assert asks_for_the_device(ast.parse('x.device.type == "cpu"\ntorch.cuda.is_available()')) == [1, 2]
