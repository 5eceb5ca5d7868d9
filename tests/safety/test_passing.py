import shutil
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
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second of three sites has sent scans that show nothing."""
    pipeline = sites.write_tiny(tmp_path_factory.mktemp("tiny"))
    for file in (pipeline.parent / "data" / SITES[1] / "images").glob("*.nii.gz"):
        image = nibabel.load(file)
        black = np.zeros(image.shape, np.float32)
        black[0, 0] = 1.0
        nibabel.save(nibabel.Nifti1Image(black, image.affine), file)
    return pipeline


@pytest.fixture(scope="module")
def finished(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    sites.run_tiny(pipeline, out, method="garda")
    return out


def test_a_run_leaves_a_refused_site_out_and_goes_on(finished):
    entries = verify.verify(format.find_stage(finished)).entries
    assert [entry.decision for entry in entries] == ["source", "refuse", "promote"]
    assert entries[1].reasons[0].startswith(f"{SITES[1]}: share of blank slices is 1, must be at most ")
    assert fakes.knowledge(format.find_stage(finished, 1)) == fakes.knowledge(format.find_stage(finished, 0))
    assert entries[1].seconds == {} and entries[1].deleted == ()
    scores = metrics.read_scores(finished / "scores.csv")
    rows = [[(row.domain, row.name, row.dice) for row in scores if row.stage == stage] for stage in range(2)]
    assert rows[0] == rows[1] and len(rows[0]) == 9
    assert len(scores) == 27
    card = (format.find_stage(finished) / CARD).read_text()
    assert f"knows: `{SITES[0]}`, `{SITES[2]}`\n" in card
    assert f"- stage 1, `{SITES[1]}`: {entries[1].reasons[0]}" in card


def test_the_same_run_again_changes_nothing(finished, pipeline):
    before = {path: path.read_bytes() for path in finished.rglob("package/*")}
    sites.run_tiny(pipeline, finished, method="garda")
    assert {path: path.read_bytes() for path in finished.rglob("package/*")} == before


def test_a_hop_that_is_refused_passes_on_what_came(finished, pipeline, tmp_path):
    first = fakes.hop_to(pipeline, format.find_stage(finished, 0), 1, tmp_path / "1")
    for _ in range(2):  # the same command again says the same
        with pytest.raises(Refused) as caught:
            hop.adapt(first)
        assert caught.value.exit_code == 3
        assert str(caught.value).startswith(
            f"{tmp_path}/1: {SITES[1]} was refused and the package stays what it was, with a line that says so: "
            f"{SITES[1]}: share of blank slices is 1, must be at most "
        )
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 0))
    hop.adapt(fakes.hop_to(pipeline, tmp_path / "1", 2, tmp_path / "2"))
    assert fakes.knowledge(tmp_path / "2") == fakes.knowledge(format.find_stage(finished, 2))
    hops, stages = verify.verify(tmp_path / "2").entries, verify.verify(format.find_stage(finished, 2)).entries
    assert [(entry.decision, entry.checks) for entry in hops] == [(entry.decision, entry.checks) for entry in stages]


def test_who_overrules_the_gate_stands_in_the_ledger(finished, pipeline, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, format.find_stage(finished, 0), 1, tmp_path / "1", forced=True))
    last = verify.verify(tmp_path / "1").entries[-1]
    assert (last.decision, last.forced, last.learnt) == ("refuse", True, True)
    assert fakes.knowledge(tmp_path / "1") != fakes.knowledge(format.find_stage(finished, 0))
    assert "**refuse**, overruled by a person" in (tmp_path / "1" / CARD).read_text()


def test_a_loss_that_is_no_number_is_the_sites_failure(finished, pipeline, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise TrainingError("stage 2-x-adapter, step 3", "loss 'real' is nan", "lower the learning rate")

    monkeypatch.setattr("garda.methods.garda.Garda.adapt", fail)
    with pytest.raises(Refused, match="stage 2-x-adapter, step 3: loss 'real' is nan"):
        hop.adapt(fakes.hop_to(pipeline, format.find_stage(finished, 1), 2, tmp_path / "2"))
    assert fakes.knowledge(tmp_path / "2") == fakes.knowledge(format.find_stage(finished, 1))


def test_a_site_is_held_within_the_limits_of_refusal(finished, pipeline, tmp_path):
    sites.run_tiny(pipeline, tmp_path / "run", method="source_only", changes={"gate": {"slices": [5, 4]}})
    entries = verify.verify(format.find_stage(tmp_path / "run")).entries
    assert [entry.decision for entry in entries] == ["source", "refuse", "hold"]
    assert entries[2].reasons == (f"{SITES[2]}: slices is 4, must be at least 5",)
    assert entries[2].learnt
    shutil.rmtree(tmp_path / "run")
