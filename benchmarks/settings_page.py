"""The page of settings: every key with type, range, default and the text that its class has for it."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from benchmarks.result_tables import table, wrap
from garda.core.config import Config
from garda.data.sequence import Pipeline
from garda.data.task import Task
from garda.handover.settings import Settings
from garda.methods.registry import METHODS

BLOCK = "block"  # the type of a key that has keys of its own
OBVIOUS = ("number of steps", "architecture", "the method's name", "the sequence's name", "the task's name")
HEAD = """
# Settings

A run's settings are laid over each other: the configuration file, the pipeline's `settings`, then `--set KEY=VALUE`.
A key that is left out takes its default; an unknown one is an error that names the nearest known one. Types are
strict: a quoted number is text, and a whole number serves as a number. Of the methods' blocks the chosen one's decides.
A heading is the key of a block.
"""


class Block:
    """A class of settings and the places where it stands, each with the defaults that hold there.

    Classes that differ in defaults alone are one block, described by the most general of them.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        same = [base for base in model.__mro__ if _fields(base) == _fields(model)]
        self.model: Any = same[-1]
        self.places: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {}
        self.text = ""

    @property
    def has_rows(self) -> bool:
        """Whether any of its keys is no block itself."""
        return any(describe_type(field) != BLOCK for field in self.model.model_fields.values())

    def render(self, level: int, shown: dict[tuple[str, ...], str]) -> str:
        """Heading, places, a row a key, defaults of the other places; ``shown`` has the rows of other blocks."""
        first, *others = self.places
        model, defaults = self.places[first]
        texts = attributes(self.model)
        also = f"Also {', '.join(f'`{place}`' for place in others)}." if others else ""
        text = "" if self.text in OBVIOUS else f"{self.text[:1].upper()}{self.text[1:]}." if self.text else ""
        rows: list[tuple[str, ...]] = []
        repeated: dict[str, list[str]] = {}
        for key, field in model.model_fields.items():
            row = (f"`{key}`", describe_type(field), show(defaults[key]), texts.get(key, ""))
            if row in shown and _is_inherited(model, key):
                repeated.setdefault(shown[row], []).append(row[0])
            elif row[1] != BLOCK:
                rows.append((*row[:3], "" if row[3] in OBVIOUS else row[3].split(". ")[0]))
                shown.setdefault(row, first)
        lines = [f"{', '.join(keys)}: as in `{place}`." for place, keys in repeated.items()]
        told: dict[str, list[str]] = {}
        for place in others:
            told.setdefault(self._differences(place, defaults), []).append(f"`{place}`")
        lines += [f"{', '.join(places)}: {text}." for text, places in told.items() if text]
        rest = table(("key", "type", "default", "meaning"), rows) if rows else ""
        intro = " ".join(filter(None, [text, also]))
        return "\n".join(filter(None, [f"{'#' * level} {first}\n", wrap(intro), rest, *map(wrap, lines)]))

    def _differences(self, place: str, defaults: dict[str, Any]) -> str:
        """Defaults that are other ones at a place, and what its class says of a key in words of its own."""
        model, others = self.places[place]
        texts, own = attributes(self.model), attributes(model)
        found = [
            f"{key} {show(value)}" + (f" ({own[key]})" if own.get(key) != texts.get(key) else "")
            for key, value in others.items()
            if show(value) != show(defaults[key]) or own.get(key) != texts.get(key)
        ]
        return ", ".join(found)


def page() -> str:
    """Every key of pipelines, tasks and configurations."""
    parts = [HEAD]
    shown: dict[tuple[str, ...], str] = {}
    roots: tuple[tuple[str, str, type[BaseModel]], ...] = (
        ("Pipeline", "pipelines/*.yaml", Pipeline),
        ("Task", "task.yaml", Task),
    )
    for title, name, model in roots:
        blocks = collect([("", model, None)])
        parts += [f"\n## {title}\n\nKeys of `{name}`.\n\n", _keys(blocks.pop(0))]
        parts += [f"\n{block.render(3, shown)}" for block in blocks]
    blocks = collect([("", Settings, None), *((name, known.Settings, None) for name, known in METHODS.items())])
    empty = [name for name, known in METHODS.items() if not known.Settings.model_fields]
    parts += ["\n## Configuration\n\n", _keys(blocks.pop(0))]
    parts += [f"\n{block.render(3, shown)}" for block in blocks if block.has_rows]
    parts.append(f"\n{', '.join(f'`{name}`' for name in empty)} have nothing to set.\n")
    return "".join(parts)


def collect(starts: list[tuple[str, type[BaseModel], BaseModel | None]]) -> list[Block]:
    """The blocks below some models in reading order; a default that is a block brings its own defaults along."""
    blocks: dict[type[BaseModel], Block] = {}
    waiting = [(*start, "") for start in starts]
    while waiting:
        path, model, instance, text = waiting.pop(0)
        block = Block(model)
        block = blocks.setdefault(block.model, block)
        block.text = block.text or text
        defaults = {key: _default(field, instance, key) for key, field in model.model_fields.items()}
        block.places[path] = (model, defaults)
        inner = [
            (f"{path}.{key}".strip("."), found, _block(defaults[key]), attributes(model).get(key, ""))
            for key, field in model.model_fields.items()
            for found in _models(field.annotation)
        ]
        waiting = inner + waiting
    return list(blocks.values())


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """What a class and those that it builds on say of their keys under ``Attributes:``."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Config):
            section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
            items = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
            texts |= {key: tidy(text) for key, text in items}
    return texts


def tidy(text: str) -> str:
    """A docstring's text as Markdown in one line."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    text = re.sub(r" \([^()]* \d{4}[^()]*\)", "", text)  # sources stand in the code and in docs/research/methods.md
    words = {"None": "null", "True": "true", "False": "false"}
    return re.sub(r"\b(None|True|False)\b", lambda found: words[found[0]], text).rstrip(".")


def describe_type(field: FieldInfo) -> str:
    """A key's type and range, as a user writes it in YAML."""
    return _type(field.annotation, field.metadata)


def _type(kind: Any, limits: list[Any]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(arguments[0], [*limits, *_flat(arguments[1:])])
    if origin is Literal:
        return "/".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(kind, limits) if kind is not NoneType else "null" for kind in arguments)
    if origin is tuple:
        what = _type(arguments[0], [])
        return f"list of {what}" if arguments[1:] == (...,) else f"{len(arguments)}×{what}"
    if origin is dict:
        return f"map to {_type(arguments[1], [])}" if arguments[1] is not Any else "map"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return BLOCK
    name = {int: "int", float: "number", str: "text", bool: "bool"}[kind]
    return name + write_range(limits)


def write_range(limits: list[Any]) -> str:
    """Bounds: `` 0–1``, ``≥2``."""
    found: dict[str, Any] = {}
    for limit in limits:
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if getattr(limit, name, None) is not None:
                found[name] = getattr(limit, name)
    if found.keys() == {"ge", "le"}:
        return f" {found['ge']}–{found['le']}"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": " a multiple of "}
    return ",".join(f"{signs[name]}{value}" for name, value in found.items())


def show(value: Any) -> str:
    """A default as YAML; nothing for a block, whose keys have their own."""
    if isinstance(value, BaseModel):
        return ""
    if value is ...:
        return "required"
    plain = value.value if isinstance(value, enum.Enum) else value
    text = yaml.safe_dump(_plain(plain), default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text.replace(', ', ',')}`"


def _keys(block: Block) -> str:
    return block.render(3, {}).partition("\n")[2].lstrip("\n")


def _is_inherited(model: type[BaseModel], key: str) -> bool:
    """Whether a base of a class has the key too."""
    return any(key in _fields(base) for base in model.__mro__[1:])


def _block(default: Any) -> BaseModel | None:
    return default if isinstance(default, BaseModel) else None


def _fields(model: type) -> list[str]:
    return [*getattr(model, "model_fields", {"no": "settings"})]


def _default(field: FieldInfo, instance: BaseModel | None, key: str) -> Any:
    if instance is not None:
        return getattr(instance, key)
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The classes of settings in a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)


def _flat(limits: tuple[Any, ...]) -> Iterator[Any]:
    for limit in limits:
        yield from limit.metadata if isinstance(limit, FieldInfo) else [limit]


def _plain(value: Any) -> Any:
    """A tuple as a list, a float without a decimal point that says nothing."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
