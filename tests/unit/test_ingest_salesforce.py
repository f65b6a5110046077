from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest.frame import CellProblem, Record
from pipelines.ingest.salesforce import is_salesforce, lead_of, missing, strangers

SAMPLE = Path(__file__).parents[2] / "datasets" / "sales" / "leads_salesforce.csv"
LEAD: dict[str, Any] = {
    "attributes": {"type": "Lead", "url": "/services/data/v62.0/sobjects/Lead/00QEX0000000001AAA"},
    "Id": "00QEX0000000001AAA", "FirstName": "Renée", "LastName": "Sampleton", "Name": "Renée Sampleton",
    "Company": "Household", "Email": "renee@example.com", "Status": "Open", "LeadSource": "Web",
    "Description": "<p>A used Tacoma, please</p>", "CreatedDate": "2025-03-05T18:40:12.000+0000",
    "ConvertedContactId": None, "Owner": {"attributes": {"type": "User"}, "Name": "Otis Mockford"},
}  # fmt: skip
OPPORTUNITY: dict[str, Any] = {
    "Id": "006EX0000000001AAA", "Name": "Sampleton - Tacoma", "StageName": "Negotiation", "Amount": 34500.0,
    "CloseDate": "2025-03-31", "AccountId": "001EX0000000001AAA", "ContactId": "003EX0000000001AAA",
    "Description": "Wants the Tacoma in blue.", "CreatedDate": "2025-03-05T18:40:12.000+0000", "Type": "New Business",
    "Contact": {"attributes": {"type": "Contact"}, "FirstName": "Renée", "LastName": "Sampleton"},
    "Owner": {"attributes": {"type": "Group"}, "Name": "Internet Leads"},
}  # fmt: skip


def lead(**fields: Any) -> Record:
    return lead_of(Record(7, {**LEAD, **fields}))


def test_salesforce_lead_gives_the_words_the_ids_and_the_day() -> None:
    record = lead()
    assert (record.line, record.is_partial, record.problems) == (7, True, ())
    assert record.values == {
        "task": "lead-qualification", "customer_message": "A used Tacoma, please",
        "example_id": "00QEX0000000001AAA", "occurred_at": "2025-03-05",
    }  # fmt: skip


def test_salesforce_opportunity_states_neither_budget_nor_timeline() -> None:
    record = lead_of(Record(2, OPPORTUNITY))
    assert record.values == {
        "task": "lead-qualification", "customer_message": "Wants the Tacoma in blue.",
        "example_id": "006EX0000000001AAA", "customer_id": "003EX0000000001AAA", "occurred_at": "2025-03-05",
    }  # fmt: skip


def test_salesforce_person_is_the_same_before_and_after_the_lead_is_converted() -> None:
    converted = lead(ConvertedContactId="003EX0000000001AAA", ConvertedAccountId="001EX0000000001AAA")
    assert converted.values["customer_id"] == lead_of(Record(2, OPPORTUNITY)).values["customer_id"]
    assert lead(IndividualId="0PKEX").values["customer_id"] == "0PKEX"


def test_salesforce_names_are_those_of_persons() -> None:
    assert lead().names == ("Renée Sampleton", "Otis Mockford")
    assert lead_of(Record(2, OPPORTUNITY)).names == ("Renée Sampleton",)
    assert lead_of(Record(2, {"attributes": {"type": "Opportunity"}, "Name": "Sampleton - Tacoma"})).names == ()
    account = {"Name": "Household", "IsPersonAccount": False}
    assert lead_of(Record(2, {**OPPORTUNITY, "Contact": None, "Account": account})).names == ()
    person = {"Name": "Renée Sampleton", "IsPersonAccount": True}
    assert lead_of(Record(2, {**OPPORTUNITY, "Contact": None, "Account": person})).names == ("Renée Sampleton",)


def test_salesforce_names_of_related_records_are_found_in_csv_too() -> None:
    row = {"Id": "006", "StageName": "Won", "Name": "x", "Contact.FirstName": "Renée", "Contact.LastName": "Sampleton"}
    row |= {"Owner.Name": "Internet Leads", "Owner.FirstName": "", "Account.Name": "Notional Bakery"}
    assert lead_of(Record(2, row)).names == ("Renée Sampleton",)


@pytest.mark.parametrize(
    ("created", "day"),
    [
        ("2025-03-05T18:40:12.000+0000", "2025-03-05"),
        ("2025-03-05T18:40:12.000Z", "2025-03-05"),
        ("2025-03-05 18:40:12", "2025-03-05"),
        ("2025-03-05", "2025-03-05"),
        (1741200012000, "2025-03-05"),  # Bulk API 1.0, JSON
    ],
)
def test_salesforce_created_date_becomes_the_day(created: Any, day: str) -> None:
    assert lead(CreatedDate=created).values["occurred_at"] == day


def test_salesforce_date_that_is_not_understood_is_a_warning() -> None:
    record = lead(CreatedDate="13/03/2025")
    assert "occurred_at" not in record.values
    assert [(p.rule, p.column, p.is_warning) for p in record.problems] == [("type", "occurred_at", True)]


def test_salesforce_interest_dates_of_automotive_cloud_give_the_timeline() -> None:
    assert lead(LatestInterestDate="2025-03-12").values["timeline"] == "within_7d"
    assert lead(EarliestInterestDate="2025-09-01").values["timeline"] == "over_90d"
    assert "timeline" not in lead(EarliestInterestDate="2025-03-12").values
    assert "timeline" not in lead(LatestInterestDate="2025-03-12", CreatedDate=None).values


def test_salesforce_fields_may_be_in_capitals_as_data_loader_writes_them() -> None:
    upper = {name.upper(): value for name, value in LEAD.items()}
    assert lead_of(Record(7, upper)).values == lead().values


@pytest.mark.parametrize("description", [None, "", "  ", "<br>"])
def test_salesforce_lead_without_words_has_no_message(description: Any) -> None:
    assert "customer_message" not in lead(Description=description).values


def test_salesforce_description_that_is_no_text_is_left_to_validation() -> None:
    assert lead(Description=5).values["customer_message"] == 5


def test_salesforce_problems_of_the_raw_record_are_carried_over() -> None:
    damaged = CellProblem("encoding", "bytes", "Street")
    record = lead_of(Record(7, {**LEAD, "Description": "caf\udce9"}, (damaged,)))
    assert record.problems == (damaged,)
    assert record.values["customer_message"] == "caf\ufffd"
    broken = Record(7, {"Id": "1", "Email": "x"}, (CellProblem("malformed", "the row has 2 fields"),))
    assert lead_of(broken).values == broken.values
    assert lead_of(broken).is_partial


@pytest.mark.parametrize(
    "columns",
    [
        tuple(LEAD),
        tuple(OPPORTUNITY),
        ("Id", "Description"),
        ("ID", "DESCRIPTION", "CREATEDDATE"),
        ("Description", "CreatedDate", "Vehicle_Make__c", "Owner.Name", ""),
        ("attributes", "Description"),
    ],
)
def test_salesforce_is_told_by_its_api_names(columns: tuple[str, ...]) -> None:
    assert is_salesforce(columns)


@pytest.mark.parametrize(
    "columns",
    [
        (),
        ("Id", "Name", "Email"),
        ("id", "description"),
        ("First Name", "Last Name", "Created Date", "Description"),
        ("Lead ID", "Id", "CreatedDate", "Description"),
        ("customer_message", "vehicle_type", "condition"),
        ("complaint", "year", "make", "model", "OwnerId"),
    ],
)
def test_salesforce_is_not_seen_in_other_exports(columns: tuple[str, ...]) -> None:
    assert not is_salesforce(columns)


def test_salesforce_custom_fields_are_strangers_and_standard_ones_are_not() -> None:
    custom = ("Vehicle_Make__c", "Birthdate__pc", "Vehicle__r", "Vehicle__r.Name", "Owner.Team__c", "MAKE__C")
    assert strangers((*LEAD, *OPPORTUNITY, "NewStandardField", *custom)) == custom


def test_salesforce_export_without_a_description_lacks_a_column() -> None:
    (problem,) = missing(("Id", "CreatedDate"))
    assert (problem.rule, problem.column) == ("missing_column", "Description")
    assert missing(("ID", "DESCRIPTION")) == ()


def test_salesforce_sample_export_is_read() -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert is_salesforce(rows[0])
    leads = [lead_of(Record(2, row)) for row in rows]
    assert all(record.values["customer_message"] and not record.problems and record.names for record in leads)


def test_salesforce_record_of_another_object_is_malformed() -> None:
    (problem,) = lead(attributes={"type": "Case"}).problems
    assert (problem.rule, problem.column, problem.message) == (
        "malformed", None, "the record is a Case, not a Lead or an Opportunity",
    )  # fmt: skip
