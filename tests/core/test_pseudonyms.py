"""Pseudonyms: stable under one key, unrelated under another; the key is the user's alone."""

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
    asked = [(KEY, "patient", "7"), (KEY, "patient", "8"), (KEY, "case", "7"), (bytes(32), "patient", "7")]
    names = {Pseudonyms(key).pseudonym(kind, name)[2:] for key, kind, name in asked}
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


def test_a_key_that_cannot_be_used_is_told(tmp_path: Path):
    pseudonyms.load_key(tmp_path)
    path = tmp_path / "pseudonyms.key"
    path.chmod(0o640)
    with pytest.raises(GardaError) as caught:
        pseudonyms.load_key(tmp_path)
    assert str(caught.value) == f"{path}: other users have access to the key (mode 0640); run: chmod 600 {path}"
    path.write_bytes(b"short")
    with pytest.raises(GardaError, match=f"^{path}: a key has 32 bytes, the file has 5; restore it from a backup"):
        pseudonyms.load_key(tmp_path)
    with pytest.raises(GardaError, match=r"cannot be read or made \(not a directory\); set GARDA_HOME to"):
        pseudonyms.load_key(path / "home")
