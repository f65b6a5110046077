"""Which addresses may be called, in every spelling that reaches them."""

from __future__ import annotations

import ipaddress

import pytest

from neuroweaver import addresses

NEVER = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "fe80::1", "fe80::1%eth0",
    "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.255.255.250", "ff02::1", "240.0.0.1", "255.255.255.255",
    "192.0.2.1", "198.18.0.1", "203.0.113.7", "2001:db8::1", "fec0::1", "100::1",
    "::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "::169.254.169.254",
    "2002:a9fe:a9fe::1", "2002:0808:0808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip
INSIDE = [
    "127.0.0.1", "127.255.255.254", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "fc00::1", "fd12:3456::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.security(23)
@pytest.mark.parametrize("text", NEVER)
def test_metadata_link_local_and_reserved_addresses_are_never_called(text: str) -> None:
    address = ipaddress.ip_address(text)

    for allow_private in (False, True):
        assert "never called" in (addresses.refusal(address, allow_private=allow_private) or "")


@pytest.mark.parametrize("text", INSIDE)
def test_private_and_loopback_addresses_are_called_where_they_are_meant(text: str) -> None:
    address = ipaddress.ip_address(text)

    assert "allow_private" in (addresses.refusal(address, allow_private=False) or "")
    assert addresses.refusal(address, allow_private=True) is None
    assert addresses.is_inside(address)


@pytest.mark.parametrize("text", OUTSIDE)
def test_public_addresses_may_be_called(text: str) -> None:
    address = ipaddress.ip_address(text)

    assert addresses.refusal(address, allow_private=False) is None
    assert not addresses.is_inside(address)


@pytest.mark.security(23)
@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("2852039166", "169.254.169.254"),
        ("0xA9FEA9FE", "169.254.169.254"),
        ("0xa9.0xfe.0xa9.0xfe", "169.254.169.254"),
        ("0251.0376.0251.0376", "169.254.169.254"),
        ("169.254.43518", "169.254.169.254"),
        ("127.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::ffff:a9fe:a9fe]", "::ffff:a9fe:a9fe"),
        ("dead.beef", None),
        ("vllm.internal", None),
        ("1.2.3.4.5", None),
    ],
)
def test_every_spelling_of_an_address_is_seen_through(host: str, address: str | None) -> None:
    assert addresses.literal(host) == (ipaddress.ip_address(address) if address else None)
