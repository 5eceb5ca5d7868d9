"""The audit of a package inside the hospital, while the images that it has learnt are still there.

The auditor is a role of its own: it reads a site's training scans and the scans of patients that no training has used,
looks for the ones among what the generator gives away, and learns nothing.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from garda.core.console import Console
from garda.core.errors import PackageError, raise_all
from garda.data import checks, sequence, volume
from garda.data.dataset import Slices
from garda.data.manifest import Case
from garda.data.sequence import Domain
from garda.data.task import Task
from garda.handover import load, verify
from garda.handover.signing import Trusted
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import features
from garda.models.features import FeatureSettings
from garda.safety import audit
from garda.safety.audit_report import Audit, AuditSettings


@dataclass(frozen=True)
class PatientScans(Sequence[Tensor]):
    """The slices of patients on the network's grid, read when asked; one patient in memory at a time.

    Attributes:
        patients: each one's scans.
        task: gives the grid.
        data: the folder that paths are relative to.
    """

    patients: tuple[tuple[Case, ...], ...]
    task: Task
    data: Path

    def __len__(self) -> int:
        """The number of patients."""
        return len(self.patients)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """(D, C, H, W) of one patient."""
        volumes = (volume.read_volume(case, self.task, self.data, with_label=False) for case in self.patients[index])
        return torch.cat([*Slices(volumes, self.task, with_labels=False).volumes()])

    def __iter__(self) -> Iterator[Tensor]:
        """Patient after patient."""
        return (self[index] for index in range(len(self)))


def audit_package(
    package: Path,
    manifest: Path,
    data: Path,
    console: Console,
    name: str | None = None,
    trusted: Collection[Trusted] = (),
    expected: str = "",
) -> Audit:
    """Audit a package's generator for one domain, with the manifest that the domain was learnt from.

    Args:
        package: a folder, a zip file, or a run folder for its last stage.
        manifest: CSV of the site's scans: those of split ``train`` are what was learnt, patients of the others were
            never used.
        data: the folder that its paths are relative to.
        console: tells the user.
        name: the domain's name; None for the manifest's.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        expected: the package's digest, as another channel has told it; empty for not asking.

    Raises:
        GardaError: the package has no generator, or has not learnt the domain; a scan does not fit.
    """
    with verify.open_package(package, trusted, expected) as verified:
        learnt = load.load_package(verified.folder)
    domain = sequence.read_domain(manifest, name or manifest.stem, 0, learnt.method.task)
    generator = learnt.knowledge.generator
    if generator is None or domain.name not in generator.domains:
        drawn = "no domain" if generator is None else ", ".join(generator.domains)
        raise PackageError(package, f"its generator draws {drawn}, not {domain.name!r}", "give --name, or the manifest")
    cases = [checks.without_label(case) for case in domain.cases]
    raise_all(checks.check_cases(cases, learnt.method.task, data, console))
    console.line(f"audit of {domain.name}: {len(cases)} scans")
    return audit_domain(learnt.method, learnt.knowledge, domain, data, learnt.parsed.audit, verified.setup.seed)


def audit_domain(
    method: Method, knowledge: Knowledge, domain: Domain, data: Path, settings: AuditSettings, seed: int
) -> Audit:
    """Audit a generator for one of its domains, see :func:`garda.safety.audit`.

    Raises:
        TypeError: knowledge of a method without a generator.
    """
    if knowledge.generator is None:
        raise TypeError("an audit looks at a generator")
    trained, others = split_patients(domain)
    return audit.audit(
        knowledge.generator,
        knowledge.generator.domains.index(domain.name),
        PatientScans(trained, method.task, data),
        PatientScans(others, method.task, data),
        features.build_encoder(FeatureSettings(), knowledge.source_segmenter),
        settings,
        method.compute,
        seed=seed,
        task=method.task,
    )


def describe_audit(found: Audit) -> list[str]:
    """The figures as lines."""
    lines = [f"{found.members} training patients, {found.outsiders} never used in training"]
    if found.no_figure is not None:
        lines.append(f"no figure for copies and membership: {found.no_figure}")
    for copies in found.copies:
        share = f"{copies.share:.1%} of {copies.generated} generated images"
        lines.append(f"copies, {copies.space}: {share}; 1 % is expected, up to {copies.chance:.1%} may be chance")
    for outliers in found.outliers:
        who = f"{outliers.count} of {outliers.members} training patients stand out"
        lines.append(f"outliers, {outliers.space}: {who}")
    for attack in found.membership:
        how = f"{attack.attack}, calibrated" if attack.calibrated else attack.attack
        line = f"membership, {how}: AUC {attack.auc:.3f} ({attack.interval[0]:.3f} to {attack.interval[1]:.3f})"
        rate = attack.tpr_at_1_percent_fpr
        lines.append(line if rate is None else f"{line}, {rate:.1%} found at 1 % false alarms")
    lines.append(f"kept {found.bytes_kept} bytes for all domains, of {found.bytes_seen} bytes of slices seen here")
    return [*lines, *(f"finding: {finding}" for finding in found.findings)]


def split_patients(domain: Domain) -> tuple[tuple[tuple[Case, ...], ...], tuple[tuple[Case, ...], ...]]:
    """The training scans of each training patient, and the scans of each patient that no training has used."""
    trained = dict.fromkeys(case.patient for case in domain.split("train"))
    others = dict.fromkeys(case.patient for case in domain.cases if case.patient not in trained)

    def scans(patient: str, cases: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(checks.without_label(case) for case in cases if case.patient == patient)

    members = tuple(scans(patient, domain.split("train")) for patient in trained)
    return members, tuple(scans(patient, domain.cases) for patient in others)
