import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from garda.core.errors import PackageError
from garda.data.sequence import read_sequence
from garda.handover import format, verify
from garda.handover.format import CARD
from garda.runs import audit, hop
from garda.runs.audit import PatientScans
from garda.safety import audit_report
from tests.support import cli, fakes, sites
from tests.support.errors import told
from tests.support.sites import SITES

FEW = {"audit": {"fewest": 2, "generated": 100, "references": 4, "permutations": 100}}


@pytest.fixture(scope="module")
def audited(once: Callable[..., Path], pipeline: Path) -> Path:
    """The run folder of garda with an audit of every stage."""
    return once("audited", lambda out: sites.run_tiny(pipeline, out, method="garda", changes=FEW, audited=True))


def test_every_stage_of_an_audited_run_has_its_figures_in_the_ledger(audited):
    entries = verify.verify(format.find_stage(audited)).entries
    assert [entry.audit["domain"] for entry in entries] == [*SITES]
    for entry in entries:
        assert (entry.audit["members"], entry.audit["outsiders"], entry.audit["no_figure"]) == (2, 2, None)
        assert {found["space"] for found in entry.audit["copies"]} == {"pixel", "embedding"}
        assert {found["attack"] for found in entry.audit["membership"]} >= {"nearest_pixel", "reconstruction"}
    assert f"were examined for {', '.join(SITES)}" in (format.find_stage(audited) / CARD).read_text()


def test_a_package_is_audited_as_its_stage_was(audited, pipeline):
    for stage in (0, 2):
        package, data = format.find_stage(audited, stage), pipeline.parent / "data"
        found = audit.audit_package(package, sites.manifest(pipeline, stage), data, sites.quiet())
        assert found.model_dump(mode="json") == verify.verify(package).entries[stage].audit


def test_an_audited_hop_learns_the_same(audited, pipeline, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, format.find_stage(audited, 0), 1, tmp_path / "1", audited=True))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(audited, 1))
    assert verify.verify(tmp_path / "1").entries[1].audit == verify.verify(format.find_stage(audited)).entries[1].audit


def test_too_few_patients_give_no_figure_and_a_finding_holds_a_target(pipeline, tmp_path, capsys, monkeypatch):
    shorter, found = sites.other_words(pipeline, tmp_path / "tiny", f", {SITES[2]}", ""), ("membership: AUC 0.9",)
    with monkeypatch.context() as patch:
        patch.setattr(audit_report, "find", lambda *given: found)
        sites.run_tiny(shorter, tmp_path / "run", method="garda", audited=True)
    package = format.find_stage(tmp_path / "run")
    source, target = verify.verify(package).entries
    assert (source.decision, target.decision) == ("source", "hold")
    card = (package / CARD).read_text()
    assert f"No figure for {SITES[1]}: " in card and "were examined for" not in card
    assert target.reasons == (f"{SITES[1]}: {found[0]}",) and target.audit["copies"] == []
    words = ("audit", package, sites.manifest(pipeline, 1), "--data", pipeline.parent / "data")
    assert cli.garda(*words, "--out", tmp_path / "audit.json") == 0
    printed = capsys.readouterr().out
    assert "no figure for copies and membership: 2 training patients and 2 patients never used in training" in printed
    assert json.loads((tmp_path / "audit.json").read_text())["domain"] == SITES[1]
    assert cli.garda(*words, "--out", tmp_path / "audit.json") == 2


def test_what_cannot_be_audited(audited, pipeline):
    given = format.find_stage(audited, 0), sites.manifest(pipeline, 1), pipeline.parent / "data", sites.quiet()
    assert f"its generator draws {SITES[0]}, not '{SITES[1]}'" in told(PackageError, audit.audit_package, *given)


def test_no_patient_is_on_both_sides_and_each_is_read_alone(pipeline):
    sequence = read_sequence(pipeline)
    members, others = audit.split_patients(sequence.source)
    assert [len(side) for side in (members, others)] == [2, 2]
    assert not {case.patient for scans in members for case in scans} & {c.patient for scans in others for c in scans}
    assert all(not case.labels for scans in (*members, *others) for case in scans)
    scans = PatientScans(members, sequence.task, pipeline.parent / "data")
    assert [volume.shape for volume in scans] == [(2, 1, *sequence.task.size)] * 2
    assert torch.equal(scans[1], [*scans][1])
