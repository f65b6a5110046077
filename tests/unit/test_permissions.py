"""The table of roles and permissions, written out once more from the front end's specification."""

from __future__ import annotations

from typing import get_args

import pytest

from neuroweaver.permissions import ROLES, Permission, permissions_of
from neuroweaver.users import LOCAL_USER, User
from neuroweaver.vocabulary import DEPARTMENTS, MODEL_TYPE_OF

ADMIN, MANAGER, AGENT, EDITOR = (
    {"admin"},
    {"admin", "manager"},
    {"admin", "manager", "agent"},
    {"admin", "manager", "editor"},
)
TABLE: dict[str, set[str]] = {
    "manageUsers": ADMIN, "configureModels": ADMIN, "viewAllWorkflows": ADMIN, "manageBilling": ADMIN,
    "createWorkflows": MANAGER, "deployModels": MANAGER, "viewDepartmentData": MANAGER, "manageAgents": MANAGER,
    "executeWorkflows": AGENT, "viewAssignedTasks": AGENT, "accessCustomerData": AGENT,
    "editWorkflows": EDITOR, "testModels": EDITOR, "viewPerformanceMetrics": EDITOR,
}  # fmt: skip


def test_the_table_has_every_permission_and_every_role() -> None:
    assert {*TABLE, "customerPII"} == set(get_args(Permission))
    assert set().union(*TABLE.values()) == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_its_own_permissions_and_those_of_the_roles_below_it(role: str) -> None:
    expected = {permission for permission, roles in TABLE.items() if role in roles}

    assert permissions_of(role) == expected
    assert {name for name in TABLE if User("u", role).may(name)} == expected


@pytest.mark.parametrize(
    ("role", "granted", "may"),
    [(role, granted, granted and role in AGENT) for role in (*ROLES, None) for granted in (True, False)],
)
def test_customer_pii_is_granted_by_name_to_roles_that_work_with_customers(
    role: str | None, granted: bool, may: bool
) -> None:
    assert User("u", role, customer_pii=granted).may("customerPII") is may


def test_a_user_without_a_role_may_nothing() -> None:
    assert not any(
        User("u", None, frozenset(DEPARTMENTS), customer_pii=True).may(name) for name in get_args(Permission)
    )


@pytest.mark.parametrize("role", [*ROLES, None])
@pytest.mark.parametrize("department", DEPARTMENTS)
def test_departments_limit_managers_and_agents_alone(role: str | None, department: str) -> None:
    user = User("u", role, frozenset(["sales"]))

    assert user.sees(department) is (role in ("admin", "editor") or department == "sales")
    assert user.sees(None)
    assert (MODEL_TYPE_OF[department] in user.model_types()) is user.sees(department)
    assert "unknown" not in user.model_types()


def test_groups_are_read_as_they_are_written() -> None:
    for user in (
        User("u", "agent", frozenset(["sales", "parts"])),
        User("u", "admin", customer_pii=True),
        User("u", None),
    ):
        assert User.of_claims({"sub": "u", "cognito:groups": user.groups()}) == user


def test_the_local_user_may_everything() -> None:
    assert all(LOCAL_USER.may(name) for name in get_args(Permission))
