"""Directories that are replaced as a whole; names and contents of files that users give."""

from __future__ import annotations

import datetime
import os
import stat
import subprocess
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError, ModelError, RunError
from konomi.files import local_path, new_directory, plain, read_utf8, remove_drafts


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


def test_only_directories_are_drafts_of_directories(tmp_path: Path) -> None:
    (tmp_path / ".notes.old").touch()
    (tmp_path / "notes").touch()
    (tmp_path / ".model.old").mkdir()
    remove_drafts(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {".notes.old", "notes", "model"}


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


def test_a_name_that_no_file_can_have_is_told_as_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a b.csv") == tmp_path / "a b.csv"
    assert local_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    for name in ("お茶は" * 100, "a\0b", "half \ud800", "x/" * 3000, "~a\0b"):
        with pytest.raises(ModelError, match="no such file, and no file can have this name") as caught:
            local_path(name, ModelError)
        assert len(str(caught.value)) < 200


def test_text_that_is_not_utf8_is_named_and_the_advice_is_right(tmp_path: Path) -> None:
    path = tmp_path / "結果 1's.csv"
    text = "prompt,chosen\nお茶は何杯ですか,温かくて良いです。\n"
    for encoding in ("cp932", "euc-jp", "utf-16", "utf-16-be"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError) as caught:
            read_utf8(path)
        subprocess.run(str(caught.value).partition("Save it as UTF-8: ")[2], shell=True, check=True)
        made = tmp_path / "結果 1's-utf8.csv"
        assert read_utf8(made) == text
    with zipfile.ZipFile(path, "w") as archive:  # not packed: the text in it is there to be read
        archive.writestr("a.csv", text.encode("cp932"))
    chinese, french = "prompt\n今天天气怎么样？\n很好，谢谢你。\n".encode("gbk"), "prompt\nFête à Genève\n".encode("latin-1")
    for body, what in ((path.read_bytes(), "zip archive"), (chinese, "not UTF-8 text"), (french, "not UTF-8 text")):
        path.write_bytes(body)
        with pytest.raises(DataError, match=what) as caught:
            read_utf8(path)
        assert "iconv" not in str(caught.value)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_utf8(path) == text


def test_values_as_json_can_hold_them() -> None:
    day = datetime.date(2026, 1, 2)
    given = {"day": day, "when": datetime.datetime(2026, 1, 2, 3, 4), "price": Decimal("1.5"), "all": (day, float("nan"))}
    assert plain(given) == {"day": "2026-01-02", "when": "2026-01-02T03:04:00", "price": 1.5, "all": ["2026-01-02", None]}
    for value in (b"12", {"a": [object()]}):
        with pytest.raises((TypeError, ValueError)):
            plain(value)


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        old = os.umask(umask)
        try:
            with new_directory(tmp_path / "model") as draft:
                (draft / "inner").mkdir()
                save_file({"x": torch.zeros(1)}, draft / "inner" / "x.safetensors")
                (draft / "a.json").write_text("{}", encoding="utf-8")
        finally:
            os.umask(old)
        files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
        assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in files} == {"x.safetensors": mode, "a.json": mode}


def test_libraries_that_fill_the_disk_are_told_alike(tmp_path: Path) -> None:
    import resource

    import torch
    from safetensors.torch import save_file

    from tiny import tiny_tokenizer

    writers: dict[str, Callable[[Path], Any]] = {
        "Python": lambda draft: (draft / "a").write_bytes(bytes(2000)),
        "safetensors": lambda draft: save_file({"x": torch.zeros(1000)}, draft / "x.safetensors"),
        "tokenizers": lambda draft: tiny_tokenizer().backend_tokenizer.save(str(draft / "tokenizer.json")),
    }
    write(tmp_path / "model", "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, writer in writers.items():
        with pytest.raises(RunError) as caught:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
            try:
                with new_directory(tmp_path / "model") as draft:
                    writer(draft)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(caught.value) == f"{tmp_path / 'model'}: cannot be written: File too large", name
        assert content(tmp_path / "model") == {"a": "one"}
        assert [file.name for file in tmp_path.iterdir()] == ["model"]
    with pytest.raises(KeyError), new_directory(tmp_path / "model"):
        raise KeyError("something else")
