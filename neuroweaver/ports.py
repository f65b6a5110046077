"""Network addresses: say early, and clearly, that one is taken or not allowed."""

from __future__ import annotations

import ipaddress
import socket

from neuroweaver.errors import NeuroWeaverError, UsageError


def require_loopback(host: str) -> None:
    """Raises UsageError where `host` can be reached from other machines: the service asks for no token yet."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise UsageError(
            f"can't serve on {host!r}: the service has no authentication yet, so only loopback is allowed "
            "(127.0.0.1, ::1, localhost); put an authenticating proxy in front"
        )


def require_free(host: str, port: int) -> None:
    """Raises NeuroWeaverError where `host:port` can't be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NeuroWeaverError(
                f"can't bind {host}:{port}: {error.strerror}; end what uses it or choose another with --port"
            ) from None
