"""The memory of slots: taken as tokens come, given back when nobody has used it for a while."""

from __future__ import annotations

import itertools

import psutil
import torch

from neuroweaver.inference import kv_cache
from neuroweaver.inference.kv_cache import KVCache

LAYERS, SLOTS, HEADS, CAPACITY, CHANNELS = 3, 6, 3, 4099, 64  # slots that begin within a page
SLOT_MIB = LAYERS * 2 * HEADS * CAPACITY * CHANNELS * 4 / 2**20


def make(now: list[float]) -> KVCache:
    return KVCache(
        LAYERS, HEADS, CHANNELS, slots=SLOTS, capacity=CAPACITY, dtype=torch.float32, device=torch.device("cpu"),
        clock=lambda: now[0],
    )  # fmt: skip


def fill(cache: KVCache, slot: int) -> None:
    for layer in range(LAYERS):
        for tensor in cache.layer(layer):
            tensor[slot] = slot + 1


def memory_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def test_the_memory_of_idle_slots_is_given_back_and_that_of_others_is_untouched() -> None:
    now = [0.0]
    cache = make(now)
    before = memory_mib()
    slots = [cache.open() for _ in range(SLOTS)]
    for slot in slots:
        fill(cache, slot)
    assert memory_mib() - before > 0.9 * SLOTS * SLOT_MIB

    for slot in slots[1:5]:
        cache.close(slot)
    now[0] = kv_cache.IDLE_SECONDS
    cache.close(slots[5])
    assert memory_mib() - before > 0.9 * SLOTS * SLOT_MIB, "not idle for long enough"
    now[0] += 1
    cache.close(cache.open())  # the lowest that is free

    assert memory_mib() - before < 3.5 * SLOT_MIB, "three of the six are left"
    for layer, slot in itertools.product(range(LAYERS), (slots[0], slots[1], slots[5])):
        assert all(bool((tensor[slot] == slot + 1).all()) for tensor in cache.layer(layer))


def test_a_slot_that_is_used_again_keeps_its_memory() -> None:
    now = [0.0]
    cache = make(now)
    for _ in range(3):
        slot = cache.open()
        fill(cache, slot)
        cache.close(slot)
        now[0] += kv_cache.IDLE_SECONDS / 2
    assert all(bool((tensor[slot] == slot + 1).all()) for tensor in cache.layer(0))
