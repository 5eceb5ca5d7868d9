"""What is said on the command line: parsed where typer cannot, and told where it is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from garda.core.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from garda.core.console import Console
    from garda.handover.signing import Trusted

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
