"""The readers by data format: the content decides which one, the caller's word is checked against it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from neuroweaver.errors import InputError, UsageError
from neuroweaver.vocabulary import DATA_FORMATS
from pipelines.ingest import salesforce
from pipelines.ingest.adf_reader import adf_records
from pipelines.ingest.crm_mapping import Mapping
from pipelines.ingest.csv_reader import read_csv
from pipelines.ingest.frame import FileProblemError, Frame, Part, Record, Source, frame_of, frames, whole
from pipelines.ingest.json_reader import read_json
from pipelines.ingest.sniff import Advance, Kind, Text, WrongKindError, open_text

_FORMAT_OF: dict[Kind, str] = {"csv": "csv", "json": "json", "xml": "automotive-crm"}
_NAMES: dict[Kind, str] = {"csv": "plain text or CSV", "json": "JSON", "xml": "XML"}


def check_format(data_format: str) -> None:
    """Raises UsageError, naming the formats there are."""
    if data_format not in DATA_FORMATS:
        raise UsageError(f"unknown data format {data_format!r}: one of {', '.join(DATA_FORMATS)}")


def detect_format(path: Path) -> str:
    """The data format of the content. Raises InputError where it has none."""
    text = open_text(path)
    if text.kind == "empty":
        raise InputError(f"{path} is empty: it has no data format")
    return "automotive-crm" if text.kind != "xml" and _is_salesforce(text) else _FORMAT_OF[text.kind]


def _is_salesforce(text: Text) -> bool:
    try:
        source = read_csv(text, ()) if text.kind == "csv" else read_json(text, salesforce.FIELDS, wrapped=True)
        columns = source.columns or next(source.frames()).column_names
    except (FileProblemError, StopIteration):
        return False
    return salesforce.is_salesforce(columns)


def open_source(
    path: Path,
    data_format: str,
    *,
    known: Collection[str] = (),
    mapping: Mapping | None = None,
    advance: Advance | None = None,
) -> Source:
    """The file at `path`, ready to be read. `known`: the columns that mean something to the caller.

    `mapping` is for a CRM export with columns of its own. Raises UsageError for an unknown format, InputError for a
    file that is not there, WrongKindError for content of another kind. What is wrong inside the file is raised as
    FileProblemError while it is read.
    """
    check_format(data_format)
    if mapping is not None and data_format != "automotive-crm":
        raise UsageError(f"a mapping goes with the data format automotive-crm, not with {data_format}")
    text = open_text(path)
    try:
        if data_format == "csv":
            _expect(text, path, "csv", ("csv", "empty"))
            return read_csv(text, known, advance)
        if data_format == "json":
            _expect(text, path, "json", ("json", "empty", "csv"))
            return read_json(text, known, advance)
        return _open_crm(text, mapping, advance)
    except FileProblemError as error:
        return Source(text.encoding, _failing(error))


def _failing(error: FileProblemError) -> Iterator[Part]:
    """Raises when it is read."""
    yield from ()
    raise error


def _expect(text: Text, path: Path, wanted: str, kinds: tuple[Kind, ...]) -> None:
    if text.kind not in kinds:
        raise WrongKindError(
            f"{path.name} holds {_NAMES[text.kind]}, not {wanted}: its data format is {_FORMAT_OF[text.kind]}"
        )


def _open_crm(text: Text, mapping: Mapping | None, advance: Advance | None) -> Source:
    if mapping is not None:
        _expect(text, text.path, "CSV, which a mapping is for", ("csv", "empty"))
        source = read_csv(text, mapping.columns, advance)
        missing = mapping.missing(source.columns or ())
        return replace(_mapped(source, mapping.lead_of, mapping.strangers), missing=missing)
    if text.kind in ("xml", "empty"):
        return Source(text.encoding, whole(frames(adf_records(text.pieces(advance=advance))), text))
    if text.kind == "json":
        source = read_json(text, salesforce.FIELDS, advance, wrapped=True)
        first = next(source.parts, None)
        names = first.frame().column_names if first else ()
        if names and not salesforce.is_salesforce(names):
            raise WrongKindError(
                f"{text.path.name} is JSON without Salesforce's field names: rows with our own columns are the data "
                "format json"
            )
        source = replace(source, parts=chain([first] if first else [], source.parts))
        return _mapped(source, salesforce.lead_of, salesforce.strangers)
    source = read_csv(text, salesforce.FIELDS, advance)
    if not salesforce.is_salesforce(source.columns or ()):
        raise WrongKindError(
            f"{text.path.name} is {_NAMES[text.kind]} without Salesforce's field names: name the mapping of the CRM "
            "that it comes from (configs/crm/), or rename its columns and give it as csv"
        )
    missing = salesforce.missing(source.columns or ())
    return replace(_mapped(source, salesforce.lead_of, salesforce.strangers), missing=missing)


def _mapped(
    source: Source, lead_of: Callable[[Record], Record], strangers: Callable[[Collection[str]], tuple[str, ...]]
) -> Source:
    return replace(source, parts=(MappedPart(part, lead_of, strangers) for part in source.parts), columns=None)


@dataclass(frozen=True)
class MappedPart:
    """A part of a CRM export, to be read as leads."""

    part: Part
    lead_of: Callable[[Record], Record]
    strangers: Callable[[Collection[str]], tuple[str, ...]]

    def frame(self) -> Frame:
        raw = self.part.frame()
        leads = frame_of([self.lead_of(record) for record in raw.records()])
        return replace(leads, strangers=self.strangers(raw.column_names))
