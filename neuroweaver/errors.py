"""Errors that a user can act on: each says what is wrong, the value, and what is allowed."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_WRONG_CALL = 2


class NeuroWeaverError(Exception):
    """The work failed. Printed as one line; the process ends with `exit_code`."""

    exit_code = EXIT_FAILED


class UsageError(NeuroWeaverError, ValueError):
    """The call was wrong: an unknown name, a value that is not allowed."""

    exit_code = EXIT_WRONG_CALL


class ConfigError(UsageError):
    """A configuration file or an override is wrong; every problem of it is in the message."""


class ConflictError(UsageError):
    """The call does not fit the state that something is in, or another process was first; nothing was changed."""


class StaleError(ConflictError):
    """The caller has seen an older state than there is, and asked that nothing be changed then."""


class InputError(NeuroWeaverError, ValueError):
    """A file that was given can't be used."""


class NotFoundError(NeuroWeaverError, LookupError):
    """Something that was named does not exist (yet)."""


class IntegrityError(NeuroWeaverError):
    """Bytes on disk are not the ones that were recorded."""


class TrainingError(NeuroWeaverError, RuntimeError):
    """A fine-tune ended without a usable adapter."""


class CancelledError(NeuroWeaverError):
    """Somebody asked for the work to end before it was done."""


class TrackingError(NeuroWeaverError):
    """The tracking server has been away for too long."""


class StorageError(NeuroWeaverError, OSError):
    """Nothing could be written: the disk is full or the folder is read-only."""
