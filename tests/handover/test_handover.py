import json
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from garda.core import files
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
from garda.evaluation import metrics
from garda.handover import format, ledger, load, signing, verify
from garda.handover.format import CARD, OPEN
from garda.handover.signing import Trusted
from garda.methods.oracles import Oracle
from garda.methods.registry import METHODS
from garda.runs import hop, stage
from tests.support import cli, fakes, sites
from tests.support.errors import told
from tests.support.fakes import StopAt
from tests.support.scans import OLD
from tests.support.sites import SITES


@pytest.fixture(scope="module")
def source(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What leaves the first hospital."""
    path = tmp_path_factory.mktemp("source") / "source.zip"
    format.pack(format.find_stage(finished, 0), path)
    return path


@pytest.fixture(scope="module")
def second(pipeline: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What leaves the second."""
    path = tmp_path_factory.mktemp("second") / "1"
    hop.adapt(fakes.hop_to(pipeline, source, 1, path))
    return path


@pytest.fixture
def package(finished: Path, tmp_path: Path) -> Path:
    """A copy of what leaves the last one, to be tampered with."""
    return Path(shutil.copytree(format.find_stage(finished), tmp_path / "package"))


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if not issubclass(known, Oracle)])
def test_hop_by_hop_is_the_sequence_to_the_bit(method, run_of, pipeline, tmp_path):
    whole = run_of(method)
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
        {f"{part}/checkpoint.pt" for part in ("segmenter", "plain", "curves", "generator", "prior")},
        *[{f"{part}/checkpoint.pt" for part in ("generator", "adapter")}] * 2,
    ]
    assert {*entries[0].seconds} == {"segmenter", "plain", "curves", "generator", "prior"}
    assert {*entries[0].found} == {"segmenter", "plain", "curves", "choice", "postprocessing"}
    assert {*entries[1].found} == {"choice"}
    assert 4 <= entries[0].found["plain"]["steps"] <= entries[0].found["plain"]["at_most"] == 5
    assert entries[1].found["choice"]["by"] == "views" and entries[1].found["choice"]["chosen"]
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


def test_a_hospital_scores_what_it_has_labels_for_before_and_after(second, finished):
    entry = verify.verify(second).entries[-1]
    assert {(result.stage, result.domain) for result in entry.scores} == {(0, SITES[1]), (1, SITES[1])}
    rows = [row for row in metrics.read_scores(finished / "scores.csv") if row.domain == SITES[1] and row.stage < 2]
    assert [result.dice for result in entry.scores] == pytest.approx([row.dice for row in rows])


def test_the_same_hop_again_changes_nothing_and_another_is_not_called_done(pipeline, source, second, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in second.iterdir()}
    hop.adapt(fakes.hop_to(pipeline, source, 1, second))
    assert {path: path.stat().st_mtime_ns for path in second.iterdir()} == before
    what = "exists already, and is not what this hop gives; give another --out"
    assert what in told(RunFolderError, hop.adapt, fakes.hop_to(pipeline, source, 2, second))
    key, _ = sign(tmp_path, "a.key")
    for options in ({"key": key}, {"audited": True}, {"pseudonyms": Pseudonyms(b"another key")}):
        assert what in told(RunFolderError, hop.adapt, fakes.hop_to(pipeline, source, 1, second, **options))


def test_a_stopped_hop_goes_on(pipeline, source, finished, tmp_path):
    stop = StopAt(f"1-{SITES[1]}-adapter", 1)
    with pytest.raises(Interrupted):
        hop.adapt(fakes.hop_to(pipeline, source, 1, tmp_path / "1", tracker=stop, stopping=stop.stopping))
    work = tmp_path / ".1.work"
    assert (work / "stages" / f"1-{SITES[1]}" / "training" / "adapter" / "checkpoint.pt").exists()
    assert not (tmp_path / "1").exists()
    with pytest.raises(RunFolderError, match=r"another plan, pseudonyms differs"):
        hop.adapt(fakes.hop_to(pipeline, source, 2, tmp_path / "1"))
    with pytest.raises(RunFolderError, match=r"another plan, domains\.1\.manifest differs"):
        hop.adapt(fakes.hop_to(pipeline, source, 2, tmp_path / "1", pseudonyms=Pseudonyms(b"key of site 1")))
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
    stage = format.stage_folder(tmp_path / "run", 0, SITES[0])
    assert (stage.with_name("learnt") / OPEN).exists() and not stage.exists()
    with pytest.raises(RunFolderError, match="a stage has not ended yet; 0 of 3 have; go on first"):
        hop.adapt(fakes.hop_to(pipeline, tmp_path / "run", 1, tmp_path / "1"))
    sites.run_tiny(pipeline, tmp_path / "run", method="source_only")
    assert len(verify.verify(format.find_stage(tmp_path / "run")).entries) == 3


def test_every_change_is_found_and_named(package):
    for file in sorted(package.iterdir()):
        whole = file.read_bytes()
        contents = bytearray(whole)
        contents[len(contents) // 2] ^= 1
        file.write_bytes(bytes(contents))
        assert file.name in told(GardaError, verify.verify, package)
        file.write_bytes(whole)


def test_every_byte_of_a_ledger_counts(package):
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
def test_a_ledger_that_contradicts_itself_is_found(number, changes, what, package):
    reseal(package, number, **changes)
    with pytest.raises(PackageError, match=what):
        verify.verify(package)


def test_a_refused_stage_cannot_have_changed_anything(package):
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
def test_a_file_that_fits_its_digest_alone_is_found(name, what, package):
    text = (package / name).read_bytes()
    (package / name).write_bytes(text.replace(b"myocardium", b"ventricle0") if name == "setup.json" else text + b" ")
    reseal(package, 3)
    with pytest.raises(PackageError, match=what):
        verify.verify(package)


def test_a_package_of_a_newer_format_says_so(package):
    setup = json.loads((package / "setup.json").read_text()) | {"format": 4, "new": 1}
    (package / "setup.json").write_text(json.dumps(setup))
    with pytest.raises(PackageError, match="is of format 4, this version of garda knows 1 to 3; use the version"):
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
def test_the_first_line_that_does_not_fit_is_named(number, package):
    lines = (package / "ledger.jsonl").read_text().splitlines()
    lines[number] = lines[number].replace('"patients": 2', '"patients": 9')
    (package / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    what = f"line {number + 2}: does not follow: line {number + 1} has been changed; ask for the package again"
    assert told(PackageError, verify.verify, package) == f"{package}/ledger.jsonl, {what}"


def test_a_line_that_was_cut_off_or_put_in_is_found(package):
    lines = (package / "ledger.jsonl").read_text().splitlines()
    for left in (lines[:-1], lines[1:]):
        (package / "ledger.jsonl").write_text("\n".join(left) + "\n")
        told(PackageError, verify.verify, package)


def test_other_settings_than_those_of_the_ledger_are_found(package):
    setup = json.loads((package / "setup.json").read_text())
    setup["settings"]["garda"]["lesson"]["learning_rate"] = 1.0
    (package / "setup.json").write_text(json.dumps(setup))
    reseal(package, 3)
    said = told(PackageError, verify.verify, package)
    assert "line 1: was learnt with other settings than those of setup.json" in said


@pytest.mark.parametrize(("name", "what"), [("extra.pt", "is no part of a package"), (CARD, "is missing")])
def test_a_file_too_many_or_too_few(name, what, package):
    (package / name).unlink() if (package / name).exists() else (package / name).touch()
    assert what in told(PackageError, verify.verify, package)


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
    assert "exists already" in told(RunFolderError, format.pack, package, tmp_path / "a.zip")


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


def test_a_package_holds_files_and_nothing_else(package):
    signatures = package / "signatures.jsonl"
    signatures.symlink_to("nowhere")
    assert "signatures.jsonl: is no file of its own" in told(PackageError, verify.verify, package)
    signatures.unlink()
    signatures.mkdir()
    assert "signatures.jsonl: is no file of its own" in told(PackageError, verify.verify, package)


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


def test_weights_are_read_without_executing_code(package):
    torch.save({"w": torch.ones(1)}, package / "segmenter.safetensors")
    assert "is truncated or damaged" in told(CheckpointError, load.load_package, package)
    what = "segmenter.safetensors: has been changed"
    assert what in told(PackageError, sites.predict, package, [], package.parent / "out")


def test_no_patient_no_path_and_no_day_travels(pipeline, tmp_path):
    folder = tmp_path / "conspicuous"
    sites.write_conspicuous(pipeline, folder)
    alone = folder / "pipeline.yaml"
    alone.write_text(alone.read_text().replace(f"[{SITES[1]}, {SITES[2]}]", "[]"))
    sites.run_tiny(alone, tmp_path / "run", method="garda")
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


@pytest.fixture(scope="module")
def signed(pipeline, tmp_path_factory: pytest.TempPathFactory):
    """A run whose lines are signed, with its key and the key's digits."""
    folder = tmp_path_factory.mktemp("signed")
    key, digits = sign(folder, "a.key")
    sites.run_tiny(pipeline, folder / "run", method="source_only", key=key)
    return folder / "run", key, digits


def test_signatures_say_whose_lines_they_are(signed, pipeline, tmp_path):
    (run, _, a), (second, b), (_, stranger) = signed, sign(tmp_path, "b.key"), sign(tmp_path, "c.key")

    def adapt(out: str, **more) -> None:
        hop.adapt(fakes.hop_to(pipeline, format.find_stage(run, 0), 1, tmp_path / out, **more))

    what = f"ledger line 1: signed by a stranger, {a}"
    assert what in told(PackageError, adapt, "1", trusted=[Trusted(stranger)], key=second)
    adapt("1", trusted=[Trusted(a)], key=second)
    found = verify.verify(tmp_path / "1", [Trusted(a), Trusted(b, SITES[1])])
    assert [(signature.line, signature.key) for signature in found.signatures] == [(1, a), (2, b)]
    what = "ledger line 2: signed by a stranger"
    assert what in told(PackageError, verify.verify, tmp_path / "1", [Trusted(a)])
    lines = enumerate(ledger.read_lines(tmp_path / "1"), 1)
    signing.write_signatures(tmp_path / "1", [signing.sign_line(line, number, second) for number, line in lines])
    what = f"ledger line 1: is a line of {SITES[0]}, and its key is trusted for {SITES[1]} alone"
    assert what in told(PackageError, verify.verify, tmp_path / "1", [Trusted(a, SITES[0]), Trusted(b, SITES[1])])
    adapt("unsigned", trusted=[Trusted(a)])
    what = "ledger line 2: nobody has signed it; ask its site to sign"
    assert what in told(PackageError, verify.verify, tmp_path / "unsigned", [Trusted(a), Trusted(b)])
    assert len(verify.verify(tmp_path / "unsigned").signatures) == 1


def test_a_key_that_comes_after_the_sealing_is_refused(signed, pipeline, tmp_path):
    run, first, _ = signed
    shutil.copytree(run, tmp_path / "run")
    for key in (first, None):
        sites.run_tiny(pipeline, tmp_path / "run", method="source_only", key=key)
    with pytest.raises(RunFolderError, match="was sealed without this key's signature, and is not signed later; leave"):
        sites.run_tiny(pipeline, tmp_path / "run", method="source_only", key=sign(tmp_path, "b.key")[0])


@pytest.mark.parametrize("words", ["evaluate", "audit", "export", "export --to bundle", "predict"])
def test_every_command_that_reads_a_package_asks_for_trusted_signatures(words, pipeline, tmp_path, capsys):
    signing.make_keys(tmp_path / "b.key")
    command, *options = words.split()
    given = (
        [sites.manifest(pipeline, 1), "--data", pipeline.parent / "data"] if command in ("evaluate", "audit") else []
    )
    given += [sites.image(pipeline, 1)] if command == "predict" else []
    given += ["--out", tmp_path / "out.zip"] if command in ("export", "predict") else []
    asked = (command, OLD / "garda.zip", *given, *options, "--trust")
    assert cli.garda(*asked, tmp_path / "b.key.pub") == 2
    assert "signed by a stranger" in capsys.readouterr().err
    assert cli.garda(*asked, OLD / "site.pub") == 0


def test_messages_name_the_zip_file_and_not_where_it_was_unpacked(finished, tmp_path):
    format.pack(format.find_stage(finished), tmp_path / "a.zip")
    with pytest.raises(PackageError) as error, format.opened(tmp_path / "a.zip") as folder:
        verify.verify(folder, expected="0" * 64)
    assert str(error.value).startswith(f"{tmp_path / 'a.zip'}: has the digest ")


def test_a_package_that_vanishes_while_it_is_learnt_from_has_been_copied(pipeline, finished, tmp_path, monkeypatch):
    own = stage.learn

    def learn(*given):
        learnt = own(*given)
        shutil.rmtree(tmp_path / "source")
        return learnt

    shutil.copytree(format.find_stage(finished, 0), tmp_path / "source")
    monkeypatch.setattr(stage, "learn", learn)
    hop.adapt(fakes.hop_to(pipeline, tmp_path / "source", 1, tmp_path / "1"))
    assert fakes.knowledge(tmp_path / "1") == fakes.knowledge(format.find_stage(finished, 1))


def test_what_takes_the_place_of_verified_weights_is_not_used(package, tmp_path):
    expected = format.package_digest(package)
    with verify.open_package(package) as found:
        for file in package.iterdir():
            file.write_bytes(b"another's")
        load.load_package(found.folder)
        assert format.package_digest(found.folder) == expected


def test_widths_that_fit_no_machine_are_one_line(package):
    setup = json.loads((package / "setup.json").read_text())
    setup["settings"]["segmenter"] = {"widths": [10**9] * 6}
    (package / "setup.json").write_text(json.dumps(setup))
    what = "setup.json: segmenter.widths.0: input should be less than or equal to 2048, got 1000000000"
    assert what in told(ConfigError, load.load_package, package)


def test_a_signature_of_another_line_does_not_fit(signed, tmp_path):
    run, _, digits = signed
    package = Path(shutil.copytree(format.find_stage(run), tmp_path / "package"))
    lines = (package / "signatures.jsonl").read_text().splitlines()
    (package / "signatures.jsonl").write_text(lines[0].replace('"line": 1', '"line": 2') + "\n")
    for trusted in ([], [Trusted(digits)]):
        what = "ledger line 2: the signature does not fit the line"
        assert what in told(PackageError, verify.verify, package, trusted)


def test_keys_that_cannot_be_used(tmp_path):
    signing.make_keys(tmp_path / "a.key")
    assert "exists already; give another name" in told(GardaError, signing.make_keys, tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(ConfigError, match="other users have access to the key; run: chmod 600"):
        signing.read_private(tmp_path / "a.key")
    assert "is no public key; give a .pub file" in told(ConfigError, signing.read_public, tmp_path / "a.key")
    assert "the key cannot be read" in told(ConfigError, signing.read_public, tmp_path / "none.pub")


@pytest.mark.parametrize(
    ("site", "more", "what"),
    [
        (0, {}, "has been met already; give the site another --name"),
        (1, {"name": "a/b"}, "'a/b' is no domain's name"),
        (1, {"changes": {"seed": 1}}, "unknown key 'seed'"),
        (1, {"changes": {"source": {"steps": 9}}}, "is what the package decides"),
        (1, {"name": "new", "package": "joint"}, "needs the images of earlier sites"),
    ],
)
def test_what_cannot_be_adapted_is_told_and_nothing_is_written(site, more, what, pipeline, source, run_of, tmp_path):
    package = run_of(more.pop("package")) if "package" in more else source
    made = fakes.hop_to(pipeline, package, site, tmp_path / "1", **more)
    assert what in told((PackageError, DataError, ConfigError), hop.adapt, made)
    assert not [*tmp_path.iterdir()]


def test_a_package_is_scored_wherever_there_are_labels(pipeline, source, finished, tmp_path):
    manifests, data = [sites.manifest(pipeline, site) for site in range(3)], pipeline.parent / "data"
    scores = hop.evaluate_package(source, manifests, data, sites.quiet(), Pseudonyms(b"a key for tests"))
    assert scores == [row for row in metrics.read_scores(finished / "scores.csv") if row.stage == 0]


def test_a_package_predicts_as_its_run(pipeline, source, finished, tmp_path):
    images = [sites.image(pipeline, 1, 3)]
    (one,) = sites.predict(source, images, tmp_path / "package")
    (other,) = sites.predict(finished, images, tmp_path / "run", stage=0)
    assert one.read_bytes() == other.read_bytes()


def test_the_card_tells_what_the_package_is(finished):
    card = (format.find_stage(finished) / CARD).read_text()
    for words in ("heart", "myocardium", *SITES, "description of modifications", "modification protocol", "impact"):
        assert words in card
    entry = ledger.parse_lines(format.find_stage(finished), ledger.read_lines(format.find_stage(finished)))[-1]
    assert f"| 2 | {SITES[2]} | {entry.month} | 2 | 2 | 4 | never read | {entry.decision} |" in card
    assert f"| 0 | {SITES[0]} | plain | steps | 4 |" in card
    assert all(line == line.rstrip() and len(line) <= 160 for line in card.splitlines())
