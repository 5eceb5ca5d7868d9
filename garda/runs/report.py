"""A run, a comparison or a package as one page: for clinicians, auditors or researchers."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from garda.core.console import Console
from garda.core.errors import ConfigError, PackageError, RunFolderError
from garda.evaluation import page
from garda.handover import load, verify
from garda.handover.signing import Trusted
from garda.handover.verify import Verified
from garda.runs import report_auditor, report_clinician, report_researcher

OURS = ("plan.json", "comparison.json", "ledger.jsonl", "mlflow.db", "mlruns", "mlartifacts")  # a folder that travels


Reader = Literal["clinician", "auditor", "researcher"]


@dataclass(frozen=True)
class Report:
    """What a page is asked for.

    Attributes:
        source: a run, a comparison or a package.
        reader: who it is for.
        out: the page.
        data: for a clinician, the folder that the manifest's paths are relative to.
        manifest: for a clinician, CSV of the site's scans.
        name: the site's name; None for the manifest's.
        trusted: as in :func:`garda.handover.verify.verify`.
        expected: likewise.
    """

    source: Path
    reader: Reader
    out: Path
    data: Path | None = None
    manifest: Path | None = None
    name: str | None = None
    trusted: Collection[Trusted] = ()
    expected: str = ""


def write_report(asked: Report, console: Console) -> None:
    """Write the page; for researchers also a folder beside it, named alike.

    Raises:
        GardaError: the page cannot be made of this, or not written there; nothing has been written.
    """
    _check(asked)
    if asked.reader == "researcher":
        report_researcher.write_page(asked.source, asked.out)
        return
    with verify.open_package(asked.source, asked.trusted, asked.expected) as found:
        if asked.reader == "auditor":
            load.load_package(found.folder)  # what no command could use is no package
            page.write(asked.out, report_auditor.make_page(found, asked.trusted, asked.expected))
        elif asked.data is not None and asked.manifest is not None:
            text = report_clinician.make_page(found, asked.manifest, asked.data, asked.name, console)
            page.write(asked.out, text, private=True)


def write_audit_page(found: Verified, package: Path) -> Path:
    """Write the auditor's page of a package that a site has just made beside it; gives the page."""
    out = package.absolute().with_name(f"{package.name}.html")
    page.write(out, report_auditor.make_page(found))
    return out


def _check(asked: Report) -> None:
    """Refuse what cannot be, or must not be."""
    if asked.out.suffix != ".html":
        raise ConfigError("--out", f"{asked.out} is no name of a page", "give a name that ends with .html")
    if asked.out.exists():
        raise RunFolderError(asked.out, "exists already", "give another name, or remove it")
    images = asked.reader == "clinician"
    if images and (asked.data is None or asked.manifest is None):
        raise ConfigError("--for clinician", "needs the site's scans", "give --data DATA and --manifest SITE.csv")
    if not images and (asked.data or asked.manifest or asked.name):
        raise ConfigError(f"--for {asked.reader}", "reads no scan", "leave out --data, --manifest and --name")
    for folder in asked.out.absolute().resolve().parents if images else ():
        if folder.name in OURS or any((folder / name).exists() for name in OURS):
            what = "would put patients' images into what garda keeps or passes on"
            raise RunFolderError(asked.out, what, f"give a place outside of {folder}")
    kinds = [name for name in ("plan.json", "comparison.json") if (asked.source / name).exists()]
    if asked.reader == "researcher":
        if asked.trusted or asked.expected:
            raise ConfigError("--for researcher", "asks no signature", "leave out --trust and --expect")
        if not kinds:
            what = "is no run and no comparison, and a package holds no row of a patient"
            raise PackageError(asked.source, what, "give the run's folder, or --for auditor")
    elif kinds == ["comparison.json"]:
        raise PackageError(asked.source, "is a comparison, not one package", "give one of the folders below its runs")
