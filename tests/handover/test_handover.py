import json
import re
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from garda.core import files
from garda.core.console import Console
from garda.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GardaError,
    Interrupted,
    PackageError,
    RunFolderError,
)
from garda.core.pseudonyms import Pseudonyms
from garda.data import sequence
from garda.evaluation import metrics
from garda.handover import format, ledger, load, signing, verify
from garda.handover.format import CARD, OPEN
from garda.handover.signing import Trusted
from garda.methods.base import Oracle
from garda.methods.registry import METHODS
from garda.runs import hop, predict, stage
from garda.runs.run import run_sequence
from tests.support import cli, fakes, sites
from tests.support.fakes import StopAt
from tests.support.sites import SITES


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    sites.run_tiny(pipeline, out, method="garda")
    return out


@pytest.fixture(scope="module")
def source(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What leaves the first hospital."""
    path = tmp_path_factory.mktemp("source") / "source.zip"
    format.pack(format.find_stage(finished, 0), path)
    return path


def copy(package: Path, folder: Path) -> Path:
    return Path(shutil.copytree(package, folder / "package"))


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if not issubclass(known, Oracle)])
def test_hop_by_hop_is_the_sequence_to_the_bit(method, pipeline, tmp_path):
    whole = tmp_path / "run"
    sites.run_tiny(pipeline, whole, method=method)
    hop.adapt(fakes.hop_to(pipeline, format.find_stage(whole, 0), 1, tmp_path / "1"))
    shutil.move(tmp_path / "1", tmp_path / "elsewhere")
    hop.adapt(fakes.hop_to(pipeline, tmp_path / "elsewhere", 2, tmp_path / "2.zip"))
    assert not (tmp_path / "1").exists()
    assert fakes.knowledge(tmp_path / "elsewhere") == fakes.knowledge(format.find_stage(whole, 1))
    with format.opened(tmp_path / "2.zip") as folder:
        assert fakes.knowledge(folder) == fakes.knowledge(format.find_stage(whole, 2))
        hops = verify.verify(folder).entries
    stages = verify.verify(format.find_stage(whole, 2)).entries
    assert [entry.decision for entry in hops] == [entry.decision for entry in stages]
    assert [entry.checks for entry in hops] == [entry.checks for entry in stages]
    assert not list(tmp_path.glob(".*"))


def test_a_ledger_says_what_was_learnt_kept_and_deleted(finished):
    entries = verify.verify(format.find_stage(finished)).entries
    assert [(entry.stage, entry.domain) for entry in entries] == [*enumerate(SITES)]
    assert [(entry.patients, entry.scans, entry.slices) for entry in entries] == [(2, 2, 4)] * 3
    assert [{file.name for file in entry.deleted} for entry in entries] == [
        {f"{part}/checkpoint.pt" for part in ("segmenter", "generator", "prior", "adapter")},
        *[{f"{part}/checkpoint.pt" for part in ("generator", "adapter")}] * 2,
    ]
    assert {*entries[0].seconds} == {"segmenter", "generator", "prior", "adapter"}
    assert all(entry.scores and entry.kept and not entry.forced for entry in entries)
    assert len({entry.manifest for entry in entries}) == 3
    plan = json.loads((finished / "plan.json").read_text())
    assert not {entry.manifest for entry in entries} & {domain["manifest"] for domain in plan["domains"]}


def test_a_package_holds_the_scores_that_the_run_has(finished):
    entries = verify.verify(format.find_stage(finished)).entries
    rows = {(r.stage, r.domain, r.name): r.dice for entry in entries for r in entry.scores}
    scores = {(row.stage, row.domain, row.name): row.dice for row in metrics.read_scores(finished / "scores.csv")}
    assert rows == pytest.approx(scores)  # one test patient a site
    assert (format.find_stage(finished) / "scores.csv").read_text().count("\n") == 1 + len(rows)


def test_a_hospital_scores_what_it_has_labels_for_before_and_after(pipeline, source, finished, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    entry = verify.verify(tmp_path / "1").entries[-1]
    assert {(result.stage, result.domain) for result in entry.scores} == {(0, SITES[1]), (1, SITES[1])}
    rows = [row for row in metrics.read_scores(finished / "scores.csv") if row.domain == SITES[1] and row.stage < 2]
    assert [result.dice for result in entry.scores] == pytest.approx([row.dice for row in rows])


def test_the_same_hop_again_changes_nothing(pipeline, source, tmp_path):
    made = fakes.hop_to(pipeline, source, 1, tmp_path / "1")
    hop.adapt(made)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "1").iterdir()}
    hop.adapt(made)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "1").iterdir()} == before
    with pytest.raises(RunFolderError, match="exists already, and is not what this hop gives; give another --out"):
        hop.adapt(fakes.hop_to(pipeline, source, 2, tmp_path / "1"))


def test_a_stopped_hop_goes_on(pipeline, source, finished, tmp_path):
    stop = StopAt(f"1-{SITES[1]}-adapter", 1)
    with pytest.raises(Interrupted):
        hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1", tracker=stop, stopping=stop.stopping))
    work = tmp_path / ".1.work"
    assert (work / "stages" / f"1-{SITES[1]}" / "training" / "adapter" / "checkpoint.pt").exists()
    assert not (tmp_path / "1").exists()
    with pytest.raises(RunFolderError, match=r"another plan, domains\.1\.manifest differs"):
        hop.adapt(fakes.hop_to(pipeline, source, 2, tmp_path / "1"))
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 1))
    assert not work.exists()


@pytest.mark.parametrize("function", ["stage.write.write_package", "hop._deliver", "hop._score"])
def test_a_hop_killed_after_learning_goes_on(function, pipeline, source, finished, tmp_path, monkeypatch):
    def die(*args, **others):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"garda.runs.{function}", die)
        with pytest.raises(KeyboardInterrupt):
            hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 1))
    verify.verify(tmp_path / "1")


@pytest.mark.parametrize("name", ["write_card", "ledger.write_lines", "results.format_results"])
def test_a_run_killed_while_sealing_seals_again(name, pipeline, tmp_path, monkeypatch):
    def die(*args, **others):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"garda.handover.write.{name}", die)
        with pytest.raises(KeyboardInterrupt):
            sites.run_tiny(pipeline, tmp_path / "run", method="source_only")
    assert (format.find_stage(tmp_path / "run") / OPEN).exists()
    with pytest.raises(PackageError, match="its stage has not been finished; run the same command again first"):
        hop.adapt(fakes.hop_to(pipeline, tmp_path / "run", 1, tmp_path / "1"))
    sites.run_tiny(pipeline, tmp_path / "run", method="source_only")
    assert len(verify.verify(format.find_stage(tmp_path / "run")).entries) == 3


def test_every_change_is_found_and_named(finished, tmp_path):
    for name in sorted(path.name for path in format.find_stage(finished).iterdir()):
        package = copy(format.find_stage(finished), tmp_path / name)
        contents = bytearray((package / name).read_bytes())
        contents[len(contents) // 2] ^= 1
        (package / name).write_bytes(bytes(contents))
        with pytest.raises(GardaError) as caught:
            verify.verify(package)
        assert name in str(caught.value)


def test_every_byte_of_a_ledger_counts(finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    whole = (package / "ledger.jsonl").read_bytes()
    for place in range(0, len(whole), 97):
        for bit in (0, 5):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (package / "ledger.jsonl").write_bytes(bytes(changed))
            with pytest.raises(GardaError):
                verify.verify(package)
    (package / "ledger.jsonl").write_bytes(whole.replace(b"\n", b"\r"))
    with pytest.raises(PackageError):
        verify.verify(package)


def reseal(package: Path, number: int, **changes) -> None:
    """What someone does who may write every file: change a line and all digests after it."""
    lines = ledger.read_lines(package)
    for place in range(number - 1, len(lines)):
        entry = json.loads(lines[place]) | (changes if place == number - 1 else {})
        if place > 0:
            entry["previous"] = ledger.line_digest(lines[place - 1])
        if place == len(lines) - 1:
            entry["kept"] = [record.model_dump() for record in format.contents(package)]
        lines[place] = json.dumps(entry, sort_keys=True).encode()
    (package / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (package / "digest.txt").write_text(f"{format.package_digest(package)}\n")


@pytest.mark.parametrize(
    ("number", "changes", "what"),
    [
        (1, {"reference": None}, "line 1: a source stands first, with what the gate measured of it"),
        (1, {"decision": "promote"}, "line 1: a source stands first"),
        (1, {"reference": {}}, "line 1: is damaged"),
        (3, {"decision": "refuse", "reasons": ["no"]}, "says that .* were met, knowledge.json says otherwise"),
        (3, {"domain": "x: source\npackage 00"}, "line 3: is damaged"),
        (3, {"patients": 9}, "card.md: does not say what ledger.jsonl says"),
        (2, {"seed": 9}, "line 2: was learnt with other settings"),
        (3, {"extra": 1}, "line 3: is damaged"),
    ],
)
def test_a_ledger_that_contradicts_itself_is_found(number, changes, what, finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    reseal(package, number, **changes)
    with pytest.raises(PackageError, match=what):
        verify.verify(package)


def test_a_refused_stage_cannot_have_changed_anything(finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    facts = json.loads((package / "knowledge.json").read_text())
    (package / "knowledge.json").write_text(json.dumps(facts | {"domains": facts["domains"][:2]}))
    reseal(package, 3, decision="refuse", reasons=["no"])
    with pytest.raises(PackageError, match="line 3: was refused, and yet its knowledge is not that of the line before"):
        verify.verify(package)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("scores.csv", "scores.csv: does not say what"),
        ("card.md", "card.md: does not say what"),
        ("teacher.safetensors", "line 3: has another teacher.safetensors than the line before"),
        ("setup.json", "line 1: was learnt with other settings"),
    ],
)
def test_a_file_that_fits_its_digest_alone_is_found(name, what, finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    text = (package / name).read_bytes()
    (package / name).write_bytes(text.replace(b"myocardium", b"ventricle0") if name == "setup.json" else text + b" ")
    reseal(package, 3)
    with pytest.raises(PackageError, match=what):
        verify.verify(package)


def test_a_package_of_a_newer_format_says_so(finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    setup = json.loads((package / "setup.json").read_text()) | {"format": 3, "new": 1}
    (package / "setup.json").write_text(json.dumps(setup))
    with pytest.raises(PackageError, match="is of format 3, this version of garda knows 1 to 2; use the version"):
        load.load_package(package)


def test_the_digest_told_by_another_channel(finished):
    package = format.find_stage(finished)
    assert (package / "digest.txt").read_text() == f"{format.package_digest(package)}\n"
    verify.verify(package, expected=format.package_digest(package).upper())
    with pytest.raises(PackageError, match="not the expected one; ask which package it is"):
        verify.verify(package, expected=format.package_digest(format.find_stage(finished, 1)))
    with pytest.raises(ConfigError, match="'28e2c9' is no whole digest; give all 64 digits"):
        verify.verify(package, expected="28e2c9")


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_line_that_does_not_fit_is_named(number, finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    lines = (package / "ledger.jsonl").read_text().splitlines()
    lines[number] = lines[number].replace('"patients": 2', '"patients": 9')
    (package / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(PackageError) as caught:
        verify.verify(package)
    assert str(caught.value) == (
        f"{package}/ledger.jsonl, line {number + 2}: does not follow: line {number + 1} has been changed; "
        "ask for the package again"
    )


def test_a_line_that_was_cut_off_or_put_in_is_found(finished, tmp_path):
    for name, change in (("cut", lambda lines: lines[:-1]), ("first", lambda lines: lines[1:])):
        package = copy(format.find_stage(finished), tmp_path / name)
        lines = (package / "ledger.jsonl").read_text().splitlines()
        (package / "ledger.jsonl").write_text("\n".join(change(lines)) + "\n")
        with pytest.raises(PackageError):
            verify.verify(package)


def test_other_settings_than_those_of_the_ledger_are_found(finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    setup = json.loads((package / "setup.json").read_text())
    setup["settings"]["garda"]["target"]["learning_rate"] = 1.0
    (package / "setup.json").write_text(json.dumps(setup))
    lines = ledger.read_lines(package)
    last = json.loads(lines[-1])
    last["kept"] = [record.model_dump() for record in format.contents(package)]
    (package / "ledger.jsonl").write_bytes(b"\n".join([*lines[:-1], json.dumps(last, sort_keys=True).encode()]) + b"\n")
    with pytest.raises(PackageError, match=r"line 1: was learnt with other settings than those of setup\.json"):
        verify.verify(package)


@pytest.mark.parametrize(("name", "what"), [("extra.pt", "is no part of a package"), (CARD, "is missing")])
def test_a_file_too_many_or_too_few(name, what, finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    if (package / name).exists():
        (package / name).unlink()
    else:
        (package / name).touch()
    with pytest.raises(PackageError, match=what):
        verify.verify(package)


def test_a_zipped_package_is_the_same_package_and_the_same_bytes(finished, tmp_path):
    package = format.find_stage(finished)
    for name in ("a.zip", "b.zip"):
        format.pack(package, tmp_path / name)
        shutil.copytree(package, tmp_path / f"{name}-copy")  # other file times
        package = tmp_path / f"{name}-copy"
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with format.opened(tmp_path / "a.zip") as folder:
        assert verify.verify(folder).digest == format.package_digest(format.find_stage(finished))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with pytest.raises(RunFolderError, match="exists already"):
        format.pack(package, tmp_path / "a.zip")


@pytest.mark.parametrize("way", ["before", "after", "comment", "twice", "deflated", "dated"])
def test_nothing_hides_in_a_zip_file(way, finished, tmp_path):
    format.pack(format.find_stage(finished), tmp_path / "p.zip")
    path = tmp_path / "p.zip"
    if way in ("before", "after"):
        whole = path.read_bytes()
        path.write_bytes(b"secret" + whole if way == "before" else whole + b"secret")
    else:
        with zipfile.ZipFile(path, "a") as archive:
            if way == "comment":
                archive.comment = b"secret"
            else:
                member = zipfile.ZipInfo(CARD if way == "twice" else "signatures.jsonl")
                member.compress_type = zipfile.ZIP_DEFLATED if way == "deflated" else zipfile.ZIP_STORED
                member.date_time = (2026, 11, 24, 0, 0, 0) if way == "dated" else (1980, 1, 1, 0, 0, 0)
                with warnings.catch_warnings(action="ignore"):  # a name that stands twice
                    archive.writestr(member, b"secret" * 100)
    with (
        pytest.raises(PackageError, match=r"is not zipped as garda zips a package|is no zipped package"),
        format.opened(path),
    ):
        pass


def test_a_package_holds_files_and_nothing_else(finished, tmp_path):
    package = copy(format.find_stage(finished), tmp_path)
    (package / "signatures.jsonl").symlink_to("nowhere")
    with pytest.raises(PackageError, match=r"signatures\.jsonl: is no file of its own"):
        verify.verify(package)
    (package / "signatures.jsonl").unlink()
    (package / "signatures.jsonl").mkdir()
    with pytest.raises(PackageError, match=r"signatures\.jsonl: is no file of its own"):
        verify.verify(package)


def test_the_same_hop_with_other_options_is_not_called_done(pipeline, source, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    key, _ = sign(tmp_path, "a.key")
    for options in ({"key": key}, {"audited": True}, {"pseudonyms": Pseudonyms(b"another key")}):
        with pytest.raises(RunFolderError, match="is not what this hop gives"):
            hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1", **options))


def test_what_a_killed_hop_leaves_beside_its_package_goes(pipeline, source, tmp_path, monkeypatch):
    remove = files.remove_folder

    def die(folder):
        if folder.name == ".1.work":
            raise KeyboardInterrupt
        remove(folder)

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_folder", die)
        with pytest.raises(KeyboardInterrupt):
            hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    assert (tmp_path / ".1.work").stat().st_mode & 0o777 == 0o700
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1"))
    assert not (tmp_path / ".1.work").exists()


def test_the_accelerator_is_this_machines(pipeline, source, finished, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1", changes={"compute": {"accelerator": "cpu"}}))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 1))


@pytest.mark.parametrize("name", ["../evil.sh", "evil.sh", "/tmp/evil", "sub/card.md"])
def test_a_zip_file_with_anything_else_is_refused_unread(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(PackageError, match="which is no part of a package"), format.opened(tmp_path / "p.zip"):
        pass


def test_what_is_no_package_is_one_line(tmp_path):
    (tmp_path / "p.zip").write_bytes(b"PK\3\4 not really")
    (tmp_path / "folder").mkdir()
    cases = {"p.zip": "is no zipped package, or damaged", "folder": "is no package, ledger.jsonl is missing"}
    for name, what in {**cases, "nothing": "does not exist"}.items():
        with pytest.raises(PackageError, match=what), format.opened(tmp_path / name):
            pass


def test_weights_are_read_without_executing_code(finished, tmp_path):
    import torch

    package = copy(format.find_stage(finished), tmp_path)
    torch.save({"w": torch.ones(1)}, package / "segmenter.safetensors")
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        load.load_package(package)
    with Console() as console, pytest.raises(PackageError, match=r"segmenter\.safetensors: has been changed"):
        predict.predict(package, [], tmp_path / "out", console)


def test_no_patient_no_path_and_no_day_travels(pipeline, tmp_path):
    folder = tmp_path / "conspicuous"
    sites.write_conspicuous(pipeline, folder)
    sites.run_tiny(folder / "pipeline.yaml", tmp_path / "run", method="garda")
    hop.adapt(fakes.hop_to(folder / "pipeline.yaml", format.find_stage(tmp_path / "run", 0), 1, tmp_path / "1"))
    private = [b"Mustermann", b"conspicuous", *(f"{site}_0".encode() for site in SITES), b".nii", b"/tmp", b"P-", b"C-"]
    for file in [*format.find_stage(tmp_path / "run").iterdir(), *(tmp_path / "1").iterdir()]:
        contents = file.read_bytes()
        if file.suffix != ".safetensors":
            assert [word for word in private if word in contents] == [], file
            assert not re.search(rb"20\d\d-\d\d-\d\d", contents), file
        else:
            assert [word for word in private[:3] if word in contents] == [], file


def sign(folder: Path, name: str):
    public, digits = signing.make_keys(folder / name)
    assert signing.read_public(public) == digits
    assert (folder / name).stat().st_mode & 0o777 == 0o600
    return signing.read_private(folder / name), digits


def test_signatures_say_whose_lines_they_are(pipeline, tmp_path):
    (first, a), (second, b), (_, stranger) = (sign(tmp_path, name) for name in ("a.key", "b.key", "c.key"))
    run = sites.tiny_run(sequence.read_sequence(pipeline, method="source_only"), pipeline, tmp_path / "run")
    run_sequence(replace(run, key=first))
    package = format.find_stage(tmp_path / "run", 0)
    with pytest.raises(PackageError, match=f"ledger line 1: signed by a stranger, {a}"):
        hop.adapt(fakes.hop_to(pipeline, package, 1, tmp_path / "1", trusted=[Trusted(stranger)], key=second))
    hop.adapt(fakes.hop_to(pipeline, package, 1, tmp_path / "1", trusted=[Trusted(a)], key=second))
    found = verify.verify(tmp_path / "1", [Trusted(a), Trusted(b, SITES[1])])
    assert [(signature.line, signature.key) for signature in found.signatures] == [(1, a), (2, b)]
    with pytest.raises(PackageError, match="ledger line 2: signed by a stranger"):
        verify.verify(tmp_path / "1", [Trusted(a)])
    what = f"ledger line 1: is a line of {SITES[0]}, and its key is trusted for {SITES[1]} alone"
    with pytest.raises(PackageError, match=what):  # b may sign for its own site alone
        lines = ledger.read_lines(tmp_path / "1")
        signing.write_signatures(
            tmp_path / "1", [signing.sign_line(line, number, second) for number, line in enumerate(lines, 1)]
        )
        verify.verify(tmp_path / "1", [Trusted(a, SITES[0]), Trusted(b, SITES[1])])
    hop.adapt(fakes.hop_to(pipeline, package, 1, tmp_path / "unsigned", trusted=[Trusted(a)]))
    with pytest.raises(PackageError, match="ledger line 2: nobody has signed it; ask its site to sign"):
        verify.verify(tmp_path / "unsigned", [Trusted(a), Trusted(b)])
    assert len(verify.verify(tmp_path / "unsigned").signatures) == 1


def test_a_key_that_comes_after_the_sealing_is_refused(pipeline, tmp_path):
    (first, _), (second, _) = (sign(tmp_path, name) for name in ("a.key", "b.key"))
    run = sites.tiny_run(sequence.read_sequence(pipeline, method="source_only"), pipeline, tmp_path / "run")
    run_sequence(replace(run, key=first))
    run_sequence(replace(run, key=first))
    run_sequence(run)
    with pytest.raises(RunFolderError, match="was sealed without this key's signature, and is not signed later; leave"):
        run_sequence(replace(run, key=second))


def test_every_command_that_reads_a_package_asks_for_trusted_signatures(pipeline, tmp_path, capsys):
    (key, _), (_, _) = (sign(tmp_path, name) for name in ("a.key", "b.key"))
    run = sites.tiny_run(sequence.read_sequence(pipeline, method="garda"), pipeline, tmp_path / "run")
    run_sequence(replace(run, key=key))
    package, data = format.find_stage(tmp_path / "run"), pipeline.parent / "data"
    manifest = data / "manifests" / f"{SITES[2]}.csv"
    image = next((data / SITES[2] / "images").glob("*.nii.gz"))
    for number, words in enumerate(
        [
            ("evaluate", package, manifest, "--data", data),
            ("audit", package, manifest, "--data", data),
            ("export", package, "--out", tmp_path / "0.zip"),
            ("export", package, "--to", "bundle", "--out", tmp_path / "bundle"),
            ("predict", package, image, "--out", tmp_path / "maps"),
        ]
    ):
        assert cli.garda(*words, "--trust", tmp_path / "b.key.pub") == 2, number
        assert "signed by a stranger" in capsys.readouterr().err
        assert cli.garda(*words, "--trust", tmp_path / "a.key.pub") == 0, number


def test_messages_name_the_zip_file_and_not_where_it_was_unpacked(finished, tmp_path):
    format.pack(format.find_stage(finished), tmp_path / "a.zip")
    with pytest.raises(PackageError) as error, format.opened(tmp_path / "a.zip") as folder:
        verify.verify(folder, expected="0" * 64)
    assert str(error.value).startswith(f"{tmp_path / 'a.zip'}: has the digest ")


def test_a_package_that_vanishes_while_it_is_learnt_from_gives_no_package(pipeline, finished, tmp_path, monkeypatch):
    own = stage.learn

    def learn(*given):
        learnt = own(*given)
        shutil.rmtree(tmp_path / "source")
        return learnt

    shutil.copytree(format.find_stage(finished, 0), tmp_path / "source")
    monkeypatch.setattr(stage, "learn", learn)
    with pytest.raises(PackageError, match="has lost its ledger since it was opened; run the same command again"):
        hop.adapt(fakes.hop_to(pipeline, tmp_path / "source", 1, tmp_path / "1"))
    assert not (tmp_path / "1").exists()


def test_widths_that_fit_no_machine_are_one_line(finished, tmp_path):
    shutil.copytree(format.find_stage(finished), tmp_path / "package")
    setup = json.loads((tmp_path / "package" / "setup.json").read_text())
    setup["settings"]["segmenter"] = {"widths": [10**9] * 6}
    (tmp_path / "package" / "setup.json").write_text(json.dumps(setup))
    with pytest.raises(
        ConfigError, match=r"setup.json: segmenter.widths.0: input should be less than or equal to 2048, got 1000000000"
    ):
        load.load_package(tmp_path / "package")


def test_a_signature_of_another_line_does_not_fit(pipeline, tmp_path):
    key, digits = sign(tmp_path, "a.key")
    run = sites.tiny_run(sequence.read_sequence(pipeline, method="source_only"), pipeline, tmp_path / "run")
    run_sequence(replace(run, key=key))
    package = format.find_stage(tmp_path / "run")
    lines = (package / "signatures.jsonl").read_text().splitlines()
    (package / "signatures.jsonl").write_text(lines[0].replace('"line": 1', '"line": 2') + "\n")
    for trusted in ([], [Trusted(digits)]):
        with pytest.raises(PackageError, match="ledger line 2: the signature does not fit the line"):
            verify.verify(package, trusted)


def test_keys_that_cannot_be_used(tmp_path):
    signing.make_keys(tmp_path / "a.key")
    with pytest.raises(GardaError, match="exists already; give another name"):
        signing.make_keys(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(ConfigError, match="other users have access to the key; run: chmod 600"):
        signing.read_private(tmp_path / "a.key")
    with pytest.raises(ConfigError, match=r"is no public key; give a \.pub file"):
        signing.read_public(tmp_path / "a.key")
    with pytest.raises(ConfigError, match="the key cannot be read"):
        signing.read_public(tmp_path / "none.pub")


def test_what_cannot_be_adapted_is_told_and_nothing_is_written(pipeline, source, tmp_path):
    sites.run_tiny(pipeline, tmp_path / "run", method="joint")
    cases = [
        (fakes.hop_to(pipeline, tmp_path / "run", 1, tmp_path / "1", name="new"), "needs the images of earlier sites"),
        (fakes.hop_to(pipeline, source, 0, tmp_path / "1"), "has been met already; give the site another --name"),
        (fakes.hop_to(pipeline, source, 1, tmp_path / "1", name="a/b"), "'a/b' is no domain's name"),
        (fakes.hop_to(pipeline, source, 1, tmp_path / "1", changes={"seed": 1}), "unknown key 'seed'"),
        (
            fakes.hop_to(pipeline, source, 1, tmp_path / "1", changes={"source": {"steps": 9}}),
            "is what the package decides",
        ),
    ]
    for made, what in cases:
        with pytest.raises((PackageError, DataError, ConfigError), match=what):
            hop.adapt(made)
        assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_package_is_scored_wherever_there_are_labels(pipeline, source, finished, tmp_path):
    manifests = [pipeline.parent / "data" / "manifests" / f"{site}.csv" for site in SITES]
    quiet = Console(RichConsole(quiet=True))
    scores = hop.evaluate_package(source, manifests, pipeline.parent / "data", quiet, Pseudonyms(b"a key for tests"))
    assert scores == [row for row in metrics.read_scores(finished / "scores.csv") if row.stage == 0]


def test_a_package_predicts_as_its_run(pipeline, source, finished, tmp_path):
    image = next((pipeline.parent / "data" / SITES[1] / "images").glob("*_003.nii.gz"))
    with Console(RichConsole(quiet=True)) as console:
        (one,) = predict.predict(source, [image], tmp_path / "package", console)
        (other,) = predict.predict(finished, [image], tmp_path / "run", console, stage=0)
    assert one.read_bytes() == other.read_bytes()


def test_the_card_tells_what_the_package_is(finished):
    card = (format.find_stage(finished) / CARD).read_text()
    for words in ("heart", "myocardium", *SITES, "description of modifications", "modification protocol", "impact"):
        assert words in card
    entry = ledger.parse_lines(format.find_stage(finished), ledger.read_lines(format.find_stage(finished)))[-1]
    assert f"| 2 | {SITES[2]} | {entry.month} | 2 | 2 | 4 | never read | {entry.decision} |" in card
    assert all(line == line.rstrip() and len(line) <= 160 for line in card.splitlines())
