"""Where the processes of a run on one machine meet: a file of their owner's alone, and the loopback device."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed

from garda.core import files
from garda.core.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.strategies import DDPStrategy

PLACE = "GARDA_MEETING"  # environment variable that tells the started processes the file
LOOPBACK, DEVICE = ("lo", "lo0"), "GLOO_SOCKET_IFNAME"
SECONDS = 5.0


def make_strategy(surroundings: Any, timeout: timedelta) -> DDPStrategy:
    """Fabric's way of sharing batches, whose processes meet at the file where there is one, and else by TCP."""
    from lightning_fabric.strategies import DDPStrategy

    class Private(DDPStrategy):
        def _setup_distributed(self) -> None:
            if PLACE in os.environ:
                self._set_world_ranks()
                store = distributed.FileStore(os.environ[PLACE], self.world_size)
                own = {"rank": self.global_rank, "world_size": self.world_size, "timeout": timeout}
                distributed.init_process_group(self._get_process_group_backend(), store=store, **own)
            super()._setup_distributed()  # which leaves alone what is there

    return Private(timeout=timeout, cluster_environment=surroundings)


@contextmanager
def at_a_private_place() -> Iterator[None]:
    """The block in which processes that this one starts meet where no other user can come.

    Raises:
        ConfigError: the loopback device does not answer.
    """
    _check_loopback()
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACK and DEVICE not in os.environ]
    with files.private_temporary_folder() as folder:
        own = {PLACE: str(folder / "meeting")}
        if loopback:
            own[DEVICE] = loopback[0]
        os.environ.update(own)
        try:
            yield
        finally:
            for name in own:
                os.environ.pop(name, None)


def _check_loopback() -> None:
    """Without it the processes would wait for each other for minutes, and fail."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), SECONDS).close()
    except OSError as error:
        what = f"the processes cannot meet: the loopback device does not answer ({files.reason(error)})"
        raise ConfigError("--devices", what, "switch it on (ip link set lo up), or use one device") from None
