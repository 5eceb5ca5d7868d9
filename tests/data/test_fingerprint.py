"""What `garda check` says of each site, and what it refuses."""

import stat

import numpy as np
import pytest
import torch
from PIL import Image

from garda.data.preprocess import Grid
from tests.support import cli, sites
from tests.support.sites import SITES


@pytest.fixture
def words(pipeline, tmp_path):
    own = sites.copy(pipeline, tmp_path / "tiny")
    return "check", own, "--data", own.parent / "data"


def test_every_site_has_a_table_of_eighty_columns(words, capsys):
    assert cli.garda(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    for site, role in zip(SITES, ("source", "target 1", "target 2"), strict=True):
        start = lines.index(next(line for line in lines if line.startswith(f"{site} ({role})")))
        text = "\n".join(lines[start : start + 16])
        for wanted in (
            "4 of 4 patients",
            "2 with a label, 0 without",
            "orientation",
            " mm",
            "myocardium",
            "1.000 of the",
        ):
            assert wanted in text
    assert max(map(len, lines)) <= 80


def test_a_grid_that_cuts_off_the_organ_is_an_error_at_every_site(words, capsys):
    task = words[1].parent / "data" / "manifests" / "task.yaml"
    task.write_text(task.read_text().replace("64", "16"))
    assert cli.garda(*words) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == [*SITES]
    assert all("the grid of 16 x 16 pixels keeps 0." in line and "raise size" in line for line in told)


def test_what_no_manifest_names_is_told_or_refused(words, capsys):
    folder = words[-1] / SITES[1] / "images"
    for number in range(12):
        (folder / f"spare{number:02d}.nii.gz").write_bytes(b"")
    assert cli.garda(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"left out: {SITES[1]}/images/spare00.nii.gz belongs to no case" in lines and "and 2 more" in lines
    assert lines[-1] == "12 cases of 3 domains: no problem found"
    assert cli.garda(*words, "--strict") == 2
    assert "12 files would be left out" in capsys.readouterr().err


def test_pictures_are_private_and_outside_of_runs(words, tmp_path, capsys):
    assert cli.garda(*words, "--pictures", tmp_path / "sheets") == 0
    for site in SITES:
        sheet = tmp_path / "sheets" / f"{site}.png"
        assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
        assert len(np.unique(np.asarray(Image.open(sheet)))) > 20
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").touch()
    assert cli.garda(*words, "--pictures", tmp_path / "run" / "sheets") == 2
    assert "run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "resampled", "size"), [((90, 50), (60, 75), (32, 96)), ((40, 41), (40, 41), (16, 16))]
)
def test_the_window_is_what_the_network_sees(shape, resampled, size):
    grid, rows = Grid(shape, resampled, size), torch.arange(float(shape[0])).expand(1, 1, shape[1], -1).mT + 1
    seen = grid.to_network(rows)
    first, last = seen[seen > 0].min() - 1, seen.max() - 1
    window = grid.window()[0]
    assert abs(window.start - first) <= 1.5 and abs(window.stop - 1 - last) <= 1.5
