"""The deployments that are loaded: brought up, changed, drained and taken down, in step with the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuroweaver.deployments import UNFINISHED, DeploymentRecord, Deployments, DeploymentState
from neuroweaver.errors import ConflictError
from neuroweaver.routing.baking import RULES, BakeRules
from neuroweaver.routing.candidates import PRODUCTION, Environment
from neuroweaver.services import Portion
from neuroweaver.users import LOCAL_USER, User
from serving import deployable, rounds
from serving.catalog import Catalog, ServedModel, describe
from serving.deployable import Fetch
from serving.engine.protocol import Engine, EngineClosedError, EngineError
from serving.limiter import Limiter
from serving.warm_up import wait_for, warm_up

_log = logging.getLogger(__name__)


@dataclass
class Live:
    """A deployment that is loaded. Only the event loop touches its limiter once it is active."""

    record: DeploymentRecord
    model: ServedModel
    limiter: Limiter

    @property
    def active(self) -> bool:
        return self.record.state is DeploymentState.ACTIVE


class Fleet:
    """The live deployments of one service. Its coroutines belong to one event loop.

    `bake` holds for deployments that bring no rules of their own.
    """

    def __init__(
        self, engine: Engine, catalog: Catalog, deployments: Deployments, fetch: Fetch, *,
        bake: BakeRules = RULES, warm_up_seconds: float = 60,
    ) -> None:  # fmt: skip
        self.bake = bake
        self._engine = engine
        self._warm_up_seconds = warm_up_seconds
        self._catalog = catalog
        self._deployments = deployments
        self._fetch = fetch
        self._live: dict[str, Live] = {}
        self._loading = threading.Lock()  # the engine's adapters and `_live` change together
        self._adopting = threading.Lock()  # limits, and the records and the portion that they follow from
        self._work: set[asyncio.Task[None]] = set()
        self._portion = Portion()

    @property
    def deployments(self) -> Deployments:
        return self._deployments

    def live(self) -> list[Live]:
        """Those that take requests, the oldest first."""
        return [each for each in list(self._live.values()) if each.active and not each.record.shadow]

    def shadows(self) -> list[Live]:
        """Those that take copies of requests, the oldest first."""
        return [each for each in list(self._live.values()) if each.active and each.record.shadow]

    def loaded(self) -> list[Live]:
        """Those that take requests, and those that drain."""
        return list(self._live.values())

    def of_model(self, model_id: str) -> Live | None:
        """The one in production, where the model is deployed in both environments."""
        found = [each for each in self.live() if each.record.model_id == model_id]
        return min(found, key=lambda each: each.record.environment != PRODUCTION, default=None)

    def find(self, deployment_id: str) -> Live | None:
        """The deployment if it is loaded, draining or not."""
        return self._live.get(deployment_id)

    @property
    def has_portion(self) -> bool:
        """Whether other services of the store have left it anything of the limits."""
        return self._portion.count > 0

    @property
    def fits(self) -> bool:
        """Whether nowhere more is under way than may be."""
        return all(live.limiter.in_flight <= live.limiter.limit for live in self.loaded())

    def divide(self, portion: Portion) -> None:
        """Take this portion of all limits, until another one is set; what is under way beyond it goes on."""
        with self._adopting:
            self._portion = portion
            for live in self.loaded():
                live.limiter.change(portion.of(live.record.max_concurrency))

    def restore(self, *, alone: bool = True) -> None:
        """Bring up what was there when the service ended, with the same weights. Blocks; for the start.

        One that can't be loaded, or does not answer, is failed with the reason, and the others serve. Upstreams are not
        asked whether they are there just now. Where the service is not `alone`, deployments are looked after by others:
        it joins those that are active.
        """
        for record in self._deployments.find(UNFINISHED):
            if not alone:
                if record.state is DeploymentState.ACTIVE:
                    self.join(record)
            elif record.state is DeploymentState.DRAINING:
                self._deployments.move(record.id, DeploymentState.STOPPED, "the service ended while it drained")
            else:
                self._bring_up(record)

    async def deploy(
        self, name: str, environment: Environment, *, weight: float, max_concurrency: int,
        bake: BakeRules | None = None, shadow: bool = False, user: User = LOCAL_USER,
    ) -> DeploymentRecord:  # fmt: skip
        """Begin to deploy a model, for `user`; without `bake` by the rules of the fleet.

        Raises what `deployable.find` raises, and ConflictError where it is deployed there already.
        """

        def create() -> DeploymentRecord:
            found = deployable.find(name, self._catalog, self._fetch, user)
            return self._deployments.create(
                found.model_id, found.model_type, environment,
                weight=weight, max_concurrency=max_concurrency, folder=found.folder, facts=found.facts,
                bake=bake or self.bake, shadow=shadow,
            )  # fmt: skip

        record = await asyncio.to_thread(create)
        self._spawn(asyncio.to_thread(self._bring_up, record))
        return record

    async def change(
        self, deployment_id: str, *, weight: float | None = None, max_concurrency: int | None = None,
        shadow: bool | None = None, revision: int | None = None,
    ) -> DeploymentRecord:  # fmt: skip
        """Raises what `Deployments.change` raises."""
        record = await asyncio.to_thread(
            self._deployments.change, deployment_id,
            weight=weight, max_concurrency=max_concurrency, shadow=shadow, revision=revision,
        )  # fmt: skip
        self.adopt(record)
        return record

    async def undeploy(self, deployment_id: str) -> DeploymentRecord:
        """Send it no more requests, and take it down when those that it has are answered.

        Raises NotFoundError, and ConflictError where it drains or has ended already.
        """
        draining = DeploymentState.DRAINING
        record = await asyncio.to_thread(self._deployments.move, deployment_id, draining, "undeployed")
        self.adopt(record)
        self._spawn(self._take_down(record))
        return record

    def join(self, record: DeploymentRecord) -> bool:
        """Load what another service has deployed; it takes requests here when it is warm. Blocks.

        False where that can't be done, which the log says: it is served elsewhere, and stays so.
        """
        coming = replace(record, state=DeploymentState.DEPLOYING, revision=0)
        try:
            if record.folder is not None:
                wait_for(self._engine, self._warm_up_seconds)
            with self._loading:
                model = self._load(record)
                self._add(coming, model)
            if record.folder is not None:
                warm_up(self._engine, model, self._warm_up_seconds)
        except EngineClosedError:  # the service stops
            return False
        except Exception as error:  # a foreign file can be wrong in any way, and must not stop the service
            _log.error("%s (%s) can't be served here: %s", record.id, record.model_id, _reason(error))
            self._discard(coming)
            return False
        self.adopt(self._deployments.get(record.id))
        _log.info("%s serves %s in %s", record.id, record.model_id, record.environment)
        return True

    async def leave(self, deployment_id: str) -> None:
        """Take it down here, when the requests that it has are answered; whoever has ended it writes the rest."""
        live = self._live.get(deployment_id)
        if live is not None:
            await live.limiter.drained()
            await asyncio.to_thread(self._forget, live.record)

    def _bring_up(self, record: DeploymentRecord) -> None:
        """Verify, load, warm up, and only then let traffic in."""
        try:
            if record.folder is not None:
                wait_for(self._engine, self._warm_up_seconds)
            with self._loading:
                model = self._load(record)
                self._add(record, model)
                if not record.shadow:
                    self._catalog.add_deployed(model)
            if record.state is DeploymentState.DEPLOYING or record.folder is not None:
                warm_up(self._engine, model, self._warm_up_seconds)
            if record.state is DeploymentState.DEPLOYING:
                self.adopt(self._deployments.move(record.id, DeploymentState.ACTIVE, "loaded and warm"))
            _log.info("%s serves %s in %s", record.id, record.model_id, record.environment)
        except ConflictError:  # undeployed meanwhile
            self._forget(record)
        except EngineClosedError:  # the service stops, and brings it up when it is back
            _log.info("%s (%s) is not loaded: the service stops", record.id, record.model_id)
        except Exception as error:  # a foreign file can be wrong in any way, and must not stop the service
            _log.error("%s (%s) failed: %s", record.id, record.model_id, _reason(error))
            self._discard(record)
            with contextlib.suppress(ConflictError):  # undeployed meanwhile
                self._deployments.move(record.id, DeploymentState.FAILED, _reason(error))

    def _add(self, record: DeploymentRecord, model: ServedModel) -> None:
        with self._adopting:
            self._live[record.id] = Live(record, model, Limiter(self._portion.of(record.max_concurrency)))

    def _load(self, record: DeploymentRecord) -> ServedModel:
        if record.folder is None:
            return self._catalog.find(record.model_id)
        model = describe(record.model_id, Path(record.folder), record.facts)
        if record.model_id not in self._engine.adapters():
            self._engine.load(record.model_id, Path(record.folder))
        return model

    async def _take_down(self, record: DeploymentRecord) -> None:
        await self.leave(record.id)
        await asyncio.to_thread(self._deployments.move, record.id, DeploymentState.STOPPED, "drained")

    def _discard(self, record: DeploymentRecord) -> None:
        """Forget one that has failed; it may have ended the engine, which then has to be back first."""
        try:
            if record.folder is not None:
                wait_for(self._engine, self._warm_up_seconds)
            self._forget(record)
        except EngineError as error:
            _log.error("%s can't be unloaded: %s", record.model_id, error)

    def _forget(self, record: DeploymentRecord) -> None:
        """Unload the model, too, unless others use it."""
        model_id = record.model_id
        with self._loading:
            self._live.pop(record.id, None)
            others = [each.record for each in self._live.values() if each.record.model_id == model_id]
            if all(each.shadow for each in others):
                self._catalog.remove_deployed(model_id)
            if not others and not self._catalog.serves_anyway(model_id) and model_id in self._engine.adapters():
                self._engine.unload(model_id)

    def adopt(self, record: DeploymentRecord) -> None:
        """Let what is live follow what is stored; an older state that arrives late is not taken."""
        with self._adopting:
            live = self._live.get(record.id)
            if live is not None and record.revision > live.record.revision:
                live.limiter.change(self._portion.of(record.max_concurrency))
                live.record = record
                if live.active and not record.shadow:
                    self._catalog.add_deployed(live.model)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(rounds.logged(work, "a deployment could not be changed", _log))
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no details'])[0]}"
