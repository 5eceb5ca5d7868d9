"""Settings, names, addresses and errors in the words that MLflow takes, and that may be shown."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from garda.runs.journal import PermanentError

KEY_CHARACTERS, VALUE_CHARACTERS = 250, 6000  # the most that MLflow takes


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: ``{"a": {"b": 1}}`` as ``{"a.b": "1"}``.

    Values are JSON, text without its quotes; of an absolute path the file's name alone is kept. Keys and values are cut
    to the lengths that MLflow takes.

    >>> flatten({"source": {"steps": 20}, "weights": "/models/vgg19.pt"})
    {'source.steps': '20', 'weights': 'vgg19.pt'}
    """
    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        flat[metric_name(key)] = (Path(text).name if Path(text).is_absolute() else text)[:VALUE_CHARACTERS]
    return flat


def metric_name(name: str) -> str:
    """The nearest name that MLflow takes: letters, digits, ``_-.:/`` and spaces, a plain path, 250 characters.

    >>> metric_name("dice/Site (3 T)/a")
    'dice/Site _3 T_/a'
    """
    cleaned = re.sub(r"[^/\w.\- :]", "_", name)
    parts = ("_" if part in ("", ".", "..") else part for part in cleaned.split("/"))
    return "/".join(parts)[:KEY_CHARACTERS].rstrip("/")


def without_secrets(uri: str) -> str:
    """An address without login and query, which may hold a password or a token.

    >>> without_secrets("postgresql://me:secret@host:5432/runs?password=secret")
    'postgresql://host:5432/runs'
    """
    scheme, host, path, *_ = urlsplit(uri)
    return f"{scheme}://{host.rpartition('@')[2]}{path}" if scheme else path


def distinct(names: Iterable[str]) -> list[str]:
    """Each name as MLflow takes it.

    Raises:
        PermanentError: two would be one.
    """
    made: dict[str, str] = {}
    for name in names:
        other = made.setdefault(metric_name(name), name)
        if other != name:
            raise PermanentError(
                f"{other!r} and {name!r} are one name there", "call domains and classes otherwise in letters and digits"
            )
    return list(made)


def explain(error: Exception) -> Exception:
    """A database's error that will not pass, in words; any other as it is."""
    text = str(error).lower()
    if any(words in text for words in ("out-of-date database schema", "no such table", "can't locate revision")):
        remedy = "name another store, install that MLflow, or upgrade an older one: mlflow db upgrade URI"
        return PermanentError("is the database of another version of MLflow", remedy)
    if "readonly database" in text or "read-only" in text or "permission denied" in text:
        return PermanentError("cannot be written", "make it writable, or name another with MLFLOW_TRACKING_URI")
    if "not a database" in text or "malformed" in text:
        return PermanentError("is no whole SQLite database", "restore it, or move it away: all is sent again")
    return error
