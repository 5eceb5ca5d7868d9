"""What is said on the command line: parsed where typer cannot, and told where it is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from garda.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from garda.core.console import Console
    from garda.handover.signing import Trusted
    from garda.handover.verify import Verified

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has no public name for it


def describe_usage(error: Any) -> str:
    """The line for a ``UsageError``; nothing where the help has been shown instead."""
    message = error.format_message().replace("Value error, ", "")  # pydantic's own words
    if "\n" in message:  # the help
        return f"{message}\n"
    what, _, near = message.partition(". Did you mean ")
    command = error.ctx.command_path if error.ctx else " ".join(["garda", *sys.argv[1:2]])
    remedy = f"did you mean {near}" if near else f"see {command} --help"
    return f"{command}: {what[0].lower()}{what[1:].rstrip('.')}; {remedy}\n" if what else ""


def open_console(shown: bool = True) -> Console:
    """What tells the user; nothing at a rank that another one speaks for."""
    from rich.console import Console as RichConsole

    from garda.core.console import Console

    return Console(None if shown else RichConsole(quiet=True))


def read_trusted(text: str) -> Trusted:
    """See :func:`garda.handover.signing.read_trusted`."""
    from garda.handover import signing

    return signing.read_trusted(text)


def read_private(text: str) -> Ed25519PrivateKey:
    """See :func:`garda.handover.signing.read_private`."""
    from garda.handover import signing

    return signing.read_private(Path(text))


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """``["a.b=3"]`` as ``{"a": {"b": 3}}``."""
    import yaml

    from garda.core.config import YamlLoader, merge

    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError("--set", f"expected KEY=VALUE, got {text!r}", "write for example --set source.steps=100")
        try:
            nested: Any = yaml.load(value, YamlLoader)
        except (yaml.YAMLError, ValueError):
            raise ConfigError("--set", f"{value!r} is not a YAML value", "quote it") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        changes = merge(changes, nested)
    return changes


DataFolder = Annotated[Path, typer.Option("--data", help="Folder that the manifests' paths are relative to.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting: a.b=3.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="Devices that share each batch, a process each.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines that so many devices each are on.")]


class Format(StrEnum):
    """What a package can be exported to."""

    zip = "zip"
    bundle = "bundle"
    onnx = "onnx"


class Runtime(StrEnum):
    """What computes a network that predicts."""

    torch = "torch"
    onnx = "onnx"


PackagePath = Annotated[
    Path, typer.Argument(metavar="PACKAGE", help="A package: folder or zip file; or a run, for its last stage.")
]
FORMS = "zip: the package as one file; bundle: a MONAI bundle; onnx: the network alone."
Trust = Annotated[
    list[Any] | None,
    typer.Option("--trust", parser=read_trusted, metavar="[SITE=]PUBKEY", help="Whose signatures count."),
]
Expect = Annotated[str, typer.Option("--expect", metavar="DIGEST", help="The digest told by another channel.")]
SigningKey = Annotated[
    Any, typer.Option("--sign", parser=read_private, metavar="KEY", help="Sign this stage's ledger line.")
]


Strict = Annotated[bool, typer.Option("--strict", help="Refuse a folder of which a file would be left out.")]
Audited = Annotated[bool, typer.Option("--audit", help="Look for copies and members before a stage is sealed.")]


def tell_package(found: Verified, console: Console) -> None:
    """What a package is, a line a stage."""
    console.line(f"package {found.digest}")
    for number, entry in enumerate(found.entries, 1):
        how = f"{entry.scans} scans of {entry.patients} patients, {entry.month}, {entry.decision}"
        console.line(f"stage {entry.stage} {entry.domain}: {how}{entry.overruled}")
        keys = [signature.key for signature in found.signatures if signature.line == number]
        for key in keys:
            console.line(f"  signed {key}")
        if found.signatures and not keys:
            console.line("  NOT signed")
        for reason in entry.reasons:
            console.line(f"  {reason}")


def find_named(pseudonym: str, manifests: Sequence[Path]) -> list[str]:
    """A line for each case that a pseudonym of this user's key stands for.

    Raises:
        DataError: a manifest cannot be read, or the pseudonym is of none of its patients and cases.
    """
    from garda.core.pseudonyms import Pseudonyms, load_key
    from garda.data.manifest import read_names

    own, lines = Pseudonyms(load_key()), []
    for file in manifests:
        for patient, case in read_names(file):
            names = {
                own.pseudonym(kind, f"{file.stem}/{name}") for kind, name in (("patient", patient), ("case", case))
            }
            if pseudonym in names:
                lines.append(f"{file}: patient {patient}, case {case}")
    if not lines:
        what = f"is no patient or case of {', '.join(map(str, manifests))} under this user's key"
        raise DataError(pseudonym, what, "give the site's manifest, and GARDA_HOME of who made the table")
    return lines
