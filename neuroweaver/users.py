"""Users: what a token says of whoever sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from neuroweaver.permissions import CUSTOMER_PII, EVERYWHERE, ROLES, Permission, Role, permissions_of
from neuroweaver.vocabulary import DEPARTMENT_OF, DEPARTMENTS, MODEL_TYPES

GROUPS = "cognito:groups"  # the claim in which Cognito's access tokens say what their user belongs to


@dataclass(frozen=True)
class User:
    """Somebody who asks. One without a role may do nothing."""

    id: str
    role: Role | None
    departments: frozenset[str] = frozenset()
    customer_pii: bool = False

    @classmethod
    def of_claims(cls, claims: Mapping[str, Any]) -> Self:
        """The user of a token that was verified: role, departments and `customerPII` are names of groups.

        Groups that name two roles name none: which of them counts is not ours to guess.
        """
        groups = claims.get(GROUPS)
        names = {name for name in groups if isinstance(name, str)} if isinstance(groups, list) else set()
        roles = [role for role in ROLES if role in names]
        return cls(
            id=str(claims["sub"]),
            role=roles[0] if len(roles) == 1 else None,
            departments=frozenset(names.intersection(DEPARTMENTS)),
            customer_pii=CUSTOMER_PII in names,
        )

    def groups(self) -> list[str]:
        """The names that `of_claims` reads."""
        pii = [CUSTOMER_PII] if self.customer_pii else []
        return [*([self.role] if self.role else []), *sorted(self.departments), *pii]

    def may(self, permission: Permission) -> bool:
        """Whether the role has it; `customerPII` is granted beside a role that works with customers' data."""
        if self.role is None:
            return False
        if permission == CUSTOMER_PII:
            return self.customer_pii and self.may("accessCustomerData")
        return permission in permissions_of(self.role)

    def sees(self, department: str | None) -> bool:
        """Whether what belongs to `department` is there for this user; what belongs to none is there for all."""
        return department is None or self.role in EVERYWHERE or department in self.departments

    def model_types(self) -> tuple[str, ...]:
        """Those of a department that is there for this user.

        A job whose configuration was refused may be of none of the product's: it is there for nobody.
        """
        return tuple(name for name in MODEL_TYPES if self.sees(DEPARTMENT_OF[name]))


LOCAL_USER = User("local", "admin", frozenset(DEPARTMENTS), customer_pii=True)
