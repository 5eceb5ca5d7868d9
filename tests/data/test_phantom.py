"""The phantom: signal equations and their contrasts, anatomy, acquisition, and the files it writes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from garda.core import config
from garda.core.errors import ConfigError, DataError, RunFolderError
from garda.data import manifest, phantom
from garda.data.phantom import physics
from garda.data.phantom.anatomy import CLASSES, LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE, Outline, Person
from garda.data.phantom.physics import Properties, Tissue
from garda.data.phantom.scanner import SITES, Window, acquire, coil_shading, magnitude
from garda.data.task import Task
from tests.support.errors import told

COMMITTED = Path(__file__).parents[2] / "data_manifests" / "phantom"
FEW = {"train": 1, "test": 1}
ONE, TIMES = np.ones(len(Tissue)), np.geomspace(50.0, 1500.0, len(Tissue))
EQUAL = Properties(ONE, TIMES, TIMES, TIMES, ONE)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def site_signals(site: str) -> dict[Tissue, float]:
    scanner = SITES[site]
    return dict(zip(Tissue, np.abs(scanner.sequence.signal(physics.properties(scanner.field))), strict=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    assert phantom.write_phantom(out, patients=FEW, slices=3) == out / "manifests"
    return out


def volumes(out: Path) -> dict[str, np.ndarray]:
    return {str(file.relative_to(out)): np.asanyarray(nibabel.load(file).dataobj) for file in out.rglob("*.nii.gz")}


def test_balanced_ssfp_of_equal_relaxation_times_has_a_closed_value():
    expected = np.sin(np.pi / 3) / (1 + np.exp(-3 / TIMES))
    np.testing.assert_allclose(physics.BalancedSSFP(tr=3, te=0, flip=60).signal(EQUAL), expected)


def test_gradient_echo_is_largest_at_the_ernst_angle():
    ernst = np.rad2deg(np.arccos(np.exp(-6 / TIMES[0])))
    at, below, above = (
        physics.SpoiledGradientEcho(6, 0, ernst + step, inflow=0).signal(EQUAL)[0] for step in (0, -1, 1)
    )
    assert at > below and at > above


def test_spin_echo_relaxes_to_density_and_decays_with_t2():
    relaxed, early, late = (physics.BlackBloodSpinEcho(1e9, te, outflow=0).signal(EQUAL) for te in (0, 30, 80))
    np.testing.assert_allclose(relaxed, ONE)
    ratio = late / early
    np.testing.assert_allclose(ratio, np.exp(-50 / TIMES))


@pytest.mark.parametrize("tr", [1700.0, 1e9])
def test_inversion_recovery_crosses_zero_at_its_null_time(tr: float):
    for t1 in TIMES:
        null = t1 * np.log(2 / (1 + np.exp(-tr / t1)))
        found = physics.LateEnhancement(tr, te=0, ti=null, blood_rate=0).signal(EQUAL)
        assert found[t1 == TIMES] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(physics.LateEnhancement(1e9, te=0, ti=0, blood_rate=0).signal(EQUAL), -ONE)


def test_t1_is_longer_at_the_higher_field_and_contrast_agent_shortens_it():
    assert (physics.properties(3.0).t1 > physics.properties(1.5).t1)[Tissue.LUNG :].all()
    before, after = physics.properties(3.0), physics.properties(3.0).enhanced(blood_rate=2.0)
    gain = 1e3 / after.t1 - 1e3 / before.t1
    assert gain[Tissue.BLOOD] == pytest.approx(2.0) and gain[Tissue.AIR] == 0
    assert gain[Tissue.SCAR] > gain[Tissue.MYOCARDIUM] > gain[Tissue.MUSCLE] > 0


def test_people_differ_around_the_literature_values():
    drawn = [physics.properties(1.5).varied(random(seed)) for seed in range(300)]
    for name in ("density", "t1", "t2", "partition"):
        expected = getattr(physics.properties(1.5), name)
        found = np.stack([getattr(person, name) for person in drawn])
        np.testing.assert_allclose(found.mean(axis=0), expected, rtol=0.1)
        assert (found.std(axis=0)[expected > 0] > 0).all()


def test_sites_show_blood_scar_and_muscle_each_in_its_way():
    bssfp, gre, tse, lge = map(site_signals, ("bssfp_1p5t", "gre_3t", "tse_1p5t", "lge_3t"))
    assert bssfp[Tissue.BLOOD] > 2 * bssfp[Tissue.MYOCARDIUM]
    assert tse[Tissue.BLOOD] < 0.5 * tse[Tissue.MYOCARDIUM]
    assert gre[Tissue.FAT] > gre[Tissue.BLOOD] > 1.2 * gre[Tissue.MYOCARDIUM]  # by inflow
    assert lge[Tissue.SCAR] > lge[Tissue.BLOOD] > 2.5 * lge[Tissue.MYOCARDIUM]  # nulled


def test_an_outline_is_an_ellipse_with_waves():
    points = np.array([0, 30, 10j, 15 - 5j], np.complex64)
    np.testing.assert_allclose(Outline((0, 0, 0, 0)).reach(points, 30 + 10j), [0, 1, 1, np.sqrt(0.5)], rtol=1e-6)
    points = 20 * np.exp(1j * np.linspace(0, 6, 7)).astype(np.complex64)
    expected = 1 / (1 + 0.1 * np.cos(3 * np.linspace(0, 6, 7)))
    np.testing.assert_allclose(Outline((0, 0.1, 0, 0)).reach(points, 20 + 20j), expected, rtol=1e-4)


@pytest.fixture(scope="module")
def people() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tissue, label) of base, middle and apex of 40 people on a coarse grid."""
    points, drawn = SITES["lge_3t"].points(), []
    for seed in range(40):
        source = random(seed)
        person = Person.draw(source)
        slices = [person.slice(points, height, source)[:2] for height in (0.0, 0.5, 1.0)]
        drawn.append(tuple(np.stack(maps) for maps in zip(*slices, strict=True)))
    return drawn


def test_the_heart_stays_inside_the_networks_crop(people):
    points = SITES["lge_3t"].points()
    for _, label in people:
        heart = points[(label > 0).any(axis=0)]
        assert max(np.abs(heart.real).max(), np.abs(heart.imag).max()) < 78


def test_labels_lie_on_heart_tissue_and_the_left_ventricle_inside_its_wall(people):
    for tissue, label in people:
        assert np.isin(tissue[label == RIGHT_VENTRICLE], [Tissue.BLOOD]).all()
        assert np.isin(tissue[label == MYOCARDIUM], [Tissue.MYOCARDIUM, Tissue.SCAR]).all()
        assert np.isin(tissue[label == LEFT_VENTRICLE], [Tissue.BLOOD, Tissue.MYOCARDIUM]).all()
        for plane in label:
            around = binary_dilation(plane == LEFT_VENTRICLE) & (plane != LEFT_VENTRICLE)
            assert (plane[around] == MYOCARDIUM).all()


def test_the_heart_tapers_and_the_right_ventricle_may_end_before_the_apex(people):
    areas = np.array([[np.bincount(plane.ravel(), minlength=4) for plane in label] for _, label in people])
    assert (np.diff(areas[:, :, 1:], axis=1) < 0).all()
    missing = areas[:, 2, RIGHT_VENTRICLE] == 0
    assert missing.any() and not missing.all()
    assert (areas[:, :, MYOCARDIUM:] > 0).all()
    assert (areas[:, 0, RIGHT_VENTRICLE] > 0).all()


def test_every_tissue_occurs_and_only_some_people_have_a_scar(people):
    kinds = [set(np.unique(tissue)) for tissue, _ in people]
    assert set.union(*kinds) == set(Tissue)
    assert 0 < sum(Tissue.SCAR in kind for kind in kinds) < len(kinds)


def test_noise_without_signal_is_rayleigh():
    drawn = magnitude(np.zeros(200_000, np.float32), 0.5, random())
    assert drawn.mean() / drawn.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.01)
    assert drawn.mean() == pytest.approx(0.5 * np.sqrt(np.pi / 2), rel=0.01)


@pytest.mark.parametrize("window", [Window(1.2, 1000), Window(1.2, 1000, gamma=0.7), Window(1.2, 1000, slope=5)])
def test_windows_are_monotone_from_zero_to_top_and_clip(window: Window):
    stored = window.store(np.linspace(0, 2.4, 200, dtype=np.float32))
    assert stored.dtype == np.int16
    assert (stored[0], stored[100], stored[-1]) == (0, 1000, 1000)
    assert (np.diff(stored) >= 0).all()


def test_the_coil_sees_the_front_better_and_leaves_the_mean_alone():
    shading = np.stack([coil_shading(SITES["gre_3t"], random(seed)) for seed in range(50)])
    assert (shading[:, 0].mean(axis=1) > shading[:, -1].mean(axis=1)).mean() > 0.9
    assert np.log(shading).mean() == pytest.approx(0, abs=0.02)


def test_acquired_contrast_is_inverted_between_bssfp_and_black_blood():
    ratio = {}
    for site in ("bssfp_1p5t", "tse_1p5t"):
        source = random(1)
        image, label = acquire(Person.draw(source), SITES[site], 2, source)
        ratio[site] = np.median(image[label == LEFT_VENTRICLE]) / np.median(image[label == MYOCARDIUM])
    assert ratio["bssfp_1p5t"] > 1.8
    assert ratio["tse_1p5t"] < 0.5


def test_every_site_has_its_own_grid_and_orientation_of_one_world(written: Path):
    for site, scanner in SITES.items():
        image = nibabel.load(written / site / "images" / f"{site}_000.nii.gz")
        label = nibabel.load(written / site / "labels" / f"{site}_000.nii.gz")
        assert image.shape == label.shape == (scanner.matrix, scanner.matrix, 3)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert "".join(nibabel.aff2axcodes(image.affine)) == scanner.axes
        np.testing.assert_allclose(image.header.get_zooms(), [scanner.spacing, scanner.spacing, scanner.thickness])
        np.testing.assert_array_equal(image.affine, label.affine)
        centre = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
        np.testing.assert_allclose(centre, [0, 0, 0, 1], atol=1e-4)
        classes = np.asanyarray(label.dataobj)
        right, left = (nibabel.affines.apply_affine(label.affine, np.argwhere(classes == kind)) for kind in (1, 3))
        assert right[:, 0].mean() > left[:, 0].mean() + 20  # the world's first axis runs to the patient's right
        assert (left[:, 2] > 1).sum() > (left[:, 2] < -1).sum()  # the base, above the apex, is wider


def test_every_class_is_present_and_nothing_else(written: Path):
    for name, volume in volumes(written).items():
        if "labels" in name:
            assert set(np.unique(volume)) == set(range(len(CLASSES)))
        else:
            assert volume.min() >= 0 and volume.std() > 0


def test_equal_seeds_give_equal_volumes_whatever_else_is_written_and_others_differ(written: Path, tmp_path: Path):
    first = volumes(written)
    for folder, seed in (("again", 0), ("other", 1)):
        phantom.write_phantom(tmp_path / folder, seed=seed, patients={"train": 1}, sites=["lge_3t"], slices=3)
        found = volumes(tmp_path / folder)
        assert len(found) == 2
        assert all(np.array_equal(volume, first[name]) == (seed == 0) for name, volume in found.items())
    assert (first["lge_3t/labels/lge_3t_000.nii.gz"] != first["lge_3t/labels/lge_3t_001.nii.gz"]).any()


def test_the_manifests_are_read_back(written: Path):
    task = config.load(Task, written / "manifests" / "task.yaml")
    assert task.classes == CLASSES
    for site in SITES:
        cases = manifest.read_manifest(written / "manifests" / f"{site}.csv", task)
        assert [(case.case, case.split) for case in cases] == [(f"{site}_000", "train"), (f"{site}_001", "test")]
        assert all((written / file).is_file() for case in cases for file in (case.image, *case.labels))


def test_the_committed_manifests_are_those_of_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phantom, "_write_case", lambda *arguments: None)
    steps: list[tuple[int, int]] = []
    manifests = phantom.write_phantom(tmp_path / "default", progress=lambda *step: steps.append(step))
    assert steps == [(done, 104) for done in range(1, 105)]
    committed = {file.name: file.read_text() for file in COMMITTED.iterdir()}
    assert {file.name: file.read_text() for file in manifests.iterdir()} == committed


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("kept")
    assert told(DataError, phantom.write_phantom, tmp_path) == f"{tmp_path}: the folder is not empty; give a new folder"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_phantom_leaves_nothing(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phantom.write_phantom(tmp_path / "out", patients=FEW, sites=["lge_3t"], slices=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=f"^{tmp_path}/file/out: cannot be written \\(file exists\\); give"):
        phantom.write_phantom(tmp_path / "file" / "out", patients=FEW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ["gre"]}, "phantom: unknown site 'gre'; known sites are bssfp_1p5t, gre_3t, tse_1p5t, lge_3t"),
        ({"slices": 0}, "phantom: slices is 0; give at least 1"),
        ({"seed": -1}, "phantom: seed is -1; give at least 0"),
        ({"patients": {"val": -2}}, "phantom: patients is -2; give at least 0"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict, message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        phantom.write_phantom(tmp_path / "out", **arguments)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
