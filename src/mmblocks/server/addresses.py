"""Where a server listens, and the names by which it may be asked."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from mmblocks.errors import ConfigError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def listen_on(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises `ConfigError` where the address is in use, or none of this machine."""
    try:
        if not 0 <= port <= 65535:  # some systems take the rest of a division
            raise OverflowError("a port is 0 to 65535")
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=256)
        # Connections inherit it; without it every answer waits some 40 ms for a client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        cure = "stop what uses it or write another --port; 0 takes a free one"
        raise ConfigError(f"serve: {host}:{port} cannot be listened on ({reason}); {cure}.") from cause


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    return host in LOCAL_HOSTS or host.startswith("127.")


def list_host_names(host: str, others: Sequence[str]) -> tuple[str, ...] | None:
    """What a Host header may name, of a server that listens on an address and is known by other names; None for anything."""
    if not is_loopback(host) and not others:
        return None
    return tuple(dict.fromkeys((*LOCAL_HOSTS, host, *map(str.lower, others))))
