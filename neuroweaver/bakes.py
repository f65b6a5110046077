"""How bake times end, in the store: a deployment passes, or its traffic is taken from it; each with its event."""

from __future__ import annotations

from typing import Any

from neuroweaver import audit_trail
from neuroweaver.deployments import DeploymentRecord, DeploymentState, draft, read, write
from neuroweaver.errors import ConflictError
from neuroweaver.events import HEALTH_CHECK, append_to
from neuroweaver.store import Store, storable
from neuroweaver.users import User

ROLLED_BACK = "rolled back"
SERVICE = User("neuroweaver", None)  # who rolls back, as the audit trail has it


class Bakes:
    """Deployments that bake, of a store. Each method is one transaction.

    They raise NotFoundError, and ConflictError where the deployment does not bake, or not any more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def finish(self, deployment_id: str, reason: str) -> DeploymentRecord:
        """It has passed."""
        return self._change(deployment_id, {"bake_until": None, "reason": reason})

    def keep(self, deployment_id: str, reason: str) -> DeploymentRecord:
        """It is not good enough, and nobody could take its place: it goes on, and says why."""
        return self._change(deployment_id, {"reason": reason})

    def roll_back(self, deployment_id: str, reason: str) -> DeploymentRecord:
        """Take its traffic from it: it has weight 0, and stays loaded."""
        values = {"bake_until": None, "reason": f"{ROLLED_BACK}: {reason}", "weight": 0.0}
        return self._change(deployment_id, values, rolled_back=True)

    def _change(self, deployment_id: str, values: dict[str, Any], *, rolled_back: bool = False) -> DeploymentRecord:
        values["reason"] = storable(values["reason"])
        with self._store.write() as connection:
            record = read(connection, deployment_id, locked=True)
            if record.state is not DeploymentState.ACTIVE or record.bake_until is None:
                raise ConflictError(f"{deployment_id} does not bake")
            changed = write(connection, record, values)
            told = {"reason": changed.reason} | ({"rolledBack": True} if rolled_back else {})
            append_to(connection, draft(changed, HEALTH_CHECK, **told))
            if rolled_back:
                audit_trail.append_to(connection, SERVICE, "roll_back", deployment_id, "weight 0")
        return changed
