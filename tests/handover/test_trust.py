"""Keys that are remembered, and signatures that come later."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from garda.core.errors import ConfigError, PackageError
from garda.handover import countersign, format, signing, trust, verify
from tests.support import sites
from tests.support.cli import garda
from tests.support.errors import told
from tests.support.sites import SITES


def open_(package: Path) -> None:
    with verify.open_package(package):
        pass


@pytest.fixture
def package(run_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(format.find_stage(run_of("adabn"), 1), tmp_path / "package"))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARDA_HOME", str(tmp_path / "home"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing.make_keys(tmp_path / "a.key")
    return tmp_path / "a.key"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_finished_package_is_signed_without_learning_anew(zipped, package, key, tmp_path, capsys):
    before = format.package_digest(package)
    given = tmp_path / "a.zip" if zipped else package
    if zipped:
        format.pack(package, given)
    assert garda("sign", given, key) == 0
    assert capsys.readouterr().out == f"package {before}: signed\n"
    assert garda("verify", given, "--expect", before) == 0
    assert f"signed {signing.read_public(tmp_path / 'a.key.pub')}" in capsys.readouterr().out
    assert garda("sign", given, key) == 2
    assert "has this key's signature already" in capsys.readouterr().err


def test_an_envelope_is_verified_by_whoever_knows_the_standard(package, key, tmp_path):
    assert garda("sign", package, key, "--intoto", tmp_path / "a.json") == 0
    envelope = json.loads((tmp_path / "a.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    [signature] = envelope["signatures"]
    signed = f"DSSEv1 {len(envelope['payloadType'])} {envelope['payloadType']} {len(payload)} ".encode() + payload
    public = signing.read_private(key).public_key()
    assert signature["keyid"] == public.public_bytes_raw().hex()
    public.verify(base64.b64decode(signature["sig"]), signed)
    statement = json.loads(payload)
    assert statement["_type"] == countersign.STATEMENT
    assert statement["subject"][0]["digest"] == {"sha256": format.package_digest(package)}
    assert garda("sign", package, key, "--intoto", tmp_path / "a.json") == 2


def test_what_is_trusted_is_asked_for_by_every_command(package, key, pipeline, tmp_path, capsys):
    assert garda("sign", package, key) == 0
    assert garda("trust", "add", SITES[1], f"{key}.pub") == 0
    capsys.readouterr()
    assert garda("trust", "list") == 0
    assert capsys.readouterr().out == f"{SITES[1]}: {signing.read_public(Path(f'{key}.pub'))}\n"
    scan, data = sites.image(pipeline, 1, 3), ("--data", pipeline.parent / "data")
    commands = [
        ("verify", package),
        ("predict", package, scan, "--out", tmp_path / "maps"),
        ("adapt", package, sites.manifest(pipeline, 2), *data, "--out", tmp_path / "next"),
        ("evaluate", package, sites.manifest(pipeline, 1), *data),
        ("export", package, "--out", tmp_path / "b.zip"),
        ("report", package, "--for", "auditor", "--out", tmp_path / "page.html"),
        ("sign", package, key),
    ]
    (package / "signatures.jsonl").rename(tmp_path / "stripped")
    for words in commands:
        assert garda(*words) == 2, words
        assert f"ledger line 2: is a line of {SITES[1]} without a signature by the key" in capsys.readouterr().err
    (tmp_path / "stripped").rename(package / "signatures.jsonl")
    for words in commands[:-1]:
        assert garda(*words) == 0, (words, capsys.readouterr())
    assert garda("trust", "remove", SITES[1]) == 0
    (package / "signatures.jsonl").unlink()
    assert garda("verify", package) == 0
    assert garda("trust", "remove", SITES[1]) == 2


def test_every_command_asks_for_the_digest_that_another_channel_told(package, pipeline, tmp_path, capsys):
    data, wrong = ("--data", pipeline.parent / "data"), format.package_digest(package)[::-1]
    for words in (
        ("evaluate", package, sites.manifest(pipeline, 1), *data),
        ("audit", package, sites.manifest(pipeline, 1), *data),
        ("export", package, "--out", tmp_path / "b.zip"),
        ("export", package, "--to", "onnx", "--out", tmp_path / "b.onnx"),
    ):
        assert garda(*words, "--expect", wrong) == 2
        assert "not the expected one; ask which package it is" in capsys.readouterr().err


def test_a_replaced_key_takes_the_place_of_the_old_one(package, key, tmp_path):
    trust.add(SITES[1], Path(f"{key}.pub"))
    signing.make_keys(tmp_path / "b.key")
    trust.add(SITES[1], tmp_path / "b.key.pub")
    assert [own.key for own in trust.read()] == [signing.read_public(tmp_path / "b.key.pub")]


def test_a_site_whose_key_is_trusted_is_not_learnt_without_it(package, key, pipeline, tmp_path, capsys):
    assert garda("trust", "add", SITES[2], f"{key}.pub") == 0
    words = ("adapt", package, sites.manifest(pipeline, 2), "--data", pipeline.parent / "data", "--out")
    signing.make_keys(tmp_path / "b.key")
    for more, what in (((), "a key"), (("--sign", tmp_path / "b.key"), "another key")):
        capsys.readouterr()
        assert garda(*words, tmp_path / "next", *more) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"--sign: {what} is trusted for {SITES[2]}") and "adapter" not in printed.out
    assert garda(*words, tmp_path / "next", "--sign", key) == 0


@pytest.mark.parametrize("change", ["", "{}", '{"keys": {}, "sha256": "00"}'])
def test_a_file_of_keys_that_was_edited_is_refused(change, key, package, tmp_path):
    trust.add(SITES[1], Path(f"{key}.pub"))
    file = tmp_path / "home" / trust.FILE
    file.write_text(change or file.read_text().replace(SITES[1], SITES[2]))
    assert "is damaged, or was edited by hand" in told(ConfigError, open_, package)


def test_a_site_has_a_name(key):
    assert "is no site's name" in told(ConfigError, trust.add, "a b", Path(f"{key}.pub"))


def test_a_line_signed_by_another_key_is_no_line_of_the_site(package, key, tmp_path):
    signing.make_keys(tmp_path / "b.key")
    countersign.sign_package(package, signing.read_private(tmp_path / "b.key"))
    trust.add(SITES[1], Path(f"{key}.pub"))
    assert "without a signature by the key that is trusted" in told(PackageError, open_, package)
