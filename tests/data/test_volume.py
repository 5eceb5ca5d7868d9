import errno
import hashlib
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nibabel import orientations
from PIL import Image

from garda.core import config
from garda.core.errors import DataError
from garda.data import readers
from garda.data.checks import check_case
from garda.data.manifest import Case, read_manifest
from garda.data.task import Intensity, LabelFormat, Task
from garda.data.volume import Volume, grid_for, prediction_name, read_volume, write_label_map
from tests.support.errors import told

TASK = Task(name="t", classes=("background", "a", "b"), size=(16, 16))
MASKS = TASK.model_copy(update={"label": LabelFormat(masks=("whole", "part"), slice_labelled_by="whole")})
COLOUR = TASK.model_copy(update={"channels": 3})
SPACING = (0.5, 0.75, 2.0)  # along R, A, S
SHAPE = (5, 6, 4)
ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]
MANIFESTS = Path(__file__).parents[2] / "data_manifests"


def case(image: str, *labels: str) -> Case:
    return Case("c", "p", "train", image, labels, (), "m.csv:2")


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def classes(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


def save_nifti(path: Path, array: np.ndarray, codes: str = "RAS", affine: np.ndarray | None = None) -> None:
    """Save what ``array`` shows in RAS orientation as a file whose axes run to ``codes``."""
    affine = np.diag((*SPACING, 1.0)) if affine is None else affine
    affine = affine.copy()
    affine[:3, 3] += (-3.0, 7.0, 11.0)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    stored = orientations.apply_orientation(array, turn)
    nib.save(nib.Nifti1Image(stored, affine @ orientations.inv_ornt_aff(turn, array.shape[:3])), path)


def save_picture(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def read(folder: Path, *files: str, task: Task = TASK, with_label: bool = True) -> Volume:
    return read_volume(case(*files), task, folder, with_label=with_label)


def canonical(array: np.ndarray) -> torch.Tensor:
    """(R, A, S) as axial slices: superior, posterior, left."""
    return torch.from_numpy(array[::-1, ::-1].transpose(2, 1, 0).astype(np.float32))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_stored_orientation_gives_one_canonical_array_and_comes_back(tmp_path: Path, codes: str):
    save_nifti(tmp_path / "i.nii", scan(), codes)
    save_nifti(tmp_path / "l.nii", classes(), codes)
    volume = read(tmp_path, "i.nii", "l.nii")
    low, high = np.percentile(scan(), (0.5, 99.5))
    torch.testing.assert_close(volume.image[:, 0], ((canonical(scan()) - low) / (high - low)).clamp(0, 1).float())
    assert volume.label is not None and torch.equal(volume.label, canonical(classes()).long())
    assert volume.spacing_mm == (2.0, 0.75, 0.5)
    assert nib.aff2axcodes(volume.affine) == tuple("SPL")
    last = volume.affine @ (3, 5, 4, 1)  # the most superior, posterior, left voxel
    np.testing.assert_allclose(last[:3], (-3.0, 7.0, 11.0 + 3 * 2.0))

    write_label_map(volume.label, volume, tmp_path / "out.nii.gz")
    written, image, label = (nib.load(tmp_path / name) for name in ("out.nii.gz", "i.nii", "l.nii"))
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(label.dataobj))
    assert np.array_equal(written.affine, image.affine) and written.shape == image.shape
    assert written.get_data_dtype() == np.uint8


def test_a_label_may_be_stored_in_another_orientation_and_up_to_rounding(tmp_path: Path):
    save_nifti(tmp_path / "i.nii", scan(), "LAS")
    save_nifti(tmp_path / "l.nii", classes() + 1e-5, "SRP")
    volume = read(tmp_path, "i.nii", "l.nii")
    assert volume.label is not None and torch.equal(volume.label, canonical(classes()).long())


@pytest.mark.parametrize(
    ("plane", "codes", "expected"),
    [
        ("axial", "RAS", "SPL"),
        ("coronal", "RAS", "PIL"),
        ("sagittal", "RAS", "LIP"),
        ("acquired", "LAS", "SPL"),
        ("acquired", "SRP", "PIL"),
        ("acquired", "ASR", "LIP"),
    ],
)
def test_slices_lie_in_the_wanted_plane(tmp_path: Path, plane: str, codes: str, expected: str):
    save_nifti(tmp_path / "i.nii", scan(), codes)
    task = TASK.model_copy(update={"plane": plane})
    volume = read(tmp_path, "i.nii", task=task)
    assert nib.aff2axcodes(volume.affine) == tuple(expected)
    write_label_map((volume.image[:, 0] * 200).byte(), volume, tmp_path / "out.nii")
    low, high = np.percentile(scan(), (0.5, 99.5))
    stored = np.asarray(nib.load(tmp_path / "i.nii").dataobj)
    wanted = np.clip((stored - low) / (high - low), 0, 1) * 200
    assert np.abs(np.asarray(nib.load(tmp_path / "out.nii").dataobj) - wanted).max() < 1.01


def test_a_flat_nifti_keeps_its_shape(tmp_path: Path):
    save = nib.Nifti1Image(scan()[..., 0], np.diag((*SPACING, 1.0)))
    nib.save(save, tmp_path / "i.nii")
    volume = read(tmp_path, "i.nii")
    assert volume.image.shape == (1, 1, 6, 5)
    write_label_map(torch.ones(1, 6, 5), volume, tmp_path / "out.nii")
    assert nib.load(tmp_path / "out.nii").shape == (5, 6)


def test_a_written_map_carries_no_extension_of_the_image(tmp_path: Path):
    image = nib.Nifti2Image(scan(), np.diag((*SPACING, 1.0)))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1970"))
    nib.save(image, tmp_path / "i.nii")
    volume = read(tmp_path, "i.nii")
    write_label_map(torch.zeros(volume.image.shape[0], *volume.image.shape[2:]), volume, tmp_path / "out.nii")
    assert b"born 1970" not in (tmp_path / "out.nii").read_bytes()
    assert isinstance(nib.load(tmp_path / "out.nii"), nib.Nifti2Image)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_channels_of_a_four_dimensional_nifti(tmp_path: Path):
    nib.save(nib.Nifti1Image(np.stack([scan(i) for i in range(3)], -1), np.eye(4)), tmp_path / "i.nii")
    assert read(tmp_path, "i.nii", task=COLOUR).image.shape == (4, 3, 6, 5)
    with pytest.raises(DataError, match=r"^m.csv:2: image i.nii has 3 channels, the task takes 1; store each channel"):
        read(tmp_path, "i.nii")


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_meta_image_is_the_same_as_its_nifti(tmp_path: Path, suffix: str):
    image = sitk.GetImageFromArray(canonical(scan()).numpy())
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, tmp_path / f"i{suffix}")
    sitk.WriteImage(image[:, :, 0], tmp_path / f"flat{suffix}")
    save_nifti(tmp_path / "i.nii", scan())
    assert torch.equal(read(tmp_path, f"i{suffix}").image, read(tmp_path, "i.nii").image)
    assert read(tmp_path, f"flat{suffix}").image.shape == (1, 1, 6, 5)


def test_pictures_grey_and_colour(tmp_path: Path):
    colour = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    alpha = np.concatenate([colour, np.full((5, 7, 1), 9, np.uint8)], axis=-1)
    deep = colour[..., 0].astype(np.uint16) * 200
    for name, array in (("c.png", colour), ("a.png", alpha), ("g.png", colour[..., 0]), ("d.tif", deep)):
        save_picture(tmp_path / name, array)
    exact = COLOUR.model_copy(update={"intensity": COLOUR.intensity.model_copy(update={"percentiles": (0, 100)})})
    rgb = read(tmp_path, "c.png", task=exact)
    span = float(colour.max()) - float(colour.min())
    scaled = (torch.from_numpy(colour).permute(2, 0, 1).float() - float(colour.min())) / span
    torch.testing.assert_close(rgb.image[0], scaled)
    assert rgb.spacing_mm is None and np.array_equal(rgb.affine, np.eye(4))
    assert torch.equal(read(tmp_path, "a.png", task=exact).image, rgb.image)
    grey, sixteen = read(tmp_path, "g.png", task=exact).image, read(tmp_path, "d.tif", task=exact).image
    assert torch.equal(grey[0, 0], grey[0, 2])
    torch.testing.assert_close(grey, sixteen)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    one = read(tmp_path, "c.png", task=exact.model_copy(update={"channels": 1})).image[0, 0].numpy()
    np.testing.assert_allclose(one, (luma - luma.min()) / (luma.max() - luma.min()), atol=1e-5)


def test_a_picture_comes_back_as_png(tmp_path: Path):
    label = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(np.uint8)
    save_picture(tmp_path / "i.tif", np.arange(35, dtype=np.uint8).reshape(5, 7))
    save_picture(tmp_path / "l.png", label * 255)
    palette = Image.fromarray(label, mode="P")
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.save(tmp_path / "p.png")
    task = TASK.model_copy(update={"label": LabelFormat(values={255: 1})})
    volume = read(tmp_path, "i.tif", "l.png", task=task)
    indexed = read(tmp_path, "i.tif", "p.png", task=task)
    assert volume.label is not None and indexed.label is not None and torch.equal(volume.label, indexed.label)
    write_label_map(volume.label, volume, tmp_path / prediction_name(tmp_path / "x.tif"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), label)


@pytest.mark.parametrize(
    ("image", "name"),
    [("a/s.nii.gz", "s.nii.gz"), ("S.NII", "S.nii"), ("s.mha", "s.nii.gz"), ("x.tif", "x.png"), ("x.png", "x.png")],
)
def test_label_maps_are_named_after_their_images(
    image: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert prediction_name(Path(image)) == name
    monkeypatch.chdir(tmp_path)
    assert prediction_name(Path(".")) == f"{tmp_path.name}.nii.gz"  # a series' own folder


def test_masks_are_painted_in_order_and_tell_the_labelled_slices(tmp_path: Path):
    whole = np.zeros(SHAPE)
    whole[1:4, 1:4, :3] = 1
    part = np.zeros(SHAPE)
    part[2, 2, [0, 3]] = 1
    save_nifti(tmp_path / "i.nii", scan())
    save_nifti(tmp_path / "w.nii", whole)
    save_nifti(tmp_path / "p.nii", part)
    volume = read(tmp_path, "i.nii", "w.nii", "p.nii", task=MASKS)
    painted = np.where(part == 1, 2, whole)
    assert volume.label is not None and torch.equal(volume.label, canonical(painted).long())
    assert volume.labelled is not None and volume.labelled.tolist() == [True, True, True, False]
    plain = MASKS.model_copy(update={"label": LabelFormat(masks=("whole", "part"))})
    assert read(tmp_path, "i.nii", "w.nii", "p.nii", task=plain).labelled is None
    save_nifti(tmp_path / "p.nii", part * 2)
    with pytest.raises(DataError, match=r"label p.nii holds the value 2, expected 0 to 1; "):
        read(tmp_path, "i.nii", "w.nii", "p.nii", task=plain)


def test_without_label_no_label_file_is_opened(tmp_path: Path):
    save_nifti(tmp_path / "i.nii", scan())
    volume = read(tmp_path, "i.nii", "none.nii", with_label=False)
    assert volume.label is None and volume.labelled is None
    assert read(tmp_path, "i.nii").label is None


def test_affines_may_differ_by_a_share_of_a_voxel(tmp_path: Path):
    near, far = np.diag((*SPACING, 1.0)), np.diag((*SPACING, 1.0))
    near[0, 3], far[0, 3] = 9e-4, 0.25
    save_nifti(tmp_path / "i.nii", scan())
    save_nifti(tmp_path / "near.nii", classes(), affine=near)
    save_nifti(tmp_path / "far.nii", classes(), affine=far)
    assert read(tmp_path, "i.nii", "near.nii").label is not None
    with pytest.raises(DataError, match=r"^m.csv:2: label far.nii lies 0.5 voxels away from its image; resample"):
        read(tmp_path, "i.nii", "far.nii")


def spoilt(value: float) -> np.ndarray:
    array = scan().astype(np.float32)
    array[0, 0, 0] = value
    return array


NIFTI = nib.Nifti1Image(scan(), np.eye(4)).to_bytes()
BAD_IMAGES = [
    (None, "does not exist; check the path and --data"),
    (b"no scan", "cannot be read (WrapStructError); copy it again, it may be truncated"),
    (NIFTI[:400], "cannot be read (OSError); copy it again, it may be truncated"),
    (NIFTI[:296] + bytes(16) + NIFTI[312:], "has an affine that cannot be inverted; mend"),  # srow_y is zero
    (spoilt(np.nan), "holds NaN or infinite values; repair the image, or leave the case out"),
    (spoilt(np.inf), "holds NaN or infinite values; repair the image, or leave the case out"),
    (np.ones(SHAPE), "is constant; give another image, or leave the case out"),
    (np.zeros((2, 2, 2, 1, 3)), "has 5 dimensions; give a 3-D image, or a 4-D one whose last axis are channels"),
    (scan().astype(np.complex64), "holds values of type complex64; store real numbers"),
]


@pytest.mark.parametrize(("content", "message"), BAD_IMAGES)
def test_a_bad_image_is_one_line(tmp_path: Path, content: np.ndarray | bytes | None, message: str):
    if isinstance(content, np.ndarray):
        nib.save(nib.Nifti1Image(content, np.eye(4)), tmp_path / "i.nii")
    elif content is not None:
        (tmp_path / "i.nii").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path, "i.nii")
    assert str(error.value).startswith(f"m.csv:2: image i.nii {message}")


def test_bad_pictures_and_unknown_formats_are_one_line(tmp_path: Path):
    whole = tmp_path / "whole.png"
    save_picture(whole, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    pages = [Image.fromarray(np.full((4, 4), page, np.uint8)) for page in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "scan.jpg").write_bytes(b"")
    for name, message in (
        ("half.png", "cannot be read (OSError); copy it again, it may be truncated"),
        ("pages.tif", "holds 3 pages; store every page as a file of its own"),
        ("scan.jpg", "is of no known format; give .nii, .nii.gz, .mha, .mhd, .png, .tif, a DICOM series folder or"),
    ):
        assert told(DataError, read, tmp_path, name).startswith(f"m.csv:2: image {name} {message}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (classes() + 1, "holds the value 3, expected 0 to 2; correct the label, or say what they mean"),
        (classes() * 0.5, "holds the value 0.5, expected 0 to 2; correct the label, or say what they mean"),
        (np.where(classes() == 1, np.nan, 0.0), "holds the value nan, expected 0 to 2; correct the label"),
        (classes()[:, :5], "has 4 x 5 x 5 voxels, its image 4 x 6 x 5; give the label that was drawn on this image"),
        (np.stack([classes()] * 2, axis=-1), "has 2 channels; store class indices in one channel"),
    ],
)
def test_a_bad_label_is_one_line(tmp_path: Path, label: np.ndarray, message: str):
    save_nifti(tmp_path / "i.nii", scan())
    save_nifti(tmp_path / "l.nii", label)
    with pytest.raises(DataError) as error:
        read(tmp_path, "i.nii", "l.nii")
    assert str(error.value).startswith(f"m.csv:2: label l.nii {message}")


def test_a_picture_is_no_label_of_a_scan(tmp_path: Path):
    save_nifti(tmp_path / "i.nii", scan())
    save_picture(tmp_path / "l.png", classes()[..., 0])
    with pytest.raises(DataError, match=r"label l.png is of another kind of format than its image; store both as "):
        read(tmp_path, "i.nii", "l.png")


def test_check_tells_every_missing_and_changed_file_and_the_first_misfit(tmp_path: Path):
    save_nifti(tmp_path / "i.nii", scan())
    save_nifti(tmp_path / "l.nii", classes())
    row = case("i.nii", "l.nii")
    good = replace(row, digests=tuple((name, *readers.digest(tmp_path / name)) for name in ("i.nii", "l.nii")))
    assert check_case(row, TASK, tmp_path) == check_case(good, TASK, tmp_path) == []
    save_nifti(tmp_path / "l.nii", classes() + 1)
    assert [f"{problem.where}: {problem.what}" for problem in check_case(good, TASK, tmp_path)] == [
        "m.csv:2: label l.nii is not the file that the manifest was made for (its SHA-256 or size differs)",
        "m.csv:2: label l.nii holds the value 3, expected 0 to 2",
    ]
    problems = check_case(case("x.nii", "y.nii"), TASK, tmp_path)
    assert [problem.what for problem in problems] == ["image x.nii does not exist", "label y.nii does not exist"]


def test_files_that_the_system_refuses_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = "n" * 300 + ".nii"
    reason = "cannot be read (file name too long); check the path and its permissions"
    assert [str(problem) for problem in check_case(case(long), TASK, tmp_path)] == [f"m.csv:2: image {long} {reason}"]
    assert told(DataError, read, tmp_path, long).startswith(f"m.csv:2: image {long} cannot be read")
    assert told(DataError, readers.digest, tmp_path / long).startswith(f"{tmp_path / long}: cannot be read")

    save_picture(tmp_path / "i.png", classes()[..., 0])
    recorded = replace(case("i.png"), digests=(("i.png", *readers.digest(tmp_path / "i.png")),))

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Image, "open", refused)
    for row in (case("i.png"), recorded):
        assert [str(problem) for problem in check_case(row, TASK, tmp_path)] == [
            "m.csv:2: image i.png cannot be read (permission denied); check the path and its permissions"
        ]


def test_the_digest_of_a_meta_image_header_covers_its_data(tmp_path: Path):
    sitk.WriteImage(sitk.GetImageFromArray(scan()), tmp_path / "i.mhd")
    header, data = (tmp_path / "i.mhd").read_bytes(), (tmp_path / "i.raw").read_bytes()
    joined = "".join(hashlib.sha256(part).hexdigest() for part in (header, data))
    assert readers.digest(tmp_path / "i.mhd") == (hashlib.sha256(joined.encode()).hexdigest(), len(header) + len(data))
    row = replace(case("i.mhd"), digests=(("i.mhd", *readers.digest(tmp_path / "i.mhd")),))
    assert check_case(row, TASK, tmp_path) == []
    (tmp_path / "i.raw").write_bytes(data[::-1])
    assert [problem.what for problem in check_case(row, TASK, tmp_path)] == [
        "image i.mhd is not the file that the manifest was made for (its SHA-256 or size differs)"
    ]
    (tmp_path / "i.raw").unlink()
    assert [problem.what for problem in check_case(row, TASK, tmp_path)] == [
        "image i.mhd has a part i.raw that cannot be read (no such file or directory)"
    ]


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("LOCAL\nvoxels", []),
        ("two words.raw", ["two words.raw"]),
        ("LIST\na.raw\nb.raw", ["a.raw", "b.raw"]),
        ("s%02d.raw 1 2 1", ["s01.raw", "s02.raw"]),
    ],
)
def test_a_meta_image_header_names_its_data_in_four_ways(tmp_path: Path, entry: str, parts: list[str]):
    header = tmp_path / "i.mhd"
    header.write_text(f"NDims = 3\nElementDataFile = {entry}\n")
    for name in parts:
        (tmp_path / name).write_text(name)
    before = readers.digest(header)
    assert before[1] == header.stat().st_size + sum(map(len, parts))
    for name in parts:
        (tmp_path / name).write_text(name[::-1])
        assert readers.digest(header) != before
        (tmp_path / name).write_text(name)
    assert readers.digest(header) == before


def test_an_image_too_small_for_bias_field_correction_names_its_row(tmp_path: Path):
    save_nifti(tmp_path / "i.nii", scan()[:, :3])
    task = TASK.model_copy(update={"intensity": Intensity(bias_field_correction=True)})
    with pytest.raises(DataError, match=r"^m.csv:2: image i.nii has 4 x 3 x 5 voxels, in which N4 finds no bias field"):
        read(tmp_path, "i.nii", task=task)


def spinal_cord(data: Path, site: str) -> list[Volume]:
    task = config.load(Task, MANIFESTS / "spinal_cord_gm" / "task.yaml")
    cases = read_manifest(MANIFESTS / "spinal_cord_gm" / f"{site}.csv", task)
    return [read_volume(row, task, data, with_label=True) for row in cases if row.labels]


LABELLED = {"CEITEC_3T": 40, "UCL_3T": 17, "NWU_3T": 17, "Milan_1p5T": 40, "Philips_3T": 14, "Juntendo_3T": 15}


@pytest.mark.parametrize("site", LABELLED)
def test_the_cord_of_every_site_lies_in_the_network_slices(real_data: Path, site: str):
    task = config.load(Task, MANIFESTS / "spinal_cord_gm" / "task.yaml")
    volumes = spinal_cord(real_data, site)
    assert sum(int(volume.labelled.sum()) for volume in volumes if volume.labelled is not None) == LABELLED[site]
    for volume in volumes:
        grid = grid_for(volume, task)
        label, spacing = volume.label, volume.spacing_mm
        assert label is not None and spacing is not None
        small = grid.label_to_network(label, 3)
        assert not small[:, [0, -1]].any() and not small[:, :, [0, -1]].any()
        area = float((label > 0).sum()) * spacing[1] * spacing[2]
        assert float((small > 0).sum()) * 0.625**2 == pytest.approx(area, rel=0.03)
        assert nib.aff2axcodes(volume.affine) == tuple("SPL")


def test_philips_is_stored_in_another_orientation_and_comes_back_in_it(real_data: Path, tmp_path: Path):
    file = "spinal_cord_gm/Philips_3T/images/sub-9604_run-1_T2starw.nii.gz"
    volume = spinal_cord(real_data, "Philips_3T")[0]
    assert volume.label is not None
    write_label_map(volume.label, volume, tmp_path / "out.nii.gz")
    image, written = nib.load(real_data / file), nib.load(tmp_path / "out.nii.gz")
    mask = nib.load(real_data / file.replace("images", "masks").replace("T2starw", "T2starw_gmseg"))
    assert nib.aff2axcodes(image.affine) == tuple("LPS") == nib.aff2axcodes(written.affine)
    assert np.array_equal(written.affine, image.affine)
    assert np.array_equal(np.asarray(written.dataobj) == 2, np.asarray(mask.dataobj) == 1)


@pytest.mark.parametrize("task_name", ["nuclei", "spinal_cord_gm"])
def test_every_file_of_the_manifests_is_as_recorded_and_fits(real_data: Path, task_name: str):
    task = config.load(Task, MANIFESTS / task_name / "task.yaml")
    for manifest in sorted((MANIFESTS / task_name).glob("*.csv")):
        for row in read_manifest(manifest, task):
            assert check_case(row, task, real_data) == []
