"""Ports of this machine."""

from __future__ import annotations

import socket

from garda.errors import ConfigError
from garda.files import reason


def check_port(port: int, where: str, remedy: str, host: str = "") -> None:
    """Refuse a port that cannot be listened at.

    Args:
        port: 1 to 65535.
        where: option or variable that names it.
        remedy: what the user can do.
        host: the address; empty for every one of this machine.

    Raises:
        ConfigError: it is in use, or this user may not have it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(where, f"port {port} cannot be opened ({reason(error)})", remedy) from None
