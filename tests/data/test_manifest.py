import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from garda.core.errors import DataError
from garda.data import build_manifest, manifest, readers
from garda.data.task import LabelFormat, Task

MANIFESTS = Path(__file__).parents[2] / "data_manifests"
NUCLEI = [path.stem for path in sorted((MANIFESTS / "nuclei").glob("*.csv"))]
TASK = Task(name="t", classes=("background", "a", "b"), size=(16, 16))


def fill(folder: Path, *names: str) -> Path:
    """A folder of files that hold their own names; manifests open no image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def rows(folder: Path, data: Path, **options) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [
        (case.case, case.patient, case.image, case.labels)
        for case in build_manifest.build_manifest(folder, data, **options)
    ]


@pytest.mark.parametrize("labels", ["labels", "masks", "annotations"])
def test_pairs_have_one_name(tmp_path: Path, labels: str):
    fill(tmp_path / "site", "images/a.png", "images/p/b.nii.gz", "images/notes.txt", "images/.a.png")
    fill(tmp_path / "site", f"{labels}/a.tif", f"{labels}/p/b.nii.gz")
    assert rows(tmp_path / "site", tmp_path) == [
        ("a", "a", "site/images/a.png", (f"site/{labels}/a.tif",)),
        ("p_b", "p/b", "site/images/p/b.nii.gz", (f"site/{labels}/p/b.nii.gz",)),
    ]


def test_a_manifest_is_written_and_read_with_the_digest_of_every_file(tmp_path: Path):
    fill(tmp_path, "images/a.nii", "images/b.nii", "masks/a_seg.nii", "masks/a_gmseg.nii")
    cases = build_manifest.build_manifest(tmp_path, tmp_path, label_suffixes=("_seg", "_gmseg"))
    files = ("images/a.nii", "masks/a_seg.nii", "masks/a_gmseg.nii")
    assert cases[0].digests == tuple((name, *readers.digest(tmp_path / name)) for name in files)
    assert cases[0].digests[0][2] == len("images/a.nii")
    assert cases[0].labels == files[1:] and cases[1].labels == ()
    manifest.write_manifest(tmp_path / "m.csv", cases)
    task = TASK.model_copy(update={"label": LabelFormat(masks=("x", "y"))})
    read = manifest.read_manifest(tmp_path / "m.csv", task)
    assert read == tuple(replace(case, where=f"{tmp_path}/m.csv:{line}") for line, case in enumerate(cases, start=2))


def test_without_suffixes_a_label_goes_on_after_the_longest_name_that_fits(tmp_path: Path):
    fill(tmp_path, "images/s_1.png", "images/s_12.png", "images/s.png", "labels/s_1_seg.png", "labels/s_12_seg.png")
    fill(tmp_path, "labels/s.png", "labels/s_seg.png", "labels/other.png")
    assert [row[3] for row in rows(tmp_path, tmp_path)] == [
        ("labels/s.png",),
        ("labels/s_1_seg.png",),
        ("labels/s_12_seg.png",),
    ]


def test_nnunet_keeps_its_test_images_apart(tmp_path: Path):
    fill(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    fill(tmp_path, "imagesTs/c_0000.nii.gz", "imagesTs/d.nii.gz", "dataset.json")
    cases = build_manifest.build_manifest(tmp_path, tmp_path, fractions=(1, 0, 0))
    assert [(case.case, case.split, case.labels) for case in cases] == [
        ("a", "train", ("labelsTr/a.nii.gz",)),
        ("b", "train", ("labelsTr/b.nii.gz",)),
        ("c", "test", ()),
        ("d", "test", ()),
    ]


def test_bids_takes_patients_from_folders_and_labels_from_derivatives(tmp_path: Path):
    data = fill(
        tmp_path, *(f"b/sub-1/ses-{n}/anat/sub-1_ses-{n}_{kind}.nii.gz" for n in "12" for kind in ("T1w", "T2w"))
    )
    fill(data / "b", "sub-2/anat/sub-2_T2w.nii.gz", "derivatives/rater/sub-2/anat/sub-2_dseg.nii.gz")
    fill(data / "b", "derivatives/rater/sub-1/ses-1/anat/sub-1_ses-1_T2w_label-cord_mask.nii.gz", "sub-3.txt")
    label = "b/derivatives/rater/sub-1/ses-1/anat/sub-1_ses-1_T2w_label-cord_mask.nii.gz"
    assert rows(tmp_path / "b", tmp_path, image_suffix="_T2w") == [
        ("sub-1_ses-1_T2w", "sub-1", "b/sub-1/ses-1/anat/sub-1_ses-1_T2w.nii.gz", (label,)),
        ("sub-1_ses-2_T2w", "sub-1", "b/sub-1/ses-2/anat/sub-1_ses-2_T2w.nii.gz", ()),
        ("sub-2_T2w", "sub-2", "b/sub-2/anat/sub-2_T2w.nii.gz", ()),
    ]
    label = "b/derivatives/rater/sub-2/anat/sub-2_dseg.nii.gz"
    assert rows(tmp_path / "b", tmp_path, image_suffix="_T2w", label_suffixes=["_dseg"])[2][3] == (label,)


def test_a_dicom_folder_is_one_image(tmp_path: Path):
    data = fill(tmp_path, "images/p1/001", "images/p1/002", "labels/p1.nii.gz", "images/empty/readme.txt")
    for name in ("001", "002"):
        (data / "images/p1" / name).write_bytes(bytes(128) + b"DICM" + name.encode())
    (case,) = build_manifest.build_manifest(data, data)
    assert (case.case, case.image, case.labels) == ("p1", "images/p1", ("labels/p1.nii.gz",))
    assert case.digests[0] == ("images/p1", readers.digest(data / "images/p1")[0], 2 * 135)
    (data / "images/p1/001").rename(data / "images/p1/renamed")
    assert build_manifest.build_manifest(data, data) == (case,)
    (data / "images/p1/002").write_bytes(bytes(128) + b"DICM" + b"00X")
    assert build_manifest.build_manifest(data, data)[0].digests[0][1] != case.digests[0][1]


def test_splits_are_by_patient_and_do_not_depend_on_order():
    patients = [f"p{index}" for index in range(40)]
    splits = build_manifest.split_patients(patients, (0.6, 0.1, 0.3), seed=0)
    assert Counter(splits.values()) == {"train": 24, "val": 4, "test": 12}
    assert build_manifest.split_patients(reversed(patients), (0.6, 0.1, 0.3), seed=0) == splits
    assert build_manifest.split_patients(patients, (0.6, 0.1, 0.3), seed=1) != splits
    joined = build_manifest.split_patients([*patients, "new"], (0.6, 0.1, 0.3), seed=0)
    assert sum(joined[patient] != splits[patient] for patient in patients) <= 2
    assert build_manifest.split_patients(["only"], (0.6, 0.1, 0.3), seed=0) == {"only": "train"}


def test_a_pattern_names_the_patient(tmp_path: Path):
    fill(tmp_path, "images/sub-7Ses1.nii", "images/sub-7Ses2.nii", "images/sub-8Ses1.nii")
    cases = build_manifest.build_manifest(tmp_path, tmp_path, patient_pattern=r"(sub-\d+)Ses")
    assert [case.patient for case in cases] == ["sub-7", "sub-7", "sub-8"]
    assert cases[0].split == cases[1].split


def test_a_first_channel_is_no_part_of_a_name(tmp_path: Path):
    fill(tmp_path, "images/heart_007_0000.nii.gz", "labels/heart_007.nii.gz")
    assert rows(tmp_path, tmp_path)[0][::3] == ("heart_007", ("labels/heart_007.nii.gz",))
    fill(tmp_path, "images/heart_007_0001.nii.gz")
    assert [row[0] for row in rows(tmp_path, tmp_path)] == ["heart_007_0000", "heart_007_0001"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (
            ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T2w.nii"],
            {},
            "{}: has 2 contrasts of sub-1: T1w, T2w; choose one, such as --image-suffix _T1w",
        ),
        (["x/a.png"], {}, "{}: has no folder images, imagesTr or sub-*; put"),
        (["images/a.txt"], {}, "{}: holds no image in layout 'pairs'; put"),
        (["images/a.png", "images/a.tif"], {}, "{}: holds 2 images named 'a'; give"),
        (["images/a.png", "labels/a.png", "masks/a.png"], {}, "{}: has the folders labels and masks; keep"),
        (
            ["images/a.png", "masks/a_x.png", "masks/a_y.png"],
            {},
            "{}/images/a.png: 2 files could be its label (a_x.png, a",
        ),
        (
            ["images/a.png", "masks/a_x.png"],
            {"label_suffixes": ["_x", "_y"]},
            "{}/images/a.png: its label '_y' is missing; ",
        ),
        (
            ["images/a.png", "masks/a_x.png"],
            {"label_suffixes": ["_y"]},
            "{}: no label's name is an image's with '_y' added; ",
        ),
        (
            ["images/a.png", "masks/a_x.png", "masks/a_x.tif"],
            {"label_suffixes": ["_x"]},
            "{}/images/a.png: 2 files could be its label '_x'; keep",
        ),
        (["images/a;b.png"], {}, "images/a;b.png: has a ';' in its path; rename"),
        ([" x/images/a.png"], {"folder": " x"}, "' x/images/a.png': begins or ends with a space; rename"),
        (
            ["images/a.png"],
            {"fractions": (0.6, 0.1, 0.1)},
            "fractions: expected three shares that sum to 1, got 0.6, 0.1, 0.1",
        ),
        (
            ["images/a.png"],
            {"patient_pattern": "*"},
            "patient pattern: '*' is no regular expression (nothing to repeat",
        ),
        (["images/a.png"], {"patient_pattern": "a"}, "patient pattern: 'a' has 0 groups, expected one; put"),
        (["images/a.png"], {"patient_pattern": "sub-(.)"}, "images/a.png: the patient pattern 'sub-(.)' finds nothing"),
        (
            ["imagesTr/b_0001.nii"],
            {},
            "{}/imagesTr/b_0001.nii: is a further channel, garda reads one file per case; merge",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path: Path, files: list[str], options: dict, message: str):
    fill(tmp_path, *files)
    arguments = {"folder": "."} | options
    with pytest.raises(DataError) as error:
        build_manifest.build_manifest(tmp_path / arguments.pop("folder"), tmp_path, **arguments)
    assert str(error.value).startswith(message.replace("{}", str(tmp_path)))


def test_the_folder_lies_below_the_data_folder(tmp_path: Path):
    fill(tmp_path, "site/images/a.png", "data/b.png")
    with pytest.raises(DataError, match=r"is not below the data folder .*/data; give a --data folder that holds it$"):
        build_manifest.build_manifest(tmp_path / "site", tmp_path / "data")
    with pytest.raises(DataError, match=r"/none: no such folder; check the path$"):
        build_manifest.build_manifest(tmp_path / "none", tmp_path)


def refuse(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, wanted: Path) -> None:
    """Let a call that takes ``wanted`` first be refused, as the system does for another user."""
    allowed = getattr(owner, name)

    def call(path: Path, *arguments: object, **options: object) -> object:
        if Path(path) == wanted:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "where"),
    [
        (Path, "open", "images/a.png"),
        (Path, "iterdir", "images/p"),
        (os, "scandir", "images"),
        (os, "scandir", "labels"),
        (Path, "is_dir", "images"),
    ],
)
def test_what_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch, owner: object, name: str, where: str):
    fill(tmp_path, "images/a.png", "images/p/b.png", "labels/a.png")
    refuse(monkeypatch, owner, name, tmp_path / where)
    with pytest.raises(DataError) as error:
        build_manifest.build_manifest(tmp_path, tmp_path)
    assert str(error.value) == (
        f"{tmp_path / where}: cannot be read (permission denied); check the path and its permissions"
    )


@pytest.mark.parametrize("domain", NUCLEI)
def test_the_manifests_of_nuclei_are_what_the_builder_makes(real_data: Path, tmp_path: Path, domain: str):
    manifest.write_manifest(tmp_path / "m.csv", build_manifest.build_manifest(real_data / "nuclei" / domain, real_data))
    assert (tmp_path / "m.csv").read_text() == (MANIFESTS / "nuclei" / f"{domain}.csv").read_text()
