import subprocess
import sys

import pytest

import mutants


def test_every_fragment_stands_exactly_once_in_the_sources():
    assert mutants.misplaced() == []
    assert len(set(mutants.MUTANTS)) == len(mutants.MUTANTS) > 100


def test_a_fragment_that_is_gone_or_not_unique_is_an_error(monkeypatch, capsys):
    stale = [mutants.Mutant("ops/kl.py", "no such line", "", ""), mutants.Mutant("ops/kl.py", "return", "", "")]
    monkeypatch.setattr(mutants, "MUTANTS", stale)
    assert mutants.main([]) == 1
    printed = capsys.readouterr().out
    assert "kl.py: 0 times: no such line" in printed
    assert "times: return" in printed


def test_every_file_has_mutants():
    assert mutants.OPS.keys() == {path.name for path in (mutants.SOURCES / "ops").glob("[!_]*.py")}


def test_every_named_test_exists():
    for name in {mutant.test for mutant in mutants.MUTANTS if mutant.test}:
        file, _, test = name.partition("::")
        assert f"def {test}" in (mutants.TESTS / file).read_text("utf-8"), name


@pytest.mark.skipif(not hasattr(mutants.os, "fork"), reason="the script forks")
def test_a_handful_is_killed_and_a_test_that_always_fails_kills_none(tmp_path):
    """All of them take minutes: ``python tests/mutants.py``."""
    (tmp_path / "test_broken.py").write_text("def test_broken(no_such_fixture):\n    pass\n")
    chosen = [
        next(i for i, mutant in enumerate(mutants.MUTANTS) if mutant.note == note)
        for note in ("sign of the penalty", "one token too many", "ranks of other texts")
    ]
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(mutants.TESTS)!r})
        import mutants
        assert mutants.main({[*map(str, chosen)]}) == 0
        mutants.MUTANTS[0] = mutants.MUTANTS[{chosen[1]}]._replace(test={f"{tmp_path}/test_broken.py::test_broken"!r})
        sys.exit(mutants.main(["0"]))"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "3 mutants, 3 killed, 0 survive" in answer.stdout
    assert "the tests fail without any mutant: " in answer.stdout.splitlines()[-1]
    assert answer.stdout.count(".py::test_") == 3
