"""Network addresses: say early, and clearly, that one is taken or not allowed."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct

import psutil

from neuroweaver.errors import NeuroWeaverError, UsageError


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_loopback(host: str) -> None:
    """Raises UsageError where `host` can be reached from other machines."""
    if not is_loopback(host):
        raise UsageError(
            f"can't serve on {host!r}: there is no authentication, so only loopback is allowed "
            "(127.0.0.1, ::1, localhost); put an authenticating proxy in front"
        )


def listening() -> set[str]:
    """The addresses that this process listens at, whoever bound them; none where the system does not tell."""
    try:
        found = psutil.Process().net_connections(kind="inet")
    except psutil.Error:
        return set()
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


def cut(peer: tuple[str, int] | None) -> bool:
    """End this process's connection with `peer` as it is, and whether there was one.

    For a peer that does not read: an orderly end would wait until it has read what was sent before.
    """
    try:
        found = psutil.Process().net_connections(kind="tcp")
    except psutil.Error:
        return False
    descriptors = [each.fd for each in found if each.raddr and (each.raddr.ip, each.raddr.port) == peer]
    for descriptor in descriptors:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
    return bool(descriptors)


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
