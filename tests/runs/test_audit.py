import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.errors import PackageError
from garda.data.sequence import read_sequence
from garda.handover import format, verify
from garda.handover.format import CARD
from garda.runs import audit, hop
from garda.runs.audit import PatientScans
from garda.runs.run import run_sequence
from garda.safety import audit_report
from tests.support import cli, fakes, sites
from tests.support.sites import SITES

FEW = {"audit": {"fewest": 2, "generated": 100, "references": 4, "permutations": 100}}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run = sites.tiny_run(read_sequence(pipeline, method="garda", changes=FEW), pipeline, out)
    run_sequence(replace(run, audited=True))
    return out


def manifest(pipeline: Path, site: int) -> Path:
    return pipeline.parent / "data" / "manifests" / f"{SITES[site]}.csv"


def test_every_stage_of_an_audited_run_has_its_figures_in_the_ledger(finished):
    entries = verify.verify(format.find_stage(finished)).entries
    assert [entry.audit["domain"] for entry in entries] == [*SITES]
    for entry in entries:
        assert (entry.audit["members"], entry.audit["outsiders"], entry.audit["no_figure"]) == (2, 2, None)
        assert {found["space"] for found in entry.audit["copies"]} == {"pixel", "embedding"}
        assert {found["attack"] for found in entry.audit["membership"]} >= {"nearest_pixel", "reconstruction"}
    assert f"were examined for {', '.join(SITES)}" in (format.find_stage(finished) / CARD).read_text()


def test_a_package_is_audited_as_its_stage_was(finished, pipeline):
    data = pipeline.parent / "data"
    for stage, site in enumerate(SITES):
        found = audit.audit_package(
            format.find_stage(finished, stage), manifest(pipeline, stage), data, Console(RichConsole(quiet=True))
        )
        assert found.model_dump(mode="json") == verify.verify(format.find_stage(finished)).entries[stage].audit, site


def test_an_audited_hop_learns_the_same(finished, pipeline, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, format.find_stage(finished, 0), 1, tmp_path / "1", audited=True))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 1))
    assert verify.verify(tmp_path / "1").entries[1].audit == verify.verify(format.find_stage(finished)).entries[1].audit


def test_a_finding_holds_a_target(pipeline, tmp_path, monkeypatch):
    found = ("membership, reconstruction: AUC 0.9",)
    monkeypatch.setattr(audit_report, "find", lambda *given: found)
    run = sites.tiny_run(read_sequence(pipeline, method="garda", changes=FEW), pipeline, tmp_path / "run")
    run_sequence(replace(run, audited=True))
    entries = verify.verify(format.find_stage(tmp_path / "run")).entries
    assert [entry.decision for entry in entries] == ["source", "hold", "hold"]
    assert entries[1].reasons == (f"{SITES[1]}: {found[0]}",)


def test_too_few_patients_give_no_figure(pipeline, tmp_path, capsys):
    run = sites.tiny_run(read_sequence(pipeline, method="garda"), pipeline, tmp_path / "run")
    run_sequence(replace(run, audited=True))
    package = format.find_stage(tmp_path / "run")
    assert verify.verify(package).entries[1].audit["copies"] == []
    words = ("audit", package, manifest(pipeline, 2), "--data", pipeline.parent / "data")
    assert cli.garda(*words, "--out", tmp_path / "audit.json") == 0
    printed = capsys.readouterr().out
    assert "no figure for copies and membership: 2 training patients and 2 patients never used in training" in printed
    assert json.loads((tmp_path / "audit.json").read_text())["domain"] == SITES[2]
    assert cli.garda(*words, "--out", tmp_path / "audit.json") == 2


def test_what_cannot_be_audited(finished, pipeline):
    data, quiet = pipeline.parent / "data", Console(RichConsole(quiet=True))
    with pytest.raises(PackageError, match=f"its generator draws {SITES[0]}, not '{SITES[1]}'"):
        audit.audit_package(format.find_stage(finished, 0), manifest(pipeline, 1), data, quiet)


def test_no_patient_is_on_both_sides_and_each_is_read_alone(pipeline):
    sequence = read_sequence(pipeline)
    members, others = audit.split_patients(sequence.source)
    assert [len(side) for side in (members, others)] == [2, 2]
    assert not {case.patient for scans in members for case in scans} & {c.patient for scans in others for c in scans}
    assert all(not case.labels for scans in (*members, *others) for case in scans)
    scans = PatientScans(members, sequence.task, pipeline.parent / "data")
    assert [volume.shape for volume in scans] == [(2, 1, *sequence.task.size)] * 2
    assert torch.equal(scans[1], [*scans][1])
