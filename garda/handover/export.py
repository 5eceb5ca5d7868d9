"""A package's network for programs that are not garda: what is exported, what is refused, and where it is written."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from garda.core.errors import ConfigError, RunFolderError
from garda.handover import bundle, load, onnx, verify
from garda.handover.format import CARD, GENERATOR, NOTICE
from garda.handover.load import Exported, LoadedPackage
from garda.handover.signing import Trusted
from garda.methods.base import Method

WRITERS: Mapping[str, Callable[[Exported, Path], None]] = {"bundle": bundle.write_bundle, "onnx": onnx.write_onnx}


def export_network(
    package: Path,
    out: Path,
    form: str,
    domain: str | None = None,
    trusted: Collection[Trusted] = (),
    with_generator: bool = False,
    expected: str = "",
) -> None:
    """Write one domain's network in a form that other programs read.

    Args:
        package: a package, as a folder or a zip file, or a run folder for its last stage.
        out: the bundle's folder or the ONNX file; appears whole or not at all.
        form: a key of ``WRITERS``.
        domain: the domain whose network is written; None for the last one met, ``other`` for one that has not been met.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        with_generator: also write the weights of the generator; a bundle alone has room for them.
        expected: the package's digest, as another channel has told it; empty for not asking.

    Raises:
        PackageError: there is no package, or it is damaged.
        CheckpointError: its weights are.
        ConfigError: no such domain has been met, the form cannot say how the network is used, or a library is missing.
        RunFolderError: ``out`` exists, or cannot be written.
    """
    if out.exists():
        raise RunFolderError(out, "exists already", "give another name, or remove it")
    if with_generator and form != "bundle":
        raise ConfigError("--with-generator", f"{form} holds one network", "leave it out, or use --to bundle")
    WRITERS[form](read_exported(package, domain, trusted, with_generator, expected), out)


def read_exported(
    package: Path,
    domain: str | None = None,
    trusted: Collection[Trusted] = (),
    with_generator: bool = False,
    expected: str = "",
) -> Exported:
    """One domain's network, from a package that has been found whole; arguments as above.

    Raises:
        PackageError: there is no package, or it is damaged.
        CheckpointError: its weights are.
        ConfigError: no such domain has been met, there is no generator, or scans are prepared for the network.
    """
    with verify.open_package(package, trusted, expected) as verified:
        folder = verified.folder
        learnt = load.load_package(folder)
        card, notice = ((folder / name).read_text(encoding="utf-8") for name in (CARD, NOTICE))
        generator = folder / GENERATOR
        if with_generator and not generator.exists():
            raise ConfigError("--with-generator", f"{learnt.setup.method!r} has no generator", "leave it out")
        weights = generator.read_bytes() if with_generator else None
    chosen = load.choose_domain(learnt.knowledge, domain)
    _refuse_standardising(learnt)
    return Exported(
        network=load.on_cpu(learnt.method.network_for(learnt.knowledge, chosen)),
        widths=learnt.method.shared.segmenter.widths,
        task=learnt.method.task,
        name=verified.setup.name,
        domain=chosen,
        entries=verified.entries,
        digest=verified.digest,
        card=card,
        notice=notice,
        generator=weights,
        zoom=learnt.method.zoom_for(learnt.knowledge, chosen),
        largest=learnt.knowledge.largest,
    )


def _refuse_standardising(learnt: LoadedPackage) -> None:
    """A network whose images another step of the method prepares would be exported without that step."""
    if type(learnt.method).standardise is not Method.standardise:
        what = f"{learnt.setup.method!r} maps a scan's intensities before its network reads them"
        raise ConfigError("--to", f"{what}, which neither a bundle nor ONNX holds", "use garda predict")
