"""How fast the engine answers, beside what people would pick instead, on one workload.

    neuroweaver bench serving
    neuroweaver bench serving --adapters 4 --concurrency 8 --concurrency 16 --vllm ~/vllm/bin/vllm --save

Sample rows of all five tasks, each as its role's prompt with the role's JSON schema, greedy, over HTTP with OpenAI's
chat completions, streamed. Adapters are of rank 16 on every linear layer, untrained: they cost what trained ones do,
and answers stay the base model's. Every system runs alone. Callers come in closed loops, so many at a time; with four
adapters also as they like (`--rate`: so many a second on average, a Poisson process), whatever is still running.
Ours is measured without an adapter, too, and in fp32 with four. Transformers has no schema (its answers are as long as
`max_tokens` lets them be), and llama.cpp one adapter at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from neuroweaver import adapter, answers, base_model, prompts
from neuroweaver.base_model import BaseModel
from neuroweaver.errors import TrainingError
from neuroweaver.tasks import Task, task_named, tasks_of
from neuroweaver.vocabulary import MODEL_TYPES
from pipelines.ingest import registry
from pipelines.validate import validate_file

RESULTS = Path(__file__).parent / "results"
SAMPLES = {
    "lead-qualification": "sales/lead_qualification.csv",
    "objection-handling": "sales/objection_handling.jsonl",
    "service-diagnosis": "service/service_diagnosis.jsonl",
    "parts-lookup": "parts/parts_lookup.csv",
    "finance-answer": "finance/finance_answer.jsonl",
}
SYSTEMS = ("ours", "ours-fp32", "transformers", "llamacpp")
MAX_TOKENS = 256
_START_SECONDS = 300
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # llama.cpp closes what rests, unannounced

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """One request of the workload: the body of a chat completion, and whose answer it is."""

    task: Task
    body: dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """When its text came, in seconds from its sending, and what it was."""

    first: float
    last: float
    tokens: int
    valid: bool


def run(
    home: Path,
    *,
    systems: Sequence[str] = SYSTEMS,
    adapters: Sequence[int] = (0, 1, 4, 16),
    concurrency: Sequence[int] = (1, 8, 16, 32),
    rates: Sequence[float] = (0.5, 1.5),
    requests: int = 32,
    seed: int = 7,
    base_name: str = base_model.DEFAULT,
    vllm: Path | None = None,
    command: str = "",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Every system with every number of adapters and callers, and which were left out because they failed.

    `command` is what runs this, as the report is to say.

    Raises TrainingError where none gave a figure.
    """
    base = base_model.fetch(base_name, home)
    figures: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_adapters(base, Path(scratch), max(adapters), seed)
        for system in [*systems, *(["vllm"] if vllm else [])]:
            for count in adapters:
                if (system == "llamacpp" and count > 1) or (count == 0 and not system.startswith("ours")):
                    continue
                if system == "ours-fp32" and count != _usual(adapters):  # the reference, not what serves
                    continue
                chosen = dict(list(folders.items())[:count])
                loads: list[tuple[int | None, float | None]] = [(callers, None) for callers in concurrency]
                loads += [(None, rate) for rate in rates if count == _usual(adapters)]
                try:
                    with server(system, base, chosen, vllm) as (address, process):
                        work = _work_for(system, chosen, seed)
                        asyncio.run(drive(address, work[:4], 4))  # warm up
                        for callers, rate in loads:
                            found, seconds = asyncio.run(_answers_to(address, work, callers, rate, requests, seed))
                            figures.append(_figures(system, count, callers, rate, found, seconds, process))
                            say(_line(figures[-1]))
                except (TrainingError, httpx.HTTPError, ExceptionGroup) as error:
                    if isinstance(error, ExceptionGroup):
                        error = error.exceptions[0]
                    left_out.append({"system": system, "adapters": count, "reason": str(error) or type(error).__name__})
                    say(f"{system:<13} {count:>2} adapters: left out: {left_out[-1]['reason']}")
    if not figures:
        raise TrainingError(left_out[0]["reason"] if left_out else "nothing to measure")
    ratios = _ratios(figures)
    described = setup(base, requests, seed) | ({"vllm": _version_of(vllm)} if vllm else {})
    return {"command": command, "figures": figures, "ratios": ratios, "left_out": left_out, "setup": described}


async def _answers_to(
    address: str, work: Sequence[Asked], callers: int | None, rate: float | None, requests: int, seed: int
) -> tuple[list[Answered], float]:
    if callers is None:
        return await _arrive(address, work[:requests], rate or 1, seed)
    return await drive(address, work[: max(requests if callers > 1 else requests // 4, callers)], callers)


def _work_for(system: str, adapters: dict[str, Path], seed: int) -> list[Asked]:
    """The workload in the words that a system understands."""
    names = [*adapters] if adapters and system != "llamacpp" else ["base"]
    work = workload(names, seed, schema=system != "transformers")
    if system == "llamacpp":  # its tuples are closed without being told, and it refuses to be told
        for asked in work:
            asked.body["response_format"] = _without_closed_items(asked.body["response_format"])
    return work


def _without_closed_items(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_closed_items(child) for key, child in node.items() if (key, child) != ("items", False)}
    return [_without_closed_items(child) for child in node] if isinstance(node, list) else node


def _usual(adapters: Sequence[int]) -> int:
    """The number of adapters that arrivals are measured with: four, a dealership's roles, or what is nearest."""
    return min(adapters, key=lambda count: abs(count - len(MODEL_TYPES)))


def make_adapters(base: BaseModel, folder: Path, count: int, seed: int) -> dict[str, Path]:
    """Untrained adapters by their names, of rank 16 on every linear layer."""
    from peft import LoraConfig, get_peft_model

    model, _ = base_model.load(base)
    torch.manual_seed(seed)
    peft_model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    )
    made = {}
    for n in range(1, count + 1):
        path = folder / f"adapter-{n}"
        peft_model.save_pretrained(path)
        adapter.write_manifest(
            path, model_type=MODEL_TYPES[0], tasks=tuple(SAMPLES), base_model=base.name, base_sha256=base.sha256,
            dataset_ids=(), job_id="bench",
        )  # fmt: skip
        made[f"automotive-sales@{n}"] = path
    return made


def workload(names: Sequence[str], seed: int, *, schema: bool) -> list[Asked]:
    """Requests of all tasks in turn, and of all adapters in turn."""
    datasets = Path(__file__).parents[1] / "datasets"
    rows: dict[str, list[dict[str, Any]]] = {}
    for model_type in MODEL_TYPES:
        for task in tasks_of(model_type):
            path = datasets / SAMPLES[task.name]
            data_format = registry.detect_format(path)
            checked = validate_file(path, model_type=model_type, task=task.name, data_format=data_format)
            found = [row.values for row in checked.rows]
            random.Random(seed).shuffle(found)
            rows[task.name] = found
    made = []
    for n in range(256):
        name = list(rows)[n % len(rows)]
        task, values = task_named(name), rows[name][n // len(rows) % len(rows[name])]
        body: dict[str, Any] = {
            "model": names[n % len(names)],
            "messages": [{"role": "user", "content": prompts.user_turn(task, values)}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if schema:
            named = {"name": task.name, "schema": answers.schema(task)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        made.append(Asked(task, body))
    return made


async def drive(address: str, work: Sequence[Asked], callers: int) -> tuple[list[Answered], float]:
    """All of `work`, by so many callers at a time, and how long it took."""
    left = list(work)[::-1]
    found: list[Answered] = []
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=_LIMITS) as client:

        async def call() -> None:
            while left:
                found.append(await ask(client, left.pop()))

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        return found, time.perf_counter() - started


async def _arrive(address: str, work: Sequence[Asked], rate: float, seed: int) -> tuple[list[Answered], float]:
    """All of `work`, `rate` a second on average, and how long it took until the last was answered."""
    waits = np.random.default_rng(seed).exponential(1 / rate, len(work))
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=_LIMITS) as client:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for asked, wait in zip(work, waits, strict=True):
                await asyncio.sleep(wait)
                tasks.append(group.create_task(ask(client, asked)))
        return [task.result() for task in tasks], time.perf_counter() - started


async def ask(client: httpx.AsyncClient, asked: Asked) -> Answered:
    """Raises TrainingError where the request is refused."""
    started = time.perf_counter()
    first = 0.0
    text, tokens = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=asked.body) as response:
        if response.status_code != 200:
            raise TrainingError(f"{response.status_code}: {(await response.aread()).decode(errors='replace')[:300]}")
        if not response.headers["content-type"].startswith("text/event-stream"):
            whole = json.loads(await response.aread())
            text, tokens = whole["choices"][0]["message"]["content"], whole["usage"]["completion_tokens"]
            first = time.perf_counter() - started
        else:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                for choice in chunk.get("choices", []):
                    piece = choice["delta"].get("content") or ""
                    if piece and not first:
                        first = time.perf_counter() - started
                    text += piece
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return Answered(first, time.perf_counter() - started, tokens, answers.parse(asked.task, text) is not None)


@contextlib.contextmanager
def server(
    system: str, base: BaseModel, adapters: dict[str, Path], vllm: Path | None
) -> Iterator[tuple[str, psutil.Process]]:
    """A system's server: its address and its process. Raises TrainingError where it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = [f"{name}={path}" for name, path in adapters.items()]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.servers", system, str(port), str(base.folder), *named]
    if system == "vllm":
        command = [
            str(vllm), "serve", str(base.folder), "--served-model-name", "base", "--port", str(port), "--dtype",
            "float32", "--enforce-eager", "--max-model-len", "1024", "--enable-lora", "--max-lora-rank", "16",
            "--max-loras", str(len(adapters)), "--lora-modules", *named,
        ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=Path(__file__).parents[1]
        )
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + _START_SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                    raise TrainingError(f"{system} does not start: {said[-1]}")
                time.sleep(0.5)
            yield address, psutil.Process(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/models", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def memory_mib(process: psutil.Process) -> float:
    """What a server and its children hold."""
    found = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += one.memory_info().rss
    return found / 2**20


def _figures(
    system: str,
    adapters: int,
    callers: int | None,
    rate: float | None,
    found: Sequence[Answered],
    seconds: float,
    process: psutil.Process,
) -> dict[str, Any]:
    first = np.array([answer.first for answer in found]) * 1000
    last = np.array([answer.last for answer in found]) * 1000
    each = np.array([(a.last - a.first) / max(a.tokens - 1, 1) for a in found]) * 1000
    return {
        "system": system,
        "adapters": adapters,
        "concurrency": callers,
        "arrivals_per_second": rate,
        "requests": len(found),
        "requests_per_second": round(len(found) / seconds, 3),
        "tokens_per_second": round(sum(answer.tokens for answer in found) / seconds, 1),
        "ttft_p50_ms": round(float(np.percentile(first, 50)), 1),
        "ttft_p99_ms": round(float(np.percentile(first, 99)), 1),
        "per_token_p50_ms": round(float(np.percentile(each, 50)), 2),
        "per_token_p99_ms": round(float(np.percentile(each, 99)), 2),
        "answer_p50_ms": round(float(np.percentile(last, 50)), 1),
        "answer_p99_ms": round(float(np.percentile(last, 99)), 1),
        "valid": round(sum(answer.valid for answer in found) / len(found), 3),
        "memory_mib": round(memory_mib(process)),
    }


def _case(figure: dict[str, Any]) -> tuple[int, int | None, float | None]:
    return figure["adapters"], figure["concurrency"], figure["arrivals_per_second"]


def _ratios(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our requests per second over each peer's, with as many callers and, where it has them, adapters.

    Where callers arrive as they like, everybody answers as many, and it is the other's time for an answer over ours.
    """
    own = {_case(figure): figure for figure in figures if figure["system"] == "ours"}
    ratios = []
    for f in figures:
        mine = own.get(_case(f))
        if f["system"] == "ours" or mine is None:
            continue
        faster = mine["requests_per_second"] / f["requests_per_second"]
        if f["concurrency"] is None:
            faster = f["answer_p50_ms"] / mine["answer_p50_ms"]
        ratios.append({
            **{key: f[key] for key in ("system", "adapters", "concurrency", "arrivals_per_second")},
            "ours_is_faster_by": round(faster, 2),
        })  # fmt: skip
    return ratios


def setup(base: BaseModel, requests: int, seed: int) -> dict[str, Any]:
    """The machine, the versions and the workload."""
    return {
        "base_model": base.title,
        "requests": requests,
        "max_tokens": MAX_TOKENS,
        "seed": seed,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "xllamacpp")},
    }


def _version_of(vllm: Path) -> str:
    """The version of vLLM in the environment that holds the program, or `unknown`."""
    ask = "from importlib.metadata import version; print(version('vllm'))"
    asked = subprocess.run([vllm.with_name("python"), "-c", ask], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _callers(f: dict[str, Any]) -> str:
    return f"{f['concurrency']} callers" if f["concurrency"] else f"{f['arrivals_per_second']:g} a second"


def _line(f: dict[str, Any]) -> str:
    return (
        f"{f['system']:<13} {f['adapters']:>2} adapters, {_callers(f):>12}: {f['requests_per_second']:.2f} "
        f"requests/s, {f['tokens_per_second']:.0f} tokens/s, first token {f['ttft_p50_ms']:.0f} ms, "
        f"answer {f['answer_p50_ms']:.0f} ms"
    )


def table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    faster = {(r["system"], *_case(r)): r["ours_is_faster_by"] for r in result["ratios"]}
    lines = [
        "| system | adapters | load | requests/s | ours is faster by | tokens/s | first token p50, p99 (ms) "
        "| per token p50, p99 (ms) | answer p50, p99 (ms) | valid | memory (MiB) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for f in result["figures"]:
        ratio = faster.get((f["system"], *_case(f)), "")
        lines.append(
            f"| {f['system']} | {f['adapters']} | {_callers(f)} | {f['requests_per_second']:.2f} | {ratio} "
            f"| {f['tokens_per_second']:.0f} | {f['ttft_p50_ms']:.0f}, {f['ttft_p99_ms']:.0f} "
            f"| {f['per_token_p50_ms']:.1f}, {f['per_token_p99_ms']:.1f} "
            f"| {f['answer_p50_ms']:.0f}, {f['answer_p99_ms']:.0f} | {f['valid']:.0%} | {f['memory_mib']} |"
        )
    for f in result["left_out"]:
        lines += ["", f"Left out: {f['system']}, {f['adapters']} adapters: {f['reason']}"]
    lines += ["", "Setup: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["setup"].items())]
    return lines


def save(result: dict[str, Any], *, add: bool = False) -> None:
    """Write benchmarks/results/serving.{json,md}; or `add` a run to those that are there, each with its own table."""
    path, whole = RESULTS / "serving.json", result
    if add and path.is_file():
        whole = json.loads(path.read_text(encoding="utf-8"))
        whole["more"] = [*whole.get("more", []), result]
    lines = ["# Serving"]
    for run_ in (whole, *whole.get("more", [])):
        lines += ["", f"`{run_['command']}` on one machine, one run.", "", *table(run_)]
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
