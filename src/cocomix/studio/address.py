"""The address that the page is served at: this machine's own, and a free port."""

from __future__ import annotations

import socket

from cocomix.base.errors import CocomixError

#: Allowed hosts, and how each is written in a URL.
LOOPBACK = {"127.0.0.1": "127.0.0.1", "localhost": "localhost", "::1": "[::1]"}


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        CocomixError: the host is not a loopback address, or the port is in use.
    """
    if host not in LOOPBACK:
        raise CocomixError(
            f"--host is {host!r}; the studio serves this machine alone, so it must be one of {', '.join(LOOPBACK)}"
        )
    if not 0 <= port <= 65535:
        raise CocomixError(f"--port is {port}; it must be from 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except PermissionError:
            raise CocomixError(
                f"port {port} needs an administrator; choose another with --port, such as 8420"
            ) from None
        except OSError as error:
            raise CocomixError(
                f"port {port} is in use, perhaps by another studio; choose another with --port, or 0 for any free one"
            ) from error
        return int(probe.getsockname()[1])
