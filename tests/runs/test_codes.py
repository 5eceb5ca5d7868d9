"""A site whose label maps have codes of their own."""

import nibabel as nib
import numpy as np
import pytest

from garda.core.pseudonyms import Pseudonyms
from garda.evaluation import evaluator
from garda.runs import hop
from tests.support import cli, sites
from tests.support.scans import OLD
from tests.support.sites import SITES


@pytest.mark.parametrize("code", [{1: 10, 2: 20, 3: 30}, {1: 3, 2: 2, 3: 1}])
def test_a_package_is_scored_where_labels_have_other_codes(pipeline, tmp_path, code):
    own = sites.copy(pipeline, tmp_path / "tiny")
    file, data = sites.manifest(own, 2), own.parent / "data"

    def score():
        return hop.evaluate_package(OLD / "garda.zip", [file], data, sites.quiet(), Pseudonyms(b"a key for tests"))

    before = score()
    for label in (data / SITES[2] / "labels").iterdir():
        stored = nib.load(label)
        table = np.array([0, code[1], code[2], code[3]], np.uint8)
        nib.save(nib.Nifti1Image(table[np.asarray(stored.dataobj)], stored.affine), label)
    file.with_suffix(".yaml").write_text(f"values: { ({theirs: ours for ours, theirs in code.items()}) }\n")
    assert repr(score()) == repr(before)


def test_classes_that_would_fit_better_are_told(pipeline, tmp_path, monkeypatch, capsys):
    words = ("evaluate", OLD / "garda.zip", sites.manifest(pipeline, 2), "--data", pipeline.parent / "data")
    assert cli.garda(*words) == 0
    monkeypatch.setattr(evaluator.Confusion, "permuted", lambda self, domain: ([3, 2, 1], 0.2, 0.8))
    assert "would raise Dice" not in capsys.readouterr().out
    assert cli.garda(*words) == 0
    told = "label indices 3 for right_ventricle, 2 for myocardium, 1 for left_ventricle would raise Dice from 0.200 to"
    assert told in capsys.readouterr().out
