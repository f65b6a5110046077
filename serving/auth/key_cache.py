"""The issuer's keys: fetched when an unknown one is named, seldom enough, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from neuroweaver.errors import NeuroWeaverError

FETCH_EVERY_SECONDS = 30.0
FRESH_SECONDS = 3600.0

_log = logging.getLogger(__name__)


class KeyCache:
    """Keys by their id, as `fetch` gives them; it may raise NeuroWeaverError, and then the known keys stay.

    An unknown id has them fetched, though at most every 30 seconds, so that made-up ids cost the issuer nothing. After
    an hour they are fetched anyway, so that a withdrawn key goes; requests with known keys never wait for that.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Mapping[str, RSAPublicKey]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch, self._clock = fetch, clock
        self._keys: Mapping[str, RSAPublicKey] = {}
        self._fetched = self._asked = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> RSAPublicKey | None:
        """The key, or None where the issuer has none of this id."""
        known, now = self._keys.get(key_id), self._clock()
        due = known is None or now - self._fetched > FRESH_SECONDS
        if due and now - self._asked >= FETCH_EVERY_SECONDS:
            self._asked = now
            self._fetching = asyncio.create_task(self._refresh())
        if known is None and self._fetching is not None:
            await asyncio.shield(self._fetching)
        return self._keys.get(key_id)

    async def _refresh(self) -> None:
        try:
            self._keys = await self._fetch()
            self._fetched = self._clock()
        except NeuroWeaverError as error:
            _log.warning("the keys of tokens can't be fetched, %d known ones are kept: %s", len(self._keys), error)
        finally:
            self._fetching = None
