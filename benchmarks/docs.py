"""Pages of the documentation that say what the code says: settings, commands, results.

    python -m benchmarks.docs [--check]

Writes ``docs/reference/settings.md`` from the settings' classes and their ``Attributes:``,
``docs/reference/commands.md`` from the command line, ``docs/research/results.md`` and the README's table from
``docs/results/*.csv``. With ``--check`` nothing is written: stale pages are named, and the exit code is 1.
"""

import argparse
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import annotated_types
import typer

from benchmarks import result_tables, settings_page
from benchmarks.result_tables import table, wrap
from benchmarks.settings_page import show, tidy, write_range
from garda import cli
from garda.core import errors
from garda.core.signals import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent
MADE = "<!-- made by `python -m benchmarks.docs`: change the code that it reads, not this page -->\n"
RESULTS = "docs/research/results.md"
SHARED = 2  # commands that have an option in common, from which on it is explained once
COMMANDS = f"""{MADE}
# Commands

`garda COMMAND --help`, or `-h`, prints the same. [Options that several commands have](#options-of-several-commands)
stand in one table below. What a command writes is in [files.md](files.md).
"""


def main(arguments: list[str] | None = None) -> int:
    """Write every page that is stale, or name them; 1 if there are any and nothing may be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description="Write the generated pages.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    check = parser.parse_args(arguments).check
    stale = stale_pages(ROOT)
    for file, text in stale.items():
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {'stale; run python -m benchmarks.docs' if check else 'written'}")
    return 1 if check and stale else 0


def stale_pages(root: Path) -> dict[Path, str]:
    """The generated pages of a checkout that are not what they should be, each with the text that it should have."""
    readme = root / "README.md"
    pages = {
        root / "docs/reference/settings.md": MADE + settings_page.page(),
        root / "docs/reference/commands.md": commands_page(),
        root / RESULTS: MADE + result_tables.page(root / "docs/results"),
        readme: result_tables.splice(readme.read_text(encoding="utf-8"), root / "docs/results"),
    }
    return {f: text for f, text in pages.items() if not f.exists() or f.read_text(encoding="utf-8") != text}


EXITS = """
`garda audit` ends with 3 where it finds something. Any other code, with a traceback, is a defect of garda.
"""


def commands_page() -> str:
    """Every command with its arguments and options, and the exit codes."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    uses: dict[tuple[str, ...], list[str]] = {}
    for name, command in commands.items():
        for row in map(_option, command.params):
            uses.setdefault(row, []).append(name)
    shared = [row for row, names in uses.items() if len(names) >= SHARED]
    heads = ("option", "default", "meaning")
    parts = [COMMANDS]
    for name, command in commands.items():
        usage = " ".join(["garda", name, *(p.metavar for p in command.params if _is_argument(p))])
        rows = [_option(param) for param in command.params]
        also = ", ".join(row[0] for row in rows if row in shared and row[0].startswith("`-"))
        parts.append(f"\n## garda {name}\n\n{wrap(f'`{usage}`: {tidy(command.help)}.')}")
        parts.append("\n" + table(heads, own) if (own := [row for row in rows if row not in shared]) else "")
        parts.append(f"\nAlso {also}.\n" if also else "")
    parts.append("\n## Options of several commands\n\n" + table(heads, shared))
    parts.append("\n## Exit codes\n\n" + table(("code", "meaning"), [*exit_codes()]))
    parts.append(EXITS)
    return "".join(parts)


def exit_codes() -> Iterator[tuple[str, str]]:
    """Every exit code and what it means, from the errors' classes."""
    yield "0", "Done."
    kinds: list[type[errors.GardaError]] = [errors.GardaError, *errors.GardaError.__subclasses__()]
    for code in sorted({kind.exit_code for kind in kinds}):
        same = [kind for kind in kinds if kind.exit_code == code and kind.__init__ is errors.GardaError.__init__]
        texts = [tidy((kind.__doc__ or "").partition("\n")[0]) for kind in same if kind is not errors.GardaError]
        mend = "Something that you can mend, told as *where: what; remedy*: " if len(texts) > 1 else ""
        yield str(code), f"{mend}{'; '.join(texts)}."
    for signal, code in sorted(EXIT_CODES.items(), key=lambda item: item[1]):
        yield str(code), f"{signal.name}: stopped on request; during training after a checkpoint."


def _option(param: Any) -> tuple[str, str, str]:
    """Name with what it takes, default, and help of an argument or option."""
    kind = param.type_descriptor.annotation
    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    limits = write_range([annotated_types.Interval(ge=param.min, le=param.max)])
    takes = param.metavar or {int: "INT", str: "TEXT", Path: "PATH", bool: ""}.get(inner, "") + limits
    if isinstance(inner, type) and issubclass(inner, enum.Enum):
        takes = "|".join(member.value for member in inner)
    elif get_origin(inner) is tuple:
        takes = " ".join("ABC"[: len(get_args(inner))])
    name = takes if _is_argument(param) else f"{param.opts[0]} {takes}".strip()
    absent = param.default is None or param.default is False or param.default == ""
    default = "required" if param.required else "" if absent else show(param.default)
    return f"`{name}`", default, tidy(param.help or "") + ("; repeatable" if param.multiple else "")


def _is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


if __name__ == "__main__":
    sys.exit(main())
