"""The commands between sites, and what all commands share: parse, call, print.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from garda.core.errors import ConfigError, Refused, RunFolderError
from garda.runs.arguments import (
    FORMS,
    Audited,
    Changes,
    DataFolder,
    Devices,
    Expect,
    Format,
    Nodes,
    PackagePath,
    Runtime,
    SigningKey,
    Strict,
    Trust,
    open_console,
    parse_changes,
    read_private,
    tell_package,
)

if TYPE_CHECKING:
    from garda.handover.verify import Verified

app = typer.Typer()
keys = typer.Typer(help="Whose keys count from now on, by site.", no_args_is_help=True)
app.add_typer(keys, name="trust")


@app.command()
def adapt(
    context: typer.Context,
    package: PackagePath,
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="CSV of this site's scans.")],
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Package that is written: a folder, or a file NAME.zip.")],
    name: Annotated[str | None, typer.Option("--name", help="The site's name; the manifest's own.")] = None,
    trust: Trust = None,
    expect: Expect = "",
    sign: SigningKey = None,
    force: Annotated[bool, typer.Option("--force", help="Keep what the gate refuses; the ledger says so.")] = False,
    audited: Audited = False,
    track: Annotated[Path | None, typer.Option("--track", help="Folder of this site's MLflow store.")] = None,
    change: Changes = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Learn this site's unlabelled scans and write the package for the next site. Run again to resume."""
    from garda.core.pseudonyms import Pseudonyms, load_key
    from garda.handover.load import HERE
    from garda.runs.hop import Hop, work_folder
    from garda.runs.hop import adapt as adapt_package
    from garda.runs.mlflow import open_tracker
    from garda.runs.report import write_audit_page
    from garda.runs.tracking import InMemory
    from garda.training import distributed

    changes = parse_changes(change or [])
    compute = {**HERE["compute"], **changes.get("compute", {})}
    rank_zero = distributed.configure(devices, nodes, compute["accelerator"])
    with open_console(rank_zero) as console:
        tracked = rank_zero and (track or os.environ.get("MLFLOW_TRACKING_URI"))
        tracker = open_tracker(work_folder(out), console.line, track) if tracked else InMemory()
        own = (tracker, console, context.obj, Pseudonyms(load_key() if rank_zero else b""))
        hop = Hop(package, manifest, data, out, *own, name, changes, trust or (), sign, force, audited, expect)
        done = adapt_package(hop)
        tell_package(done, console)
        if rank_zero:
            console.line(f"for an auditor: {write_audit_page(done, out)}")
        if tracked:
            console.line(f"metrics: {tracker.check_delivered()}")


@app.command()
def evaluate(
    package: PackagePath,
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="CSV files of sites with labels.")],
    data: DataFolder,
    trust: Trust = None,
    expect: Expect = "",
) -> None:
    """Score a package on the labelled test scans of any sites; nothing is written."""
    from garda.core.pseudonyms import Pseudonyms, load_key
    from garda.evaluation.tables import scores_table
    from garda.runs.hop import evaluate_package

    with open_console() as console:
        scores = evaluate_package(package, manifests, data, console, Pseudonyms(load_key()), trust or (), expect)
        console.show(scores_table(scores))


@app.command()
def verify(package: PackagePath, trust: Trust = None, expect: Expect = "") -> None:
    """Recompute every digest of a package and name the first line or file that does not fit."""
    from garda.handover.verify import open_package

    with open_console() as console, open_package(package, trust or (), expect) as found:
        tell_package(found, console)
        _load(found)
        console.line("whole: every file and every line fits its digest")
        if found.signatures and not trust:
            console.line("signatures fit their lines; whose they are was not asked (--trust PUBKEY)")


@app.command()
def predict(
    package: PackagePath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images, DICOM series, zips, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder that is written.")],
    stage: Annotated[int | None, typer.Option("--stage", help="Stage whose segmenter is used; the last one.")] = None,
    domain: Annotated[str | None, typer.Option("--domain", help="A domain met, or other; the last.")] = None,
    trust: Trust = None,
    expect: Expect = "",
    runtime: Annotated[Runtime, typer.Option("--runtime", help="What computes the network.")] = Runtime.torch,
    strict: Strict = False,
    volumes: Annotated[Path | None, typer.Option("--volumes", help="CSV of each class's size; NAME.csv.")] = None,
) -> None:
    """Write a label map for each image, in the image's own space."""
    from garda.runs.predict import predict as predict_images

    with open_console() as console:
        asked = (stage, domain, trust or (), expect, runtime is Runtime.onnx, strict, volumes)
        for file in predict_images(package, images, out, console, *asked):
            console.line(str(file))


@app.command()
def audit(
    package: PackagePath,
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The CSV that the site was learnt from.")],
    data: DataFolder,
    name: Annotated[str | None, typer.Option("--name", help="The site's name; the manifest's own.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for all figures.")] = None,
    trust: Trust = None,
    expect: Expect = "",
) -> None:
    """Look for a site's patients in what the generator gives away, while their scans are still there."""
    from garda.core.files import write_json
    from garda.runs.audit import audit_package, describe_audit

    if out is not None and out.exists():
        raise RunFolderError(out, "exists already", "give another name, or remove it")
    with open_console() as console:
        found = audit_package(package, manifest, data, console, name, trust or (), expect)
        for line in describe_audit(found):
            console.line(line)
    if out is not None:
        write_json(out, found.model_dump(mode="json"))
    if not found.passed:
        raise Refused(package, f"{len(found.findings)} findings", "let a person look before it is passed on")


@app.command()
def export(
    package: PackagePath,
    out: Annotated[Path, typer.Option("--out", help="What is written: a file, or a bundle's folder.")],
    to: Annotated[Format, typer.Option("--to", help=FORMS)] = Format.zip,
    domain: Annotated[
        str | None, typer.Option("--domain", help="Whose network: a domain met, or other; the last one met.")
    ] = None,
    trust: Trust = None,
    expect: Expect = "",
    with_generator: Annotated[bool, typer.Option("--with-generator", help="Put it into a bundle too.")] = False,
) -> None:
    """Write a package in another form."""
    if to is not Format.zip:
        from garda.handover.export import export_network

        export_network(package, out, to.value, domain, trust or (), with_generator, expect)
    elif domain is not None:
        raise ConfigError("--domain", "a zip file holds the networks of all domains", "leave it out")
    elif with_generator:
        raise ConfigError("--with-generator", "a zip file holds the whole package", "leave it out")
    elif out.suffix != ".zip":
        raise ConfigError("--out", f"{out} is no name of a zip file", f"give {out}.zip, or another form with --to")
    else:
        from garda.handover import format as packages
        from garda.handover import verify as verification

        with verification.open_package(package, trust or (), expect) as found:
            _load(found)
            packages.pack(found.folder, out)
        print(f"package {found.digest}")
    print(out)


class Reader(StrEnum):
    """Who a page is for."""

    clinician = "clinician"
    auditor = "auditor"
    researcher = "researcher"


@app.command()
def report(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|PACKAGE", help="A run, a package, or for researchers a comparison.")
    ],
    reader: Annotated[Reader, typer.Option("--for", help="Who reads it; a clinician's page holds images.")],
    out: Annotated[Path, typer.Option("--out", help="The page that is written, NAME.html.")],
    data: Annotated[Path | None, typer.Option("--data", help="For a clinician: the folder of the scans.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="For a clinician: CSV of this site's scans.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The site's name; the manifest's own.")] = None,
    trust: Trust = None,
    expect: Expect = "",
) -> None:
    """Write one page that loads nothing: pictures and numbers for a clinician, an auditor or a researcher."""
    from garda.runs.report import Report, write_report

    with open_console() as console:
        write_report(Report(source, reader.value, out, data, manifest, name, trust or (), expect), console)
        console.line(str(out))


@app.command()
def keygen(key: Annotated[Path, typer.Argument(metavar="KEY", help="Private key file that is written.")]) -> None:
    """Make a key with which a site signs its lines of the ledger."""
    from garda.handover.signing import make_keys

    public, digits = make_keys(key)
    print(f"{key}: private, keep it\n{public}: public, give it to the other sites\nshown as: signed {digits}")


@app.command()
def sign(
    package: PackagePath,
    key: Annotated[Any, typer.Argument(parser=read_private, metavar="KEY", help="Private key file.")],
    intoto: Annotated[
        Path | None, typer.Option("--intoto", help="Write an in-toto statement in a DSSE envelope here, too.")
    ] = None,
) -> None:
    """Countersign the last line of a finished package; nothing is learnt anew."""
    from garda.handover.countersign import sign_package

    with open_console() as console:
        console.line(f"package {sign_package(package, key, intoto)}: signed")


@app.command()
def who(
    pseudonym: Annotated[str, typer.Argument(metavar="PSEUDONYM", help="As in scores.csv: P-... or C-....")],
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="CSV files of this site's scans.")],
) -> None:
    """Say which patient or case a pseudonym stands for; the site's own key is needed."""
    from garda.runs.arguments import find_named

    for line in find_named(pseudonym, manifests):
        print(line)


@keys.command("add")
def add_key(site: str, key: Annotated[Path, typer.Argument(metavar="PUBKEY", help="Public key file.")]) -> None:
    """Trust a key for a site's lines, in place of the one trusted before."""
    from garda.handover import trust

    print(f"{site}: {trust.add(site, key)}")


@keys.command("list")
def list_keys() -> None:
    """Show the sites and their keys."""
    from garda.handover import trust

    print("\n".join(f"{own.site}: {own.key}" for own in trust.read()) or "no key is trusted")


@keys.command("remove")
def remove_key(site: str) -> None:
    """Trust a site's key no longer."""
    from garda.handover import trust

    trust.remove(site)


def _load(found: Verified) -> None:
    """Refuse what no other command could use: settings that mean nothing, weights of another network or no numbers."""
    from garda.handover.load import load_package

    load_package(found.folder)
