"""An issuer's JSON Web Key Set (RFC 7517), fetched from the address in the settings and from no other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.issuer import KEY_BITS

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 256 * 1024


class JwksError(NeuroWeaverError):
    """The issuer did not answer with keys."""


async def fetch_keys(issuer: str) -> dict[str, RSAPublicKey]:
    """The keys at `issuer`/.well-known/jwks.json that may sign RS256, by id. Raises JwksError."""
    url = f"{issuer.rstrip('/')}/.well-known/jwks.json"
    body = bytearray()
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            httpx.AsyncClient(follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise JwksError(f"{url} answers {response.status_code}")
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    raise JwksError(f"{url} answers with more than {MAX_BYTES} bytes")
    except (httpx.HTTPError, TimeoutError) as error:
        raise JwksError(f"{url}: {type(error).__name__}") from error
    keys = _read(bytes(body))
    if not keys:
        raise JwksError(f"{url} has no RSA key of {KEY_BITS} bits or more for RS256")
    return keys


def _read(body: bytes) -> dict[str, RSAPublicKey]:
    try:
        entries = json.loads(body)["keys"]
        found = ((entry["kid"], _key(entry)) for entry in entries if _signs(entry))
        return {key_id: key for key_id, key in found if key is not None}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _signs(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("kty") == "RSA"
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", "RS256") == "RS256"
        and isinstance(entry.get("kid"), str)
    )


def _key(entry: dict[str, Any]) -> RSAPublicKey | None:
    try:
        key = RSAAlgorithm.from_jwk({name: entry[name] for name in ("kty", "n", "e")})
    except (jwt.InvalidKeyError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= KEY_BITS else None
