from pathlib import Path

import nibabel
import numpy as np
import pytest

from garda.core.errors import Refused, TrainingError
from garda.evaluation import metrics
from garda.handover import format, verify
from garda.handover.format import CARD
from garda.runs import hop
from tests.support import fakes, sites
from tests.support.sites import SITES


@pytest.fixture(scope="module")
def blank(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose second of three sites has sent scans that show nothing."""
    pipeline = sites.copy(pipeline, tmp_path_factory.mktemp("blank") / "tiny")
    for file in (pipeline.parent / "data" / SITES[1] / "images").glob("*.nii.gz"):
        image = nibabel.load(file)
        black = np.zeros(image.shape, np.float32)
        black[0, 0] = 1.0
        nibabel.save(nibabel.Nifti1Image(black, image.affine), file)
    return pipeline


@pytest.fixture(scope="module")
def refused(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has refused it."""
    out = tmp_path_factory.mktemp("refused") / "run"
    sites.run_tiny(blank, out, method="garda")
    return out


def test_a_run_leaves_a_refused_site_out_and_goes_on(refused):
    entries = verify.verify(format.find_stage(refused)).entries
    assert [entry.decision for entry in entries] == ["source", "refuse", "promote"]
    assert entries[1].reasons[0].startswith(f"{SITES[1]}: share of blank slices is 1, must be at most ")
    assert fakes.knowledge(format.find_stage(refused, 1)) == fakes.knowledge(format.find_stage(refused, 0))
    assert entries[1].seconds == {} and entries[1].deleted == ()
    scores = metrics.read_scores(refused / "scores.csv")
    rows = [[(row.domain, row.name, row.dice) for row in scores if row.stage == stage] for stage in range(2)]
    assert rows[0] == rows[1] and len(rows[0]) == 9
    assert len(scores) == 27
    card = (format.find_stage(refused) / CARD).read_text()
    assert f"knows: `{SITES[0]}`, `{SITES[2]}`\n" in card
    assert f"- stage 1, `{SITES[1]}`: {entries[1].reasons[0]}" in card


def test_the_same_run_again_changes_nothing(refused, blank):
    before = {path: path.read_bytes() for path in refused.rglob("package/*")}
    sites.run_tiny(blank, refused, method="garda")
    assert {path: path.read_bytes() for path in refused.rglob("package/*")} == before


def test_a_hop_that_is_refused_passes_on_what_came(refused, blank, tmp_path):
    first = fakes.hop_to(blank, format.find_stage(refused, 0), 1, tmp_path / "1")
    for _ in range(2):  # the same command again says the same
        with pytest.raises(Refused) as caught:
            hop.adapt(first)
        assert caught.value.exit_code == 3
        assert str(caught.value).startswith(
            f"{tmp_path}/1: {SITES[1]} was refused and the package stays what it was, with a line that says so: "
            f"{SITES[1]}: share of blank slices is 1, must be at most "
        )
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(refused, 0))
    hop.adapt(fakes.hop_to(blank, tmp_path / "1", 2, tmp_path / "2"))
    assert fakes.knowledge(tmp_path / "2") == fakes.knowledge(format.find_stage(refused, 2))
    hops, stages = verify.verify(tmp_path / "2").entries, verify.verify(format.find_stage(refused, 2)).entries
    assert [(entry.decision, entry.checks) for entry in hops] == [(entry.decision, entry.checks) for entry in stages]


def test_who_overrules_the_gate_stands_in_the_ledger(refused, blank, tmp_path):
    hop.adapt(fakes.hop_to(blank, format.find_stage(refused, 0), 1, tmp_path / "1", forced=True))
    last = verify.verify(tmp_path / "1").entries[-1]
    assert (last.decision, last.forced, last.learnt) == ("refuse", True, True)
    assert fakes.knowledge(tmp_path / "1") != fakes.knowledge(format.find_stage(refused, 0))
    assert "**refuse**, overruled by a person" in (tmp_path / "1" / CARD).read_text()


def test_a_loss_that_is_no_number_is_the_sites_failure(refused, blank, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise TrainingError("stage 2-x-adapter, step 3", "loss 'real' is nan", "lower the learning rate")

    monkeypatch.setattr("garda.methods.garda.Garda.adapt", fail)
    with pytest.raises(Refused, match="stage 2-x-adapter, step 3: loss 'real' is nan"):
        hop.adapt(fakes.hop_to(blank, format.find_stage(refused, 1), 2, tmp_path / "2"))
    assert fakes.knowledge(tmp_path / "2") == fakes.knowledge(format.find_stage(refused, 1))


def test_a_site_is_held_within_the_limits_of_refusal(blank, tmp_path):
    sites.run_tiny(blank, tmp_path / "run", method="source_only", changes={"gate": {"slices": [5, 4]}})
    entries = verify.verify(format.find_stage(tmp_path / "run")).entries
    assert [entry.decision for entry in entries] == ["source", "refuse", "hold"]
    assert entries[2].reasons == (f"{SITES[2]}: slices is 4, must be at least 5",)
    assert entries[2].learnt
