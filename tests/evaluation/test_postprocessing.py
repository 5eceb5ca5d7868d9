"""Of which classes the largest piece alone is kept."""

from dataclasses import replace

import pytest
import torch

from garda.data import components
from garda.data.sequence import read_sequence
from garda.evaluation import evaluator
from garda.methods.knowledge import load_knowledge
from garda.models import inference
from tests.support import fakes


@pytest.mark.parametrize(
    ("found", "wanted", "groups"),
    [
        ([1, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0], ((1,),)),
        ([1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0], ()),
        ([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], ((1,),)),
        ([1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], ()),
    ],
    ids=["Dice rises", "Dice falls", "nothing changes and labels are whole", "a part of the label would go"],
)
def test_the_largest_piece_is_kept_where_the_source_says_so(found, wanted, groups):
    pair = tuple(torch.tensor([[each]]) for each in (found, wanted))
    assert components.choose_groups([pair], classes=2) == groups
    assert components.choose_groups([], classes=2) == ()


def test_what_is_kept_is_chosen_on_the_sources_scans_and_travels(pipeline, tmp_path, monkeypatch):
    sequence = read_sequence(pipeline)
    method, data = fakes.method("source_only"), pipeline.parent / "data"
    method.task = sequence.task
    known = fakes.known_by("source_only")[0]
    seen = []

    def with_a_speck(network, volume, *given):
        seen.append(volume)
        label = volume.label.clone()
        label[0, 0, 0] = 1
        return label

    monkeypatch.setattr(inference, "segment", with_a_speck)
    groups = evaluator.choose_postprocessing(method, known, sequence.source, data)
    assert groups and seen
    label = components.keep_largest(with_a_speck(None, seen[0]), groups)
    assert label[0, 0, 0] == 0
    replace(known, largest=groups).save(tmp_path / "known")
    assert (
        load_knowledge(tmp_path / "known", fakes.method("source_only").build_segmenter, lambda: None).largest == groups
    )
