"""A BentoML endpoint and nothing more: the least that a service on BentoML can take.

bentoml serve benchmarks.bare_service:Bare
"""

from __future__ import annotations

import asyncio
from typing import Any

import bentoml

from benchmarks.stub_engine import seconds_of
from serving.api.examples import examples

_ANSWER = examples()["post", "/api/v1/prompts"].answer


@bentoml.service(name="bare", workers=1)
class Bare:
    @bentoml.api
    async def submit(
        self, agentType: str, promptTemplate: str, variables: dict[str, Any], context: dict[str, Any]
    ) -> dict[str, Any]:
        """What our own endpoint is sent and answers, at once but for the time that the stub takes."""
        await asyncio.sleep(seconds_of(variables["customerMessage"]))
        return dict(_ANSWER)
