"""The readers by data format: the content decides which one, the caller's word is checked against it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from neuroweaver.errors import InputError, UsageError
from neuroweaver.vocabulary import DATA_FORMATS
from pipelines.ingest.adf_reader import read_adf
from pipelines.ingest.csv_reader import read_csv
from pipelines.ingest.document import Document
from pipelines.ingest.json_reader import read_json
from pipelines.ingest.sniff import Kind, Text, WrongKindError, open_text

_FORMAT_OF: dict[Kind, str] = {"csv": "csv", "json": "json", "xml": "automotive-crm"}
_NAMES: dict[Kind, str] = {"csv": "plain text or CSV", "json": "JSON", "xml": "XML"}


def check_format(data_format: str) -> None:
    """Raises UsageError, naming the formats there are."""
    if data_format not in DATA_FORMATS:
        raise UsageError(f"unknown data format {data_format!r}: one of {', '.join(DATA_FORMATS)}")


def detect_format(path: Path) -> str:
    """The data format of the content. Raises InputError where it has none."""
    kind = open_text(path).kind
    if kind == "empty":
        raise InputError(f"{path} is empty: it has no data format")
    return _FORMAT_OF[kind]


def read(path: Path, data_format: str, *, known: Collection[str] = ()) -> Document:
    """The records of the file at `path`. `known`: the columns that mean something to the caller.

    Raises UsageError for an unknown format, InputError for a file that is not there, WrongKindError for content
    of another kind. What is wrong inside the file is in the document.
    """
    check_format(data_format)
    source = open_text(path)
    if data_format == "csv":
        _expect(source, path, "csv", ("csv", "empty"))
        return read_csv(source, known)
    if data_format == "json":
        _expect(source, path, "json", ("json", "empty", "csv"))
        return read_json(source, known)
    if source.kind in ("csv", "json"):
        raise WrongKindError(
            f"{path.name} is {_NAMES[source.kind]}: of automotive-crm only ADF 1.0 XML is read so far, Salesforce "
            "exports and mapped CRM exports are not (export it as ADF, or rename its columns and give it as csv)"
        )
    return read_adf(source)


def _expect(source: Text, path: Path, data_format: str, kinds: tuple[Kind, ...]) -> None:
    if source.kind not in kinds:
        raise WrongKindError(
            f"{path.name} holds {_NAMES[source.kind]}, not {data_format}: its data format is {_FORMAT_OF[source.kind]}"
        )
