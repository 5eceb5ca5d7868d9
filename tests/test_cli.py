"""The command line: what it prints, where it stops, and what it imports."""

import csv
import re
import shutil
import subprocess
import sys

import pytest

from garda import __version__
from garda.core.errors import ConfigError
from garda.handover import format
from garda.runs import arguments
from tests.support import cli, sites
from tests.support.errors import told
from tests.support.sites import SITES


def test_help_needs_no_heavy_import():
    code = "import sys, garda.cli; print([m for m in ('torch', 'monai', 'mlflow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MANIFEST = ("manifest", "site", "--data", ".", "--out", "site.csv")


@pytest.mark.parametrize("words", [("keygen", "a.key"), ("verify", "a.zip"), MANIFEST])
def test_what_computes_nothing_needs_no_torch(words, tmp_path):
    (tmp_path / "site" / "images").mkdir(parents=True)
    (tmp_path / "site" / "images" / "a.png").write_bytes(b"not looked into")
    heavy = "[m for m in ('torch', 'monai', 'mlflow', 'lightning_fabric', 'matplotlib') if m in sys.modules]"
    code = f"import sys, garda.cli\ntry:\n    garda.cli.main()\nfinally:\n    print({heavy})"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_run_prints_the_matrix_and_which_metrics_have_arrived(pipeline, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ("run", pipeline, "--data", pipeline.parent / "data", "--out", out, "--set", "source.steps=2")
    words = (*words, "--method", "source_only", "--seed", "3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1/?token=secret")
    assert cli.garda(*words) == 4
    printed, error = capsys.readouterr()
    assert re.fullmatch(r"http://127.0.0.1:1/: 0 of \d\d+ metrics delivered; run the same command again .*\n", error)
    assert printed.count("tracking does not work") == 1 and "secret" not in printed
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert cli.garda(*words) == 0
    printed = capsys.readouterr().out
    assert "after stage" in printed and f"2 {SITES[2]}" in printed and "forgetting" in printed
    scores, metrics = printed.splitlines()[-2:]
    assert scores == f"every score: {out / 'scores.csv'}"
    assert re.fullmatch(rf"metrics: (\d+) of \1 metrics delivered, garda ui --out {out}", metrics)
    assert (out / "mlflow.db").exists()


def test_a_site_that_was_left_out_is_told_with_the_matrix(pipeline, tmp_path, capsys):
    words = ["run", pipeline, "--data", pipeline.parent / "data", "--out", tmp_path / "out", "--method", "source_only"]
    assert cli.garda(*words, "--set", "gate.slices=[5000, 4000]") == 3
    told = capsys.readouterr()
    printed = told.out.splitlines()
    assert told.err.endswith(
        f"/out: the gate refused {', '.join(SITES[1:])}; look at the scans, all others have been learnt\n"
    )
    for site in SITES[1:]:
        assert f"left out: {site}, which the gate refused; its row is that of the stage before" in printed


def test_check_reads_everything_and_trains_nothing(pipeline, capsys):
    before = sorted(pipeline.parent.rglob("*"))
    assert cli.garda("check", pipeline, "--data", pipeline.parent / "data") == 0
    unknown, last = capsys.readouterr().out.splitlines()[-2:]
    assert unknown == "12 cases have no digest in their manifest: it is not known whether they changed"
    assert last == "12 cases of 3 domains: no problem found"
    assert sorted(pipeline.parent.rglob("*")) == before


def test_every_problem_is_one_line_on_standard_error(tmp_path, capsys):
    pipeline = sites.write_tiny(tmp_path)
    data = tmp_path / "data"
    (data / SITES[0] / "images" / f"{SITES[0]}_000.nii.gz").unlink()
    (data / SITES[1] / "labels" / f"{SITES[1]}_003.nii.gz").write_bytes(b"")
    assert cli.garda("check", pipeline, "--data", data) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(line.count("; ") == 1 and line.startswith(str(tmp_path)) for line in errors)


def test_check_wants_what_the_method_reads(pipeline, tmp_path, capsys):
    shutil.copytree(pipeline.parent, tmp_path / "tiny")
    manifest = tmp_path / "tiny" / "data" / "manifests" / f"{SITES[1]}.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", "patient", "split", "image", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | ({"label": ""} if row["split"] == "train" else {}) for row in rows)
    words = ("check", tmp_path / "tiny" / "pipeline.yaml", "--data", tmp_path / "tiny" / "data")
    assert cli.garda(*words) == 0
    capsys.readouterr()
    assert cli.garda(*words, "--method", "supervised") == 2
    assert capsys.readouterr().err == (
        f"{manifest}:2: supervised needs a label for one training case at least; fill column label\n"
    )


def test_manifest_of_a_folder(pipeline, tmp_path, capsys):
    data, out = pipeline.parent / "data", tmp_path / "site.csv"
    assert cli.garda("manifest", data / SITES[0], "--data", data, "--out", out, "--fractions", 0.5, 0.25, 0.25) == 0
    assert capsys.readouterr().out == f"{out}: 4 cases of 4 patients\n"
    assert out.read_text().count(",train,") == 2
    assert cli.garda("manifest", data / SITES[0], "--data", data, "--out", out) == 2
    assert capsys.readouterr().err == f"{out}: exists; give another --out, or remove it\n"


def test_phantom_writes_once(tmp_path, capsys):
    words = ("phantom", "--out", tmp_path / "ph", "--train", 1, "--val", 0, "--test", 1, "--slices", 1)
    assert cli.garda(*words) == 0
    assert (tmp_path / "ph" / "manifests" / "task.yaml").exists()
    assert cli.garda(*words) == 2
    assert capsys.readouterr().err == f"{tmp_path}/ph: the folder is not empty; give a new folder\n"


def test_predict_writes_label_maps(pipeline, tmp_path, capsys):
    data, run = pipeline.parent / "data", tmp_path / "run"
    cli.garda("run", pipeline, "--data", data, "--out", run, "--method", "source_only", "--set", "source.steps=2")
    capsys.readouterr()
    image = sorted((data / SITES[2] / "images").iterdir())[0]
    assert cli.garda("predict", run, image, "--out", tmp_path / "maps") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "maps" / image.name)
    assert (tmp_path / "maps" / image.name).exists()


def test_changes_from_the_command_line():
    assert arguments.parse_changes(["a.b=3", "a.c=[1, 2]", "d=x"]) == {"a": {"b": 3, "c": [1, 2]}, "d": "x"}
    assert arguments.parse_changes(["rate=1e-3"]) == {"rate": 1e-3}
    for text in ("a", "=3", "a..b=3"):
        assert "expected KEY=VALUE" in told(ConfigError, arguments.parse_changes, [text])
    for text in ("a={", "a=2020-99-99"):
        assert "is not a YAML value" in told(ConfigError, arguments.parse_changes, [text])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run"], "garda run: missing argument 'PIPELINE'; see garda run --help"),
        (["rum"], "garda: no such command 'rum'; did you mean 'run'?"),
        (["check", "a.yaml", "--dat", "b"], "garda check: no such option: --dat"),
        (
            ["manifest", "a", "--data", "b", "--out", "c", "--layout", "d"],
            "garda manifest: invalid value for '--layout'",
        ),
        (["phantom", "--out", "a", "--train", "0"], "garda phantom: invalid value for '--train'"),
    ],
)
def test_a_wrong_command_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.garda(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.garda() == 2
    printed = capsys.readouterr()
    assert "Usage: garda" in printed.out
    assert printed.err == ""


def test_a_misspelt_setting_names_its_neighbour(pipeline, tmp_path, capsys):
    words = ("run", pipeline, "--data", pipeline.parent / "data", "--out", tmp_path / "run")
    assert cli.garda(*words, "--set", "sorce.steps=2") == 2
    assert capsys.readouterr().err == "--set: unknown key 'sorce'; did you mean 'source'?\n"
    assert not (tmp_path / "run").exists()


def test_the_version(capsys):
    assert cli.garda("--version") == 0
    assert capsys.readouterr().out == f"garda {__version__}\n"


def test_a_ui_without_a_run(tmp_path, capsys):
    assert cli.garda("ui", "--out", tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_chain_of_hospitals_by_the_command_line(pipeline, tmp_path, capsys, monkeypatch):
    data, manifests = pipeline.parent / "data", pipeline.parent / "data" / "manifests"
    run = tmp_path / "run"
    assert cli.garda("run", pipeline, "--data", data, "--out", run, "--method", "garda") == 0
    stage = run / "stages" / f"0-{SITES[0]}" / "package"
    assert cli.garda("keygen", tmp_path / "a.key") == 0
    capsys.readouterr()
    assert cli.garda("export", stage, "--to", "zip", "--out", tmp_path / "a.zip") == 0
    assert capsys.readouterr().out == f"package {format.package_digest(stage)}\n{tmp_path / 'a.zip'}\n"
    words = ("adapt", tmp_path / "a.zip", manifests / f"{SITES[1]}.csv", "--data", data, "--out", tmp_path / "b.zip")
    work = tmp_path / ".b.zip.work"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert cli.garda(*words, "--sign", tmp_path / "a.key") == 4
    assert {path.name for path in work.iterdir()} == {"plan.json", "tracking.jsonl"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run / 'mlflow.db'}")
    assert cli.garda(*words, "--sign", tmp_path / "a.key") == 0
    assert not work.exists()
    capsys.readouterr()
    assert cli.garda("verify", tmp_path / "b.zip") == 0
    verified = capsys.readouterr().out.splitlines()
    digest = verified[0].removeprefix("package ")
    assert len(digest) == 64
    assert verified[1].startswith(f"stage 0 {SITES[0]}: 2 scans of 2 patients, 20")
    assert verified[2] == "  NOT signed"  # once anybody has signed, who has not is told
    assert verified[3].startswith(f"stage 1 {SITES[1]}: 2 scans of 2 patients, 20")
    assert verified[4].startswith("  signed ") and len(verified[4]) == len("  signed ") + 64
    assert verified[5] == "whole: every file and every line fits its digest"
    assert cli.garda("verify", tmp_path / "b.zip", "--expect", digest) == 0
    assert cli.garda("verify", tmp_path / "a.zip", "--expect", digest) == 2
    capsys.readouterr()
    assert cli.garda("verify", tmp_path / "b.zip", "--trust", f"{SITES[1]}={tmp_path / 'a.key.pub'}") == 2
    assert "ledger line 1: nobody has signed it" in capsys.readouterr().err
    assert cli.garda("evaluate", tmp_path / "b.zip", manifests / f"{SITES[2]}.csv", "--data", data) == 0
    printed = capsys.readouterr().out
    assert "myocardium" in printed and "no interval" in printed
    assert cli.garda("adapt", tmp_path / "none.zip", *words[2:]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.zip: does not exist; check the path\n"


def test_who_leads_from_a_pseudonym_back_to_the_scan(pipeline, tmp_path, capsys):
    words = ("run", pipeline, "--data", pipeline.parent / "data", "--out", tmp_path, "--method", "source_only")
    assert cli.garda(*words) == 0
    row = (tmp_path / "scores.csv").read_text().splitlines()[1].split(",")
    manifests = [sites.manifest(pipeline, site) for site in range(3)]
    capsys.readouterr()
    for name in row[2:4]:
        assert cli.garda("who", name, *manifests) == 0
        assert capsys.readouterr().out == f"{manifests[0]}: patient {SITES[0]}_003, case {SITES[0]}_003\n"
    assert cli.garda("who", "P-000000000000", *manifests) == 2
    assert "is no patient or case of" in capsys.readouterr().err
    assert cli.garda("who", row[2], manifests[1]) == 2
