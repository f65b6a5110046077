"""The store: durable jobs, events, deployments and the audit trail, in SQLite or PostgreSQL by the same statements."""

from __future__ import annotations

from datetime import UTC, datetime

from neuroweaver import schema
from neuroweaver.database import Database
from neuroweaver.settings import Settings


class Store(Database):
    """A database with the tables of this version: made, or brought up to date, by whoever opens it first.

    Raises what Database raises, and NeuroWeaverError for a database that a newer version has changed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        schema.prepare(self)


def url_of(settings: Settings) -> str:
    """`store_url`, or the SQLite file in the data folder."""
    return settings.store_url or f"sqlite:///{settings.home / 'store.db'}"


def open_store(settings: Settings) -> Store:
    """The store of the settings."""
    return Store(url_of(settings))


def timestamp(moment: datetime | None = None) -> str:
    """`moment` (now, if left out) in RFC 3339, UTC, always as long, so that texts sort like times."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def storable(text: str) -> str:
    """`text` without what a database refuses: NUL, and halves of characters that odd file names leave."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
