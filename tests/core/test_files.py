"""Files that are whole or not there, on file systems that can less."""

import os
import stat
from pathlib import Path

import pytest

from garda.core import files
from garda.core.errors import RunFolderError


@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_a_file_is_for_its_owner_and_perhaps_the_group(private, mode, tmp_path):
    with files.replacing(tmp_path / "a", private=private) as temporary:
        temporary.write_text("x")
        assert not private or stat.S_IMODE(temporary.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) | mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / ".a.tmp").write_text("torn")
    files.write_json(tmp_path / "a", 1)
    assert (tmp_path / "a").read_text() == "1\n" and not (tmp_path / ".a.tmp").exists()


def test_a_file_system_without_modes_and_without_flushing_of_folders_is_written_to(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    own = os.fsync
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", lambda handle: refuse() if stat.S_ISDIR(os.fstat(handle).st_mode) else own(handle))
    files.write_json(tmp_path / "a", 1)
    with files.replacing_folder(tmp_path / "b") as draft:
        files.write_json(draft / "c", 2)
    assert (tmp_path / "a").exists() and (tmp_path / "b" / "c").exists()


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(RunFolderError, match="cannot be written"):
        files.write_json(tmp_path / "a", 1)
    assert not list(tmp_path.iterdir())
