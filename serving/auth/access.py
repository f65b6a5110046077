"""Access to the service: who its callers are, how much they may ask, and where it is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from neuroweaver import issuer, ports
from neuroweaver.audit_trail import AuditTrail
from neuroweaver.issuer import LocalIssuer
from neuroweaver.revocations import Revocations
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.users import LOCAL_USER, User
from serving.auth import jwks
from serving.auth.key_cache import KeyCache
from serving.auth.rate_limits import RateLimits
from serving.auth.revoked import Revoked
from serving.auth.tokens import TokenVerifier


@dataclass(frozen=True)
class Access:
    """Without a verifier every caller is the local user; without limits or a trail nothing is limited or recorded.

    `loopback_names` has them ask under `localhost` or a loopback address: a web page whose own name was made to lead to
    this machine (DNS rebinding) says that name, and so do most proxies.
    """

    verifier: TokenVerifier | None = None
    limits: RateLimits | None = None
    trail: AuditTrail | None = None
    loopback_names: bool = False

    async def user_of(self, token: str | None) -> User | None:
        """Who shows `token`; None where one is needed and none is shown. Raises TokenRefusedError."""
        if self.verifier is None:
            return LOCAL_USER
        return None if token is None else await self.verifier.user_of(token)


LOCAL_ACCESS = Access()


def open_access(settings: Settings, bound: Collection[str]) -> Access:
    """What the settings ask for, for a service that listens at the addresses `bound`.

    Tokens are left out only where every address is loopback, and there is one: an unknown address is not a safe one.
    Raises what the store and the local issuer raise.
    """
    trail = AuditTrail(open_store(settings))
    if not tokens_needed(settings, bound):
        return Access(trail=trail, loopback_names=True)
    return Access(_verifier(settings), RateLimits(settings.requests_per_minute), trail)


def tokens_needed(settings: Settings, bound: Collection[str]) -> bool:
    """Whether callers must show tokens."""
    return settings.require_tokens or not bound or not all(ports.is_loopback(host) for host in bound)


def _verifier(settings: Settings) -> TokenVerifier:
    revoked = Revoked(Revocations(open_store(settings)))
    if settings.token_issuer:
        keys = KeyCache(lambda: jwks.fetch_keys(settings.token_issuer))
        return TokenVerifier(keys, settings.token_issuer, settings.token_client_ids, revoked)
    local = LocalIssuer(settings.home)
    local.public_keys()  # made, or refused, before the first request

    async def fetch() -> Mapping[str, RSAPublicKey]:
        return await asyncio.to_thread(local.public_keys)

    return TokenVerifier(KeyCache(fetch), issuer.ISSUER, (issuer.CLIENT_ID,), revoked)
