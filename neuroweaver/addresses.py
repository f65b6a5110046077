"""Which addresses the service may call: never metadata services, inside ones only where they are meant."""

from __future__ import annotations

import ipaddress
import re
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_INSIDE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # RFC 1918
        "100.64.0.0/10",  # RFC 6598, shared; overlay networks use it
        "127.0.0.0/8", "::1/128", "fc00::/7",
    )
)  # fmt: skip
# What clouds tell their machines, credentials among it, where it is not link-local anyway.
_METADATA = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/32",  # Google
    )
)
_OUTSIDE_6 = ipaddress.ip_network("2000::/3")
_TUNNELS = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))  # 6to4 and Teredo
_EMBEDDING = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::ffff:0:0/96"))  # NAT64, IPv4-mapped


def literal(host: str) -> Address | None:
    """The address that `host` spells, in whatever spelling a resolver understands (`0x7f.1`, `2130706433`), or None."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fA-FxX.]+", host):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def is_inside(address: Address) -> bool:
    """Whether it is a private, shared or loopback address."""
    seen = _unwrapped(address)
    return any(seen in network for network in _INSIDE)


def refusal(address: Address, *, allow_private: bool) -> str | None:
    """Why `address` may not be called, or None where it may."""
    seen = _unwrapped(address)
    if seen.is_link_local or any(seen in network for network in _METADATA):
        return "link-local and metadata addresses are never called"
    if is_inside(seen):
        return None if allow_private else "a private or loopback address needs `allow_private: true`"
    if seen.is_multicast or seen.is_unspecified or seen.is_reserved or not seen.is_global:
        return "multicast, unspecified and reserved addresses are never called"
    if seen.version == 6 and (seen not in _OUTSIDE_6 or any(seen in network for network in _TUNNELS)):
        return "reserved and tunnel addresses are never called"
    return None


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one that stands for it."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
