"""Identifiers planted wherever a name can hide are in nothing that stays or travels, in whatever form."""

import base64
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from garda.core.pseudonyms import load_key
from tests.support import sites
from tests.support.cli import garda
from tests.support.sites import SITES

PATIENT, CASE, FOLDER, TEXT = "Mustermann-Erika", "case-7731904", "ward-of-Sonnenberg", "born-1949-03-17"


def forms(name: str) -> Iterator[bytes]:
    """A name as it is, and as it may hide."""
    plain = name.encode()
    yield from (plain, plain.lower(), plain.upper(), name.encode("utf-16-le"), name.encode("utf-16-be"), plain[::-1])
    yield from (plain.hex().encode(), plain.hex().upper().encode())
    for skipped in range(3):  # wherever it begins in what is encoded
        yield base64.b64encode(b"x" * skipped + plain)[4:-4] if skipped else base64.b64encode(plain).rstrip(b"=")[:-1]
    for kind in ("md5", "sha1", "sha256"):
        digest = hashlib.new(kind, plain)
        yield from (digest.digest(), digest.hexdigest().encode())


@pytest.fixture
def planted(pipeline: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A data set with names in folders, files, columns and headers, and the names."""
    own = sites.copy(pipeline, tmp_path / FOLDER)
    data, names = own.parent / "data", [FOLDER, TEXT]
    for site in SITES:
        file = data / "manifests" / f"{site}.csv"
        text = file.read_text()
        for number, image in enumerate(sorted((data / site / "images").iterdir())):
            patient, case, name = f"{PATIENT}-{site[:2]}{number}", f"{CASE}-{site[:2]}{number}", image.name[:-7]
            names += [patient, case]
            stored = nib.load(image)
            voxels, header = np.array(stored.dataobj), stored.header
            header["descrip"], header["aux_file"], header["db_name"], header["intent_name"] = TEXT, TEXT, TEXT, TEXT
            header.extensions.append(nib.nifti1.Nifti1Extension("comment", patient.encode()))
            for kind in ("images", "labels"):
                (data / site / kind / f"{name}.nii.gz").rename(data / site / kind / f"{case}.nii.gz")
            nib.save(nib.Nifti1Image(voxels, stored.affine, header), data / site / "images" / f"{case}.nii.gz")
            text = text.replace(f"{name},{name},", f"{case},{patient},").replace(f"/{name}.nii.gz", f"/{case}.nii.gz")
        file.write_text(text)
    return own, names


def found(folder: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """Which forms stand where."""
    files = [(path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()]
    contents = [(name, name.encode() + b"\0" + path.read_bytes()) for name, path in files]
    wanted = [form for name in names for form in forms(name)]
    return [(name, form) for name, text in contents for form in wanted if form in text]


def test_no_identifier_is_in_what_stays_or_travels(planted, tmp_path, monkeypatch, capsys):
    pipeline, names = planted
    monkeypatch.setenv("USER", "dr-Quacksalber")
    monkeypatch.setenv("LOGNAME", "dr-Quacksalber")
    names = [*names, "dr-Quacksalber", load_key().hex()]
    data, out = ("--data", pipeline.parent / "data"), tmp_path / "out"
    assert garda("run", pipeline, *data, "--out", out / "run", "--method", "adabn") == 0
    assert garda("export", out / "run", "--out", out / "a.zip") == 0
    target = sites.manifest(pipeline, 1)
    assert garda("adapt", out / "a.zip", target, *data, "--name", "next", "--out", out / "b", "--audit") == 0
    assert garda("export", out / "b", "--to", "onnx", "--out", out / "c.onnx") == 0
    assert garda("report", out / "run", "--for", "researcher", "--out", out / "pages" / "r.html") == 0
    capsys.readouterr()
    assert found(out, names) == []
    image = next((pipeline.parent / "data" / SITES[0] / "images").iterdir())
    shutil.copy(image, tmp_path / "scan.nii.gz")
    assert garda("predict", out / "b", tmp_path / "scan.nii.gz", "--out", tmp_path / "maps") == 0
    written = tmp_path / "maps" / "scan.nii.gz"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "map.nii").write_bytes(nib.load(written).to_bytes())
    assert found(tmp_path / "plain", names) == [] and written.stat().st_mode & 0o077 == 0
    assert (tmp_path / "maps").stat().st_mode & 0o077 == 0 and out.joinpath("run").stat().st_mode & 0o007 == 0


def test_the_search_finds_what_is_there(tmp_path):
    hidden = [PATIENT.encode("utf-16-le"), hashlib.sha256(PATIENT.encode()).digest(), PATIENT.encode().hex().encode()]
    hidden += [base64.b64encode(b"x" * skipped + PATIENT.encode() + b"yz") for skipped in range(3)]
    for number, text in enumerate(hidden):
        (tmp_path / str(number)).write_bytes(b"before" + text + b"after")
    assert {name for name, _ in found(tmp_path, [PATIENT])} == {str(number) for number in range(len(hidden))}
