"""Network ports: say early, and clearly, that one is taken."""

from __future__ import annotations

import socket

from neuroweaver.errors import NeuroWeaverError


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
