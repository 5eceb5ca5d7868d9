"""Packages that version 0.1.0 wrote still verify, predict, go on to the next site and are exported.

``version_0.1.0/`` holds two of them, a source and one target of the phantom of ``tests/support/sites.py``, the key that
signed both, and the label maps that version 0.1.0 predicted with them, in float32 and one thread.
"""

import json
import re
import zipfile
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest

from garda.handover import format, setup, verify
from tests.support import cli, sites
from tests.support.scans import OLD
from tests.support.sites import CONFIG, SITES

PACKAGES = ("garda", "self_training")


def old_setup(name: str) -> bytes:
    with zipfile.ZipFile(OLD / f"{name}.zip") as archive:
        return archive.read("setup.json")


@pytest.mark.parametrize("name", PACKAGES)
def test_an_old_package_is_whole_and_signed(name, capsys):
    package, key = OLD / f"{name}.zip", OLD / "site.pub"
    for words in ((), ("--trust", key)):
        assert cli.garda("verify", package, *words) == 0
        said = capsys.readouterr().out
        assert said.count("  signed ") == 2 and "whole: every file" in said
    assert cli.garda("verify", package, "--trust", f"{SITES[0]}={key}") == 2
    assert f"is a line of {SITES[1]}, and its key is trusted for {SITES[0]} alone" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "domain", "site"), [("garda", SITES[1], 1), ("self_training", "other", 2)])
def test_an_old_package_predicts_as_then(name, domain, site, pipeline, tmp_path):
    image = sites.image(pipeline, site)
    assert cli.garda("predict", OLD / f"{name}.zip", image, "--domain", domain, "--out", tmp_path) == 0
    now, then = (nib.load(folder / image.name) for folder in (tmp_path, OLD))
    assert np.array_equal(now.affine, then.affine)
    now, then = np.asarray(now.dataobj), np.asarray(then.dataobj)
    assert now.shape == then.shape and len(np.unique(then)) == 4
    assert np.mean(now != then) <= 1e-3  # another machine may round otherwise


@pytest.mark.parametrize("name", PACKAGES)
def test_an_old_package_goes_on_to_the_next_site_and_stays_what_it_is(name, pipeline, tmp_path, capsys):
    data, manifest = pipeline.parent / "data", sites.manifest(pipeline, 2)
    hop = ("adapt", OLD / f"{name}.zip", manifest, "--data", data, "--trust", OLD / "site.pub")
    assert cli.garda(*hop, "--out", tmp_path / "next") == 0
    found = verify.verify(tmp_path / "next")
    assert [entry.domain for entry in found.entries] == [*SITES]
    assert [entry.garda == "0.1.0" for entry in found.entries] == [True, True, False]
    assert (tmp_path / "next" / "setup.json").read_bytes() == old_setup(name)
    capsys.readouterr()
    assert cli.garda("evaluate", tmp_path / "next", manifest, "--data", data) == 0
    assert SITES[2] in capsys.readouterr().out


@pytest.mark.parametrize("name", PACKAGES)
def test_an_old_package_is_exported(name, tmp_path):
    package = OLD / f"{name}.zip"
    assert cli.garda("export", package, "--out", tmp_path / "a.zip") == 0
    assert (tmp_path / "a.zip").read_bytes() == package.read_bytes()
    assert cli.garda("export", package, "--to", "bundle", "--out", tmp_path / "bundle") == 0
    assert (tmp_path / "bundle" / "models" / "model.pt").exists()


@pytest.mark.skipif(find_spec("onnx") is None, reason="the network as one file needs garda[onnx]")
def test_an_old_package_is_exported_as_one_network(exported_onnx):
    with format.opened(OLD / "garda.zip") as folder:
        digest = verify.verify(folder).digest
    assert digest.encode() in exported_onnx  # it names the package that it comes from


def test_old_settings_come_in_todays_words():
    for name, method in zip(PACKAGES, ("garda", "cotta"), strict=True):
        with format.opened(OLD / f"{name}.zip") as folder:
            old = format.read_setup(folder)
        new = setup.in_todays_words(old)
        assert (old.format, old.method, new.format, new.method) == (1, name, 3, method)
        assert setup.find_old_words(old.settings) and not setup.find_old_words(new.settings)
        assert new.settings["gate"]["style"] == old.settings["gate"]["look"]
        assert new.settings[method] == ({} if name == "garda" else old.settings[name])
        assert setup.in_todays_words(new) == new
        if name == "garda":
            own, then = new.settings["generator"], old.settings["generator"]["factorised"]
            assert {*own} == {"network", "reconstruction", "prior", "style"}
            assert own["network"] == then["generator"] and own["prior"] == then["prior"]
            assert own["reconstruction"]["loss"] == then["pairs"]["reconstruction"]
            assert own["style"]["estimate"] == then["look"]["survey"]
    family = {**old.settings, "generator": {"family": "style"}}
    with pytest.raises(ValueError, match="for garda_paper alone"):
        setup.in_todays_words(old.model_copy(update={"settings": family}))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "--method", "entropy"), "method 'entropy' is called 'tent' now"),
        (("compare", "--methods", "batchnorm"), "method 'batchnorm' is called 'adabn' now"),
        (
            ("run", "--set", "generator.factorised.pairs.steps=3"),
            "--set: 'generator.factorised.pairs' is called 'generator.reconstruction' now",
        ),
        (("run", "--set", "generator.family=style"), "--set: 'generator.family' is no setting any more"),
        (("run", "--config", "old.yaml"), "old.yaml: 'gate.look' is called 'gate.style' now"),
    ],
)
def test_an_old_word_is_one_line_that_names_the_new_one(words, line, pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text(re.sub(r"\bstyle: \[", "look: [", CONFIG))
    command, *options = words
    where = ("--data", pipeline.parent / "data", "--out", tmp_path / "out")
    assert cli.garda(command, pipeline, *options, *where) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_old_run_folder_is_refused_in_one_line(pipeline, tmp_path, capsys):
    domains = [{"name": site, "manifest": ""} for site in SITES]
    more = {"pseudonyms": "C-0374bf6b1957", "domains": domains, "package": "", "forced": False}
    (tmp_path / "plan.json").write_text(json.dumps({**json.loads(old_setup("garda")), **more}))
    words = ("run", pipeline, "--method", "garda", "--data", pipeline.parent / "data", "--out", tmp_path)
    assert cli.garda(*words) == 2
    what = "is a run of garda 0.1.0, which this version reads but does not go on with; give a new --out folder"
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'plan.json'}: {what}") and said.count("\n") == 1
