"""Connections to upstreams: to the very addresses that were checked, whatever a name answers a moment later."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpx

from neuroweaver import addresses
from neuroweaver.errors import NeuroWeaverError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class AddressRefusedError(NeuroWeaverError):
    """A name stands for an address that may not be called."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of `host`, as the system knows them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class CheckedTransport(httpx.AsyncBaseTransport):
    """Resolves a name once, checks all its addresses, and connects to them by number: no second look-up can differ.

    TLS and the `Host` header still go by the name. Raises AddressRefusedError, and httpx's errors.
    """

    def __init__(self, tls: ssl.SSLContext, *, allow_private: bool, resolve: Resolve = resolve) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=tls, trust_env=False)
        self._allow_private = allow_private
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        failure: httpx.TransportError = httpx.ConnectError("the name has no address")
        for address in await self._addresses(request):
            there = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": request.url.host},
            )
            try:
                return await self._inner.handle_async_request(there)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _addresses(self, request: httpx.Request) -> list[str]:
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(request.extensions["timeout"]["connect"]):
                found = list(dict.fromkeys(await self._resolve(url.host, port)))
        except TimeoutError:
            raise httpx.ConnectTimeout("the name was not resolved in time") from None
        except (OSError, UnicodeError):
            raise httpx.ConnectError("the name can't be resolved") from None
        for each in found:
            address = ipaddress.ip_address(each)
            reason = addresses.refusal(address, allow_private=self._allow_private)
            if reason is None and url.scheme != "https" and not addresses.is_inside(address):
                reason = "http:// goes to private and loopback addresses alone"
            if reason is not None:
                raise AddressRefusedError(f"{url.host} is {each}: {reason}")
        return found
