import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from garda.evaluation import bootstrap, continual, evaluator
from garda.evaluation.bootstrap import Estimate
from garda.evaluation.continual import Matrix, PatientKey
from garda.evaluation.metrics import Score

NAN = math.nan
SITES = ("a", "b", "c")


def score(dice: float, stage=0, domain="a", patient="p", case="1", seed=0, name="x", hd95=NAN, unit="mm") -> Score:
    return Score(stage, domain, patient, case, seed, name, dice, hd95, unit)


def dice_matrix(*rows: list[float]) -> Matrix:
    scores = [
        score(value, stage=stage, domain=domain)
        for stage, row in enumerate(rows)
        for domain, value in zip(SITES, row, strict=True)
    ]
    return continual.matrix(scores, SITES, "dice")


THREE = dice_matrix([0.9, 0.5, 0.4], [0.8, 0.7, 0.5], [0.6, 0.75, 0.8])


def test_classes_are_averaged_last():
    scores = [
        score(0.2, case="1", name="x"),
        score(0.4, case="2", name="x"),
        score(0.9, case="1", name="y"),
        score(NAN, case="2", name="y"),
    ]
    key = PatientKey(0, "a", "p", 0)
    assert continual.patient_scores(scores, "dice") == {key: pytest.approx(0.6)}  # not 0.5, the mean of all three
    assert continual.patient_scores(scores, "dice", "x") == {key: pytest.approx(0.3)}
    assert continual.patient_scores(scores, "dice", "z") == {}
    unscored = [score(NAN), score(0.5, patient="q", hd95=2.0)]  # a patient without any score is left out
    assert continual.patient_scores(unscored, "hd95") == {PatientKey(0, "a", "q", 0): 2.0}


def test_the_matrix_averages_patients_neither_scans_nor_seeds():
    scores = [score(0.2, patient="p", case=str(number)) for number in range(9)] + [score(0.8, patient="q")]
    found = continual.matrix(scores, SITES, "dice")
    assert found.values == pytest.approx(np.array([[0.5, NAN, NAN]]), nan_ok=True)
    assert found.patients == (2, 0, 0)
    assert found.intervals[0, 0] == pytest.approx([0.2, 0.8])
    assert np.isnan(found.intervals[0, 1:]).all()
    found = continual.matrix([score(0.2, seed=0), score(0.4, seed=1), score(0.9, patient="q")], SITES, "dice")
    assert found.values[0, 0] == pytest.approx(0.6) and found.patients[0] == 2


def test_one_name_at_two_sites_is_two_patients():
    found = continual.matrix([score(0.2, domain="a"), score(0.8, domain="b")], SITES, "dice")
    assert found.values == pytest.approx(np.array([[0.2, 0.8, NAN]]), nan_ok=True)
    assert np.isnan(found.intervals).all()


def test_a_matrix_of_distances_knows_its_units():
    scores = [score(0.5, hd95=3.0, unit="px"), score(0.5, domain="b", hd95=4.0), score(0.5, domain="z", hd95=4.0)]
    found = continual.matrix(scores, SITES, "hd95", "x")
    assert (found.metric, found.unit, found.name) == ("hd95", "mm/px", "x")
    assert continual.average_over_seen(found) == 3.0
    with pytest.raises(ValueError, match="defined on Dice, where higher is better, got a matrix of hd95"):
        continual.forgetting(found)
    with pytest.raises(ValueError, match="expected all domains of the sequence, got 1 for 2 stages"):
        continual.matrix([score(0.5, stage=1)], ["a"], "dice")


def test_three_sites_by_hand():
    assert continual.summary(THREE) == {
        "average_over_seen": pytest.approx((0.6 + 0.75 + 0.8) / 3),
        "forgetting": pytest.approx((0.3 + 0.0) / 2),
        "forgetting_worst": pytest.approx(0.3),
        "backward_transfer": pytest.approx((-0.3 + 0.05) / 2),
        "forward_transfer": pytest.approx(0.5 - 0.4),
        "plasticity": pytest.approx(((0.7 - 0.5) + (0.8 - 0.5)) / 2),
    }
    assert continual.forgetting(THREE).worst_domain == "a"


def test_what_was_learnt_late_and_lost_counts_as_forgotten():
    rising = dice_matrix([0.5, 0.1, 0.1], [0.9, 0.5, 0.1], [0.6, 0.5, 0.5])
    assert continual.forgetting(rising).worst == pytest.approx(0.3)
    assert continual.backward_transfer(rising) == pytest.approx(0.05)


def test_a_domain_without_labels_is_left_out():
    found = dice_matrix([0.9, NAN, 0.4], [0.8, NAN, 0.5], [0.6, NAN, 0.8])
    assert continual.average_over_seen(found) == pytest.approx(0.7)
    assert continual.forgetting(found) == (pytest.approx(0.3), pytest.approx(0.3), "a")
    assert continual.backward_transfer(found) == pytest.approx(-0.3)
    assert continual.plasticity(found) == pytest.approx(0.3)


def test_only_the_domains_met_so_far_count():
    found = dice_matrix([0.9, 0.5, 0.4], [0.8, 0.7, 0.5])
    assert continual.average_over_seen(found) == pytest.approx(0.75)
    assert continual.plasticity(found) == pytest.approx(0.2)
    assert math.isnan(continual.forward_transfer(found))
    assert "forward_transfer" not in continual.summary(found)


def test_the_source_alone_has_an_average_and_nothing_else():
    found = dice_matrix([0.9, 0.5, 0.4])
    assert continual.forgetting(found)[2] is None
    assert continual.summary(found) == {"average_over_seen": pytest.approx(0.9)}
    nothing = continual.matrix([], SITES, "dice")
    assert continual.summary(nothing) == {}
    assert continual.forgetting(nothing)[2] is None


@pytest.mark.parametrize(
    ("adapted", "source_only", "supervised", "expected"),
    [
        (0.6, 0.4, 0.8, 0.5),
        (0.9, 0.4, 0.8, 1.25),
        (0.3, 0.4, 0.8, -0.25),
        (0.4, 0.4, 0.8, 0.0),
        *((0.9, 0.8, supervised, NAN) for supervised in (0.81, 0.8, 0.5, NAN)),  # no share of a gap that is not there
    ],
)
def test_the_gap_closed_is_a_share(adapted: float, source_only: float, supervised: float, expected: float):
    assert continual.gap_closed(adapted, source_only, supervised) == pytest.approx(expected, nan_ok=True)


def test_a_bootstrap_interval_is_a_function_of_its_seed():
    values = [0.1, 0.5, 0.6, 0.9]
    assert bootstrap.bootstrap_interval(values) == bootstrap.bootstrap_interval(values)
    assert bootstrap.bootstrap_interval(values) != bootstrap.bootstrap_interval(values, seed=1)
    low, high = bootstrap.bootstrap_interval(values, level=0.5)
    wide = bootstrap.bootstrap_interval(values)
    assert wide.low < low < np.mean(values) < high < wide.high
    assert bootstrap.bootstrap_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    assert [bootstrap.bootstrap_interval(few) for few in ([], [0.7])] == [None, None]  # under two patients


@pytest.mark.parametrize("domains", [1, 2])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(domains: int):
    samples = np.random.default_rng(0).normal(0.7, 0.1, size=(150, domains, 1, 25))
    intervals = [bootstrap.estimate(list(sample), draws=200).interval for sample in samples]
    assert 0.88 <= np.mean([low <= 0.7 <= high for low, high in intervals]) <= 0.99


def key(patient: str, seed: int = 0) -> PatientKey:
    return PatientKey(2, "a", patient, seed)


def paired(a: dict[PatientKey, float], b: dict[PatientKey, float]) -> Estimate:
    return bootstrap.estimate(continual.score_arrays(continual.paired_difference(a, b), ["a"]))


def test_methods_are_compared_patient_by_patient():
    a = {key("p"): 0.9, key("q"): 0.5, key("only in a"): 0.0}
    b = {key("p"): 0.8, key("q"): 0.4, key("only in b"): 1.0}
    narrow = pytest.approx((0.1, 0.1))  # although the patients differ by 0.4
    assert paired(a, b) == (pytest.approx(0.1), narrow, 2)
    a = {key("p", 0): 0.9, key("p", 1): 0.7}  # seeds of a patient are paired and count once
    b = {key("p", 0): 0.8, key("p", 1): 0.4, key("p", 2): 1.0}
    assert paired(a, b) == (pytest.approx(0.2), None, 1)
    assert paired({key("p"): 0.9}, {}) == (pytest.approx(NAN, nan_ok=True), None, 0)


def test_one_seed_of_one_domain_is_the_plain_bootstrap():
    values = np.random.default_rng(1).uniform(size=7)
    drawn = np.random.default_rng(0).integers(7, size=(1000, 7))
    expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert bootstrap.estimate([values[None]]) == (pytest.approx(values.mean()), pytest.approx(expected), 7)


def test_domains_count_alike_and_equal_values_have_an_interval_without_width():
    found = bootstrap.estimate([np.full((3, 4), 0.5), np.full((3, 2), 0.75), np.full((3, 1), 0.25)])
    assert found == (0.5, (0.5, 0.5), 7)


def test_what_is_added_to_all_is_added_to_the_interval():
    generator = np.random.default_rng(2)
    domains = [generator.uniform(size=(3, patients)) for patients in (5, 1, 9)]
    before, after = bootstrap.estimate(domains), bootstrap.estimate([values + 0.25 for values in domains])
    assert after.mean == pytest.approx(before.mean + 0.25)
    assert after.interval == pytest.approx([end + 0.25 for end in before.interval])


def test_a_lone_patient_counts_as_it_is():
    assert bootstrap.estimate([np.array([[0.3], [0.5]]), np.array([[0.8], [0.8]])]) == (pytest.approx(0.6), None, 2)
    half_as_wide = bootstrap.estimate([np.array([[0.1, 0.9]]), np.array([[0.5]])])
    assert half_as_wide.interval == pytest.approx([0.3, 0.7])


def test_seeds_that_differ_widen_the_interval_and_one_draw_of_them_counts_for_all_domains():
    same = np.tile(np.linspace(0.4, 0.6, 30), (2, 1))
    narrow, wide = bootstrap.estimate([same]), bootstrap.estimate([same + np.array([[-0.2], [0.2]])])
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.interval.low < narrow.interval.low - 0.1 and wide.interval.high > narrow.interval.high + 0.1
    better_everywhere = np.repeat([[0.2], [0.8]], 2, axis=1)  # is not averaged away over the domains
    assert bootstrap.estimate([better_everywhere] * 9).interval == pytest.approx((0.2, 0.8))


def test_a_score_that_a_seed_lacks_is_left_out():
    found = bootstrap.estimate([np.array([[0.2, math.nan], [0.4, 0.9]])])
    assert found.mean == pytest.approx((0.3 + 0.9) / 2)
    assert 0.2 <= found.interval.low <= found.interval.high <= 0.9


def test_scores_become_an_array_a_domain_with_the_same_seeds_as_rows():
    values = {key("q", 5): 0.1, key("p", 2): 0.2, key("q", 2): 0.3, PatientKey(2, "b", "p", 5): 0.4}
    a, b = continual.score_arrays(values, ["a", "nothing", "b"])
    np.testing.assert_array_equal(a, [[0.3, 0.2], [0.1, NAN]])
    np.testing.assert_array_equal(b, [[NAN], [0.4]])
    assert continual.score_arrays({}, ["a"]) == []


def test_the_written_matrix_has_stages_as_rows(tmp_path: Path):
    path = tmp_path / "matrix.csv"
    continual.write_matrix(path, dice_matrix([0.1 + 0.2, NAN, 0.4], [0.8, NAN, 0.5]))
    assert path.read_text() == "stage,a,b,c\n0,0.30000000000000004,,0.4\n1,0.8,,0.5\n"


@pytest.mark.parametrize(
    ("lost", "fell"),
    [
        ((0.03, 0.03), True),
        ((0.02, 0.01), False),  # of two patients that is noise
        ((-0.2, -0.2), False),
        ((0.011,) * 5, True),
        ((0.009,) * 5, False),
        ((0.2, -0.1, 0.2, -0.1, 0.1), False),  # the interval holds 0
    ],
)
def test_a_fall_is_one_beyond_the_noise_of_its_patients(lost, fell):
    rows = [
        score(0.7 - after * by, stage=1 + after, patient=f"P-{who}") for after in (0, 1) for who, by in enumerate(lost)
    ]
    alone = replace(rows[-1], patient="P-new", dice=0.0)
    said = f"Dice of a fell from 0.700 to {0.7 - sum(lost) / len(lost):.3f} in this stage"
    assert [*evaluator.describe_falls(2, [*rows, alone])] == [said] * fell
    assert [*evaluator.describe_falls(1, rows)] == []
