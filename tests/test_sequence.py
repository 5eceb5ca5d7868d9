from __future__ import annotations

from pathlib import Path

import pytest

from garda.errors import ConfigError, DataError
from garda.sequence import Case, Task, find_gaps, read_manifest, read_sequence, write_manifest

TASK = Task(name="t", classes=("background", "organ"), size=(64, 64))
HEADER = "case,patient,split,image,label\n"


def manifest(tmp_path: Path, rows: str, header: str = HEADER) -> Path:
    file = tmp_path / "site.csv"
    file.write_text(header + rows)
    return file


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path):
    file = tmp_path / "site.csv"
    case = Case("c", "p", "train", "a/i.nii", ("a/l.nii",), (("a/i.nii", "0" * 64, 5), ("a/l.nii", "1" * 64, 6)), "")
    other = Case("d", "q", "test", "a/j.nii", (), (), "")
    write_manifest(file, [case, other])
    read = read_manifest(file, TASK)
    assert [(c.case, c.patient, c.split, c.image, c.labels, c.digests) for c in read] == [
        (c.case, c.patient, c.split, c.image, c.labels, c.digests) for c in (case, other)
    ]
    assert read[1].where == f"{file}:3"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "{file}: holds no case; add a row for each scan"),
        (
            "c,p,train,i.nii\n",
            "{file}:2: the row has another number of cells than the header; quote cells that hold a comma",
        ),
        ("c,,train,i.nii,\n", "{file}:2: patient is empty; fill the cell"),
        ("c,p,trian,i.nii,\n", "{file}:2: split is 'trian'; use one of train, val, test"),
        ("c,p,train,/i.nii,\n", "{file}:2: path '/i.nii' is not below the data folder; give paths relative to --data"),
        (
            "c,p,train,../i.nii,\n",
            "{file}:2: path '../i.nii' is not below the data folder; give paths relative to --data",
        ),
        ("c,p,train,i.nii,a;b\n", "{file}:2: 2 label files, the task wants 1; separate them by ';'"),
        ("c,p,train,i,\nc,q,train,j,\n", "{file}:3: case 'c' stands twice; give every scan its own name"),
        (
            "c,p,train,i,\nd,p,test,j,\n",
            "{file}:3: patient 'p' stands in train and in test; keep a patient in one split, or give the reason in "
            "task.yaml under same_patient_in_splits",
        ),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: str, message: str):
    file = manifest(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_manifest(file, TASK)
    assert str(caught.value) == message.format(file=file)


def test_columns_and_files_that_do_not_fit(tmp_path: Path):
    with pytest.raises(DataError, match="no such manifest; write one with `garda manifest`"):
        read_manifest(tmp_path / "none.csv", TASK)
    with pytest.raises(DataError, match="column 'label' is missing"):
        read_manifest(manifest(tmp_path, "", "case,patient,split,image\n"), TASK)
    with pytest.raises(DataError, match="unknown column 'sex'"):
        read_manifest(manifest(tmp_path, "", "case,patient,split,image,label,sex\n"), TASK)
    with pytest.raises(DataError, match="image_sha256 and image_bytes do not fit the files"):
        read_manifest(
            manifest(tmp_path, "c,p,test,i,,x,\n", "case,patient,split,image,label,image_sha256,image_bytes\n"), TASK
        )
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\xe9,p,test,i,\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_manifest(tmp_path / "latin.csv", TASK)


def test_a_reason_allows_one_patient_in_two_splits(tmp_path: Path):
    task = TASK.model_copy(update={"same_patient_in_splits": "one volunteer a site"})
    assert len(read_manifest(manifest(tmp_path, "c,p,train,i,\nd,p,test,j,\n"), task)) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (60, 64)}, "multiples of 16"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm must be greater than 0"),
        ({"intensity": {"percentiles": (99.0, 1.0)}}, "percentiles must grow"),
        ({"label": {"masks": ("a", "b")}}, "one mask for each of 1 foreground classes"),
        ({"label": {"masks": ("a",), "slice_labelled_by": "b"}}, "'b', which is not in label.masks"),
        ({"label": {"values": {255: 2}}}, "class indices 0 to 1"),
    ],
)
def test_tasks_that_contradict_themselves(values, message):
    with pytest.raises(ValueError, match=message):
        Task.model_validate(TASK.model_dump() | values)


def pipeline(tmp_path: Path, text: str = "") -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text("name: t\nclasses: [background, organ]\nsize: [64, 64]\n")
    (folder / "a.csv").write_text(HEADER + "c,p,train,i,l\nd,q,test,j,k\n")
    (folder / "b.csv").write_text(HEADER + "c,p,train,i,\n")
    (tmp_path / "config.yaml").write_text("source: {steps: 5}\n")
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        text
        or "name: x\nmanifests: manifests\nsource: a\ntargets: [b]\nconfig: config.yaml\nmethod: source_only\n"
        "settings: {source: {batch: 2}}\n"
    )
    return file


def test_a_pipeline_brings_everything_together(tmp_path: Path):
    sequence = read_sequence(pipeline(tmp_path), seed=3, changes={"source": {"steps": 6}})
    assert [domain.name for domain in sequence.domains] == ["a", "b"]
    assert [domain.index for domain in sequence.domains] == [0, 1]
    assert sequence.settings == {"source": {"steps": 6, "batch": 2}}
    assert (sequence.seed, sequence.method) == (3, "source_only")
    assert find_gaps(sequence) == []


def test_domains_stand_once(tmp_path: Path):
    file = pipeline(tmp_path)
    file.write_text(file.read_text().replace("[b]", "[b, b]"))
    with pytest.raises(ConfigError, match="domain 'b' stands twice in the sequence"):
        read_sequence(file)


def test_gaps_of_a_sequence(tmp_path: Path):
    file = pipeline(tmp_path)
    (tmp_path / "manifests" / "a.csv").write_text(HEADER + "c,p,train,i,\n")
    (tmp_path / "manifests" / "b.csv").write_text(HEADER + "c,p,test,i,\n")
    gaps = [str(gap) for gap in find_gaps(read_sequence(file))]
    assert gaps == [
        f"{tmp_path}/manifests/a.csv:2: a source needs a label for every training case; fill column label",
        "b: the train split is empty; give at least one case the split train",
    ]
