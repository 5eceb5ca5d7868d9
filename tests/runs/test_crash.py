"""Each operation on files is made the last one of a command; the same command again must end as if undisturbed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from garda.handover import format, verify
from garda.runs import hop
from tests.support import crash, fakes, sites
from tests.support.crash import Command
from tests.support.sites import SITES

FEW = 5  # states of a command that `make test` tries; `make test-crash` tries all


@pytest.fixture(scope="module")
def commands(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    """By name, what writes to a folder and nowhere else."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("short")
    pipeline = sites.other_words(pipeline, folder, f", {SITES[2]}", "")
    sites.run_tiny(pipeline, source, method="adabn")
    first = format.find_stage(source, 0)
    images = [sites.image(pipeline, 0, number) for number in (0, 1)]
    return {
        "run": lambda folder: sites.run_tiny(pipeline, folder / "run", method="adabn"),
        "adapt": lambda folder: hop.adapt(fakes.hop_to(pipeline, first, 1, folder / "b")),
        "adapt to zip": lambda folder: hop.adapt(fakes.hop_to(pipeline, first, 1, folder / "b.zip")),
        "predict": lambda folder: sites.predict(source, images, folder / "maps"),
    }


NAMES = ("run", "adapt", "adapt to zip", "predict")


def _states(command: Command, folder: Path, few: int | None) -> Iterator[tuple[int, bool]]:
    """Operations to die before, and whether the file in hand is torn."""
    code, count = crash.run(command, folder)
    assert code == crash.DONE and count > 10
    chosen = range(1, count + 1) if few is None else [1 + number * (count - 1) // (few - 1) for number in range(few)]
    for last in chosen:
        yield last, last % 2 == 0
        if few is None:
            yield last, last % 2 == 1


def _try_all(command: Command, folder: Path, few: int | None) -> int:
    whole = folder / "whole"
    whole.mkdir()
    states = [*_states(command, whole, few)]
    expected = crash.contents(whole)
    for last, torn in states:
        place = folder / "whole"  # the same path: it stands in what is written
        shutil.rmtree(place)
        place.mkdir()
        assert crash.run(command, place, last, torn=torn)[0] == crash.KILLED
        for package in [*place.rglob("package"), *place.glob("b*")]:
            verify.open_package(package).__enter__()  # what has a package's name is one
        code, _ = crash.run(command, place)
        found = crash.contents(place)
        differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        assert (code, differ) == (crash.DONE, []), (last, torn)
    return len(states)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_ends_as_if_undisturbed(name, commands, tmp_path):
    assert _try_all(commands[name], tmp_path, FEW) == FEW


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_state_that_a_kill_leaves(name, commands, tmp_path, capsys):
    count = _try_all(commands[name], tmp_path, None)
    with capsys.disabled():
        print(f"{name}: {count} states resumed to equal bytes")


@pytest.mark.parametrize("name", ["run", "adapt"])
def test_a_full_disk_is_one_line_and_loses_nothing(name, commands, tmp_path):
    place = tmp_path / "whole"
    place.mkdir()
    assert crash.run(commands[name], place)[0] == crash.DONE
    expected = crash.contents(place)
    size = sum(map(len, expected.values()))
    for room in [size * number // 6 for number in range(1, 5)]:
        shutil.rmtree(place)
        place.mkdir()
        assert crash.on_disk_of(room, commands[name], place)[0] == crash.REFUSED
        assert crash.run(commands[name], place)[0] == crash.DONE
        assert crash.contents(place) == expected
