"""Tokens: RS256 access tokens of one issuer, verified as security.md's statements 1 to 6 ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.users import User
from serving.auth.key_cache import KeyCache
from serving.auth.revoked import Revoked

LEEWAY_SECONDS = 60
MAX_CHARACTERS = 8192  # Cognito's are about a thousand
MAX_NAME = 255
MAX_SEEN = 1000  # tokens whose signatures are not verified again

# Headers that would let a token say how it is to be verified, and by whose key.
_FOREIGN_HEADERS = ("jku", "jwk", "x5u", "x5c", "crit")


class TokenRefusedError(NeuroWeaverError):
    """A token that is not accepted; says why, and nothing of what is in it."""


@dataclass(frozen=True)
class _Seen:
    """A token whose signature was verified by `key`."""

    key_id: str
    key: RSAPublicKey
    claims: dict[str, Any]


class TokenVerifier:
    """Accepts the access tokens that `issuer` has signed, with a key of `keys`, for one of `client_ids`.

    Those that are `revoked`, if that is given, are refused.
    """

    def __init__(
        self, keys: KeyCache, issuer: str, client_ids: Collection[str], revoked: Revoked | None = None
    ) -> None:
        self._keys, self._issuer, self._client_ids, self._revoked = keys, issuer, frozenset(client_ids), revoked
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    async def user_of(self, token: str) -> User:
        """Raises TokenRefusedError."""
        seen = self._seen.get(token)
        key_id = _key_id(token) if seen is None else seen.key_id
        key = await self._keys.find(key_id)
        if key is None:
            raise TokenRefusedError("the token is signed by an unknown key")
        if seen is not None and seen.key is key and time.time() < seen.claims["exp"]:
            claims = seen.claims
        else:
            claims = self._claims(token, key)
            self._remember(token, _Seen(key_id, key, claims))
        if claims["token_use"] != "access":
            raise TokenRefusedError("the token is no access token")
        if not isinstance(claims["client_id"], str) or claims["client_id"] not in self._client_ids:
            raise TokenRefusedError("the token is for another client")
        if not claims["sub"] or len(claims["sub"]) > MAX_NAME:
            raise TokenRefusedError("the token names no user")
        if self._revoked is not None and await self._revoked.refuses(claims["sub"], float(claims.get("iat", 0))):
            raise TokenRefusedError("the token was revoked, or its user is disabled")
        return User.of_claims(claims)

    def _remember(self, token: str, seen: _Seen) -> None:
        """A token is verified anew when its key was fetched anew, and when it is about to end."""
        self._seen[token] = seen
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _claims(self, token: str, key: RSAPublicKey) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "sub", "client_id", "token_use"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefusedError("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenRefusedError("the token is not valid yet") from None
        except jwt.InvalidIssuerError:
            raise TokenRefusedError("the token is of another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefusedError(f"the token has no {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise TokenRefusedError("the token's signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenRefusedError("the token can't be read") from None


def _key_id(token: str) -> str:
    """The id of the key that a token says it is signed with."""
    if len(token) > MAX_CHARACTERS:
        raise TokenRefusedError(f"the token is longer than {MAX_CHARACTERS} characters")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefusedError("the token can't be read") from None
    if header.get("alg") != "RS256":
        raise TokenRefusedError("the token is not signed with RS256")
    if foreign := [name for name in _FOREIGN_HEADERS if name in header]:
        raise TokenRefusedError(f"the token's header may not have {', '.join(foreign)}")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_NAME:
        raise TokenRefusedError("the token names no key")
    return key_id
