"""YAML files as frozen pydantic models; what does not fit is told with file, key and the nearest key."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from garda.core import files
from garda.core.errors import ConfigError, GardaError, raise_all

MOST = 20  # misfits that are told at once; a package from elsewhere may have any number


class YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader that reads ``1e-4`` as a number, as YAML 1.2 does, and refuses a key that comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which lets the last of equal keys win; ``<<`` may be written over."""
        seen: list[Any] = []
        for key in (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise _TwiceError(name, key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)


class _TwiceError(yaml.MarkedYAMLError):
    """A key that comes twice in one mapping."""

    def __init__(self, key: Any, mark: yaml.Mark) -> None:
        super().__init__(problem=f"the key {key!r} comes twice", problem_mark=mark)


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold nothing that cannot be printed")
    return text


Printable = Annotated[str, AfterValidator(_check_printable)]


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


@dataclass(frozen=True)
class SettingsOrigin:
    """Where merged settings come from, for messages.

    Attributes:
        file: holds most of them.
        layers: what was laid over it, the topmost last: a name and the settings.
    """

    file: Path
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def of(self, path: Sequence[str]) -> str:
        """Where the key at ``path`` comes from."""
        return next((name for name, values in reversed(self.layers) if path and _has(values, path)), str(self))

    def __str__(self) -> str:
        short = Path(os.path.normpath(self.file))  # without a/../, unless a is a link that leads elsewhere
        return str(short if short.exists() and short.samefile(self.file) else self.file)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        loaded = yaml.load(files.read_bytes(path).decode(), YamlLoader)
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        why = files.reason(error) if isinstance(error, OSError) else "it is no utf-8"
        raise ConfigError(path, f"cannot be read ({why})", "give a readable text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        if isinstance(error, _TwiceError):
            raise ConfigError(path, f"{line}{error.problem}", "leave one of them out") from None
        raise ConfigError(path, f"{line}not valid YAML", "mend the syntax") from None
    except (ValueError, LookupError, AttributeError):  # a date 2020-99-99 or !!bool 3: PyYAML has no error of its own
        raise ConfigError(path, "holds a date, number or tag that YAML cannot read", "quote it") from None
    if not isinstance(loaded, dict):
        raise ConfigError(
            path, f"expected keys and values, found {type(loaded).__name__}", "see docs/reference/files.md"
        )
    return loaded


def parse(model: type[M], values: dict[str, Any], where: object) -> M:
    """Check ``values`` against ``model``; ``where`` they come from is a name, or a :class:`SettingsOrigin`.

    >>> class Training(Config):
    ...     steps: int = 1
    >>> parse(Training, {"steps": 5}, "run.yaml")
    Training(steps=5)
    >>> parse(Training, {"stepz": 5}, "run.yaml")
    Traceback (most recent call last):
    garda.core.errors.ConfigError: run.yaml: unknown key 'stepz'; did you mean 'steps'?

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing key or a wrong type.
        Problems: several of them, the first of each key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        misfits = {_without_index(misfit): misfit for misfit in reversed(error.errors(include_url=False))}
    raise_all([_explain(model, misfit, where) for misfit in [*reversed(misfits.values())][:MOST]])
    raise AssertionError("pydantic refuses nothing without a reason")


def load(model: type[M], path: Path) -> M:
    """Read the YAML file ``path`` as a ``model``; errors as in :func:`load_yaml` and :func:`parse`."""
    return parse(model, load_yaml(path), path)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, key by key at every depth.

    >>> merge({"source": {"steps": 5, "batch": 4}}, {"source": {"steps": 9}})
    {'source': {'steps': 9, 'batch': 4}}
    """
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _without_index(misfit: ErrorDetails) -> tuple[str, ...]:
    """The key of a misfit; a list's entries have one key, of which the first is told."""
    return tuple(part for part in misfit["loc"] if isinstance(part, str))


def _has(values: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _explain(model: type[BaseModel], misfit: ErrorDetails, where: object) -> GardaError:
    """Where a misfit is, what is wrong with it, and the remedy."""
    where = where.of(_without_index(misfit)) if isinstance(where, SettingsOrigin) else where
    path = [str(part) for part in misfit["loc"]]
    key = ".".join(path) or "the whole file"
    if misfit["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}"
        return ConfigError(where, f"unknown key {key!r}", remedy)
    if misfit["type"] == "missing":
        return ConfigError(where, f"key {key!r} is missing", "add it")
    message = misfit["msg"].removeprefix("Value error, ")
    given = list(misfit["input"]) if isinstance(misfit["input"], tuple) else misfit["input"]
    return ConfigError(where, f"{key}: {message[0].lower()}{message[1:]}, got {given!r}", "correct the value")


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that ``model`` knows below ``path``."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def _as_tuple(value: Any) -> Any:
    """Lists at every depth as tuples."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
