"""What is wrong with a command line, in one line."""

from __future__ import annotations

import sys
from typing import Any

import typer

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
