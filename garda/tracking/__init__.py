"""Tracking: what a run tells about itself, and where that can be looked at.

    run ── Tracker ── Journalled ── tracking.jsonl          every event, a line each, written first
                          └──────── Store: MLflow           gets the events in order, as often as it takes
           InMemory                                         the twin for tests

Nothing here fails a run. No image, data path, patient or case is ever handed in, only losses, metrics, settings,
digests of manifests, and files of the run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from garda.tracking.base import InMemory, RunDescription, Status, Tracker
from garda.tracking.events import Event
from garda.tracking.journal import Journalled, Store
from garda.tracking.mlflow_store import MLflow
from garda.tracking.ui import open_ui

__all__ = [
    "Event",
    "InMemory",
    "Journalled",
    "MLflow",
    "RunDescription",
    "Status",
    "Store",
    "Tracker",
    "open_tracker",
    "open_ui",
]


def open_tracker(out: Path, tell: Callable[[str], None], home: Path | None = None, label: str = "") -> Tracker:
    """The tracker of the run folder ``out``; nothing is written before its ``start``.

    Args:
        out: the run folder. MLflow's store is ``mlflow.db`` in it, unless the environment variable
            ``MLFLOW_TRACKING_URI`` names another.
        tell: is told, once, that the store cannot be written.
        home: where ``mlflow.db`` lies instead, for runs that are to share one.
        label: tells variants of a method apart; empty for none.
    """
    return Journalled(out, MLflow(out, os.environ.get("MLFLOW_TRACKING_URI"), home, label), tell)
