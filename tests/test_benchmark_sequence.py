"""The measurement of a long sequence, on a tiny one."""

import json
import sys

import pytest

from benchmarks.sequence import StageCost, conclude, main, summarise, write_pipeline
from garda.data.sequence import read_sequence
from tests.support import sites
from tests.support.sites import SITES


def stage(name: str, training: float, package: int, *, kept: bool = True) -> StageCost:
    return StageCost(name, kept, training, 1.0, 9.0, 2**30, package)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["sequence", *map(str, words)])
    main()


def test_targets_come_in_turn_with_copied_manifests(tmp_path):
    pipeline = sites.write_tiny(tmp_path)
    written = write_pipeline(pipeline, tmp_path / "out", 5)
    sequence, given = read_sequence(written), read_sequence(pipeline)
    assert [domain.name for domain in sequence.domains] == [SITES[0], *(f"site-0{number}" for number in range(1, 6))]
    assert sequence.method == "garda" and sequence.settings == given.settings
    digests = [sequence.digests[domain.name] for domain in sequence.domains]
    assert digests == [given.digests[SITES[index]] for index in (0, 1, 2, 1, 2, 1)]


def test_ratios_and_bars_are_named():
    stages = [stage("0-a", 9, 1000), stage("1-b", 7, 1010), stage("2-c", 10, 1020), stage("3-d", 10.5, 1050)]
    found = summarise(stages)
    assert found.training == 1.05
    assert found.growth == pytest.approx(0.05 / 3) and found.last_growth == pytest.approx(0.03)
    first, whole, second, *rest = conclude(stages, found)
    assert first == "training of 3-d / that of 2-c: 1.050 (bar: at most 1.10), met"
    assert whole == "whole stage of 3-d / that of 2-c: 1.000 (no bar)"
    assert second == (
        "growth of the package a domain: 1.67% of the source's in the mean of 3, 3.00% in the last "
        "(bar: at most 2%), not met"
    )
    assert len(rest) == 1
    refused = [*stages, stage("4-e", 0, 1051, kept=False)]
    first, *_, last = conclude(refused, summarise(refused))
    assert first.endswith("nan (bar: at most 1.10), not met")
    assert last == "refused by the gate: 4-e; these are not the figures of a whole sequence"


def test_a_tiny_sequence_is_measured(tmp_path, monkeypatch, capsys):
    pipeline = sites.write_tiny(tmp_path)
    words = [pipeline, "--data", tmp_path / "data", "--out", tmp_path / "out", "--domains", 3]
    call(monkeypatch, *words, "--set", "source.steps=2", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    names = [f"0-{SITES[0]}", "1-site-01", "2-site-02", "3-site-03"]
    assert [row["name"] for row in found["stages"]] == names
    for row in found["stages"]:
        assert row["kept"] and 0 < row["training"] < row["whole"] and 0 < row["scoring"] < row["whole"]
        assert row["memory"] > 2**20 and row["package"] > 1000
    assert found["summary"]["training"] == found["stages"][3]["training"] / found["stages"][2]["training"]
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in names)
    assert "(bar: at most 1.10)" in printed and "(bar: at most 2%)" in printed
    plan = json.loads((tmp_path / "out" / "run" / "plan.json").read_text())
    assert plan["settings"]["source"]["steps"] == 2
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *words)
    assert str(caught.value) == f"{tmp_path / 'out'}: exists already; give another name, or remove it"


@pytest.mark.parametrize("domains", [1, 0, -3])
def test_fewer_than_two_targets_are_refused(domains, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, tmp_path / "p.yaml", "--data", tmp_path, "--out", tmp_path / "out", "--domains", domains)
    assert str(caught.value) == f"--domains: expected 2 or more, got {domains}; the last is compared with the second"
