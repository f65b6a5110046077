"""Channels: their names, and who they are there for."""

from __future__ import annotations

import pytest

from neuroweaver import channels
from neuroweaver.channels import Channel
from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.permissions import ROLES, Role
from neuroweaver.users import LOCAL_USER, User

MODELS = {
    "automotive-sales@2": "automotive-sales",
    "service-advisor@1": "service-advisor",
    "elsewhere": "automotive-sales",
}
TRAINING, FOREIGN_TRAINING = "training:automotive-sales", "training:service-advisor"
DEPLOYMENT, FOREIGN_DEPLOYMENT = "deployment:automotive-sales@2", "deployment:service-advisor@1"
UPSTREAM, WORKFLOW, AGENT = "deployment:elsewhere", "workflow:w1", "agent:a1"
SYSTEM, FOREIGN_SYSTEM = "system:ada", "system:bo"
OWN = {TRAINING, DEPLOYMENT, UPSTREAM, SYSTEM}
FOREIGN = {FOREIGN_TRAINING, FOREIGN_DEPLOYMENT}

# Role -> the channels of a user `ada` of sales.
TABLE: dict[Role | None, set[str]] = {
    "admin": {*OWN, *FOREIGN, WORKFLOW, AGENT},
    "manager": OWN,
    "agent": OWN,
    "editor": {*OWN, *FOREIGN},
    None: set(),
}


def is_readable(channel: str, user: User) -> bool:
    try:
        channels.require_readable(channels.parse(channel), user, MODELS.get)
    except NotFoundError:
        return False
    return True


@pytest.mark.security(9)
@pytest.mark.parametrize("role", [*ROLES, None])
def test_channels_are_there_for_the_roles_of_the_table(role: Role | None) -> None:
    user = User("ada", role, frozenset(["sales"]))
    every = {*OWN, *FOREIGN, WORKFLOW, AGENT, FOREIGN_SYSTEM}

    assert {channel for channel in every if is_readable(channel, user)} == TABLE[role]


@pytest.mark.security(8)
def test_the_table_has_every_kind() -> None:
    assert {channels.parse(channel).kind for channel in (*TABLE["admin"], SYSTEM)} == set(channels.KINDS)


@pytest.mark.security(10)
def test_a_foreign_channel_answers_as_a_missing_one() -> None:
    user = User("ada", "manager", frozenset(["sales"]))

    def told(channel: str) -> str:
        with pytest.raises(NotFoundError) as caught:
            channels.require_readable(channels.parse(channel), user, MODELS.get)
        return str(caught.value).replace(channel, "X")

    missing = ["training:nothing", "training:service-advisor@1", "deployment:automotive-sales@9", "deployment:base"]
    assert {told(channel) for channel in (*FOREIGN, FOREIGN_SYSTEM, WORKFLOW, AGENT, *missing)} == {"no channel 'X'"}


def test_the_local_user_reads_its_own_system_channel_and_all_models() -> None:
    assert all(is_readable(channel, LOCAL_USER) for channel in (*FOREIGN, WORKFLOW, AGENT, "system:local"))


@pytest.mark.parametrize("text", ["workflow:a:b", "system:" + "u" * 248])
def test_a_channel_reads_back_as_it_was_written(text: str) -> None:
    assert str(channels.parse(text)) == text
    assert channels.parse("workflow:a:b") == Channel("workflow", "a:b")


@pytest.mark.parametrize(
    "text", ["", "training", "training:", ":x", "Training:x", "other:x", "system:a\0", "system:\ud800", "system:a\nb"],
)  # fmt: skip
def test_what_is_no_channel_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="training:…, deployment:…"):
        channels.parse(text)
