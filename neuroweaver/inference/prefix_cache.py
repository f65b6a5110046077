"""What prompts of one adapter begin with alike (a template, a system prompt): read once, then pasted."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from neuroweaver.inference.kv_cache import Prefix

_SHORTEST = 16  # tokens; less is read again as fast as it is pasted
_RECENT = 4  # prompts of an adapter that a new one is compared with


@dataclass(frozen=True)
class PrefixStats:
    hits: int
    misses: int
    tokens_saved: int
    entries: int
    bytes: int


class PrefixCache:
    """Prefixes by adapter, the longest unused going first where they take more than `max_bytes`.

    Never shared between adapters: `forget` what belongs to a name before it can mean another adapter.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], Prefix] = OrderedDict()
        self._recent: dict[str | None, deque[tuple[int, ...]]] = {}
        self._hits = self._misses = self._saved = self._bytes = 0

    def find(self, adapter: str | None, tokens: Sequence[int]) -> Prefix | None:
        """The longest prefix of `tokens` that leaves at least one token to read."""
        key = self._best(adapter, tokens)
        if key is None:
            self._misses += 1
            return None
        self._hits += 1
        self._saved += len(key[1])
        self._entries.move_to_end(key)
        return self._entries[key]

    def worth_keeping(self, adapter: str | None, tokens: Sequence[int], others: Sequence[Sequence[int]]) -> int:
        """How many of `tokens` should be kept: those shared with other prompts, where much is gained; 0 if none."""
        recent = self._recent.setdefault(adapter, deque(maxlen=_RECENT))
        shared = max((_common(tokens, other) for other in [*others, *recent]), default=0)
        recent.append(tuple(tokens))
        shared = min(shared, len(tokens) - 1)
        known = self._best(adapter, tokens)
        return shared if shared >= _SHORTEST + (len(known[1]) if known else 0) else 0

    def keep(self, adapter: str | None, tokens: Sequence[int], prefix: Prefix) -> None:
        if prefix.bytes > self._max_bytes:
            return
        self._entries[adapter, tuple(tokens)] = prefix
        self._bytes += prefix.bytes
        while self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.bytes

    def forget(self, adapter: str | None) -> None:
        for key in [key for key in self._entries if key[0] == adapter]:
            self._bytes -= self._entries.pop(key).bytes
        self._recent.pop(adapter, None)

    def stats(self) -> PrefixStats:
        return PrefixStats(self._hits, self._misses, self._saved, len(self._entries), self._bytes)

    def _best(self, adapter: str | None, tokens: Sequence[int]) -> tuple[str | None, tuple[int, ...]] | None:
        fitting = [
            key for key in self._entries
            if key[0] == adapter and len(key[1]) < len(tokens) and key[1] == tuple(tokens[: len(key[1])])
        ]  # fmt: skip
        return max(fitting, key=lambda key: len(key[1]), default=None)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
