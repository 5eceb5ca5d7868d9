"""A package on labelled test scans of any sites: what `garda evaluate` tells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from garda.checks import check_cases, labelled_cases
from garda.errors import DataError, raise_all
from garda.evaluate import Score
from garda.evaluator import TestScans, score_scans
from garda.handover.learnt import load_package
from garda.handover.package import opened
from garda.handover.signing import Trusted
from garda.handover.verify import verify
from garda.pseudonyms import Pseudonyms
from garda.report import Reporter
from garda.sequence import read_domain


def evaluate_package(
    package: Path,
    manifests: Sequence[Path],
    data: Path,
    reporter: Reporter,
    pseudonyms: Pseudonyms,
    trusted: Collection[Trusted] = (),
) -> list[Score]:
    """Score a package on every labelled test scan of some sites; nothing is written.

    Args:
        package: a folder, a zip file, or a run folder for its last stage.
        manifests: CSV files; each one's name is its domain's, by which the domain's own share of the network is found.
        data: the folder that their paths are relative to.
        reporter: tells the user.
        pseudonyms: stand for patients and scans.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.

    Raises:
        GardaError: the package, a manifest or a scan does not fit.
    """
    with opened(package) as folder:
        verified = verify(folder, trusted)
        learnt = load_package(folder)
    task, stage = learnt.method.task, len(verified.entries) - 1
    domains = [read_domain(manifest, manifest.stem, stage, task) for manifest in manifests]
    unlabelled = [domain for domain in domains if not labelled_cases(domain)]
    raise_all([DataError(d.name, "has no labelled test scan", "give a manifest with one") for d in unlabelled])
    raise_all(check_cases([case for domain in domains for case in labelled_cases(domain)], task, data, reporter))
    for domain in domains:
        if domain.name not in learnt.knowledge.domains:
            reporter.line(f"{domain.name} has not been met under this name: read as another site's scans")
    stems = [manifest.stem for manifest in manifests]
    twice = [manifest for manifest in manifests if stems.count(manifest.stem) > 1]
    raise_all([DataError(manifest, "has the name of another manifest", "rename one") for manifest in twice[:1]])
    scans = TestScans(domains, data, pseudonyms)
    bar = reporter.bar("scores")
    return score_scans(scans, learnt.method, learnt.knowledge, stage, verified.setup.seed, bar)
