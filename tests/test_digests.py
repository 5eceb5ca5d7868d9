"""What had its digest once is not hashed again, until anything about it changes; nothing of it is written in clear."""

from __future__ import annotations

import hashlib
import os
import re
import time
import zipfile
from pathlib import Path

import pytest

from garda import digests
from garda.cases import write_manifest
from garda.digests import MARKS, VerifiedDigests
from garda.errors import DataError
from garda.formats import digest
from garda.manifest import build_manifest

from .phantoms import SITES, write_tiny
from .test_cli import garda

CONTENTS = b"patient Erika Mustermann"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files in the order in which they are hashed."""
    names: list[str] = []
    plainly = hashlib.file_digest

    def noting(opened, algorithm):
        names.append(Path(opened.name).name)
        return plainly(opened, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", noting)
    return names


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once."""
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    file = tmp_path / "Mustermann_Erika.nii"
    file.write_bytes(CONTENTS)
    time.sleep(0.02)  # beyond the tick of the file system's clock
    return file


def fit(scan: Path, home: Path, recorded: tuple[str, int] | None = None, rehash: bool = False) -> bool:
    """Compare in a new process's place: all that is known comes from the file."""
    sha = hashlib.sha256(CONTENTS).hexdigest()
    with VerifiedDigests(home, rehash=rehash) as verified:
        return verified.fit(scan, recorded or (sha, len(CONTENTS)))


def test_a_verified_file_is_not_read_again(scan, home, hashed, settled):
    assert fit(scan, home) and hashed == [scan.name]
    scan.chmod(0o600)
    assert fit(scan, home) and len(hashed) == 2  # a time has changed
    for _ in range(3):
        assert fit(scan, home)
    assert len(hashed) == 2
    assert fit(scan, home, rehash=True) and len(hashed) == 3


def test_another_digest_is_no_known_one(scan, home, hashed, settled):
    assert fit(scan, home)
    assert not fit(scan, home, ("0" * 64, len(CONTENTS)))
    assert not fit(scan, home, (hashlib.sha256(CONTENTS).hexdigest(), 1))
    assert len(hashed) == 3


def test_a_changed_file_is_read_again(scan, home, hashed, settled):
    times = scan.stat()
    assert fit(scan, home)
    scan.write_bytes(CONTENTS.upper())
    os.utime(scan, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time of modification as they were
    assert not fit(scan, home) and len(hashed) == 2
    scan.write_bytes(CONTENTS + b".")
    assert not fit(scan, home)
    scan.write_bytes(CONTENTS)
    assert fit(scan, home) and len(hashed) == 4


def test_a_file_that_was_changed_just_now_is_not_trusted(scan, home, hashed, monkeypatch):
    assert fit(scan, home) and fit(scan, home)
    assert len(hashed) == 2 and not (home / MARKS).exists()
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 11 * 10**9)
    assert fit(scan, home) and fit(scan, home)
    assert len(hashed) == 3


def test_times_ahead_of_the_clock_are_not_trusted(scan, home, hashed, settled):
    os.utime(scan, (time.time() + 3600,) * 2)
    assert fit(scan, home) and fit(scan, home)
    assert len(hashed) == 2


def test_a_file_system_without_times_is_not_trusted(scan, home, hashed, settled, monkeypatch):
    look = digests._look
    monkeypatch.setattr(digests, "_look", lambda path: [s._replace(modified=0, changed=0) for s in look(path)])
    assert fit(scan, home) and fit(scan, home)
    assert len(hashed) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(scan, home, hashed, settled, monkeypatch):
    plainly = digests.has_digest

    def changing(path, recorded):
        found = plainly(path, recorded)
        path.write_bytes(CONTENTS + b".")
        return found

    monkeypatch.setattr(digests, "has_digest", changing)
    assert fit(scan, home)
    assert not (home / MARKS).exists()


def test_damage_that_leaves_no_trace_is_found_by_rehash_and_then_by_all(scan, home, hashed, settled, monkeypatch):
    assert fit(scan, home)
    monkeypatch.setattr(digests, "has_digest", lambda path, recorded: False)  # a bit has fallen over on the disk
    assert fit(scan, home)
    assert not fit(scan, home, rehash=True)
    assert not fit(scan, home)


@pytest.mark.parametrize("damage", [b"", b"\0\xff" * 99, b"a" * 64 + b"\n" + b"Mustermann\n", b"{" * 65])
def test_a_damaged_memory_is_passed_over_and_mended(scan, home, hashed, settled, damage):
    assert fit(scan, home)
    whole = (home / MARKS).read_bytes()
    (home / MARKS).write_bytes(damage)
    assert fit(scan, home) and len(hashed) == 2
    kept = (home / MARKS).read_bytes()
    assert kept.endswith(whole) and b"Mustermann" not in kept and re.fullmatch(rb"([0-9a-f]{64}\n)+", kept)
    assert fit(scan, home) and len(hashed) == 2


def test_without_a_folder_that_can_be_written_everything_is_hashed(scan, tmp_path, home, hashed, settled):
    (tmp_path / "file").write_text("")
    assert fit(scan, tmp_path / "file" / "home") and len(hashed) == 1  # no key
    assert fit(scan, home)
    (home / MARKS).unlink()
    (home / MARKS).mkdir()  # nothing can take its place, whoever runs this
    (home / MARKS / "x").write_text("")
    assert fit(scan, home) and fit(scan, home) and len(hashed) == 4
    assert sorted(path.name for path in home.iterdir()) == ["pseudonyms.key", MARKS]


def test_a_folder_of_others_leaves_no_trace(scan, home, hashed, settled, monkeypatch):
    fit(scan, home)
    (home / "pseudonyms.key").chmod(0o640)
    assert fit(scan, home) and len(hashed) == 2


def test_the_memory_is_its_owners_and_says_nothing(scan, home, settled):
    assert fit(scan, home)
    file = home / MARKS
    assert file.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}\n", file.read_text())
    assert hashlib.sha256(CONTENTS).hexdigest() not in file.read_text()
    before = file.read_text()
    (home / "pseudonyms.key").write_bytes(bytes(32))
    file.unlink()
    assert fit(scan, home) and file.read_text() != before  # nobody makes a mark without the key


def test_the_memory_is_bounded_and_keeps_what_came_last(tmp_path, home, hashed, settled, monkeypatch):
    monkeypatch.setattr(digests, "MOST", 2)
    scans = [tmp_path / f"{index}.nii" for index in range(3)]
    for scan in scans:
        scan.write_bytes(CONTENTS)
    time.sleep(0.02)
    assert all(fit(scan, home) for scan in (*scans[:2], scans[0], scans[2]))
    assert len((home / MARKS).read_text().splitlines()) == 2
    assert hashed == ["0.nii", "1.nii", "2.nii"]
    assert fit(scans[0], home) and len(hashed) == 3
    assert fit(scans[1], home) and len(hashed) == 4


def test_two_processes_at_once(tmp_path, home, hashed, settled):
    one, other = tmp_path / "one.nii", tmp_path / "other.nii"
    for scan in (one, other):
        scan.write_bytes(CONTENTS)
    time.sleep(0.02)
    with VerifiedDigests(home) as first, VerifiedDigests(home) as second:
        assert first.fit(one, digest(one)) and second.fit(other, digest(other))
    hashed.clear()
    assert fit(one, home) and fit(other, home)
    assert hashed == []


def test_a_series_is_as_all_its_files_are(tmp_path, home, hashed, settled):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_bytes(name.encode())
    header = tmp_path / "x.mhd"
    header.write_text("ElementDataFile = x.raw\n")
    (tmp_path / "x.raw").write_bytes(b"voxels")
    time.sleep(0.02)
    recorded = {scan: digest(scan) for scan in (series, header)}
    for scan, part in ((series, series / "b"), (header, tmp_path / "x.raw")):
        assert fit(scan, home, recorded[scan])
        hashed.clear()
        assert fit(scan, home, recorded[scan]) and hashed == []
        part.write_bytes(part.read_bytes().upper())
        assert not fit(scan, home, recorded[scan]) and len(hashed) == 2
    (series / "b").write_bytes(b"b")
    assert fit(series, home, recorded[series])
    (series / "c").write_bytes(b"c")
    assert not fit(series, home, recorded[series])


def test_a_zipped_study_of_several_series_is_hashed_once(tmp_path, home, hashed, settled):
    study = tmp_path / "study.zip"
    with zipfile.ZipFile(study, "w") as archive:
        archive.writestr("T1/a", b"")
    time.sleep(0.02)
    recorded = digest(study)
    hashed.clear()
    with VerifiedDigests(home) as verified:
        assert verified.fit(study / "T1", recorded) and verified.fit(study / "T2", recorded)
    assert hashed == ["study.zip"]


def test_a_missing_file_is_told_as_ever(tmp_path, home):
    with pytest.raises(DataError, match="no such file or directory"):
        fit(tmp_path / "none.nii", home)


def test_check_hashes_once_and_with_rehash_always(tmp_path, home, hashed, settled, monkeypatch, capsys):
    monkeypatch.setenv("GARDA_HOME", str(home))
    pipeline = write_tiny(tmp_path)
    data = tmp_path / "data"
    for site in SITES:
        write_manifest(data / "manifests" / f"{site}.csv", build_manifest(data / site, data))
    time.sleep(0.02)
    hashed.clear()
    words = ("check", pipeline, "--data", data)
    for more, count in (([], 24), ([], 24), (["--rehash"], 48), ([], 48)):
        assert garda(*words, *more) == 0
        assert len(hashed) == count
    kept = (home / MARKS).read_text()
    assert len(kept.splitlines()) == 24 and not any(site in kept for site in SITES)
    changed = data / SITES[0] / "images" / f"{SITES[0]}_000.nii.gz"
    changed.write_bytes(changed.read_bytes() + b"\0")
    capsys.readouterr()
    assert garda(*words) == 2 and len(hashed) == 49
    assert "is not the file that the manifest was made for" in capsys.readouterr().err


def test_what_records_no_digest_makes_no_key(tmp_path, home, monkeypatch):
    monkeypatch.setenv("GARDA_HOME", str(home))
    assert garda("check", write_tiny(tmp_path), "--data", tmp_path / "data") == 0
    assert not home.exists()
