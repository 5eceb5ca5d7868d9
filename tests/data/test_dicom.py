"""DICOM both ways: series in folders and zipped studies in, DICOM-SEG out, and no header anywhere else."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, MRImageStorage
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.errors import DataError, Problems
from garda.core.files import private_temporary_folder, remove_leftovers
from garda.data import build_manifest, dicom, dicom_seg, readers
from garda.data.dicom_seg import Origin
from garda.data.manifest import Case
from garda.data.scan import ScanFile
from garda.data.task import Code, Task
from garda.data.volume import Volume, prediction_name, read_volume, write_label_map
from garda.handover import format
from garda.runs import predict
from tests.support import cli, sites
from tests.support.errors import told

HEADERS = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19640812",
    "PatientSex": "F",
    "StudyID": "STUDY-99",
    "StudyDate": "20240229",
    "StudyTime": "101112",
    "AccessionNumber": "ACC-31337",
    "ReferringPhysicianName": "Hausarzt^Hans",
    "InstitutionName": "Conspicuous Clinic",
    "StudyDescription": "conspicuous study",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1.77771",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.1.77773",
    "SeriesNumber": 7,
}
UID = "1.2.826.0.1.3680043.8.498.1.77772"  # of the series; its slices' go on after it
PRIVATE = [b"Mustermann", b"MRN-4711", b"STUDY-99", b"ACC-31337", b"Hausarzt", b"onspicuous", b"19640812"]
PRIVATE += [b"3680043.8.498.1.7777"]
TASK = Task(
    name="t",
    classes=("background", "right_ventricle", "myocardium", "left_ventricle"),
    size=(16, 16),
    codes={"left_ventricle": Code(value="87878005", scheme="SCT", meaning="Left ventricle")},
)


def write_series(nifti: Path, folder: Path, uid: str = UID, leave_out: str = "", **headers: str) -> Path:
    """A NIfTI file as a DICOM series, a file a slice, named in no order: IM, a digit, the slice's number."""
    image = nib.load(nifti)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    pixels = np.round(np.asarray(image.dataobj)).astype(np.int16)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(pixels.shape[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{uid}.{index + 1}"
        data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "MR", uid, index + 1
        for name, value in (HEADERS | headers).items():
            if name != leave_out:
                setattr(data, name, value)
        data.Rows, data.Columns = pixels.shape[1], pixels.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelSpacing, data.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
        turned = [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])]
        data.ImageOrientationPatient = [f"{value:.6g}" for value in turned]
        data.ImagePositionPatient = [f"{value:.6g}" for value in (affine @ (0, 0, index, 1))[:3]]
        data.PixelData = pixels[:, :, index].T.tobytes()
        data.save_as(folder / f"IM{(index * 7 + 3) % 10}{index}", enforce_file_format=True)
    return folder


def zip_study(path: Path, folders: dict[str, Path]) -> Path:
    """A study as a hospital's archive sends it: series in folders of any name, a directory file and a viewer."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DICOMDIR", b"\0" * 128 + b"DICM")
        archive.writestr("VIEWER/start.exe", b"MZ")
        archive.writestr("__MACOSX/._IM0", b"\0" * 128 + b"DICM")
        for name, folder in folders.items():
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{name}/{file.name}")
    return path


def read(folder: Path, image: str, *labels: str) -> Volume:
    return read_volume(Case("c", "p", "train", image, labels, (), "m.csv:2"), TASK, folder, with_label=bool(labels))


def scan_file(path: Path) -> ScanFile:
    return ScanFile(path, f"image {path.name}", "m.csv:2")


def saying(said: io.StringIO) -> Console:
    return Console(RichConsole(file=said, soft_wrap=True))


@pytest.fixture(scope="module")
def nifti(pipeline: Path) -> Path:
    return sorted((pipeline.parent / "data" / "tse_1p5t" / "images").glob("*.nii.gz"))[0]


@pytest.fixture(scope="module")
def package(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    sites.run_tiny(pipeline, out, method="source_only")
    return format.find_stage(out)


def test_a_series_in_a_folder_or_a_zipped_study_is_its_nifti(nifti: Path, tmp_path: Path):
    series = write_series(nifti, tmp_path / "series")
    zip_study(tmp_path / "study.zip", {"../../DICOM": series})
    folder, packed, original = (read(tmp_path, name) for name in ("series", "study.zip", str(nifti)))
    assert np.array_equal(folder.image, original.image) and np.array_equal(folder.image, packed.image)
    assert np.array_equal(folder.affine, packed.affine)
    np.testing.assert_allclose(packed.affine, original.affine, atol=1e-3)
    assert packed.spacing_mm == pytest.approx(original.spacing_mm)
    assert readers.digest(tmp_path / "study.zip") == readers.digest(tmp_path / "study.zip" / "DICOM")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series", "study.zip"]
    assert not (tmp_path.parent / "DICOM").exists()  # a member's name becomes no path
    label = (folder.image[:, 0] * 3).long()
    write_label_map(label, folder, tmp_path / "out.nii.gz")
    assert np.array_equal(read(tmp_path, "series", "out.nii.gz").label, label)


def test_a_series_of_a_zipped_study_is_named_by_its_folder(nifti: Path, tmp_path: Path):
    one = write_series(nifti, tmp_path / "one")
    other = write_series(nifti, tmp_path / "other", uid="1.2.3.4")
    zip_study(tmp_path / "study.zip", {"T1": one, "a/T2": other})
    assert read(tmp_path, "study.zip/a/T2").image.shape[0] == 2
    assert prediction_name(tmp_path / "study.zip" / "a" / "T2") == "study_a_T2.nii.gz"
    for file in other.iterdir():
        shutil.copy(file, one / f"other_{file.name}")
    zip_study(tmp_path / "mixed.zip", {"all": one})
    (tmp_path / "empty").mkdir()
    for name, what in {
        "study.zip": "holds 2 folders with DICOM files; name one behind it: T1, a/T2",
        "study.zip/T3": "is a zip file without a DICOM series there; name one that has: T1, a/T2",
        "mixed.zip": "holds 2 DICOM series; give every series a folder of its own",
        "empty": "is a folder without a DICOM series; give an image file, or",
    }.items():
        assert told(DataError, read, tmp_path, name).startswith(f"m.csv:2: image {name} {what}")


def test_zip_files_that_cannot_be_read_are_one_line(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = zip_study(tmp_path / "whole.zip", {"a": write_series(nifti, tmp_path / "series")}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("report.pdf", b"%PDF")
    locked = bytearray(whole)
    for found in re.finditer(rb"PK\x01\x02", whole):
        locked[found.start() + 8] |= 1  # the flag of a password, in the central directory
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    for name, what in {
        "cut.zip": "is no zip file, or damaged; copy it again",
        "text.zip": "is no zip file, or damaged; copy it again",
        "empty.zip": "is a zip file without a DICOM series there",
        "locked.zip": "is encrypted, or packed in an unknown way; zip it again without a password",
        "none.zip": "does not exist; check the path and --data",
        "none.zip/T1": "does not exist; check the path and --data",
    }.items():
        assert f"m.csv:2: image {name} {what}" in told(DataError, read, tmp_path, name)
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 10))
    with pytest.raises(DataError, match=r"whole.zip takes 0.0 GB unpacked, .* has 0.0; set TMPDIR to a folder with"):
        read(tmp_path, "whole.zip")


def test_a_manifest_lists_every_series_of_a_zipped_study(nifti: Path, tmp_path: Path):
    one, other = (write_series(nifti, tmp_path / name, uid=f"1.2.{name[-1]}") for name in ("s1", "s2"))
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    zip_study(images / "p1.zip", {"DICOM": one})
    zip_study(images / "p2.zip", {"T1": one, "T2": other})
    with zipfile.ZipFile(images / "notes.zip", "w") as archive:
        archive.writestr("notes.txt", "no scan")
    cases = build_manifest.build_manifest(tmp_path / "data", tmp_path / "data")
    assert [found.case for found in cases] == ["p1", "p2_T1", "p2_T2"]
    assert [found.image for found in cases] == ["images/p1.zip", "images/p2.zip/T1", "images/p2.zip/T2"]
    (only,) = build_manifest.build_manifest(images.parent, images.parent, image_suffix="T2", patient_pattern=r"/(p\d)")
    assert (only.patient, only.image) == ("p2", "images/p2.zip/T2")


def test_series_below_one_folder_are_one_patient_s(nifti: Path, tmp_path: Path):
    series = [(patient, name) for patient in ("pat1", "pat2") for name in ("ser1", "ser2")]
    for patient, name in series:
        write_series(nifti, tmp_path / "images" / patient / name)
    cases = build_manifest.build_manifest(tmp_path, tmp_path)
    assert [(found.case, found.patient) for found in cases] == [(f"{one}_{name}", one) for one, name in series]


def test_predict_takes_a_folder_of_scans(package: Path, nifti: Path, tmp_path: Path):
    for patient in ("pat1", "pat2"):
        write_series(nifti, tmp_path / "export" / patient / "ser1")
    shutil.copy(nifti, tmp_path / "export" / "scan.nii.gz")
    (tmp_path / "empty").mkdir()
    names = [f"{patient}_ser1.{kind}" for patient in ("pat1", "pat2") for kind in ("nii.gz", "seg.dcm")]
    with saying(said := io.StringIO()) as console:
        written = predict.predict(package, [tmp_path / "export"], tmp_path / "maps", console)
        assert [path.name for path in written] == [*names, "scan.nii.gz"]
        with pytest.raises(DataError, match="is a folder without an image or a DICOM series; check the path"):
            predict.predict(package, [tmp_path / "empty"], tmp_path / "none", console)
    assert "read as scans of lge_3t, the last site met; --domain for others': " in said.getvalue()


def test_private_folders_go_with_their_command_or_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("garda-results", ".garda-private-12345678"):  # the user's own, and another user's
        (tmp_path / name / "stages").mkdir(parents=True)
        os.utime(tmp_path / name, (0, 0))
    theirs = sorted(tmp_path.iterdir())
    with private_temporary_folder() as mine:
        assert mine.stat().st_mode & 0o777 == mine.parent.stat().st_mode & 0o777 == 0o700
        code = "import garda.core.files as f\nwith f.private_temporary_folder() as p: (p / 'a').touch(); f.os._exit(9)"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
        (killed,) = set(mine.parent.iterdir()) - {mine}
        remove_leftovers()
        assert mine.exists() and not killed.exists()
    assert not mine.exists()
    assert sorted(set(tmp_path.iterdir()) - {mine.parent}) == theirs
    assert all((own / "stages").exists() for own in theirs)


def test_a_private_folder_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = tmp_path / f".garda-private-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    with private_temporary_folder() as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    assert not folder.exists() and not list((tmp_path / "elsewhere").iterdir())
    home.unlink()
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    (home / "planted").mkdir()
    with private_temporary_folder() as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    remove_leftovers()
    assert (home / "planted").exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    remove_leftovers()


def by_number(folder: Path) -> list[Path]:
    """The files of a series of :func:`write_series` as the NIfTI file has its slices."""
    return sorted(folder.iterdir(), key=lambda file: int(file.name.removeprefix("IM")[1:]))


def change(folder: Path, index: int | None = None, **headers: object) -> None:
    """Change headers of one file, in the order of their slices, or of all."""
    files = by_number(folder)
    for file in files if index is None else [files[index]]:
        data = pydicom.dcmread(file)
        for name, value in headers.items():
            if value is None:
                del data[name]
            else:
                setattr(data, name, value)
        data.save_as(file)


@pytest.fixture
def deep(nifti: Path, tmp_path: Path) -> Path:
    """A series of six slices."""
    image = nib.load(nifti)
    slices = np.concatenate([np.asarray(image.dataobj) * (1 + step / 9) for step in range(3)], axis=2)
    nib.save(nib.Nifti1Image(slices[:, :, :6], image.affine), tmp_path / "deep.nii.gz")
    return write_series(tmp_path / "deep.nii.gz", tmp_path / "deep")


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_slice_that_cannot_be_read_is_no_smaller_volume(deep: Path, tmp_path: Path, place: int):
    assert read(tmp_path, "deep").image.shape[0] == 6
    file = by_number(deep)[place]
    whole = file.read_bytes()
    for size in (len(whole) // 2, 200, 140):
        file.write_bytes(whole[:size])
        assert "copy it again, it may be truncated" in told(DataError, read, tmp_path, "deep")
    file.unlink()
    file.symlink_to(tmp_path / "annexed")
    with pytest.raises(DataError, match=f"has a part {file.name} that leads nowhere; fetch it, or take it out"):
        read(tmp_path, "deep")


@pytest.mark.parametrize(
    ("index", "headers", "what"),
    [
        (5, {"ImagePositionPatient": [0, 0, 500]}, "slices at uneven distances; add the missing slices"),
        (2, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "slices of several orientations or pixel sizes; give"),
        (2, {"PixelSpacing": [1.0, 1.0]}, "slices of several orientations or pixel sizes; give every stack"),
        (2, {"PhotometricInterpretation": "MONOCHROME1"}, "slices of several photometric interpretations; export"),
        (None, {"PixelSpacing": None, "ImagerPixelSpacing": [0.14, 0.14]}, "does not say how large its pixels are"),
        (2, {"FrameOfReferenceUID": "1.2.3"}, "slices of several sizes or frames of reference; give every stack"),
        (2, {"ImagePositionPatient": None}, "slices whose DICOM headers do not say where they lie; convert"),
        (None, {"ImagePositionPatient": [0, 0, 0]}, "several slices at one place; give every phase or echo a folder"),
        (None, {"NumberOfFrames": 4}, "several frames in a file; export the series with a file for each slice"),
        (2, {"SeriesInstanceUID": "1.2.3"}, "holds 2 DICOM series; give every series a folder of its own"),
    ],
)
def test_what_is_no_stack_of_slices_is_refused(deep: Path, tmp_path: Path, index: int | None, headers: dict, what: str):
    change(deep, index, **headers)
    with pytest.raises(DataError, match=what):
        read(tmp_path, "deep")


def test_a_tilted_gantry_shears_the_geometry(deep: Path, tmp_path: Path):
    plain = read(tmp_path, "deep")
    files = by_number(deep)
    places = []
    for index in range(len(files)):
        x, y, z = pydicom.dcmread(files[index]).ImagePositionPatient
        places.append([x, y + 2 * index, z])
        change(deep, index, ImagePositionPatient=places[-1])
    tilted = read(tmp_path, "deep")
    assert np.array_equal(tilted.image, plain.image)
    header = tilted.stored.header
    for index, (x, y, z) in enumerate(reversed(places)):  # the normal points down
        assert np.allclose(header.get_best_affine() @ (0, 0, index, 1), (-x, -y, z, 1), atol=1e-3)
    assert header["qform_code"] == 0


def test_slices_with_scales_of_their_own_keep_their_fractions(deep: Path, tmp_path: Path):
    for index in range(6):
        change(deep, index, RescaleSlope=1 if index == 0 else 0.013, RescaleIntercept=0)
    stored = dicom.read_series(scan_file(deep))
    assert stored.pixels.dtype == np.float32
    for index, file in enumerate(reversed(by_number(deep))):  # the normal points down
        raw = pydicom.dcmread(file).pixel_array * (1 if index == 5 else 0.013)
        np.testing.assert_allclose(stored.pixels[:, :, index, 0].T, raw, rtol=1e-4)


def test_slices_with_signs_of_their_own_are_read_each_by_its_own(deep: Path, tmp_path: Path):
    file = by_number(deep)[2]
    data = pydicom.dcmread(file)
    signed = np.arange(-100, data.Rows * data.Columns - 100, dtype=np.int16).reshape(data.Rows, data.Columns)
    data.PixelRepresentation, data.PixelData = 1, signed.tobytes()
    data.save_as(file)
    stored = dicom.read_series(scan_file(deep)).pixels[:, :, :, 0].transpose(2, 1, 0)
    assert np.array_equal(stored[3], signed)  # the normal points down
    assert all(stored[5 - place].min() >= 0 for place in (0, 1, 3, 4, 5))


def test_a_slice_without_the_preamble_is_told_and_not_passed_over(deep: Path, tmp_path: Path):
    file = by_number(deep)[2]
    file.write_bytes(file.read_bytes()[132:])
    assert f"has a part {file.name} without the preamble of DICOM; write" in told(DataError, read, tmp_path, "deep")


def test_a_single_slice_is_as_thick_as_it_says(deep: Path, tmp_path: Path):
    for file in sorted(deep.iterdir())[1:]:
        file.unlink()
    change(deep, None, SliceThickness=7.5)
    volume = read(tmp_path, "deep")
    assert volume.image.shape[0] == 1 and volume.spacing_mm[0] == pytest.approx(7.5)


def test_what_is_no_image_is_passed_over(deep: Path, tmp_path: Path):
    report = pydicom.dcmread(sorted(deep.iterdir())[0])
    for name in ("Rows", "Columns", "PixelData"):
        del report[name]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.save_as(deep / "report")
    (deep / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (deep / "viewer.exe").write_bytes(b"MZ")
    assert read(tmp_path, "deep").image.shape[0] == 6


@pytest.mark.parametrize(
    "names", [("/T1", "/T2"), ("./T1", "a//T2"), ("..\\T1", "..\\T2"), ("T1.zip", "T2.zip"), ("", "T2")]
)
def test_every_row_of_a_zipped_study_can_be_read(nifti: Path, tmp_path: Path, names: tuple[str, str]):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    one, other = (write_series(nifti, tmp_path / name, uid=f"1.2.{name[-1]}") for name in ("s1", "s2"))
    with zipfile.ZipFile(data / "images" / "study.zip", "w") as archive:
        archive.writestr("dicomdir", b"\0" * 128 + b"DICM")
        for name, folder in zip(names, (one, other), strict=True):
            for file in folder.iterdir():
                archive.write(file, f"{name}/{file.name}" if "\\" not in name else f"{name}\\{file.name}")
    cases = build_manifest.build_manifest(data, data)
    assert len(cases) == 2 and {found.patient for found in cases} <= {"study"}
    assert {found.split for found in cases} != {"train", "test"}
    for found in cases:
        assert read_volume(found, TASK, data, with_label=False).image.shape[0] == 2


def test_a_damaged_zip_file_is_no_missing_patient(nifti: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    study = zip_study(tmp_path / "images" / "study.zip", {"T1": write_series(nifti, tmp_path / "series")})
    content = bytearray(study.read_bytes())
    place = content.find(b"T1/") + 60
    content[place : place + 40] = b"\xff" * 40
    study.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is no zip file, or damaged; copy it again, it may be truncated"):
        build_manifest.build_manifest(tmp_path, tmp_path)


def test_a_name_that_pydicom_finds_odd_is_not_printed(package: Path, nifti: Path, tmp_path: Path, capfd):
    odd = {"PatientName": "Mustermann Erika", "StudyInstanceUID": "1.2.03.77771"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = write_series(nifti, tmp_path / "series", **odd)
    with warnings.catch_warnings(), Console() as console:
        warnings.simplefilter("default")
        written = predict.predict(package, [series], tmp_path / "maps", console)
    assert [path.suffix for path in written] == [".gz", ".dcm"]
    said = "".join(capfd.readouterr())
    assert "Mustermann" not in said and "77771" not in said


def seg_of(array: np.ndarray, scan: Path, task: Task = TASK) -> Dataset:
    out = scan.with_name("out.seg.dcm")
    dicom_seg.write_dicom_seg(array, scan_file(scan), task, out, Origin("sequence", "garda", "f" * 64, "site"))
    return pydicom.dcmread(out)


def test_headers_without_what_may_be_empty_become_a_dicom_seg(nifti: Path, tmp_path: Path):
    series = write_series(nifti, tmp_path / "series")
    change(series, None, PatientID=None, PatientBirthDate=None, StudyID=None, AccessionNumber=None, StudyDate=None)
    shape = read(tmp_path, "series").stored.header.get_data_shape()
    classes = ("background", "zone_of_transition_left", "zone_of_transition_right", "沢")
    made = seg_of(np.ones(shape, int), series, TASK.model_copy(update={"classes": classes}))
    assert made.PatientID == "" and made.PatientName == HEADERS["PatientName"]
    coded = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in made.SegmentSequence]
    assert len(set(coded)) == 3 and max(map(len, coded)) <= 16
    assert made.SegmentSequence[2].SegmentLabel == "沢"
    assert not seg_of(np.zeros(shape, int), series).pixel_array.any()  # an empty answer is an object too


@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "turned and downwards"])
def test_a_dicom_seg_marks_what_the_label_map_marks(nifti: Path, tmp_path: Path, turned: bool):
    if turned:  # slices against the normal of rows and columns, and an oblique stack
        image = nib.load(nifti)
        affine = image.affine.copy()
        tilt = np.eye(4)
        tilt[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
        affine[:3, 2] *= -1
        nifti = tmp_path / "turned.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), tilt @ affine), nifti)
    series = write_series(nifti, tmp_path / "series", PatientIdentityRemoved="YES")
    study = zip_study(tmp_path / "study.zip", {"DICOM": series})
    shape = read(tmp_path, "study.zip").stored.header.get_data_shape()
    array = np.random.default_rng(0).integers(0, 4, shape)
    array[:, :, 1][array[:, :, 1] == 2] = 0  # one class is in one slice alone
    made = seg_of(array, study)
    sources = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, sorted(series.iterdir()))}
    for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert made[name].value == next(iter(sources.values()))[name].value
    assert (made.Modality, made.SegmentationType, made.PatientIdentityRemoved) == ("SEG", "BINARY", "YES")
    assert made.FrameOfReferenceUID == HEADERS["FrameOfReferenceUID"]
    assert made.SeriesInstanceUID != UID and made.DeviceSerialNumber == "f" * 64
    referenced = made.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == UID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == sources.keys()
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == list(TASK.classes[1:])
    coded = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in made.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in coded] == [
        ("right_ventricle", "99GARDA"),
        ("myocardium", "99GARDA"),
        ("87878005", "SCT"),
    ]
    assert {segment.SegmentAlgorithmName for segment in made.SegmentSequence} == {"garda garda"}

    affine = read(tmp_path, "series").stored.header.get_best_affine()
    painted = np.zeros(shape, int)
    for pixels, frame in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, sources[uid].ImagePositionPatient, atol=1e-4)
        index = np.linalg.solve(affine, np.array([-place[0], -place[1], place[2], 1.0]))[2]
        painted[:, :, round(index)][pixels.T == 1] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    assert np.array_equal(painted, array)


def test_predict_writes_dicom_seg_beside_nifti(package: Path, pipeline: Path, nifti: Path, tmp_path: Path):
    series = write_series(nifti, tmp_path / "series")
    study = zip_study(tmp_path / "study.zip", {"DICOM": write_series(nifti, tmp_path / "other")})
    out = tmp_path / "maps"
    with saying(io.StringIO()) as console:
        written = predict.predict(package, [series, nifti, study], out, console)
    names = ["series.nii.gz", "series.seg.dcm", nifti.name, "study.nii.gz", "study.seg.dcm"]
    assert written == [out / name for name in names] and all(path.stat().st_size for path in written)
    marks = np.asarray(nib.load(out / "series.nii.gz").dataobj)
    segments = pydicom.dcmread(out / "series.seg.dcm")
    counted = np.zeros(4, int)
    for pixels, frame in zip(segments.pixel_array, segments.PerFrameFunctionalGroupsSequence, strict=True):
        counted[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(pixels.sum())
    assert counted[1:].tolist() == np.bincount(marks.ravel(), minlength=4)[1:].tolist()
    for name in ("series.nii.gz", "series.seg.dcm"):
        with pytest.raises(DataError, match=f"{name}: exists already; give another --out"):
            predict.predict(package, [series], out, console)
        (out / name).unlink()


def test_without_highdicom_predict_says_so(package: Path, nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with saying(said := io.StringIO()) as console:
        written = predict.predict(package, [write_series(nifti, tmp_path / "series")], tmp_path / "maps", console)
        predict.predict(package, [nifti], tmp_path / "other", console)
    assert [path.name for path in written] == ["series.nii.gz"]
    assert said.getvalue().count('no DICOM-SEG is written, highdicom is missing: pip install "garda[dicom]"') == 1


def test_headers_that_fit_no_dicom_seg_cost_no_label_map(package: Path, nifti: Path, tmp_path: Path):
    bad = write_series(nifti, tmp_path / "bad", leave_out="FrameOfReferenceUID")
    good = write_series(nifti, tmp_path / "good")
    console = saying(io.StringIO())
    lacks = f"^{bad}: image cannot become a DICOM-SEG, its headers lack FrameOfReferenceUID; send the series"
    with pytest.raises(DataError, match=lacks):
        predict.predict(package, [bad, good], tmp_path / "maps", console)
    written = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert written == ["bad.nii.gz", "good.nii.gz", "good.seg.dcm"]
    worse = write_series(nifti, tmp_path / "worse", leave_out="StudyInstanceUID")
    with pytest.raises(Problems, match="lack StudyInstanceUID"):
        predict.predict(package, [bad, worse], tmp_path / "again", console)


def test_a_header_that_names_a_patient_is_warned_of_once(package: Path, nifti: Path, tmp_path: Path):
    named = write_series(nifti, tmp_path / "named")
    removed = write_series(nifti, tmp_path / "removed", PatientIdentityRemoved="YES")
    kept = write_series(nifti, tmp_path / "kept", PatientIdentityRemoved="NO")
    with saying(said := io.StringIO()) as console:
        predict.predict(package, [named, removed, kept, nifti], tmp_path / "maps", console)
    assert said.getvalue().count("warning: ") == 1
    assert "warning: 2 of 4 scans are DICOM without PatientIdentityRemoved=YES: look whether" in said.getvalue()
    with saying(said := io.StringIO()) as console:
        predict.predict(package, [removed, nifti], tmp_path / "more", console)
    assert "warning" not in said.getvalue()


def test_no_header_reaches_run_package_or_store(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "site"
    shutil.copytree(pipeline.parent, folder)
    (folder / "pipeline.yaml").write_text(pipeline.read_text().replace("[tse_1p5t, lge_3t]", "[tse_1p5t]"))
    data = folder / "data"
    for site, packed in (("tse_1p5t", False), ("bssfp_1p5t", True)):
        manifest = data / "manifests" / f"{site}.csv"
        rows = [line.split(",")[:5] for line in manifest.read_text().splitlines()]
        for row in rows[1:]:
            image = data / row[3]
            name = image.name.removesuffix(".nii.gz")
            series = write_series(image, data / site / name, uid=f"{UID}.{len(row[0])}{row[0][-1]}")
            row[3] = f"{site}/{name}"
            if packed:
                zip_study(data / site / f"{name}.zip", {"Mustermann": series})
                shutil.rmtree(series)
                row[3] += ".zip"
            image.unlink()
        manifest.write_text("\n".join(",".join(row) for row in rows) + "\n")
    out = tmp_path / "run"
    assert cli.garda("run", folder / "pipeline.yaml", "--data", data, "--out", out, "--method", "garda") == 0
    said = capsys.readouterr()
    assert "are DICOM without PatientIdentityRemoved=YES" in said.out
    target, adapted = data / "manifests" / "tse_1p5t.csv", tmp_path / "next.zip"
    first = out / "stages" / "0-bssfp_1p5t" / "package"
    assert cli.garda("adapt", first, target, "--data", data, "--out", adapted, "--track", out) == 0
    said = said.out + said.err + "".join(capsys.readouterr())
    files = [path for path in out.rglob("*") if path.is_file()] + [adapted]
    assert len(files) > 20 and (out / "mlflow.db") in files
    for path in files:
        content = path.read_bytes()
        for private in PRIVATE:
            assert private not in content, f"{private!r} in {path}"
    for private in PRIVATE:
        assert private.decode() not in said
