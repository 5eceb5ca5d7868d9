"""What a line of the journal says, and whether it says it well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from garda.tracking.base import RunDescription, Status

Kind = Literal["start", "losses", "stage_ended", "artifact", "finish"]


@dataclass(frozen=True)
class Event:
    """One thing that a run told.

    Attributes:
        number: counts up from 1 within a run folder.
        time: milliseconds since 1970.
        kind: the :class:`~garda.tracking.base.Tracker` call.
        values: plain values. start: the run's description, and ``key``, the run folder's own random name. losses:
            stage, part ("" for none), step, values. stage_ended: stage, seen (number of domains), metrics. artifact:
            path, relative to the run folder. finish: status.
    """

    number: int
    time: int
    kind: Kind
    values: dict[str, Any]


@dataclass(frozen=True)
class _Start(RunDescription):
    key: str


@dataclass(frozen=True)
class _Losses:
    stage: str
    part: str
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class _StageEnded:
    stage: str
    seen: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Artifact:
    path: str


@dataclass(frozen=True)
class _Finish:
    status: Status


_EVENT = TypeAdapter(Event)
_VALUES: dict[Kind, TypeAdapter[Any]] = {
    "start": TypeAdapter(_Start),
    "losses": TypeAdapter(_Losses),
    "stage_ended": TypeAdapter(_StageEnded),
    "artifact": TypeAdapter(_Artifact),
    "finish": TypeAdapter(_Finish),
}


def parse_event(line: str) -> Event | None:
    """The event that a journal's line holds; None where it is torn, or of another shape."""
    try:
        event = _EVENT.validate_json(line, strict=True)
        _VALUES[event.kind].validate_python(event.values)
    except ValidationError:
        return None
    return event
