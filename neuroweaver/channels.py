"""Channels of events: what they are called, and for whom they are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from neuroweaver.errors import NotFoundError, UsageError
from neuroweaver.permissions import EVERYWHERE
from neuroweaver.users import User

KINDS = ("training", "deployment", "workflow", "agent", "system")
MAX_CHARACTERS = 255  # what the store has room for


@dataclass(frozen=True)
class Channel:
    """`kind:name`; what the name is the name of follows from the kind."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def parse(text: str) -> Channel:
    """Raises UsageError for a channel that is none of the contract's."""
    kind, _, name = text.partition(":")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"a channel may have {MAX_CHARACTERS} characters, this one has {len(text)}")
    if kind not in KINDS or not name or not text.isprintable():
        raise UsageError(f"unknown channel {text!r}: {', '.join(f'{kind}:…' for kind in KINDS)} are allowed")
    return Channel(kind, name)


def require_readable(channel: Channel, user: User, model_type_of: Callable[[str], str | None]) -> None:
    """Raises NotFoundError for a channel that is not there for `user`: no such one, or somebody else's.

    `model_type_of` gives the model type of a model that may be deployed; None for no such model.
    """
    if not _is_readable(channel, user, model_type_of):
        raise NotFoundError(f"no channel {str(channel)!r}")


def may_watch(user: User) -> bool:
    """Whether the user may read any channel at all."""
    return user.may("executeWorkflows") or user.may("viewPerformanceMetrics")


def _is_readable(channel: Channel, user: User, model_type_of: Callable[[str], str | None]) -> bool:
    if not may_watch(user):
        return False
    match channel.kind:
        case "training":  # its models are named by their type: a version has no number before it is trained
            return channel.name in user.model_types()
        case "deployment":
            return model_type_of(channel.name) in user.model_types()
        case "workflow":  # nothing here knows whose workflows and agents are: they are for who may see all
            return user.may("viewAllWorkflows")
        case "agent":
            return user.may("manageAgents") and user.role in EVERYWHERE
        case _:
            return channel.name == user.id
