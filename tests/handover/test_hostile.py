"""Packages that somebody made to do harm, by every command: each is refused in one line, or read as documented."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from garda.handover import format
from tests.support import forge, sites
from tests.support.cli import garda
from tests.support.sites import SITES

Attack = Callable[[Path], object]
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


def weights(name: str, change: Callable[[dict[str, np.ndarray]], object]) -> Attack:
    return lambda package: forge.change_weights(package, name, change)


def settings(**changes: object) -> Attack:
    return lambda package: forge.change_settings(package, {key.replace("__", "."): v for key, v in changes.items()})


def fill(ending: str, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    """One value of the first tensor whose name ends so."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith(ending))
        tensors[name] = tensors[name].copy()
        tensors[name].flat[0] = value

    return change


def swap(tensors: dict[str, np.ndarray]) -> None:
    """What is kept of two targets changes places."""
    for name in [name for name in tensors if name.startswith(f"{SITES[1]}/")]:
        other = name.replace(SITES[1], SITES[2], 1)
        tensors[name], tensors[other] = tensors[other], tensors[name]


def empty(site: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(f"{site}/")]:
            del tensors[name]

    return change


def text(name: str, change: Callable[[str], str]) -> Attack:
    return lambda package: (package / name).write_text(change((package / name).read_text()))


def in_place_of(name: str, make: Callable[[Path], object]) -> Attack:
    def attack(package: Path) -> None:
        (package / name).unlink()
        make(package / name)

    return attack


def another_version(package: Path) -> None:
    lines = [json.loads(line) for line in (package / "ledger.jsonl").read_bytes().splitlines()]
    lines[-1]["garda"] = "9.9.9"
    (package / "ledger.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def edited_card(package: Path) -> None:
    another_version(package)
    forge.seal_again(package)
    card = (package / "card.md").read_text().replace("**promote**", "**promote**, and safe")
    (package / "card.md").write_text(card + "\nApproved by everyone.\n")


SEALED: dict[str, Attack] = {  # every digest fits
    "a weight is NaN": weights("segmenter.safetensors", fill("conv.weight", np.nan)),
    "a weight is infinite": weights("teacher.safetensors", fill("conv.weight", np.inf)),
    "a statistic is NaN": weights("statistics.safetensors", fill("running_mean", np.nan)),
    "a variance is negative": weights("statistics.safetensors", fill("running_var", -1.0)),
    "a variance of the network is negative": weights("segmenter.safetensors", fill("running_var", -1.0)),
    "statistics of two sites are swapped": weights("statistics.safetensors", swap),
    "statistics of a site are gone": weights("statistics.safetensors", empty(SITES[1])),
    "statistics of the last site are gone": weights("statistics.safetensors", empty(SITES[2])),
    "statistics of a site that was never met": weights(
        "statistics.safetensors", lambda tensors: tensors.update({"elsewhere/x": np.zeros(1, np.float32)})
    ),
    "a tensor too many": weights("segmenter.safetensors", lambda t: t.update(more=np.zeros(3, np.float32))),
    "a tensor of another shape": weights(
        "segmenter.safetensors", lambda t: t.update({min(t): np.zeros((2, 2), np.float32)})
    ),
    "a tensor of whole numbers": weights("segmenter.safetensors", lambda t: t.update({min(t): t[min(t)].astype(int)})),
    "a hundred thousand threads": settings(settings__compute__threads=100_000),
    "steps without end": settings(settings__source__steps=10**12),
    "a number of many digits": settings(settings__source__steps=10**400),
    "a grid of a million": settings(task__size=[2**20, 2**20]),
    "a network of a million channels": settings(settings__segmenter__widths=[10**6] * 6),
    "seven channels": settings(task__channels=7),
    "an unknown method": settings(method="elsewhere"),
    "an unknown setting": settings(settings__source__execute="rm"),
    "a batch of none": settings(settings__source__batch=0),
    "a class that clears the screen": settings(task__classes=["background", ESCAPE, "b", "c"]),
    "a task that clears the screen": settings(task__name=ESCAPE),
    "a name that clears the screen": settings(name=ESCAPE),
    "a card that flatters": edited_card,
    "a newer format": settings(format=99),
    "no format": settings(format="three"),
    "sites that were never met": text("knowledge.json", lambda old: old.replace(SITES[1], "elsewhere")),
}

TORN: dict[str, Attack] = {  # as they are found
    "a pipe": in_place_of("card.md", os.mkfifo),
    "a pipe for settings": in_place_of("setup.json", os.mkfifo),
    "a pipe for the ledger": in_place_of("ledger.jsonl", os.mkfifo),
    "a link": in_place_of("card.md", lambda path: path.symlink_to("/etc/hostname")),
    "a device": in_place_of("scores.csv", lambda path: path.symlink_to("/dev/zero")),
    "a folder": in_place_of("NOTICE.md", Path.mkdir),
    "a file too many": lambda package: (package / "run.py").write_text("import os"),
    "a file too few": lambda package: (package / "teacher.safetensors").unlink(),
    "no ledger": lambda package: (package / "ledger.jsonl").unlink(),
    "an empty ledger": lambda package: (package / "ledger.jsonl").write_bytes(b""),
    "a ledger of NaN": text("ledger.jsonl", lambda old: old.replace('"seed": 0', '"seed": NaN')),
    "a line less": text("ledger.jsonl", lambda old: "".join(old.splitlines(True)[:-1])),
    "two lines changed places": text("ledger.jsonl", lambda old: "".join(old.splitlines(True)[::-1])),
    "weights cut in half": lambda package: os.truncate(package / "segmenter.safetensors", 1000),
    "settings nested a thousand deep": text("setup.json", lambda old: '{"a":' * 5000 + "1" + "}" * 5000),
    "another digest": text("digest.txt", lambda old: old[::-1]),
}


@pytest.fixture(scope="module")
def learnt(run_of: Callable[[str], Path]) -> Path:
    return format.find_stage(run_of("adabn"))


def commands(package: Path, pipeline: Path, out: Path) -> dict[str, tuple[object, ...]]:
    data, scan = ("--data", pipeline.parent / "data"), sites.image(pipeline, 2, 3)
    site = ("--name", "next")
    return {
        "verify": ("verify", package),
        "predict": ("predict", package, scan, "--out", out / "maps"),
        "adapt": ("adapt", package, sites.manifest(pipeline, 2), *data, *site, "--out", out / "next"),
        "evaluate": ("evaluate", package, sites.manifest(pipeline, 2), *data),
        "export": ("export", package, "--out", out / "a.zip"),
        "report": ("report", package, "--for", "auditor", "--out", out / "page.html"),
    }


def attacked(learnt: Path, folder: Path, attack: Attack, *, sealed: bool) -> Path:
    package = Path(shutil.copytree(learnt, folder / "package"))
    attack(package)
    if sealed:
        if attack is not edited_card:
            forge.seal_again(package)
        else:
            lines = [json.loads(line) for line in (package / "ledger.jsonl").read_bytes().splitlines()]
            lines[-1]["kept"] = [each.model_dump() for each in format.contents(package)]
            (package / "ledger.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
            (package / "digest.txt").write_text(f"{format.package_digest(package)}\n")
    return package


@pytest.mark.parametrize("name", [*SEALED, *TORN])
def test_what_was_made_to_do_harm_is_refused_by_every_command(name, learnt, pipeline, tmp_path, capsys):
    package = attacked(learnt, tmp_path, {**SEALED, **TORN}[name], sealed=name in SEALED)
    for command, words in commands(package, pipeline, tmp_path).items():
        code = garda(*words)
        printed = capsys.readouterr()
        assert code == 2, (command, printed)
        assert len(printed.err.splitlines()) == 1 and ";" in printed.err, (command, printed.err)
        assert "\x1b" not in printed.err + printed.out and "Traceback" not in printed.err
    assert {path.name for path in tmp_path.iterdir()} == {"package"}


def test_what_nobody_changed_is_taken(learnt, pipeline, tmp_path, capsys):
    package = attacked(learnt, tmp_path, lambda package: None, sealed=True)
    for command, words in commands(package, pipeline, tmp_path).items():
        assert garda(*words) == 0, (command, capsys.readouterr())
