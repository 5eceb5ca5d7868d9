"""Pseudonyms: stable under one key, unrelated under another; the key is the user's alone."""

from __future__ import annotations

import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from garda.core import pseudonyms
from garda.core.errors import GardaError
from garda.core.pseudonyms import Pseudonyms

KEY = bytes(range(32))


def test_a_pseudonym_is_the_initial_and_the_first_digits_of_the_hmac():
    expected = hmac.new(KEY, b"patient\0sub-amu01", hashlib.sha256).hexdigest()[:12]
    assert Pseudonyms(KEY).pseudonym("patient", "sub-amu01") == f"P-{expected}"
    assert Pseudonyms(KEY).pseudonym("case", "sub-amu01").startswith("C-")


def test_kind_name_and_key_all_matter():
    one = Pseudonyms(KEY)
    names = {
        one.pseudonym("patient", "7")[2:],
        one.pseudonym("patient", "8")[2:],
        one.pseudonym("case", "7")[2:],
        Pseudonyms(bytes(32)).pseudonym("patient", "7")[2:],
    }
    assert len(names) == 4
    assert Pseudonyms(KEY).pseudonym("patient", "7")[2:] in names


def test_the_key_is_made_once_and_for_the_user_alone(tmp_path: Path):
    folder = tmp_path / "home" / "garda"
    key = pseudonyms.load_key(folder)
    assert len(key) == 32
    assert pseudonyms.load_key(folder) == key
    assert pseudonyms.load_key(tmp_path / "other") != key
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "pseudonyms.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["pseudonyms.key"]


def test_garda_home_and_then_the_config_folder_hold_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GARDA_HOME", str(tmp_path / "own"))
    assert pseudonyms.load_key() == (tmp_path / "own" / "pseudonyms.key").read_bytes()
    monkeypatch.delenv("GARDA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pseudonyms.load_key() == (tmp_path / ".config" / "garda" / "pseudonyms.key").read_bytes()


def test_processes_that_start_together_get_one_key(tmp_path: Path):
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(pseudonyms.load_key, [tmp_path / "home"] * 32))) == 1


def test_a_damaged_key_is_told(tmp_path: Path):
    pseudonyms.load_key(tmp_path)
    path = tmp_path / "pseudonyms.key"
    path.write_bytes(b"short")
    with pytest.raises(GardaError) as caught:
        pseudonyms.load_key(tmp_path)
    assert str(caught.value) == (
        f"{path}: a key has 32 bytes, the file has 5; restore it from a backup; a new key would give new pseudonyms"
    )


def test_a_key_that_others_can_read_is_told(tmp_path: Path):
    pseudonyms.load_key(tmp_path)
    path = tmp_path / "pseudonyms.key"
    path.chmod(0o640)
    with pytest.raises(GardaError) as caught:
        pseudonyms.load_key(tmp_path)
    assert str(caught.value) == f"{path}: other users have access to the key (mode 0640); run: chmod 600 {path}"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GardaError) as caught:
        pseudonyms.load_key(tmp_path / "file" / "home")
    assert str(caught.value) == (
        f"{tmp_path}/file/home/pseudonyms.key: the pseudonym key cannot be read or made (not a directory); "
        "set GARDA_HOME to a folder of your own"
    )
