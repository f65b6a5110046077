"""Where a step's time goes: the decoder on the workload of `serving.py`, in one process, its parts timed.

neuroweaver bench serving --profile
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import serving
from neuroweaver import base_model, memory, prompts
from neuroweaver.inference import attention, decoding, grammar, kernels, llama, loading, lora_slices
from neuroweaver.inference.decoding import Decoder, Prompt
from neuroweaver.inference.kernels import best_precision

PARTS: dict[str, list[tuple[Any, str]]] = {
    "products with the base model's weights": [(kernels.Int8Linear, "__call__"), (kernels.DenseLinear, "__call__")],
    "adapters": [(lora_slices.NativeSlices, "add"), (lora_slices.TorchSlices, "add")],
    "attention": [(attention.NativeAttention, "__call__"), (attention.GridAttention, "__call__")],
    "norms and gates": [(llama, "rms_norm"), (llama, "silu_times")],
    "the rest of the model": [(llama.Llama, "read"), (llama.Llama, "logits"), (llama.Llama, "logits_of")],
    "grammars": [(grammar.Grammar, name) for name in ("allowed", "accept", "forced", "ending", "ends_with")],
    "choices": [(decoding.Decoder, "_choices")],
    "the rest of the step": [(decoding.Decoder, "step")],
}


def run(
    home: Path, *, adapters: int = 4, rows: int = 16, requests: int = 32, seed: int = 7,
    base_name: str = base_model.DEFAULT,
) -> dict[str, Any]:  # fmt: skip
    """`{"precision", "adapters", "rows", "steps", "ms_per_step", "parts": {part: {"ms_per_step", "share"}}}`."""
    memory.keep_freed()
    base = base_model.fetch(base_name, home)
    precision = best_precision()
    with tempfile.TemporaryDirectory() as scratch:
        runner, tokenizer = loading.load(base, precision=precision, slots=rows)
        folders = serving.make_adapters(base, Path(scratch), adapters, seed)
        for name, folder in folders.items():
            runner.load(name, folder)
        work = serving.workload([*folders] or ["base"], seed, schema=True)
    decoder = Decoder(runner, tokenizer)
    asked = [_prompt(decoder, each.body) for each in work]
    decoder.generate(asked[requests : requests + rows])  # warm up
    clock = _Clock()
    with clock.watching():
        decoder.generate(asked[:requests])
    steps = clock.calls["the rest of the step"]
    total = sum(clock.seconds.values())
    parts = {
        part: {"ms_per_step": round(1000 * seconds / steps, 2), "share": round(seconds / total, 3)}
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
    }
    return {
        "precision": precision, "adapters": adapters, "rows": rows, "requests": requests, "steps": steps,
        "ms_per_step": round(1000 * total / steps, 2), "parts": parts,
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"{result['steps']} steps of {result['ms_per_step']} ms, up to {result['rows']} rows, "
        f"{result['adapters']} adapters, {result['precision']}",
        "",
        "| part | ms a step | share |",
        "| --- | --- | --- |",
    ]
    return lines + [f"| {part} | {f['ms_per_step']:.2f} | {f['share']:.0%} |" for part, f in result["parts"].items()]


class _Clock:
    """The time that each part spends itself, without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]  # of the calls that run: the time of those they have made

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for part, places in PARTS.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took
                self.calls[part] += 1

        return timed


def _prompt(decoder: Decoder, body: dict[str, Any]) -> Prompt:
    turns = [(message["role"], message["content"]) for message in body["messages"]]
    schema = body["response_format"]["json_schema"]["schema"]
    adapter = None if body["model"] == "base" else body["model"]
    return Prompt(prompts.encode_chat(decoder.tokenizer, turns), schema, adapter, body["max_tokens"])
