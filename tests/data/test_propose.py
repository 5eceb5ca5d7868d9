"""A project that is written by no hand."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from garda.data import propose
from garda.data.layouts import Scan
from garda.data.sequence import read_sequence
from tests.support import cli, sites
from tests.support.sites import SITES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(pipeline: Path, tmp_path: Path) -> list[Path]:
    """Phantom scans of three sites: nnU-Net's raw data, BIDS, and files side by side with codes of their own."""
    own = sites.copy(pipeline, tmp_path / "tiny").parent / "data"
    places = {SITES[0]: "nn", SITES[1]: "bids", SITES[2]: "side"}
    for site, place in places.items():
        for number, image in enumerate(sorted((own / site / "images").iterdir())):
            subject = f"sub-{number}"
            to = {
                "nn": (f"imagesTr/p{number}_0000.nii.gz", f"labelsTr/p{number}.nii.gz"),
                "bids": (f"{subject}/anat/{subject}_T1w.nii.gz", f"derivatives/{subject}/{subject}_T1w_dseg.nii.gz"),
                "side": (f"p{number}_ses-1.nii.gz", f"p{number}_ses-1_seg.nii.gz"),
            }[place]
            for file, name in zip((image, own / site / "labels" / image.name), to, strict=True):
                (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / place / name)
    for file in (tmp_path / "side").glob("*_seg.nii.gz"):
        stored = nib.load(file)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj) * np.uint8(10), stored.affine), file)
    labels = {"background": 0, "right_ventricle": 1, "myocardium": 2, "left_ventricle": 3}
    (tmp_path / "nn" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return [tmp_path / place for place in places.values()]


def test_init_check_and_run_need_no_file_by_hand(folders, tmp_path, capsys):
    project = tmp_path / "project"
    assert cli.garda("init", *folders, "--out", project) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"next: garda check {project}/pipeline.yaml --data {tmp_path}"
    assert any(line.startswith("asked: manifests/side.yaml") for line in printed)
    task = (project / "manifests" / "task.yaml").read_text()
    assert all("#" in line for line in task.splitlines()[2:] if not line.startswith("  "))
    assert yaml.safe_load(task)["codes"]["left_ventricle"]["value"] == "87878005"
    sequence = read_sequence(project / "pipeline.yaml")
    assert [domain.name for domain in sequence.domains] == ["nn", "bids", "side"]
    assert sequence.domains[1].cases[0].patient == "sub-0" and sequence.domains[2].cases[0].patient == "p0"
    words = (project / "pipeline.yaml", "--data", tmp_path)
    assert cli.garda("check", *words) == 0
    assert "1.000 of the labelled" in capsys.readouterr().out or "0.99" in task
    tiny = ("--method", "source_only", "--set", "source.steps=2", "--set", "segmenter.widths=[4,4,4,4,4,4]")
    assert cli.garda("run", *words, "--out", tmp_path / "run", *tiny, "--set", "gate.slices=[2, 1]") in (0, 3)
    assert (tmp_path / "run" / "scores.csv").exists()
    assert cli.garda("init", *folders, "--out", project) == 2


@pytest.mark.parametrize("said", [True, False])
def test_ct_is_proposed_with_a_window(said, folders, tmp_path, capsys):
    for folder in folders:
        for file in (path for path in folder.rglob("*.nii.gz") if not re.search(r"labelsTr|seg", path.as_posix())):
            stored = nib.load(file)
            values = np.asarray(stored.dataobj, np.int16) - (100 if said else 1024)
            values.flat[0] = -3024 if not said else values.min()
            nib.save(nib.Nifti1Image(values, stored.affine), file)
    described = json.loads((folders[0] / "dataset.json").read_text())
    if said:
        (folders[0] / "dataset.json").write_text(json.dumps(described | {"channel_names": {"0": "CT"}}))
    project = tmp_path / "project"
    assert cli.garda("init", *folders, "--out", project) == 0
    low, high = yaml.safe_load((project / "manifests" / "task.yaml").read_text())["intensity"]["window"]
    assert -1024 <= low < high <= 1023
    capsys.readouterr()
    assert cli.garda("check", project / "pipeline.yaml", "--data", tmp_path) == 0
    assert "looks like CT" not in capsys.readouterr().out
    for change, word in (
        ("percentiles: [0.5, 99.5]", "looks like CT"),
        ("window: [20000, 20001]", "outside the window"),
    ):
        text = (project / "manifests" / "task.yaml").read_text()
        (project / "manifests" / "task.yaml").write_text(re.sub(r"window: \[.*?\]", change, text))
        code = cli.garda("check", project / "pipeline.yaml", "--data", tmp_path)
        printed = capsys.readouterr()
        (project / "manifests" / "task.yaml").write_text(text)
        if word == "looks like CT":
            assert code == 0 and (word in printed.out) != said
        else:
            assert code == 2 and word in printed.err


def test_a_sites_own_codes_are_part_of_the_plan(folders, tmp_path, capsys):
    project = tmp_path / "project"
    assert cli.garda("init", *folders, "--out", project) == 0
    before = read_sequence(project / "pipeline.yaml").digests
    codes = project / "manifests" / "side.yaml"
    assert yaml.safe_load(codes.read_text()) == {"values": {10: 1, 20: 2, 30: 3}}
    codes.write_text("values: {10: 1, 20: 2, 30: 4}\n")
    capsys.readouterr()
    words = ("check", project / "pipeline.yaml", "--data", tmp_path)
    assert cli.garda(*words) == 2
    assert capsys.readouterr().err == f"{codes}: values must map to class indices 0 to 3; correct them\n"
    codes.unlink()
    after = read_sequence(project / "pipeline.yaml").digests
    assert [name for name in after if after[name] != before[name]] == ["side"]
    assert cli.garda(*words) == 2
    assert "holds the values 10, 20, 30, expected 0 to 3" in capsys.readouterr().err


def test_one_patient_id_is_one_patient_and_is_not_written(monkeypatch):
    owners = {"a": "MRN-1", "b": "MRN-2", "c": "MRN-1"}
    monkeypatch.setattr(propose.dicom, "is_dicom", lambda image: True)
    monkeypatch.setattr(propose, "patient_id", lambda image: owners[image.name])
    patients, evidence, _ = propose.find_patients([Scan(key, Path(key), patient="folder") for key in owners])
    assert patients == ["a", "b", "a"] and "PatientID" in evidence


def test_the_configurations_are_part_of_the_wheel(tmp_path):
    for name in ("garda", "configs", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        modules = {f"garda/{file.relative_to(ROOT / 'garda').as_posix()}" for file in (ROOT / "garda").rglob("*.py")}
        assert modules <= {*wheel.namelist()}
        for file in (ROOT / "configs").glob("*.yaml"):
            assert wheel.read(f"garda/data/configs/{file.name}") == file.read_bytes()
