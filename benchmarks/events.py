"""How long events take from whoever writes them to those who watch: many subscribers, one event a second.

    neuroweaver bench events
    neuroweaver bench events --subscribers 1000 --seconds 30 --json

The service's app runs in a process of its own, on one core; a second process writes the events into the store, as
training does; the subscribers are in this one, on the other cores. An event's time is from before it is written to
when a subscriber has it, so the disk and the looking for news in the store are in it. The machine's own limit in the
same run is a bare WebSocket server that sends the same messages to as many, from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, broadcast, serve

from neuroweaver.errors import NeuroWeaverError
from neuroweaver.events import EventLog
from neuroweaver.settings import Settings
from neuroweaver.store import open_store

RESULTS = Path(__file__).parent / "results"
CHANNEL = "training:automotive-sales"
STARTUP_SECONDS = 60
PROTOCOLS = ("bare", "websocket", "socket.io")
AT_ONCE = 50  # connections that are opened at the same time


def run(subscribers: int, seconds: int) -> dict[str, Any]:
    """Figures by protocol. Raises NeuroWeaverError where a server does not start."""
    figures = {name: asyncio.run(_measured(name, subscribers, seconds)) for name in PROTOCOLS}
    return {
        "subscribers": subscribers, "events": seconds, "events_per_second": 1, "figures": figures,
        "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "python": platform.python_version(),
    }  # fmt: skip


async def _measured(protocol: str, subscribers: int, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as folder:
        home = Path(folder)
        open_store(Settings(home=home))
        async with _server(protocol, home) as (port, process), contextlib.AsyncExitStack() as stack:
            clients: list[ClientConnection] = []
            for begin in range(0, subscribers, AT_ONCE):
                some = [_client(protocol, port) for _ in range(begin, min(begin + AT_ONCE, subscribers))]
                clients += await asyncio.gather(*some)
            for client in clients:
                stack.push_async_callback(client.close)
            took: list[float] = []
            readers = [asyncio.create_task(_read(client, protocol, seconds, took)) for client in clients]
            used = _cpu_seconds(process)
            await asyncio.sleep(1)
            writer = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.events", "write", protocol, folder, str(port), str(seconds)
            )
            if await writer.wait() != 0:
                raise NeuroWeaverError("the process that writes events failed")
            _, late = await asyncio.wait(readers, timeout=30)
            used = _cpu_seconds(process) - used
            for reader in late:
                reader.cancel()
    took.sort()
    return {
        "delivered": len(took), "lost": subscribers * seconds - len(took),
        **{f"p{share}_ms": round(1000 * took[min(len(took) * share // 100, len(took) - 1)], 1) for share in (50, 99)},
        "max_ms": round(1000 * took[-1], 1), "server_core_share": round(used / seconds, 3),
    }  # fmt: skip


@contextlib.asynccontextmanager
async def _server(protocol: str, home: Path) -> AsyncIterator[tuple[int, int]]:
    """The port and process of a server on one core."""
    what = "bare" if protocol == "bare" else "serve"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.events", what, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), STARTUP_SECONDS)  # type: ignore[union-attr]
        if not line.strip().isdigit():
            raise NeuroWeaverError(f"the server for {protocol} has not started")
        yield int(line), process.pid
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _client(protocol: str, port: int) -> ClientConnection:
    if protocol != "socket.io":
        client = await connect(f"ws://127.0.0.1:{port}/ws", compression=None, open_timeout=60)
        if protocol == "websocket":
            await client.send(json.dumps({"type": "subscribe", "channel": CHANNEL}))
            await client.recv()
        return client
    client = await connect(
        f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket", compression=None, open_timeout=60
    )
    await client.recv()
    await client.send("40{}")
    await client.recv()
    await client.send("42" + json.dumps(["subscribe", CHANNEL]))
    while "subscribed" not in str(await client.recv()):
        pass
    return client


async def _read(client: ClientConnection, protocol: str, count: int, took: list[float]) -> None:
    """Note how long each of `count` events took."""
    while count:
        text = str(await client.recv())
        now = time.time()
        if protocol == "socket.io":
            if text == "2":
                await client.send("3")
                continue
            if not text.startswith(f'42["{CHANNEL}"'):
                continue
            text = json.dumps(json.loads(text[2:])[1])
        took.append(now - json.loads(text)["data"]["written"])
        count -= 1


def _cpu_seconds(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _write(protocol: str, home: Path, port: int, seconds: int) -> None:
    """An event a second: into the store, or, for the bare server, to it."""
    log = EventLog(open_store(Settings(home=home)))
    for _ in range(seconds):
        begun = time.time()
        data = {"written": begun, "epoch": 0.5, "totalEpochs": 1, "loss": 0.25, "accuracy": 0.875}
        if protocol == "bare":
            asyncio.run(_publish(port, data))
        else:
            log.append(CHANNEL, "training.progress", "automotive-sales", data, job_id="job_0123456789ab")
        time.sleep(max(begun + 1 - time.time(), 0))


async def _publish(port: int, data: dict[str, Any]) -> None:
    async with connect(f"ws://127.0.0.1:{port}/publish") as client:
        await client.send(json.dumps({"type": "training.progress", "channel": CHANNEL, "data": data}))


async def _serve_bare() -> None:
    watching: set[ServerConnection] = set()

    async def handle(connection: ServerConnection) -> None:
        if connection.request is not None and connection.request.path == "/publish":
            async for message in connection:
                broadcast(watching, message)
            return
        watching.add(connection)
        with contextlib.suppress(Exception):
            await connection.wait_closed()
        watching.discard(connection)

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        _say(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


def _serve_ours(home: Path) -> None:
    import socket

    import uvicorn

    from neuroweaver.deployments import Deployments
    from serving.app import create_app
    from serving.catalog import Catalog
    from serving.fleet import Fleet

    settings, catalog = Settings(home=home, max_event_sockets=100_000), Catalog()
    fleet = Fleet(None, catalog, Deployments(open_store(settings)), None)  # type: ignore[arg-type]
    app = create_app(None, catalog, settings, fleet=fleet)  # type: ignore[arg-type]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    _say(listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run([listener])


def _say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def table(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['subscribers']} subscribers, {result['events']} events, one a second; the server on one core", "",
        "| server | delivered | lost | p50 ms | p99 ms | max ms | of the core |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, figure in result["figures"].items():
        named = {"bare": "bare WebSocket server, from memory", "websocket": "`/ws`", "socket.io": "`/socket.io`"}[name]
        lines.append(
            f"| {named} | {figure['delivered']} | {figure['lost']} | {figure['p50_ms']} | {figure['p99_ms']} "
            f"| {figure['max_ms']} | {figure['server_core_share']:.1%} |"
        )
    return lines


def save(result: dict[str, Any]) -> None:
    """The figures of one run beside the code, for whoever wants to compare."""
    machine = f"{result['cores']} cores ({result['machine']}), Python {result['python']}"
    told = f"`neuroweaver bench events --save` on {machine}."
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "events.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "events.md").write_text("\n".join(["# Events", "", told, "", *table(result)]) + "\n", encoding="utf-8")


def _main(what: str, *given: str) -> None:
    """One of the processes of `run`."""
    if what == "write":
        protocol, home, port, seconds = given
        _write(protocol, Path(home), int(port), int(seconds))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    if what == "bare":
        asyncio.run(_serve_bare())
    else:
        _serve_ours(Path(given[0]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
