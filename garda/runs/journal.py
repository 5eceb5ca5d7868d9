"""A tracker that cannot fail a run: events are written to a file first and sent to a store when it answers.

Each event is a line of ``tracking.jsonl`` with a number. ``tracking.json`` says, for each store, up to which number it
has been served and the ids that it gave to the run and its stages. An event can be sent twice, if the process was
killed between sending and taking note; it then carries the same time, and a store takes it as the same.
"""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol

from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError

from garda.core import files
from garda.core.errors import Undelivered
from garda.runs.tracking import RunDescription, Status

JOURNAL, STATE = "tracking.jsonl", "tracking.json"
SEND_SECONDS = 10.0  # between two deliveries in the course of a stage, so that curves can be watched
DEADLINE_SECONDS = 30.0  # for which a run waits for a delivery, and once more at its end
Kind = Literal["start", "losses", "stage_ended", "artifact", "sealed", "finish"]


@dataclass(frozen=True)
class Event:
    """One thing that a run reported.

    Attributes:
        number: counts up from 1 within a run folder.
        time: milliseconds since 1970.
        kind: the :class:`~garda.runs.tracking.Tracker` call.
        values: plain values. start: the run's description, and ``key``, the run folder's own random name. losses:
            stage, part (the phase, "" for none), step, values. stage_ended: stage, seen (number of domains), metrics.
            artifact: path, relative to the run folder. sealed: stage, site, facts, card. finish: status.
    """

    number: int
    time: int
    kind: Kind
    values: dict[str, Any]


def _shape(*bases: type, **fields: Any) -> TypeAdapter[Any]:
    """A check of plain values: their names and types."""
    return TypeAdapter(make_dataclass("Values", fields.items(), bases=bases, frozen=True))


_EVENT = TypeAdapter(Event)
_VALUES: dict[Kind, TypeAdapter[Any]] = {
    "start": _shape(RunDescription, key=str),
    "losses": _shape(stage=str, part=str, step=int, values=dict[str, float]),
    "stage_ended": _shape(stage=str, seen=int, metrics=dict[str, float]),
    "artifact": _shape(path=str),
    "sealed": _shape(stage=str, site=str, facts=dict[str, str], card=str),
    "finish": _shape(status=Status),
}


class _Delivery(BaseModel):
    """Up to which number a store has been served, and its ids."""

    delivered: NonNegativeInt = 0
    ids: dict[str, str] = {}


_DELIVERIES = TypeAdapter(dict[str, _Delivery])


class LostError(Exception):
    """The store does not know what it has taken before: it is another one."""


class PermanentError(Exception):
    """The store will not take this however often it is sent.

    Args:
        what: is wrong.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class Store(Protocol):
    """Where events are sent.

    Attributes:
        name: tells one store from another; holds no password.
    """

    name: str

    def deliver(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        """Take events in order; may raise anything, and is then given the same events again, of a lost run all.

        Args:
            events: at least one; the first ever is a start. Events that were taken before change nothing.
            ids: what the store calls the run (``""``) and each stage (its name); the store adds what it makes.
        """


class Journalled:
    """A :class:`~garda.runs.tracking.Tracker` over a run folder and a store."""

    def __init__(self, out: Path, store: Store, tell: Callable[[str], None]) -> None:
        """Nothing is read or written before :meth:`start`.

        Args:
            out: the run folder.
            store: where events are sent.
            tell: gets one line when the store or the journal fails for the first time.
        """
        self._out, self._store, self._tell = out, store, tell
        self._told, self._reachable, self._sent = False, True, 0.0
        self._problem: tuple[str, str] | None = None
        self._reported = 0
        self._late: Thread | None = None
        self._key, self._last = uuid.uuid4().hex, 0
        self._stages: Sequence[str] = ()
        self._deliveries = {store.name: _Delivery()}
        self._pending: list[Event] = []
        self._last_step: dict[tuple[str, str, str], int] = {}
        self._metrics: dict[tuple[int, str], float] = {}

    def start(self, run: RunDescription) -> None:
        """See :class:`~garda.runs.tracking.Tracker`; what an earlier process could not send is sent now."""
        self._recall()
        self._stages = run.stages
        self._add("start", asdict(run) | {"key": self._key})
        self._send()

    def catch_up(self) -> None:
        """See :class:`~garda.runs.tracking.Tracker`."""
        self._recall()
        self._send()

    def _recall(self) -> None:
        """Take up what earlier processes wrote, and what of it the store has."""
        with suppress(OSError, ValidationError):  # of a damaged file nothing is known: sending again does no harm
            self._deliveries |= _DELIVERIES.validate_json((self._out / STATE).read_bytes(), strict=True)
        delivered = self._last = self._deliveries[self._store.name].delivered
        try:
            for event in _read(self._out / JOURNAL):
                self._remember(event)
                self._key = event.values.get("key", self._key)
        except OSError as error:
            self._tell_once(JOURNAL, error)
        self._pending = [event for event in self._pending if event.number > delivered]

    def losses(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See :class:`~garda.runs.tracking.Tracker`; costs one written line, and a delivery every ten seconds."""
        name, part = _split(stage, self._stages)
        new = {loss: value for loss, value in values.items() if step > self._last_step.get((name, part, loss), -1)}
        if new:
            self._add("losses", {"stage": name, "part": part, "step": step, "values": new})
        if self._reachable and time.monotonic() - self._sent > SEND_SECONDS:
            self._send()

    def stage_ended(self, stage: str, stage_index: int, metrics: Mapping[str, float]) -> None:
        """See :class:`~garda.runs.tracking.Tracker`."""
        seen, known = stage_index + 1, self._metrics
        new = {key: value for key, value in metrics.items() if math.isfinite(value) and known.get((seen, key)) != value}
        self._add("stage_ended", {"stage": stage, "seen": seen, "metrics": new})
        self._send()

    def artifact(self, path: Path) -> None:
        """See :class:`~garda.runs.tracking.Tracker`; sent with what comes next."""
        self._add("artifact", {"path": path.relative_to(self._out).as_posix()})

    def sealed(self, stage: str, site: str, facts: Mapping[str, str], card: str) -> None:
        """See :class:`~garda.runs.tracking.Tracker`; sent with what comes next."""
        self._add("sealed", {"stage": stage, "site": site, "facts": dict(facts), "card": card})

    def finish(self, status: Status) -> None:
        """See :class:`~garda.runs.tracking.Tracker`."""
        self._add("finish", {"status": status})
        if self._late is not None:
            self._late.join(DEADLINE_SECONDS)
        self._send()

    def check_delivered(self) -> str:
        """See :class:`~garda.runs.tracking.Tracker`."""
        told = f"{self._reported - sum(map(_count, self._pending))} of {self._reported} metrics delivered"
        if self._pending:
            what, remedy = self._problem or ("", "run the same command again when it can be written")
            raise Undelivered(self._store.name, f"{told}{', ' * bool(what)}{what}", remedy)
        return told

    def _remember(self, event: Event) -> None:
        """Take note of an event: it is to be sent, and is not to be told again."""
        self._last = max(self._last, event.number)
        self._pending.append(event)
        self._reported += _count(event)
        values = event.values
        if event.kind == "losses":
            self._last_step |= {(values["stage"], values["part"], loss): values["step"] for loss in values["values"]}
        elif event.kind == "stage_ended":
            self._metrics |= {(values["seen"], name): value for name, value in values["metrics"].items()}

    def _add(self, kind: Kind, values: dict[str, Any]) -> None:
        event = Event(self._last + 1, time.time_ns() // 1_000_000, kind, values)
        self._remember(event)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with (self._out / JOURNAL).open("ab+") as file:
                file.seek(max(0, file.tell() - 1))
                torn = file.read(1) not in (b"", b"\n")  # a killed process left its last line unfinished
                file.write(f"{chr(10) if torn else ''}{json.dumps(asdict(event))}\n".encode())
        except OSError as error:
            self._tell_once(JOURNAL, error)

    def _send(self) -> None:
        self._sent = time.monotonic()
        if not self._pending or self._problem or (self._late is not None and self._late.is_alive()):
            return
        delivery = self._deliveries[self._store.name]
        try:
            try:
                self._deliver(delivery.ids)
            except LostError:
                delivery.ids.clear()
                self._pending = _read(self._out / JOURNAL)
                self._deliver(delivery.ids)
            delivery.delivered, self._pending = self._pending[-1].number, []
            files.write_json(self._out / STATE, _DELIVERIES.dump_python(self._deliveries))
            self._reachable = True
        except PermanentError as error:
            self._reachable, self._problem = False, (error.what, error.remedy)
            self._tell_once(self._store.name, error)
        except Exception as error:  # whatever a store raises, a run goes on
            self._reachable = False
            self._tell_once(self._store.name, error)

    def _deliver(self, ids: dict[str, str]) -> None:
        """Hand over what is pending; a run does not wait for a server that drips bytes, nor asks it anew meanwhile."""
        raised: list[Exception] = []
        events = [*self._pending]  # a late delivery goes on while others are added

        def deliver() -> None:
            try:
                self._store.deliver(events, ids)
            except Exception as error:
                raised.append(error)

        sending = Thread(target=deliver, daemon=True)
        sending.start()
        sending.join(DEADLINE_SECONDS)
        self._late = sending if sending.is_alive() else None
        if self._late is not None:
            raise TimeoutError
        for error in raised:
            raise error

    def _tell_once(self, where: str, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        what = f"tracking does not work ({type(error).__name__}) and the run goes on"  # its text may hold passwords
        remedy = (
            "see that it can be reached and written, and what is missing is sent later, or when the same command is "
            "run again"
        )
        if self._problem:
            what, remedy = f"{self._problem[0]}, and the run goes on without", self._problem[1]
        self._tell(f"{where}: {what}; {remedy}")


def _count(event: Event) -> int:
    """The number of metrics in an event."""
    numbers = event.values.get({"losses": "values", "stage_ended": "metrics"}.get(event.kind, ""), {})
    return len(numbers)


def _split(name: str, stages: Sequence[str]) -> tuple[str, str]:
    """``1-SiteB-generator`` as (``1-SiteB``, ``generator``) where the first is one of ``stages``."""
    fitting = [stage for stage in stages if name == stage or name.startswith(f"{stage}-")]
    stage = max(fitting, key=len, default=name)
    return stage, name[len(stage) + 1 :]


def _read(path: Path) -> list[Event]:
    """The events of a journal; a line that is not whole, or says something else, is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    events = []
    for line in lines:
        with suppress(ValidationError):
            event = _EVENT.validate_json(line, strict=True)
            _VALUES[event.kind].validate_python(event.values)
            events.append(event)
    return events
