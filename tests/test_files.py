"""Directories that are replaced as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from konomi.errors import RunError
from konomi.files import new_directory


def content(directory: Path) -> dict[str, str]:
    return {file.relative_to(directory).as_posix(): file.read_text("utf-8") for file in directory.rglob("*") if file.is_file()}


def write(path: Path, text: str) -> None:
    with new_directory(path) as draft:
        (draft / "a").write_text(text, encoding="utf-8")
        assert not path.exists() or text not in content(path).values()


def test_a_draft_takes_the_place_of_the_directory(tmp_path: Path) -> None:
    write(tmp_path / "below" / "model", "one")
    write(tmp_path / "below" / "model", "two")
    with new_directory(tmp_path / "below" / "model") as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "b").write_text("three", encoding="utf-8")
    assert content(tmp_path / "below" / "model") == {"inner/b": "three"}
    assert [file.name for file in (tmp_path / "below").iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "model", "one")
    with pytest.raises(error), new_directory(tmp_path / "model") as draft:
        (draft / "a").write_text("two", encoding="utf-8")
        raise error
    assert content(tmp_path / "model") == {"a": "one"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_stop_between_the_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model", "one")
    rename = Path.rename

    def stopped(self: Path, target: Any) -> Path:
        if Path(target).name == "model" and self.name != ".model.old":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", "two")
    assert content(tmp_path / "model") == {"a": "one"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"file/model: cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "model", "one")
