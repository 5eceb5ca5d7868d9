import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from garda.core.errors import RunFolderError
from garda.core.pseudonyms import Pseudonyms
from garda.data.manifest import Case
from garda.data.sequence import Domain
from garda.evaluation import evaluator, metrics
from garda.evaluation.metrics import Score
from tests.support.errors import told

CLASSES = ("background", "cord")
SPACING = (5.0, 0.5, 0.25)


def box(shape: tuple[int, int, int], *spans: tuple[int, int], value: int = 1) -> Tensor:
    volume = torch.zeros(shape, dtype=torch.int64)
    volume[tuple(slice(*span) for span in spans)] = value
    return volume


def only(predicted: Tensor, label: Tensor, labelled: Tensor | None = None, spacing=SPACING) -> tuple[float, float]:
    ((name, dice, hd95, unit),) = metrics.score_volume(predicted, label, labelled, spacing, CLASSES)
    assert name == "cord"
    assert unit == ("mm" if spacing else "px")
    return dice, hd95


def test_a_volume_agrees_with_itself():
    volume = box((4, 12, 12), (1, 3), (2, 8), (3, 9))
    assert only(volume, volume) == (1.0, 0.0)


@pytest.mark.parametrize(("axis", "step"), [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("spacing", [SPACING, None])
def test_the_distance_of_a_shifted_box_is_the_shift_in_its_unit(axis: int, step: int, spacing):
    volume = box((8, 24, 24), (2, 6), (6, 14), (6, 14))
    side = volume.shape[axis] // (2 if axis == 0 else 3)
    dice, hd95 = only(volume.roll(step, dims=axis), volume, spacing=spacing)
    assert dice == pytest.approx((side - step) / side)
    assert hd95 == pytest.approx(step * (spacing[axis] if spacing else 1.0))


def test_a_box_at_the_image_border_has_a_surface_there():
    volume = box((1, 10, 10), (0, 1), (0, 6), (0, 6))
    assert only(volume, box((1, 10, 10), (0, 1), (0, 6), (0, 8)), spacing=None)[1] == pytest.approx(2.0)


def test_a_single_slice_is_an_image_and_so_is_the_only_labelled_one():
    # as a volume, the hollow square's inner edge would find surface everywhere in the full square: distance 0
    full = box((3, 20, 20), (1, 2), (2, 18), (2, 18))
    hollow = full.clone()
    hollow[1, 6:14, 6:14] = 0
    alone = only(hollow[1:2], full[1:2], spacing=None)
    assert alone[1] == pytest.approx(3.0)
    assert only(hollow, full, torch.tensor([False, True, False]), None) == alone


@pytest.mark.parametrize("spacing", [SPACING, None])
def test_a_class_on_one_side_has_dice_0_and_the_image_diagonal(spacing):
    volume, empty = box((2, 6, 8), (0, 1), (1, 3), (1, 3)), torch.zeros(2, 6, 8, dtype=torch.int64)
    diagonal = math.hypot(10.0, 3.0, 2.0) if spacing else math.hypot(2, 6, 8)
    assert only(volume, empty, spacing=spacing) == (0.0, diagonal)
    assert only(empty, volume, spacing=spacing) == (0.0, diagonal)
    assert only(volume[:1], empty[:1], spacing=None) == (0.0, 10.0)  # a single slice has no thickness
    assert all(math.isnan(number) for number in only(empty, empty, spacing=spacing))  # on neither side: no score


def test_slices_without_a_label_are_left_out_on_both_sides():
    label = box((4, 12, 12), (0, 3), (2, 8), (2, 8))
    predicted = label.clone()
    predicted[0] = 0
    predicted[3] = 1
    assert only(predicted, label)[0] < 1.0
    assert only(predicted, label, torch.tensor([False, True, True, False])) == (1.0, 0.0)
    assert math.isnan(only(predicted, label, torch.zeros(4, dtype=torch.bool))[0])


def test_every_foreground_class_is_scored_and_maps_may_differ_in_type():
    label = box((2, 8, 8), (0, 2), (0, 4), (0, 4)) + box((2, 8, 8), (0, 2), (4, 8), (4, 8), value=2)
    rows = metrics.score_volume(
        label.to(torch.uint8), label, None, None, ("background", "white matter", "grey matter", "cyst")
    )
    assert rows[:2] == [("white matter", 1.0, 0.0, "px"), ("grey matter", 1.0, 0.0, "px")]
    assert rows[2][0] == "cyst" and math.isnan(rows[2][1])


def test_maps_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(D, H, W\), got \(1, 4, 4\) and \(1, 4, 5\)"):
        metrics.score_volume(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), None, None, CLASSES)


def case(name: str, split: str, labels: tuple[str, ...] = ("label.nii.gz",)) -> Case:
    return Case(name, f"patient of {name}", split, f"{name}.nii.gz", labels, (), "site.csv, row 2")


DOMAINS = (
    Domain("first", 0, (case("a", "test"), case("b", "train"), case("c", "val"), case("e", "test", labels=()))),
    Domain("second", 1, (case("a", "test"),)),
    Domain("unlabelled", 2, (case("f", "test", labels=()),)),
)


def test_labelled_test_scans_alone_are_read_one_at_a_time_and_named_by_pseudonym(monkeypatch):
    done = []
    label = box((2, 8, 8), (0, 2), (0, 4), (0, 4))
    scan = SimpleNamespace(label=label, labelled=None, spacing_mm=SPACING, affine=np.diag([*SPACING, 1.0]))

    def read(case: Case, task: SimpleNamespace, data: Path, *, with_label: bool) -> SimpleNamespace:
        done.append(f"read {case.case}")
        return scan if with_label else None

    def segment(network: str, standardised: str, task: SimpleNamespace, *_: object) -> Tensor:
        done.append(f"segment {standardised} with {network}")
        return torch.zeros_like(scan.label)

    monkeypatch.setattr(evaluator.checks, "read_unchanged", read)
    monkeypatch.setattr(evaluator.inference, "segment", segment)
    method = SimpleNamespace(
        task=SimpleNamespace(classes=CLASSES),
        compute=SimpleNamespace(prepare=lambda name: SimpleNamespace(eval=lambda: name)),
        network_for=lambda knowledge, name: f"network of {name}",
        standardise=lambda knowledge, scan, name: f"scan of {name}",
    )
    named = SimpleNamespace(pseudonym=lambda kind, name: f"{kind} {name}")
    scans = evaluator.TestScans(DOMAINS, Path("data"), named)
    first, second = evaluator.score_scans(
        scans, method, SimpleNamespace(largest=()), 1, 7, lambda *ready: done.append(ready)
    )
    assert done[:3] == ["read a", "segment scan of first with network of first", (1, 2)]
    assert done[3:] == ["read a", "segment scan of second with network of second", (2, 2)]
    diagonal = math.hypot(10.0, 4.0, 2.0)
    assert first == Score(1, "first", "patient first/patient of a", "case first/a", 7, "cord", 0.0, diagonal, "mm")
    assert second == replace(first, domain="second", patient="patient second/patient of a", case="case second/a")
    keyed = replace(scans, pseudonyms=Pseudonyms(b"k" * 32))  # one name at two hospitals is two persons
    first, second = evaluator.score_scans(keyed, method, SimpleNamespace(largest=()), 1, 7, lambda *ready: None)
    assert first.patient != second.patient and first.case != second.case


SCORE = Score(0, "first, site", 'p"1', "c1", 3, "grey matter", 0.1 + 0.2, 1e-17, "mm")


def test_scores_come_back_bit_by_bit(tmp_path: Path):
    path = tmp_path / "new folder" / "scores.csv"
    metrics.write_scores(path, [SCORE, replace(SCORE, stage=1, dice=math.nan, hd95=math.nan, unit="px")])
    first, second = metrics.read_scores(path)
    assert first == SCORE and math.isnan(second.dice) and math.isnan(second.hd95)
    assert replace(second, dice=0.0, hd95=0.0) == replace(SCORE, stage=1, dice=0.0, hd95=0.0, unit="px")
    assert "nan" not in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["scores.csv"]


def test_a_failed_write_leaves_the_scores_before_it(tmp_path: Path):
    def broken():
        yield SCORE
        raise RuntimeError("the segmenter fails")

    path = tmp_path / "scores.csv"
    with pytest.raises(RuntimeError):
        metrics.write_scores(path, broken())
    assert "no such file; give the folder" in told(RunFolderError, metrics.read_scores, path)
    metrics.write_scores(path, [SCORE])
    with pytest.raises(RuntimeError):
        metrics.write_scores(path, broken())
    assert metrics.read_scores(path) == [SCORE]


@pytest.mark.parametrize(
    ("damage", "where", "what"),
    [
        (lambda text: b"", "", "expected the columns stage,domain,patient,case,seed,name,dice,hd95,unit"),
        (lambda text: b"\xff" + text, "", "is damaged"),
        (lambda text: text + b'0,"first', "", "is damaged"),
        (lambda text: text[:-2], ", row 3", "is damaged"),
        (lambda text: text[:-6], ", row 3", "is damaged"),
        (lambda text: text.replace(b"1e-17", b"far"), ", row 2", "is damaged"),
    ],
)
def test_damaged_scores_are_told(tmp_path: Path, damage, where: str, what: str):
    path = tmp_path / "scores.csv"
    metrics.write_scores(path, [SCORE, SCORE])
    path.write_bytes(damage(path.read_bytes()))
    assert f"scores.csv{where}: {what}; delete the file" in told(RunFolderError, metrics.read_scores, path)
