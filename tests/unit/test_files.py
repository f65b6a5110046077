from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import pytest

from neuroweaver import files
from neuroweaver.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_replaced_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"

    files.write_text(path, "old")
    files.write_text(path, "neü")

    assert path.read_text(encoding="utf-8") == "neü"
    assert names(path.parent) == ["a.txt"]


def test_a_text_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "x" * 100_000 + "\ud800")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_new_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"

    with files.new_folder(path) as new:
        (new / "sub").mkdir()
        (new / "sub" / "a").write_text("a")
        assert not path.exists()

    assert (path / "sub" / "a").read_text() == "a"
    assert names(path.parent) == ["folder"]


def test_a_new_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with files.new_folder(tmp_path / "folder") as new:
            (new / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()

    assert names(tmp_path) == []


def test_a_folder_that_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with files.new_folder(tmp_path / "folder") as new:
            (new / "a").write_text(text)

    assert (tmp_path / "folder" / "a").read_text() == "first"
    assert names(tmp_path) == ["folder"]


def test_a_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)

    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left on the disk"), files.new_folder(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert names(tmp_path) == []


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.new_folder(tmp_path / "folder") as new:
        (new / "missing").read_text()


def test_space_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free

    files.require_space(tmp_path / "not" / "there" / "yet", free // 2)
    with pytest.raises(StorageError, match="MiB needed"):
        files.require_space(tmp_path / "not" / "there" / "yet", free * 2)
