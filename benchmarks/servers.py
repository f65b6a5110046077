"""The servers that `serving.py` measures, each a process of its own that answers OpenAI's chat completions.

python -m benchmarks.servers ours|ours-fp32|transformers|llamacpp PORT BASE_FOLDER [NAME=ADAPTER_FOLDER ...]
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

SLOTS = 32
CONTEXT = 1024


def ours(port: int, folder: Path, adapters: dict[str, Path], precision: Literal["auto", "fp32"] = "auto") -> None:
    """The engine in its process and the app before it, as `neuroweaver serve` runs them, without BentoML's front."""
    import uvicorn

    from neuroweaver.settings import Settings
    from serving.app import create_app
    from serving.catalog import Catalog, ServedModel
    from serving.engine.messages import EngineSetup
    from serving.engine.remote import RemoteEngine
    from serving.engine.supervisor import Supervisor

    engine = RemoteEngine(
        Supervisor(EngineSetup(str(folder), str(folder), precision, SLOTS, 1000, max(len(adapters), 1)))
    )
    engine.wait_until_ready()
    for name, path in adapters.items():
        engine.load(name, path)
    served = [ServedModel(name, "automotive-sales", 1, ()) for name in adapters]
    settings = Settings(request_timeout_seconds=600)
    try:
        uvicorn.run(create_app(engine, Catalog(served), settings, "base"), port=port, log_level="error")
    finally:
        engine.close()


def transformers(port: int, folder: Path, adapters: dict[str, Path]) -> None:
    """PEFT and `generate`: what waits is answered as one padded batch of mixed adapters, and nothing streams."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from peft import PeftModel
    from starlette.concurrency import run_in_threadpool
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    for name, path in adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(path), adapter_name=name)
    waiting: queue.Queue[tuple[dict[str, Any], Future[tuple[str, int]]]] = queue.Queue()

    @torch.inference_mode()
    def work() -> None:
        while True:
            batch = [waiting.get()]
            while len(batch) < SLOTS and not waiting.empty():
                batch.append(waiting.get())
            texts = [tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
                     for body, _ in batch]  # fmt: skip
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            names = [body["model"] if body["model"] in adapters else "__base__" for body, _ in batch]
            mixed = {"adapter_names": names} if adapters else {}
            limit = max(body["max_tokens"] for body, _ in batch)
            found = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=0, **mixed)
            for (_, future), tokens in zip(batch, found[:, inputs.input_ids.shape[1] :], strict=True):
                length = next((i for i, t in enumerate(tokens.tolist()) if t == tokenizer.eos_token_id), len(tokens))
                future.set_result((tokenizer.decode(tokens[:length], skip_special_tokens=True), length))

    threading.Thread(target=work, daemon=True).start()
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        future: Future[tuple[str, int]] = Future()
        waiting.put((body, future))
        text, tokens = await run_in_threadpool(future.result)
        return {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": tokens}}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": []}

    uvicorn.run(app, port=port, log_level="error")


def llamacpp(port: int, folder: Path, adapters: dict[str, Path]) -> None:
    """llama.cpp with eight-bit weights, one adapter merged into them: it can't answer several adapters in one batch."""
    import tempfile

    import xllamacpp
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines import gguf_writer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    for path in adapters.values():
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        gguf_writer.write(model, AutoTokenizer.from_pretrained(folder), path, dtype="q8_0", name="bench")
        del model
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.hostnames, parameters.port = ["127.0.0.1"], port
        parameters.n_parallel, parameters.n_ctx = SLOTS, SLOTS * CONTEXT
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
        parameters.verbosity = 0
        server = xllamacpp.Server(parameters)
        print(json.dumps({"address": server.listening_address}), flush=True)  # noqa: T201
        signal.pause()


if __name__ == "__main__":
    from neuroweaver import memory

    memory.spin_briefly()
    memory.keep_freed()
    kind, port, folder, *named = sys.argv[1:]
    parsed = {name: Path(path) for name, _, path in (each.partition("=") for each in named)}
    systems = {
        "ours": ours,
        "ours-fp32": partial(ours, precision="fp32"),
        "transformers": transformers,
        "llamacpp": llamacpp,
    }
    systems[kind](int(port), Path(folder), parsed)
