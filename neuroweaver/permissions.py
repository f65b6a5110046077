"""Who may do what: roles and their permissions, as the front end's specification names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["admin", "manager", "agent", "editor"]
Permission = Literal[
    "manageUsers", "configureModels", "viewAllWorkflows", "manageBilling",
    "createWorkflows", "deployModels", "viewDepartmentData", "manageAgents",
    "executeWorkflows", "viewAssignedTasks", "accessCustomerData",
    "editWorkflows", "testModels", "viewPerformanceMetrics",
    "customerPII",
]  # fmt: skip

ROLES: tuple[Role, ...] = get_args(Role)
CUSTOMER_PII: Permission = "customerPII"

# Who may say by hand which model answers their requests, by how long that is to hold: one of these is needed.
OVERRIDING: Mapping[str, tuple[Permission, ...]] = {
    "session": ("executeWorkflows", "testModels"),
    "workflow": ("executeWorkflows", "editWorkflows"),
    "permanent": ("deployModels",),
}
OVERRIDES_OF_OTHERS: Permission = "configureModels"  # sees and removes them

# Roles that see every department; the others see those that their token names.
EVERYWHERE: frozenset[Role] = frozenset(("admin", "editor"))

_OWN: Mapping[Role, tuple[Permission, ...]] = {
    "admin": ("manageUsers", "configureModels", "viewAllWorkflows", "manageBilling"),
    "manager": ("createWorkflows", "deployModels", "viewDepartmentData", "manageAgents"),
    "agent": ("executeWorkflows", "viewAssignedTasks", "accessCustomerData"),
    "editor": ("editWorkflows", "testModels", "viewPerformanceMetrics"),
}
_INCLUDES: Mapping[Role, tuple[Role, ...]] = {"admin": ("manager",), "manager": ("agent", "editor")}


def permissions_of(role: Role) -> frozenset[Permission]:
    """The role's own permissions, and those of the roles below it."""
    below = (permissions_of(other) for other in _INCLUDES.get(role, ()))
    return frozenset(_OWN[role]).union(*below)
