"""MLflow's own UI over one store, for this machine alone."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from garda.errors import ConfigError, RunFolderError
from garda.files import reason
from garda.tracking.mlflow_store import ARTIFACTS, DATABASE, OFFLINE

HOST = "127.0.0.1"


def open_ui(out: Path, port: int, tell: Callable[[str], None]) -> None:
    """Become MLflow's server over ``out/mlflow.db``; does not return. Ctrl-C ends it.

    Args:
        out: a run folder, or another folder with an ``mlflow.db``.
        port: port on 127.0.0.1, 1 to 65535.
        tell: gets the address.

    Raises:
        RunFolderError: there is no store in ``out``.
        GardaError: the port cannot be opened.
    """
    database = out.resolve() / DATABASE
    if not database.is_file():
        raise RunFolderError(out, f"holds no {DATABASE}", "give the --out folder of `garda run`")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            what = f"port {port} cannot be opened ({reason(error)})"
            raise ConfigError("--port", what, "give another port") from None
    tell(f"http://{HOST}:{port} shows {out} (Ctrl-C ends it)")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(database.with_name(ARTIFACTS))]
    os.execve(sys.executable, command, {**OFFLINE, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ})
