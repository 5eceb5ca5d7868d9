"""YAML files as frozen pydantic models; what does not fit is told with file, key and the nearest key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from garda.errors import ConfigError


class YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads ``1e-4`` as a number, as YAML 1.2 does and YAML 1.1 does not."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Config(BaseModel):
    """Base of everything that a YAML file can hold: frozen, and an unknown key is an error.

    Types are strict: a quoted number is text, a truth value is no number. A whole number serves as a float, and a list
    as a tuple, which YAML and JSON have not. Numbers are finite: JSON has no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, values: Any) -> Any:
        return {key: _as_tuple(value) for key, value in values.items()} if isinstance(values, dict) else values


M = TypeVar("M", bound=Config)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), YamlLoader)
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"cannot be read ({error.__class__.__name__})", "give a readable text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(path, f"{line}not valid YAML", "mend the syntax") from None
    except (ValueError, LookupError, AttributeError):  # a date 2020-99-99 or !!bool 3: PyYAML has no error of its own
        raise ConfigError(path, "holds a date, number or tag that YAML cannot read", "quote it") from None
    if not isinstance(loaded, dict):
        raise ConfigError(path, f"expected keys and values, found {type(loaded).__name__}", "see docs/reference.md")
    return loaded


def parse(model: type[M], values: dict[str, Any], where: object) -> M:
    """Check ``values`` against ``model``.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing key or a wrong type.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(where, *_explain(model, error)) from None


def load(model: type[M], path: Path) -> M:
    """Read the YAML file ``path`` as a ``model``; errors as in :func:`load_yaml` and :func:`parse`."""
    return parse(model, load_yaml(path), path)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _explain(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """What is wrong with the first misfit, and the remedy."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "the whole file"
    if first["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}"
        return f"unknown key {key!r}", remedy
    if first["type"] == "missing":
        return f"key {key!r} is missing", "add it"
    message = first["msg"].removeprefix("Value error, ")
    given = list(first["input"]) if isinstance(first["input"], tuple) else first["input"]
    return f"{key}: {message[0].lower()}{message[1:]}, got {given!r}", "correct the value"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that ``model`` knows below ``path``."""
    for part in path:
        field = model.model_fields.get(part)
        inner = next((t for t in _flatten(field.annotation) if _is_model(t)), None) if field else None
        if inner is None:
            return list(model.model_fields)
        model = inner
    return list(model.model_fields)


def _as_tuple(value: Any) -> Any:
    """Lists at every depth as tuples."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _flatten(annotation: Any) -> list[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [inner for arg in typing.get_args(annotation) for inner in _flatten(arg)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
