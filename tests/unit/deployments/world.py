"""A service whose engine follows a script, and what is asked of its deployments over REST."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
from fastapi import FastAPI

from neuroweaver import adapter, answers
from neuroweaver.contracts import ErrorBody
from neuroweaver.deployments import Deployments
from neuroweaver.errors import ConflictError, NotFoundError, UsageError
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import LEAD_QUALIFICATION
from serving import warm_up
from serving.app import create_app
from serving.catalog import Catalog, load_champions
from serving.engine.protocol import EngineAnswer, EngineCrashedError, EngineRequest, EngineStats
from serving.fleet import Fleet
from serving.registry import Champion

T = TypeVar("T")
SALES = "automotive-sales"
PROMPTS, DEPLOYMENTS, SELECT = "/api/v1/prompts", "/api/v1/deployments", "/api/v1/routing/select"
LEAD: dict[str, Any] = {
    "agentType": "sales",
    "promptTemplate": "salesAgent.leadQualification",
    "variables": {"customerMessage": "Looking for a used Tacoma"},
    "context": {"dealership": "north", "department": "sales"},
}
CHAT: dict[str, Any] = {"model": SALES, "messages": [{"role": "user", "content": "hi"}]}


class ScriptedEngine:
    """Answers every lead at once, unless it is held or an adapter fails."""

    COLD: ClassVar[dict[str, Exception]] = {}  # adapters that fail their warm-up

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.running: Counter[str | None] = Counter()
        self.highest: Counter[str | None] = Counter()
        self.asked: list[str | None] = []
        self.failing: dict[str, Exception] = {}
        self.seconds: list[float] = []
        self.held: asyncio.Event | None = None
        self.warmed: list[tuple[str | None, str]] = []  # who was asked to warm up, and what
        self.cold = dict(self.COLD)
        self.texts: dict[str | None, str] = {}  # answers of adapters that say something else
        self.waiting: dict[str | None, asyncio.Event] = {}  # adapters that are held by themselves
        self.queued = 0
        self.away = 0  # looks at its stats, until it is back after a crash

    async def submit(self, request: EngineRequest) -> EngineAnswer:
        name = request.adapter
        if name is not None and name not in self.folders:
            raise NotFoundError(f"adapter {name!r} is not loaded")
        if request.max_tokens == warm_up.MAX_TOKENS:
            self.warmed.append((name, request.messages[0].content))
            if name in self.cold:
                self.away = 3 if isinstance(self.cold[name], EngineCrashedError) else 0
                raise self.cold[name]
            return EngineAnswer("I can", 0.9, 10, 4, 0.0, 0.0)
        self.asked.append(name)
        self.seconds.append(request.timeout_seconds)
        self.running[name] += 1
        self.highest[name] = max(self.highest[name], self.running[name])
        try:
            await (self.held.wait() if self.held else asyncio.sleep(0))
            if name in self.waiting:
                await self.waiting[name].wait()
            if name in self.failing:
                raise self.failing[name]
            text = self.texts.get(name, answers.render(LEAD_QUALIFICATION, {}).text)
            return EngineAnswer(text, 0.9, 10, 20, 0.25, 0.25, 0.3)
        finally:
            self.running[name] -= 1

    async def stream(self, request: EngineRequest) -> AsyncIterator[str | EngineAnswer]:
        answer = await self.submit(request)
        yield answer.text
        yield answer

    def load(self, name: str, folder: Path) -> None:
        if name in self.folders:
            raise UsageError(f"adapter {name!r} is loaded already")
        adapter.read_manifest(folder)
        self.folders[name] = folder

    def unload(self, name: str) -> None:
        if self.away:
            raise EngineCrashedError("it has ended", 1)
        del self.folders[name]

    def adapters(self) -> tuple[str, ...]:
        return tuple(self.folders)

    def stats(self) -> EngineStats:
        self.away = max(self.away - 1, 0)
        return replace(EngineStats(not self.away, *[0] * 19), queued=self.queued)

    def close(self) -> None:
        pass


class Registry:
    """Versions of the sales model, the first of them the champion; the third was rejected."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version(self, model_type: str, number: int) -> Champion:
        if number == 3:
            raise ConflictError(f"the gate has rejected {model_type}@{number}: worse than the champion")
        if number > 5:
            raise NotFoundError(f"no model '{model_type}@{number}' is registered")
        folder = self._folder / f"{model_type}-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / adapter.WEIGHTS).write_bytes(b"weights" * number)
            adapter.write_manifest(
                folder, model_type=model_type, tasks=("lead-qualification",), base_model="b", base_sha256="0",
                dataset_ids=(), job_id="job",
            )  # fmt: skip
        return Champion(model_type, number, folder, {"accuracy": f"0.9{number}"}, {})


class World:
    """A service: its engine, its deployments and its app. Another one with the same `home` is its restart."""

    def __init__(self, home: Path, champions: tuple[int, ...] = (1,), **settings: Any) -> None:
        self.registry = Registry(home / "registry")
        self.engine = ScriptedEngine()
        self.settings = Settings(home=home, **settings)
        self.catalog = Catalog(
            load_champions(self.engine, [self.registry.version(SALES, number) for number in champions])
        )
        records = Deployments(open_store(self.settings))
        self.fleet = Fleet(self.engine, self.catalog, records, self.registry.version)
        self.fleet.restore()
        self.app: FastAPI = create_app(self.engine, self.catalog, self.settings, fleet=self.fleet)

    def run(self, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        return with_client(self.app, use)


def with_client(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    async def run() -> T:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


async def until(found: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    async with asyncio.timeout(20):
        while not wanted(value := await found()):
            await asyncio.sleep(0.005)
    return value


async def reach(client: httpx.AsyncClient, deployment_id: str, *states: str) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        data: dict[str, Any] = (await client.get(f"{DEPLOYMENTS}/{deployment_id}")).json()["data"]
        return data

    return await until(read, lambda data: data["status"] in states)


async def deploy(
    client: httpx.AsyncClient, model_id: str, weight: float, limit: int = 100, environment: str = "production",
    **more: Any,
) -> str:  # fmt: skip
    """The id of a deployment that has become active."""
    body = {"environment": environment, "routingWeight": weight, "maxConcurrency": limit} | more
    response = await client.post(f"/api/v1/models/{model_id}/deploy", json=body)
    assert response.status_code == 202, response.text
    assert response.json()["data"]["status"] == "deploying"
    deployment_id: str = response.json()["data"]["deploymentId"]
    await reach(client, deployment_id, "active")
    return deployment_id


async def deploy_all(client: httpx.AsyncClient, numbers: Sequence[int], weight: float = 1) -> list[str]:
    """Versions of the sales model, in turn."""
    return [await deploy(client, f"{SALES}@{number}", weight) for number in numbers]


async def ask(client: httpx.AsyncClient, customer: str | None = None, **routing: Any) -> httpx.Response:
    context = LEAD["context"] | ({"customerId": customer} if customer else {})
    return await client.post(PROMPTS, json=LEAD | {"context": context, "routing": routing})


async def dealt(client: httpx.AsyncClient, count: int) -> Counter[str]:
    found = [await ask(client, f"customer {number}") for number in range(count)]
    assert {response.status_code for response in found} == {200}
    return Counter(response.json()["data"]["modelUsed"] for response in found)


def is_error(response: httpx.Response, status: int, code: str) -> bool:
    return response.status_code == status and ErrorBody.model_validate(response.json()).code == code


def select(**changes: Any) -> dict[str, Any]:
    return {"autoSelection": {"taskType": "lead-qualification"} | changes}
