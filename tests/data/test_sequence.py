import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from garda.core.errors import ConfigError, DataError, Problems, RunFolderError
from garda.data.manifest import Case, read_manifest, write_manifest
from garda.data.sequence import find_gaps, read_sequence
from garda.data.task import LabelFormat, Task
from tests.support.errors import told

TASK = Task(name="t", classes=("background", "organ"), size=(64, 64))
HEADER = "case,patient,split,image,label\n"


def manifest(tmp_path: Path, rows: str, header: str = HEADER) -> Path:
    file = tmp_path / "site.csv"
    file.write_text(header + rows, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", ": holds no case; add a row"),
        ("c,p,train,i.nii\n", ":2: the row has another number of cells than the header; quote"),
        ("c,,train,i.nii,\n", ":2: patient is empty; fill"),
        ("c,p,trian,i.nii,\n", ":2: split is 'trian'; use one of train, val, test"),
        ("c,p,train,/i.nii,\n", ":2: path '/i.nii' is not below the data folder; give"),
        ("c,p,train,../i.nii,\n", ":2: path '../i.nii' is not below the data folder; give"),
        ("c,p,train,i\0,\n", ":2: path 'i\\x00' is not below the data folder; give"),
        ("c,p,train,i.nii,a;b\n", ":2: 2 label files, the task wants 1; separate them by ';'"),
        ("c,p,train,i,\nc,q,train,j,\n", ":3: case 'c' stands twice; give every scan its own name"),
        ("c,p,train,i,\nd,p,test,j,\n", ":3: patient 'p' stands in train and in test; keep a patient in one split"),
        ("c,p,train,i,\nd,p ,test,j,\n", ":3: patient 'p' stands in train and in test; keep a patient in one split"),
        ("c,p,train,a/i,\nd,q,test,./a//i,\n", ":3: image './a//i' is also that of case 'c'; list every image once"),
        (f"c,p,train,{'i' * 131073},\n", ":2: is no CSV (field larger than field limit (131072)); mend the quotes"),
        ('c,p,train,i,\nd,q,test,"j,\n', ":3: is no CSV (unexpected end of data); mend the quotes of the row"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: str, message: str):
    file = manifest(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_manifest(file, TASK)
    assert str(caught.value).startswith(f"{file}{message}")


RECORDED = "case,patient,split,image,label,image_sha256,image_bytes\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such manifest; write one with `garda manifest`"),
        ("case,patient,split,image\n", "column 'label' is missing"),
        ("case,patient,split,image,label,sex\n", "unknown column 'sex'"),
        (f"{'c' * 131073}\n", "is no CSV"),
        (RECORDED + "c,p,test,i,,x,\n", "image_sha256 and image_bytes do not fit the files"),
        (RECORDED + f"c,p,test,i,,{'AB' * 32},²\n", "image_sha256 and image_bytes do not fit the files"),
        (HEADER + "\udce9,p,test,i,\n", "cannot be read as UTF-8 text"),
    ],
)
def test_columns_and_files_that_do_not_fit(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "m.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"^{tmp_path}/m.csv.*: {message}"):
        read_manifest(tmp_path / "m.csv", TASK)


def test_every_bad_row_is_told_at_once(tmp_path: Path):
    file = manifest(tmp_path, "c,p,trian,i,\nd,q,test,j,\ne,,test,k,\nd,q,train,l,\n")
    with pytest.raises(Problems) as caught:
        read_manifest(file, TASK)
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        f"{file}:2: split is 'trian'",
        f"{file}:4: patient is empty",
        f"{file}:5: case 'd' stands twice",
        f"{file}:5: patient 'q' stands in test and in train",
    ]


def test_line_breaks_within_a_cell_belong_to_it(tmp_path: Path):
    cases = read_manifest(manifest(tmp_path, '"c\nd",p\u2028q,train,i,\ne,r,test,j,\n'), TASK)
    assert [(case.case, case.patient) for case in cases] == [("c\nd", "p\u2028q"), ("e", "r")]


def test_spaces_around_a_cell_do_not_count(tmp_path: Path):
    file = manifest(tmp_path, " c , p,train , i.nii , l.nii\n", "case, patient ,split,image,label\n")
    (case,) = read_manifest(file, TASK)
    assert case == Case("c", "p", "train", "i.nii", ("l.nii",), (), f"{file}:2")


def test_digests_are_compared_in_lower_case(tmp_path: Path):
    (case,) = read_manifest(manifest(tmp_path, f"c,p,test,i,, {'AB' * 32} , 5 \n", RECORDED), TASK)
    assert case.digests == (("i", "ab" * 32, 5),)


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path):
    case = Case("c", "p", "train", "i", (), (), "")
    write_manifest(tmp_path / "new" / "site.csv", [case])
    before = (tmp_path / "new" / "site.csv").read_bytes()
    with pytest.raises(AttributeError):
        write_manifest(tmp_path / "new" / "site.csv", [case, None])  # type: ignore[list-item]
    assert (tmp_path / "new" / "site.csv").read_bytes() == before
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_manifest_that_cannot_be_written_or_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("garda.core.files.os.replace", refuse)
    with pytest.raises(RunFolderError, match=f"^{tmp_path}/site.csv: cannot be written \\(permission denied\\); give"):
        write_manifest(tmp_path / "site.csv", [Case("c", "p", "train", "i", (), (), "")])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=f"^{tmp_path}: cannot be read \\(is a directory\\); give a manifest"):
        read_manifest(tmp_path, TASK)


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
        ({"label": {"values": [1]}}, "valid dictionary"),
        ({"label": {"values": {True: 1}}}, "valid integer"),
        ({"label": {"values": {255: "1"}}}, "valid integer"),
        ({"classes": ("a", "a")}, "class names must differ"),
        ({"classes": ("a", " ")}, "class names must not be empty, hold a '/'"),
        ({"classes": ("a", "b/c")}, "class names must not be empty, hold a '/'"),
        ({"channels": True}, "should be 1 or 3"),
        ({"any_orientation": "off"}, "valid boolean"),
        ({"size": ("64", 64)}, "valid integer"),
    ],
)
def test_tasks_that_contradict_themselves(values, message):
    with pytest.raises(ValueError, match=message):
        Task.model_validate(TASK.model_dump() | values)


def test_a_task_comes_back_from_json():
    task = TASK.model_copy(update={"label": LabelFormat(values={255: 1}), "spacing_mm": (1.0, 2.0)})
    assert Task.model_validate(json.loads(json.dumps(task.model_dump(mode="json")))) == task
    assert Task.model_validate_json(task.model_dump_json()) == task


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
    assert "domain 'b' stands twice in the sequence" in told(ConfigError, read_sequence, file)


@pytest.mark.parametrize("name", ["..", "../b", "b/c", ".b", "", "b c", "b\\n"])
def test_a_domain_has_a_name_that_fits_files_and_metrics(tmp_path: Path, name: str):
    file = pipeline(tmp_path)
    pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    text = file.read_text()
    for old, key in (("source: a", "source"), ("targets: [b]", "targets.0")):
        new = f'source: "{name}"' if key == "source" else f'targets: ["{name}"]'
        file.write_text(text.replace(old, new))
        with pytest.raises(ConfigError) as caught:
            read_sequence(file)
        given = name.replace("\\n", "\n")
        assert str(caught.value).startswith(f"{file}: {key}: string should match pattern '{pattern}', got {given!r}; ")


def test_every_bad_manifest_is_told_at_once(tmp_path: Path):
    file = pipeline(tmp_path)
    (tmp_path / "manifests" / "a.csv").write_text(HEADER + "c,p,trian,i,\nd,,test,j,\n")
    (tmp_path / "manifests" / "b.csv").unlink()
    with pytest.raises(Problems) as caught:
        read_sequence(file)
    said = [line.removeprefix(f"{tmp_path}/manifests/").partition(";")[0] for line in str(caught.value).splitlines()]
    assert said == ["a.csv:2: split is 'trian'", "a.csv:3: patient is empty", "b.csv: no such manifest"]


def test_gaps_of_a_sequence(tmp_path: Path):
    file = pipeline(tmp_path)
    (tmp_path / "manifests" / "a.csv").write_text(HEADER + "c,p,train,i,\n")
    (tmp_path / "manifests" / "b.csv").write_text(HEADER + "c,p,test,i,\n")
    gaps = [str(gap) for gap in find_gaps(read_sequence(file))]
    assert gaps == [
        f"{tmp_path}/manifests/a.csv:2: a source needs a label for every training case; fill column label",
        "b: the train split is empty; give at least one case the split train",
    ]


def test_an_oracle_needs_a_label_of_a_target_and_not_all(tmp_path: Path):
    file = pipeline(tmp_path)
    for second, said in (("l", []), ("", [":2: x needs a label for one training case at least; fill column label"])):
        (tmp_path / "manifests" / "a.csv").write_text(HEADER + "c,p,train,i,l\n")
        (tmp_path / "manifests" / "b.csv").write_text(HEADER + f"c,p,train,i,\nd,q,train,j,{second}\n")
        gaps = find_gaps(replace(read_sequence(file), method="x"), target_labels=True)
        assert [str(gap).partition("b.csv")[2] for gap in gaps] == said
