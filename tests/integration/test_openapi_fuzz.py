"""Requests made from the OpenAPI document, right and wrong ones: nothing is answered that is not in the document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from neuroweaver import adapter
from neuroweaver.deployments import Deployments
from neuroweaver.errors import NotFoundError
from neuroweaver.issuer import LocalIssuer
from neuroweaver.settings import Settings
from neuroweaver.store import open_store
from neuroweaver.tasks import tasks_of
from neuroweaver.users import User
from neuroweaver.vocabulary import MODEL_TYPES
from pipelines import intake
from serving import openapi
from serving.app import create_app
from serving.auth.access import open_access
from serving.catalog import Catalog, load_champions
from serving.fleet import Fleet
from serving.pipelines_process import _read as read_answer
from serving.registry import Champion
from serving.training import Training

# The same requests in every run: what is found stays found, and nothing else comes up by chance.
BOUNDED = settings(
    max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


# What no schema can say is a documented 422; and who gets in without a token is the matter of test_access.py: the token
# of these requests takes the place of one that is made up. A deployment that was deleted drains, and is there to be read.
ELSEWHERE = ["positive_data_acceptance", "ignored_auth", "use_after_free"]


class PipelinesHere:
    """The pipelines without a process for each question, which would take seconds."""

    async def ask(
        self, question: str, values: Mapping[str, Any], *, timeout_seconds: float, niceness: int = 0
    ) -> dict[str, Any]:
        return read_answer(json.dumps(intake.answer_to({**values, "question": question})).encode(), 0)


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory, stub_engines: Any) -> Iterator[Any]:
    """A service of champions of all model types, each of which may be deployed, that asks for tokens; an admin asks."""
    home = tmp_path_factory.mktemp("home")

    def fetch(model_type: str, number: int) -> Champion:
        if number != 1:
            raise NotFoundError(f"no model '{model_type}@{number}' is registered")
        folder = home / "registry" / model_type
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / adapter.WEIGHTS).write_bytes(b"weights")
            adapter.write_manifest(
                folder, model_type=model_type, tasks=tuple(task.name for task in tasks_of(model_type)), base_model="b",
                base_sha256="0", dataset_ids=(), job_id="job",
            )  # fmt: skip
        return Champion(model_type, 1, folder, {"accuracy": "0.9"}, {})

    chosen, engine = Settings(home=home, require_tokens=True, requests_per_minute=1_000_000), stub_engines()
    catalog = Catalog(load_champions(engine, [fetch(name, 1) for name in MODEL_TYPES]))
    fleet = Fleet(engine, catalog, Deployments(open_store(chosen)), fetch)
    training = Training(open_store(chosen), chosen, PipelinesHere())
    app = create_app(engine, catalog, chosen, fleet=fleet, access=open_access(chosen, ["127.0.0.1"]), training=training)
    token = LocalIssuer(home).issue(User("ada", "admin", customer_pii=True), 1)
    headers = {"Authorization": f"Bearer {token}"}
    loaded = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    loaded.config.update(headers=headers)
    loaded.config.checks.update(excluded_check_names=ELSEWHERE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NEUROWEAVER_HOME", str(home))  # where the pipelines look
        yield loaded


def operations() -> list[tuple[str, str]]:
    document = json.loads(openapi.FILE.read_text(encoding="utf-8"))
    return [(method.upper(), path) for path, found in document["paths"].items() for method in found]


@pytest.mark.security(22)
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), operations())
def test_an_operation_answers_as_it_is_documented(
    api_schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api_schema[path][method]
    seen = []

    @BOUNDED
    @given(operation.as_strategy(generation_mode=mode))
    def answer(case: Any) -> None:
        seen.append(case.call_and_validate().status_code)

    try:
        answer()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing can be wrong about a request without parameters"
    else:
        assert seen


def test_what_follows_from_answers_is_answered_as_it_is_documented(api_schema: Any) -> None:
    machine = api_schema.as_state_machine()
    machine.run(settings=settings(BOUNDED, max_examples=15, stateful_step_count=5))
