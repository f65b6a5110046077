"""Salesforce Lead and Opportunity exports (API names, CSV or JSON) -> lead-qualification records.

The standard fields state who asked, when and in which words; they state hardly any label. `docs/crm.md` says why an
Opportunity's `Amount` is no budget and its `CloseDate` no timeline. Custom fields (`__c`) need a mapping file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pipelines.ingest.crm_dates import stated_day
from pipelines.ingest.frame import UNDECODED, CellProblem, Record
from pipelines.ingest.lead_words import timeline_between
from pipelines.ingest.markup import without_markup
from pipelines.ingest.person_names import full_name, person_names

_BOTH = (
    "attributes", "Id", "IsDeleted", "Name", "Description", "LeadSource", "RecordTypeId", "CurrencyIsoCode", "OwnerId",
    "Owner", "CreatedDate", "CreatedById", "CreatedBy", "LastModifiedDate", "LastModifiedById", "LastModifiedBy",
    "SystemModstamp", "LastActivityDate", "LastViewedDate", "LastReferencedDate",
)  # fmt: skip
_LEAD = (
    "MasterRecordId", "LastName", "FirstName", "MiddleName", "Suffix", "Salutation", "Title", "Company", "Street",
    "City", "State", "PostalCode", "Country", "StateCode", "CountryCode", "Latitude", "Longitude", "GeocodeAccuracy",
    "Address", "Phone", "MobilePhone", "Fax", "Email", "Website", "PhotoUrl", "Status", "Industry", "Rating",
    "AnnualRevenue", "NumberOfEmployees", "HasOptedOutOfEmail", "HasOptedOutOfFax", "DoNotCall", "IsConverted",
    "ConvertedDate", "ConvertedAccountId", "ConvertedContactId", "ConvertedOpportunityId", "IsUnreadByOwner",
    "LastTransferDate", "Jigsaw", "JigsawContactId", "CleanStatus", "CompanyDunsNumber", "DandbCompanyId",
    "EmailBouncedReason", "EmailBouncedDate", "IndividualId", "FirstCallDateTime", "FirstEmailDateTime",
    "ActionCadenceId", "IsPriorityRecord", "PartnerAccountId", "EarliestInterestDate", "LatestInterestDate",
)  # fmt: skip
_OPPORTUNITY = (
    "AccountId", "Account", "ContactId", "Contact", "StageName", "Amount", "Probability", "ExpectedRevenue",
    "TotalOpportunityQuantity", "CloseDate", "Type", "NextStep", "IsClosed", "IsWon", "IsPrivate", "ForecastCategory",
    "ForecastCategoryName", "CampaignId", "Campaign", "HasOpportunityLineItem", "Pricebook2Id", "ContractId",
    "Territory2Id", "IsExcludedFromTerritory2Filter", "Fiscal", "FiscalQuarter", "FiscalYear", "PushCount",
    "LastStageChangeDate", "LastAmountChangedHistoryId", "LastCloseDateChangedHistoryId", "HasOpenActivity",
    "HasOverdueTask", "IqScore",
)  # fmt: skip
_NAMES = (*_BOTH, *_LEAD, *_OPPORTUNITY)
_SPELLING = {spelling: name for name in _NAMES for spelling in (name, name.upper())}  # Data Loader writes capitals
FIELDS = frozenset(_SPELLING)

_KNOWN = frozenset(name.lower() for name in _NAMES)
# Names that nobody else gives to a column, in this spelling.
_ANCHORS = frozenset(
    ("attributes", "CreatedDate", "SystemModstamp", "RecordTypeId", "OwnerId", "IsConverted", "StageName",
     "ConvertedContactId", "LastModifiedDate")
)  # fmt: skip
_API_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*")
_CUSTOM = re.compile(r"__(?:c|pc|r)(?:\.|$)", re.IGNORECASE)
_PERSON_IDS = ("contactid", "convertedcontactid", "accountid", "convertedaccountid", "individualid")
_RELATED = ("contact", "account", "owner")


_OBJECTS = ("Lead", "Opportunity")


@dataclass(frozen=True)
class _Layout:
    """Where the fields of a record stand: lower-case name -> column. `related`: the same of `Contact.FirstName`."""

    fields: dict[str, str]
    related: dict[str, dict[str, str]]


def is_salesforce(columns: Collection[str]) -> bool:
    """Do these columns have API names of Lead or Opportunity? Labels, as reports export them, hold blanks."""
    names = [name.strip() for name in columns if name.strip()]
    found = {_SPELLING[name] for name in names if name in FIELDS}
    is_named = bool(found & _ANCHORS) or {"Id", "Description"} <= found
    return is_named and len(found) > 1 and all(_API_NAME.fullmatch(name) for name in names)


def missing(columns: Collection[str]) -> tuple[CellProblem, ...]:
    """What the export lacks and can't be read without: the words of the customer."""
    if "description" in _layout(tuple(columns)).fields:
        return ()
    message = "the field Description is missing: it holds what the customer wrote"
    return (CellProblem("missing_column", message, "Description", hint="add it to the export", line=1),)


def strangers(columns: Collection[str]) -> tuple[str, ...]:
    """The custom fields: what they say is not read."""
    return tuple(name for name in columns if _CUSTOM.search(name))


def lead_of(record: Record) -> Record:
    """A raw record, its values by API name, as a partial lead-qualification record."""
    if any(problem.column is None and not problem.is_warning for problem in record.problems):
        return replace(record, is_partial=True)  # its cells mean nothing
    layout, raw = _layout(tuple(record.values)), record.values
    stated = {name: raw[column] for name, column in layout.fields.items()}
    if record.problems:
        stated = {
            name: UNDECODED.sub("\ufffd", cell) if isinstance(cell, str) else cell for name, cell in stated.items()
        }
    kind = _type_of(stated)
    if isinstance(kind, str) and kind not in _OBJECTS:
        message = f"the record is a {kind[:40]}, not a {' or an '.join(_OBJECTS)}"
        return Record(record.line, raw, (*record.problems, CellProblem("malformed", message)), is_partial=True)
    description = stated.get("description")
    asked, problem = stated_day(stated.get("createddate"))
    values: dict[str, Any] = {
        "task": "lead-qualification",
        "customer_message": without_markup(description) if isinstance(description, str) else description,
        "example_id": stated.get("id"),
        "customer_id": next(filter(None, map(stated.get, _PERSON_IDS)), None),
    }
    problems = [problem] if problem else []
    if asked is not None:
        values["occurred_at"] = asked.isoformat()
        earliest, latest = (_interest(stated, end, problems) for end in ("earliest", "latest"))
        values["timeline"] = timeline_between(asked, earliest, latest)
    return Record(
        record.line,
        {name: value for name, value in values.items() if value not in (None, "")},
        (*record.problems, *problems),
        is_partial=True,
        names=person_names(_names(stated, layout, raw)),
    )


def _interest(stated: dict[str, Any], end: str, problems: list[CellProblem]) -> Any:
    """Automotive Cloud's `EarliestInterestDate` and `LatestInterestDate`."""
    day, problem = stated_day(stated.get(f"{end}interestdate"), "timeline")
    if problem:
        problems.append(problem)
    return day


def _names(stated: dict[str, Any], layout: _Layout, raw: dict[str, Any]) -> Iterator[str]:
    """Of the person who asks and, where the owner is no queue, of the one who answers; an Opportunity has none."""
    if _type_of(stated) != "Opportunity" and "stagename" not in stated and "closedate" not in stated:
        yield from _person(stated)
    for relation in _RELATED:
        nested = stated.get(relation)
        if isinstance(nested, dict):
            person = {name.lower(): value for name, value in nested.items()}
        elif columns := layout.related.get(relation):
            person = {name: raw[column] for name, column in columns.items()}
        else:
            continue
        is_account = str(person.get("ispersonaccount")).lower() == "true"
        is_person = relation == "contact" or _type_of(person) == "User" or is_account
        yield from _person(person if is_person else person | {"name": ""})


def _type_of(fields: dict[str, Any]) -> Any:
    attributes = fields.get("attributes")
    return attributes.get("type") if isinstance(attributes, dict) else None


def _person(fields: dict[str, Any]) -> Iterator[str]:
    parts = (fields.get("firstname"), fields.get("middlename"), fields.get("lastname"))
    yield full_name(part for part in parts if isinstance(part, str))
    if isinstance(name := fields.get("name"), str):
        yield name


@lru_cache(maxsize=32)
def _layout(columns: tuple[str, ...]) -> _Layout:
    fields: dict[str, str] = {}
    related: dict[str, dict[str, str]] = {}
    for column in columns:
        name = column.strip().lower()
        relation, _, field = name.partition(".")
        if relation in _RELATED and field:
            related.setdefault(relation, {}).setdefault(field, column)
        elif name in _KNOWN:
            fields.setdefault(name, column)
    return _Layout(fields, related)
