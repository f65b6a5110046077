"""The TypeScript declarations: generated from the checked-in document, and true to what the service answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuroweaver.settings import Settings
from neuroweaver.tasks import LEAD_QUALIFICATION, OBJECTION_HANDLING
from serving.app import create_app
from serving.catalog import Catalog, ServedModel

ROOT = Path(__file__).parents[2]
SOURCES, API = ROOT / "tests" / "typescript", ROOT / "docs" / "api"
DECLARATIONS = "neuroweaver.d.ts"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two npm packages that `tests/typescript/package-lock.json` names."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("package.json", "package-lock.json", "seed.ts"):
        shutil.copy(SOURCES / name, folder)
    shutil.copy(API / DECLARATIONS, folder)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if installed.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"npm ci has failed: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return folder


def test_the_declarations_are_generated_from_the_document(workshop: Path) -> None:
    made = workshop / "made.d.ts"
    program = ["node_modules/.bin/openapi-typescript", "--default-non-nullable=false"]
    command = [*program, str(API / "openapi.json"), "-o", str(made)]
    subprocess.run(command, cwd=workshop, check=True, capture_output=True, timeout=120)

    if made.read_text(encoding="utf-8") != (API / DECLARATIONS).read_text(encoding="utf-8"):
        pytest.fail("docs/api/neuroweaver.d.ts is not what openapi.json says: `make openapi` writes it anew")


def test_answers_of_the_service_compile_as_what_is_declared(workshop: Path, stub_engine: Any, tmp_path: Path) -> None:
    lines = ['import type { Answer } from "./seed";']
    for number, (path, method, response) in enumerate(answers(stub_engine, tmp_path)):
        kind = f'Answer<"{path}", "{method.lower()}", {response.status_code}>'
        lines.append(f"export const answer{number}: {kind} = {json.dumps(response.json())};")
    (workshop / "answers.ts").write_text("\n".join(lines), encoding="utf-8")

    compiled = compile_strictly(workshop, "answers.ts")

    assert compiled.returncode == 0, compiled.stdout
    assert len(lines) > 15


@pytest.mark.parametrize(
    "answer", ['{"success": true, "data": {}}', '{"success": true, "data": {"models": [], "x": 1}}']
)
def test_an_answer_that_is_not_as_declared_does_not_compile(workshop: Path, answer: str) -> None:
    kind = 'Answer<"/api/v1/models", "get", 200>'
    source = f'import type {{ Answer }} from "./seed";\nexport const wrong: {kind} = {answer};'
    (workshop / "wrong.ts").write_text(source, encoding="utf-8")

    compiled = compile_strictly(workshop, "wrong.ts")

    assert compiled.returncode != 0
    assert "wrong.ts(2," in compiled.stdout


def compile_strictly(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = ["node_modules/.bin/tsc", "--strict", "--noEmit", "--target", "es2022", name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def answers(engine: Any, home: Path) -> list[tuple[str, str, httpx.Response]]:
    """Answers of every kind, with the paths of the document that they belong to."""
    tasks = (LEAD_QUALIFICATION.name, OBJECTION_HANDLING.name)
    models = [
        ServedModel("automotive-sales@1", "automotive-sales", 1, tasks, 0.9, 7, "2026-01-02T03:04:05Z", 9.0),
        ServedModel("far", "parts-specialist", None, ("parts-lookup",), max_requests=4),
    ]
    app = create_app(engine, Catalog(models), Settings(home=home), "base")
    prompt = {
        "agentType": "sales", "promptTemplate": LEAD_QUALIFICATION.template_id,
        "variables": {"customerMessage": "Looking for a used Tacoma"},
        "context": {"dealership": "north", "department": "sales"},
    }  # fmt: skip
    chat = {"model": "automotive-sales", "messages": [{"role": "user", "content": "hi"}]}
    selection = {"autoSelection": {"taskType": "lead-qualification"}}
    deployment = {"environment": "production", "routingWeight": 1, "maxConcurrency": 2}
    one, of = "/api/v1/models/{model_id}", "/api/v1/deployments/{deployment_id}"
    overrides = "/api/v1/routing/overrides"

    async def run() -> list[tuple[str, str, httpx.Response]]:
        found = []

        async def ask(path: str, method: str, name: str = "", **options: Any) -> httpx.Response:
            address = re.sub(r"\{\w+\}", name, path)
            response = await client.request(method, address, **options)
            found.append((path, method, response))
            return response

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await ask("/api/v1/prompts", "POST", json=prompt)
            await ask("/api/v1/prompts", "POST", json=prompt | {"variables": {}})
            await ask("/v1/chat/completions", "POST", json=chat)
            await ask("/v1/chat/completions", "POST", json=chat | {"model": "nothing"})
            await ask("/api/v1/models", "GET")
            await ask("/v1/models", "GET")
            await ask("/v1/models/{model_id}", "GET", "automotive-sales@1")
            for name in ("automotive-sales@1", "far", "nothing"):
                await ask(one, "GET", name)
                await ask(f"{one}/performance", "GET", name)
            made = await ask(f"{one}/deploy", "POST", "far", json=deployment)
            identity = made.json()["data"]["deploymentId"]
            async with asyncio.timeout(20):
                while (await client.get(f"/api/v1/deployments/{identity}")).json()["data"]["status"] == "deploying":
                    await asyncio.sleep(0.01)
            await ask(f"{one}/deploy", "POST", "far", json=deployment)
            await ask("/api/v1/deployments", "GET")
            await ask(of, "GET", identity)
            await ask(of, "PATCH", identity, json={"routingWeight": 5}, headers={"If-Match": '"99"'})
            await ask(of, "PATCH", identity, json={"routingWeight": 5})
            await ask("/api/v1/routing/select", "POST", json=selection)
            by_hand = {"modelId": "automotive-sales@1", "reason": "we compare", "duration": "session"}
            stored = await ask("/api/v1/routing/select", "POST", json={"manualOverride": by_hand})
            await ask(overrides, "GET")
            for _ in range(2):
                await ask(f"{overrides}/{{override_id}}", "DELETE", stored.json()["data"]["override"]["id"])
            await ask("/api/v1/prompts/templates", "GET")
            await ask("/api/v1/logs/execution", "GET")
            await ask("/api/v1/logs/execution", "GET", params={"page": 0})
            await ask(of, "DELETE", identity)
        return found

    return asyncio.run(run())
