"""Options that several groups of commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from garda.errors import ConfigError

DataFolder = Annotated[Path, typer.Option("--data", help="Folder that the manifests' paths are relative to.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting: a.b=3.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="Devices that share each batch, a process each.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines that so many devices each are on.")]


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """``["a.b=3"]`` as ``{"a": {"b": 3}}``."""
    import yaml

    from garda.config import YamlLoader, merge

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
